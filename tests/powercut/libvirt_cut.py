"""The power of a host is cut around the pivots of its libvirt: the next boot has to be from the right image.

    .venv/bin/python -m tests.powercut.libvirt_cut --cuts 20 --seed 1 [--plain]

libvirt writes a definition to disk before it gives it its name, but leaves that name, a change of the directory, to
chance. pivotd makes it durable before the guest goes on. Each cut comes at a random instant after an event of a pivot.
libvirt's definitions are on one file system, the images and pivotd's journal on another one; both lose what was not
flushed (powered_disk.py), and every process of the host dies. Then the host starts again with what is left:

- the journal alone names, if it is certain, an image with every number that the guest was told is flushed;
- once libvirtd and pivotd are there, no pivot is open, and verdict and next boot are one image;
- libvirt starts the guest from it, and nothing is missing there.

The kernel's boot id, by which pivotd tells one boot of a host from another, is a new one each time. Not lost in a cut:
the rest of the host, as /var/lib/libvirt.
"""

# ruff: noqa: T201 - a campaign speaks

from __future__ import annotations

import argparse
import contextlib
import ctypes
import os
import random
import select
import shutil
import struct
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pivotd.client import AdoptDisk, AdoptRequest, Client
from pivotd.errors import ClientError
from tests.libvirt.domain import PIVOT_POINTS
from tests.libvirt.guarding import guard, settled_verdict
from tests.libvirt.libvirtd import Libvirtd
from tests.libvirt.libvirtd import missing as libvirt_missing
from tests.libvirt.tiny_domain import TinyDomain
from tests.powercut import powered_disk
from tests.powercut.powered_disk import PoweredDisk
from tests.support.daemon import Daemon
from tests.support.seeds import drawn
from tests.support.waiting import until

AFTER_K6 = "RESUME after K6"
POINTS = ("STOP", "DEFINED 1", "DEFINED 2", "RESUME", AFTER_K6, "closed")
"""``DEFINED 1`` is the new name of libvirt's own definition, ``DEFINED 2`` of the one that pivotd asks for; by writing
the file of the second, libvirt makes the first durable on ext4. After K6, where libvirtd has died before its own save
and was started again, there is only the second, and only pivotd makes that durable."""
DELAYS_MS = (0.0, 10.0, 100.0)
SETTLE_S = 120.0
IN_MOVED_TO = 0x80
DEFINITIONS = Path("/etc/libvirt/qemu")


@dataclass(frozen=True, slots=True)
class Cut:
    """When the power goes. ``guarded`` False: libvirt pivots without anybody's guard."""

    point: str
    delay_ms: float
    guarded: bool = True

    def __str__(self) -> str:
        return f"{self.delay_ms} ms after {self.point}{'' if self.guarded else ', plain'}"


def cuts(rng: random.Random) -> Iterator[Cut]:
    """Yield cuts for ever."""
    while True:
        yield Cut(rng.choice(POINTS), round(rng.uniform(0, rng.choice(DELAYS_MS)), 1))


PLAIN = Cut("RESUME", 0.0, guarded=False)
"""libvirt alone, right after its pivot."""


class PoweredHost:
    """A host with libvirtd, pivotd and one guest that writes; a context manager."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._place = Path(tempfile.mkdtemp(prefix="pvpow"))
        self._boot_id = self._place / "boot_id"
        self._boots, self._numbers = 0, 0

    def __enter__(self) -> Self:
        with self._stack as stack:
            stack.callback(shutil.rmtree, self._place)
            self._definitions = stack.enter_context(PoweredDisk(self._place, "definitions", size="64M"))
            self._data = stack.enter_context(PoweredDisk(self._place, "data", size="2G"))
            self.libvirtd = stack.enter_context(Libvirtd())
            self.libvirtd.clear()  # by an answer of its keeper, everything else is mounted
            stack.callback(self._all_die)
            self._mount()
            self._begin_boot()
            into = ["nsenter", f"--target={self.libvirtd.keeper_pid}", "--mount"]
            subprocess.run([*into, "mount", "--bind", self._boot_id, "/proc/sys/kernel/random/boot_id"], check=True)
            self._directory = self.libvirtd.directory / "images/host"
            self._directory.mkdir()
            self.libvirtd.start()
            self.domain = TinyDomain(self.libvirtd)
            self.image = self.domain.image()
            self.domain.define()
            os.sync()
            self.daemon: Daemon = guard(self._directory, self.libvirtd)
            self.client = Client(str(self.daemon.socket), patience_s=SETTLE_S)
            self._start()
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._definitions.cut()
        self._data.cut()
        self._stack.close()

    # --- one cut

    def play(self, cut: Cut) -> tuple[list[str], str]:
        """Pivot, cut the power, start again; return what is wrong then, and the facts."""
        self._numbers += 1
        self.domain.copy("vda", self._numbers)
        with contextlib.suppress(ClientError):
            self._pivot_until(cut)
        self._definitions.cut()
        self._data.cut()
        self._all_die()
        last = self.domain.tiny.last_ack()
        self._power_on()
        problems, facts = self._left(cut, last)
        self.libvirtd.start()
        self.daemon.start()
        problems += self._decided(cut, last)
        self._boot()
        if not problems:
            image = Path(self.domain.root()).name
            if image != self.image.name or not self.domain.writes_go_on():
                problems.append(f"libvirt started the guest from {image}")
        return problems, f"{facts}, next boot {self.image.name}, {last} flushed"

    def _pivot_until(self, cut: Cut) -> None:
        """Ask for the pivot, and return when the power is to go."""
        spy, watch = self.domain.spy(), _Names(self._seen(DEFINITIONS))
        try:
            if not cut.guarded:
                self.libvirtd.ask("blockjob", self.domain.name, "vda", "--pivot")
                assert self.domain.writes_go_on()
                time.sleep(cut.delay_ms / 1000)
                return
            if cut.point == AFTER_K6:
                self.libvirtd.kill_at(PIVOT_POINTS["K6"])
            asked = self.client.start(self.domain.name, AdoptRequest(disks=[AdoptDisk(disk="vda")])).id
            if cut.point == AFTER_K6:
                self.libvirtd.await_death()
                self.libvirtd.start()
                spy.await_event("RESUME", timeout_s=SETTLE_S)
            elif cut.point == "closed":
                self.client.wait(asked, SETTLE_S)
                # As an operator would: what does not count any more is removed as soon as that is told.
                self.image.unlink()
            elif cut.point.startswith("DEFINED"):
                watch.wait("web1.xml", times=int(cut.point.split()[1]))
            else:
                spy.await_event(cut.point, timeout_s=SETTLE_S)
            time.sleep(cut.delay_ms / 1000)
        finally:
            watch.close()
            spy.close()

    def _left(self, cut: Cut, last: int) -> tuple[list[str], str]:
        """Judge what is on the disks, with nobody's help: definition and journal."""
        text = (self._seen(DEFINITIONS) / "web1.xml").read_text()
        source = ET.fromstring(text).find("devices/disk/source")
        assert source is not None
        facts = f"on disk: definition {Path(str(source.get('file'))).name}"
        if not cut.guarded:
            return [], facts
        verdict = self.daemon.ctl("verdict", self.domain.name, "vda", offline=True).json
        facts += f", verdict {Path(verdict['image'] or 'none').name}{'' if verdict['certain'] else ' (not certain)'}"
        lost = self._lost(Path(verdict["image"]), last) if verdict["certain"] and verdict["image"] else ""
        return [f"the journal alone names {verdict['image']}, which {lost}"] if lost else [], facts

    def _decided(self, cut: Cut, last: int) -> list[str]:
        """Judge what libvirtd and pivotd make of it; take the next boot's image for the next cut."""
        rest = [self.client.wait(pivot.id, SETTLE_S) for pivot in self.client.pivots(open_only=True)]
        problems = [f"a pivot is left open: {pivot}" for pivot in rest if pivot.phase != "closed"]
        self.image = self.domain.image().with_name(str(self.domain.believe().next_boot))
        if lost := self._lost(self.image, last):
            problems.append(f"the next boot is from {self.image.name}, which {lost}")
        if cut.guarded:
            verdict = settled_verdict(self.client, self.domain.name, "vda", SETTLE_S)
            # A disk that was never moved has no verdict but QEMU's own.
            if verdict.pivot is not None and (not verdict.certain or verdict.image != str(self.image)):
                problems.append(f"the next boot is {self.image}, but: {verdict}")
        return problems

    def _lost(self, image: Path, last: int) -> str:
        if not image.exists():
            return "does not exist"
        missing = self.domain.tiny.missing(image, "qcow2", last)
        return f"lacks the flushed numbers {missing[:8]} of {len(missing)}" if missing else ""

    # --- the host

    def _start(self) -> None:
        self.daemon.start()
        self._boot()

    def _boot(self) -> None:
        self.domain.boot()
        assert until(self._is_connected), "pivotd does not connect"

    def _is_connected(self) -> bool:
        return any(row.name == self.domain.name and row.connection == "connected" for row in self.client.domains())

    def _mount(self) -> None:
        images = self.libvirtd.directory / "images"
        self._definitions.mount(DEFINITIONS, self.libvirtd.keeper_pid)
        for process in (None, self.libvirtd.keeper_pid):
            self._data.mount(images, process)

    def _all_die(self) -> None:
        """Everything that runs on the host, and what it has in /run."""
        if hasattr(self, "daemon"):
            self.daemon.kill()
        self.libvirtd.clear_processes()
        for path in (self.libvirtd.directory / "run").glob("*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        self._definitions.let_go()
        self._data.let_go()

    def _power_on(self) -> None:
        self._definitions.power_on()
        self._data.power_on()
        self._mount()
        self._begin_boot()

    def _begin_boot(self) -> None:
        self._boots += 1
        self._boot_id.write_text(f"00000000-0000-4000-8000-{self._boots:012}\n")

    def _seen(self, path: Path) -> Path:
        """Return where a path of the libvirtd's namespace is seen from here."""
        return Path(f"/proc/{self.libvirtd.keeper_pid}/root{path}")


class _Names:
    """Tells when files of a directory get their names."""

    def __init__(self, directory: Path) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self._descriptor = libc.inotify_init1(os.O_CLOEXEC)
        if libc.inotify_add_watch(self._descriptor, os.fsencode(directory), IN_MOVED_TO) < 0:
            raise OSError(ctypes.get_errno(), f"inotify_add_watch of {directory}")

    def wait(self, name: str, *, times: int) -> None:
        """Return when a file has got this name so often."""
        left = times
        while left > 0:
            assert select.select([self._descriptor], [], [], SETTLE_S)[0], f"no new {name}"
            data = os.read(self._descriptor, 4096)
            while data:
                length = struct.unpack_from("iIII", data)[3]
                left -= data[16 : 16 + length].rstrip(b"\0") == name.encode()
                data = data[16 + length :]

    def close(self) -> None:
        os.close(self._descriptor)


def missing() -> str | None:
    """Return why this cannot be played here, None if it can."""
    return libvirt_missing() or powered_disk.missing()


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the cuts, print a table, return 1 if anything was wrong; libvirt alone promises nothing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cuts", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="0 takes PIVOTD_SEED, or one at random")
    parser.add_argument("--plain", action="store_true", help="libvirt pivots alone")
    options = parser.parse_args(arguments)
    if (why := missing()) is not None:
        print(f"skipped: {why}")
        return 0
    asked = cuts(random.Random(f"libvirt cuts/{drawn(options.seed)}"))
    words: Counter[str] = Counter()
    number = 0
    while number < options.cuts:
        with PoweredHost() as host:
            problems: list[str] = []
            while number < options.cuts and not problems:
                cut, began_s = PLAIN if options.plain else next(asked), time.monotonic()
                problems, facts = host.play(cut)
                words["wrong" if problems else "right"] += 1
                said: Any = "; ".join(problems) or "right"
                print(f"{number:>3}  {cut}: {facts}: {said}; {time.monotonic() - began_s:.1f} s", flush=True)
                number += 1
    print(f"{options.cuts} cuts: {words['right']} right, {words['wrong']} wrong")
    return int(words["wrong"] > 0 and not options.plain)


if __name__ == "__main__":
    sys.exit(main())
