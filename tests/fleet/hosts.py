"""Two hosts of a fleet on this machine: a pivotd, a journal and a way to etcd each; one guest, shared images.

The guest is the tiny one, which runs on either host. What it was told is complete, its serial port says, which both share.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, Self

from pivotd.config import Fleet
from pivotd.core.fleet import FleetView
from pivotd.core.rules.fleet_changes import forgotten
from pivotd.fleet.store import EtcdFleet
from tests.chaos.image_check import root_path
from tests.chaos.process import try_call
from tests.fleet.etcd import Cluster, stand_still
from tests.fleet.offline import offline
from tests.fleet.wires import Wires
from tests.support import waiting
from tests.support.daemon import Answer, Daemon
from tests.support.guest import end_torn_line
from tests.support.qemu import CACHES, Disk, Qemu, create_image
from tests.support.tiny_guest import SLOTS, TinyGuest, read_slots

DOMAIN = "web1"
IMAGE_SIZE = "40M"
TIMEOUT_MS = 1500
DAY_S = 86_400
CLOCK = Path(__file__).with_name("wrong_clock.c")
UNACKNOWLEDGED_MAX = 64
"""Numbers that the guest may have written beyond the last one that was acknowledged."""
_WORD = re.compile(rb"^(UP|ACK) ([0-9a-f]{8})\r?$", re.MULTILINE)


until = partial(waiting.until, look_s=0.01)
"""Looks are rarer here: each starts a pivotctl, and costs processor time."""


class Writes:
    """Every write that the guest was told is complete, in all its lives, on whichever host. From the serial port alone."""

    def __init__(self, log: Path) -> None:
        self.log = log
        self._offset = 0
        self._lives: list[list[int]] = []

    def last(self) -> int:
        """Return the last acknowledged number, -1 if there is none."""
        self._read()
        return max((last for first, last in self._lives if last >= first), default=-1)

    def next_first(self) -> int:
        """Return where the next life has to begin, so that no number is written twice."""
        self._read()
        ends = [max(life) + UNACKNOWLEDGED_MAX for life in self._lives]
        return (max(ends, default=0) // SLOTS + 1) * SLOTS

    def await_more(self, count: int = 8) -> bool:
        """Wait until so many more were acknowledged; return whether they were."""
        before = self.last()
        return until(lambda: self.last() >= before + count)

    def missing(self, image: str) -> list[int]:
        """Return the acknowledged numbers that a qcow2 image does not hold; nothing may change it meanwhile.

        An image that cannot be read holds none: QEMU was stopped in the middle of a change to a destination.
        """
        self._read()
        newest: dict[int, int] = {}
        for first, last in self._lives:
            newest.update((number % SLOTS, number) for number in range(max(first, last - SLOTS + 1), last + 1))
        try:
            slots = read_slots(Path(image), "qcow2")
        except subprocess.CalledProcessError:
            return sorted(newest.values())
        return sorted(n for slot, n in newest.items() if slots[slot] < n or slots[slot] % SLOTS != slot)

    def _read(self) -> None:
        if not self.log.exists():
            return
        with self.log.open("rb") as file:
            file.seek(self._offset)
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        for word, number in _WORD.findall(whole):
            if word == b"UP":
                self._lives.append([int(number, 16), -1])
            elif self._lives:
                self._lives[-1][1] = int(number, 16)


class FleetHost:
    """One host. ``qemu`` is its QEMU, None if it has none. ``fleet`` is etcd, seen by nobody's wires but its own."""

    def __init__(
        self, directory: Path, name: str, wires: Wires, fleet: Mapping[str, object], environment: Mapping[str, str]
    ) -> None:
        directory.mkdir()
        self._environment = {**os.environ, **environment}
        self.name, self.directory, self.wires = name, directory, wires
        self.qemu: Qemu | None = None
        settings = {"endpoints": wires.urls, "host": name, "timeout_ms": TIMEOUT_MS, **fleet}
        lines = ["[fleet]", *(f"{key} = {json.dumps(value)}" for key, value in settings.items())]
        self.config = directory / "fleet.toml"
        self.config.write_text("\n".join(lines))
        self.daemon = Daemon(
            directory, {DOMAIN: directory / f"{DOMAIN}.qmp"}, configuration="\n".join(lines), environment=environment
        )

    def kill_qemu(self) -> None:
        """End the QEMU of this host, if there is one."""
        if self.qemu is not None:
            self.qemu.stop()
            self.qemu = None

    def restart(self, *, wait: bool = True) -> None:
        """Start pivotd anew, as systemd does after a crash."""
        self.daemon.kill()
        self.daemon.start(wait=wait)

    def set_journal_aside(self) -> None:
        """Let the host come back with an empty disk; pivotd must not run."""
        state = self.daemon.state_dir
        state.rename(state.with_name(f"state-{time.monotonic_ns()}"))
        state.mkdir()

    def freeze(self) -> None:
        """Let pivotd and QEMU stand still."""
        for pid in self._pids():
            stand_still(pid)

    def thaw(self) -> None:
        """Let them go on."""
        for pid in self._pids():
            os.kill(pid, signal.SIGCONT)

    def words(self) -> dict[str, Any] | None:
        """Return pivotd's verdict for each disk that it knows, None if it does not answer."""
        found = try_call(self.daemon, "GET", f"/v1/verdicts?domain={DOMAIN}")
        return {one["disk"]: one for one in found} if isinstance(found, list) else None

    def offline(self, *words: str) -> Answer:
        """Ask its journal and the fleet; pivotd has to be dead."""
        return offline(self.config, self.daemon.state_dir, *words, environment=self._environment)

    def take(self, chosen: Mapping[str, str]) -> subprocess.Popen[str]:
        """Let an operator take the guest here; return the command while it runs."""
        images = [part for disk, image in chosen.items() for part in ("--image", f"{disk}={image}")]
        command = [str(Path(sys.executable).with_name("pivotctl")), "--json", "fleet", "--config", str(self.config)]
        return subprocess.Popen(
            [*command, "take", DOMAIN, "--fenced", *images],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=self._environment,
        )  # fmt: skip

    def _pids(self) -> list[int]:
        return [self.daemon.pid, *([self.qemu.pid] if self.qemu is not None else [])]


def wrong_clock(directory: Path, ahead_s: int) -> dict[str, str]:
    """Return the environment of a process whose wall clock is wrong; needs gcc."""
    library = directory / "wrong_clock.so"
    subprocess.run(["gcc", "-shared", "-fPIC", "-O2", "-o", library, CLOCK], check=True)
    return {"LD_PRELOAD": str(library), "WRONG_CLOCK_S": str(ahead_s)}


class Site:
    """Everything: etcd, the two hosts, the guest. ``images`` are what the guest uses, or will use, by disk.

    The clock of the second host is a day ahead.
    """

    def __init__(self, directory: Path, cluster: Cluster, prefix: str, on_silence: str, disks: int = 1) -> None:
        self.directory, self.cluster = directory, cluster
        self._stack = ExitStack()
        self.images = {
            f"disk{n}": str(create_image(directory / f"disk{n}-0.qcow2", size=IMAGE_SIZE)) for n in range(disks)
        }
        self.serial = directory / "serial"
        self.writes = Writes(self.serial)
        self._numbers = itertools.count(1)
        self._prefix = prefix
        self._fleet = {"prefix": prefix, "on_silence": on_silence}

    def __enter__(self) -> Self:
        try:
            wires = [self._stack.enter_context(Wires(self.cluster.urls)) for _ in range(2)]
            self._view = wires[0]
            self._store = EtcdFleet(Fleet(self.cluster.urls, prefix=self._prefix, host="observer"))
            self._stack.callback(self._close_store)
            clocks: tuple[dict[str, str], ...] = ({}, wrong_clock(self.directory, DAY_S))
            self.hosts = [
                FleetHost(self.directory / name, f"host-{name}", way, self._fleet, clock)
                for name, way, clock in zip("ab", wires, clocks, strict=True)
            ]
            for host in self.hosts:
                self._stack.callback(host.daemon.kill)
                self._stack.callback(host.kill_qemu)
            self.here, self.there = self.hosts
            for host in self.hosts:
                host.daemon.start(wait=False)
            for host in self.hosts:
                host.daemon.await_ready()
            self.start(self.here)
            assert self.writes.await_more()
            assert until(lambda: self.view().owner is not None), "the first host does not claim the guest"
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _close_store(self) -> None:
        async def close() -> None:
            self._store.close()

        self._view.run(close())

    def view(self) -> FleetView:
        """Return what a majority of etcd holds. Raises: FleetSilentError: there is none."""
        return self._view.run(self._store.read(DOMAIN, 2.0))

    def forget(self) -> None:
        """Remove the domain from the fleet, as a person may. Raises: FleetError."""
        view = self.view()
        self._view.run(self._store.write(view, forgotten(view), 10.0))

    def start(self, host: FleetHost, *, locking: bool = True, incoming: str | None = None) -> None:
        """Start the guest on a host. ``locking``: as QEMU does it; an old host that is frozen has its images locked."""
        if incoming is None:
            end_torn_line(self.serial)
        disks = []
        for image in self.images.values():
            file = {
                "driver": "file",
                "filename": image,
                "cache": CACHES["none"],
                "locking": "auto" if locking else "off",
            }
            disks.append(Disk(Path(image), bus="ide", node={"file": file}))
        guest = TinyGuest(disks=len(disks), first=self.writes.next_first())
        extra = [] if incoming is None else ["-incoming", incoming]
        host.kill_qemu()
        host.qemu = guest.qemu(host.directory, disks, serial=self.serial, extra=extra).start()

    def targets(self) -> dict[str, str]:
        """Return a new image for each disk."""
        number = next(self._numbers)
        return {disk: str(self.directory / f"{disk}-{number}.qcow2") for disk in self.images}

    def roots(self, host: FleetHost) -> dict[str, str]:
        """Return what QEMU uses."""
        assert host.qemu is not None
        return {disk: root_path(host.qemu, disk) for disk in self.images}

    def swap(self) -> None:
        """The guest lives on the other host now."""
        self.here, self.there = self.there, self.here

    def sweep(self, chains: Mapping[str, list[str]]) -> None:
        """Delete the images that the guest does not use any more."""
        used = {layer for chain in chains.values() for layer in chain}
        for image in self.directory.glob("disk*-*.qcow2"):
            if str(image) not in used:
                image.unlink()
