"""A pivotd that guards the pivots of a private libvirtd, and what has to be true once everything has settled."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import msgspec

from pivotd.client import Client, Verdict
from tests.libvirt.domain import Domain
from tests.libvirt.libvirtd import Libvirtd
from tests.support.daemon import Daemon

WAIT_S, LOOK_S = 60.0, 0.02
PROGRAM = Path(sys.executable).parent / "pivotd"
CONFIGURATION = '[libvirt]\nuri = "{}"\n[log]\nlevel = "debug"\n[pause]\nmax_ms = 5000'


def until(true: Callable[[], Any], what: str = "it") -> Any:
    """Return what ``true`` returns once that is true."""
    deadline_s = time.monotonic() + WAIT_S
    while not (found := true()):
        assert time.monotonic() < deadline_s, f"{what} does not come"
        time.sleep(LOOK_S)
    return found


def guard(directory: Path, libvirtd: Libvirtd, more: str = "") -> Daemon:
    """Return a pivotd beside a libvirtd, not started: both have its files at their default places.

    A libvirtd of another release lives in a tree where this Python is not: its pivotd stays outside.
    ``more``: further TOML.
    """
    if libvirtd.tree is not None:
        return Daemon(directory, {}, configuration=f"{CONFIGURATION.format(libvirtd.uri)}\n{more}")
    command = libvirtd.inside(str(PROGRAM))
    return Daemon(directory, {}, configuration=f"{CONFIGURATION.format('qemu:///system')}\n{more}", command=command)


def settled_verdict(client: Client, domain: str, target: str, timeout_s: float = WAIT_S) -> Verdict:
    """Return a disk's verdict once it is none to ask again for; after so long, as it is.

    Right after a restart of libvirtd or pivotd, the journal's word is not certain: QEMU runs, and is not asked yet.
    """
    deadline_s = time.monotonic() + timeout_s
    while (found := client.verdicts(domain, target)[0]).pending and time.monotonic() < deadline_s:
        time.sleep(LOOK_S)
    return found


@dataclass(frozen=True, slots=True)
class Ended:
    """How a pivot stands: its phase, its outcome, what it waits for; root, live and next boot; the run state."""

    phase: str
    outcome: str | None
    detail: str
    images: tuple[str, str | None, str | None]
    run_state: str
    verdict: Any


class Guarded:
    """One domain, its libvirtd and its pivotd, any of which may die; a context manager that leaves no pivotctl."""

    def __init__(self, domain: Domain, daemon: Daemon) -> None:
        self.domain, self.libvirtd, self.daemon = domain, domain.libvirtd, daemon
        # In this process: a pivotctl for each look would keep a processor busy.
        self.client = Client(str(daemon.socket), patience_s=WAIT_S)
        self._asking: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for asking in self._asking:
            asking.kill()
            asking.wait()

    def await_domain(self) -> None:
        """Wait until pivotd is connected to the domain."""
        until(self._connected, "the domain")

    def _connected(self) -> bool:
        return any(row.name == self.domain.name and row.connection == "connected" for row in self.client.domains())

    def begin(self, *arguments: str, told: bool = False) -> subprocess.Popen[bytes]:
        """Let pivotctl ask for something in the background; ``told``: the caller reads what it says."""
        ctl = [str(PROGRAM.with_name("pivotctl")), "--socket", str(self.daemon.socket), *arguments]
        to = subprocess.PIPE if told else subprocess.DEVNULL
        self._asking.append(subprocess.Popen(ctl, stdout=to, stderr=to))
        return self._asking[-1]

    def pivot(self) -> Any:
        """Return the newest pivot, as `pivot show` tells it."""
        (newest,) = self.client.pivots(limit=1)
        return msgspec.to_builtins(self.client.pivot(newest.id))

    def settled(self, timeout_s: float) -> Any:
        """Return the newest pivot once it is closed, or has had time enough; one that is held may be ended by others."""
        until_s = time.monotonic() + timeout_s
        while (shown := self.pivot())["phase"] != "closed" and (left_s := until_s - time.monotonic()) > 0:
            self.client.wait(shown["id"], left_s)
            time.sleep(LOOK_S)
        return shown

    def told(self, pivot: str) -> str:
        """Return what `pivot show` says of a pivot."""
        ctl = [PROGRAM.with_name("pivotctl"), "--socket", self.daemon.socket, "pivot", "show", pivot]
        return " ".join(subprocess.run(ctl, capture_output=True, text=True, check=False).stdout.split())

    def ended(self, target: str = "vda") -> Ended:
        """Return how the newest pivot stands."""
        shown = self.pivot()
        believed = self.domain.believe(target)
        spy = self.domain.spy()
        run_state = spy.execute("query-status")["status"]
        spy.close()
        return Ended(
            shown["phase"], shown["outcome"], self.told(shown["id"]),
            (self.domain.root(target), believed.live, believed.next_boot), run_state,
            msgspec.to_builtins(self.client.verdicts(self.domain.name, target)[0]),
        )  # fmt: skip

    def await_end(self) -> None:
        """Wait until the newest pivot is closed."""
        assert self.settled(WAIT_S)["phase"] == "closed", self.pivot()

    def assert_right(self, target: str = "vda", *, source: int = 0) -> None:
        """The guest runs, QEMU and libvirt and the verdict name one image, and a further pivot of libvirt works.

        ``source``: the number of the image that the disk was on.
        That pivot is left out where the record says that libvirt is stuck with the last one.
        """
        settled_verdict(self.client, self.domain.name, target)
        end = self.ended(target)
        root, *believed = end.images
        assert believed == [root, root], end
        assert end.run_state == "running", end
        assert end.verdict["certain"], end
        assert Path(end.verdict["image"]).name == root, end
        assert end.outcome == ("kept" if root.endswith(f"-{source}.qcow2") else "switched"), end
        if "and starts no other: restart libvirtd" in (self.pivot()["error"] or ""):
            return
        if self.domain.believe(target).mirror == "yes":
            self.libvirtd.ask("blockjob", self.domain.name, target, "--abort")
        self.domain.copy(target, 9)
        self.libvirtd.ask("blockjob", self.domain.name, target, "--pivot")
        assert self.domain.root(target).endswith("-9.qcow2"), "libvirt does not go on"
