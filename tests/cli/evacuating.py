"""A daemon to which guests are added, an old place, a new one, and `pivotctl evacuate` from the one to the other."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path
from typing import Any

from pivotd.client import Client, CopyDisk, CopyRequest, DiskView, Pivot
from tests.cli.conftest import LONG_PAUSE, PATIENT
from tests.cli.ctl import REPOSITORY, Answer, ctl, start
from tests.support.daemon import Daemon
from tests.support.qemu import Disk, Qemu, create_image

MIB = 1 << 20


def image(path: Path, mib: int = 1, **options: Any) -> Path:
    """Return a new image, in a directory that may be new, with so much data."""
    path.parent.mkdir(parents=True, exist_ok=True)
    create_image(path, **options)
    kind = options.get("image_format", "qcow2")
    if mib:
        subprocess.run(["qemu-io", "-f", kind, "-c", f"write -q -P 7 0 {mib}M", path], check=True)
    return path


@contextmanager
def running_daemon() -> Iterator[Daemon]:
    """Run a daemon without domains."""
    with tempfile.TemporaryDirectory(prefix="pivotd-") as name:
        environment = {"PYTHONPATH": str(REPOSITORY)}
        with Daemon(Path(name), {}, configuration=LONG_PAUSE, command=PATIENT, environment=environment) as running:
            yield running


class Bed:
    """The places of one test, and its guests; the daemon is that of the module.

    Its journal remembers every guest, so each test has domains of its own; a mark in their names, which is taken out of
    all answers, tells them apart.
    """

    numbers = count()

    def __init__(self, directory: Path, daemon: Daemon, stack: ExitStack) -> None:
        self.old, self.new = directory / "old", directory / "new"
        for place in (self.old, self.new):
            place.mkdir(parents=True)
        self.directory, self.daemon, self._stack = directory, daemon, stack
        self.client = Client(str(daemon.socket))
        self.mark = f"-t{next(self.numbers)}t"
        self.qemus: dict[str, Qemu] = {}

    def guest(self, name: str, *disks: Disk | Path, add: bool = True) -> Qemu:
        """Start a guest without a system, and let pivotd manage it."""
        known = [disk if isinstance(disk, Disk) else Disk(disk) for disk in disks]
        self.qemus[name] = self._stack.enter_context(Qemu(self.directory, known, name=name))
        if add:
            self.add(name)
        return self.qemus[name]

    def add(self, name: str) -> None:
        self.client.add_domain(self.domain(name), str(self.directory / f"{name}.qmp"))

    def domain(self, name: str) -> str:
        """Return the name that pivotd has for a guest."""
        return f"{name}{self.mark}"

    def command(self, *arguments: str | Path) -> list[str | Path]:
        """Return the arguments of pivotctl; a place among them counts instead of the usual one."""
        places = [
            part
            for option, place in (("--from", self.old), ("--to", self.new))
            if option not in arguments
            for part in (option, place)
        ]
        return ["--socket", self.daemon.socket, "evacuate", *places, *arguments]

    def run(self, *arguments: str | Path) -> Answer:
        return self._plain(ctl(*self.command(*arguments)))

    def json(self, *arguments: str | Path) -> Answer:
        return self._plain(ctl("--json", *self.command(*arguments)))

    def begin(self, *arguments: str | Path) -> subprocess.Popen[str]:
        return start(*self.command(*arguments))

    def _plain(self, answer: Answer) -> Answer:
        return Answer(answer.status, *(text.replace(self.mark, "") for text in (answer.stdout, answer.stderr)))

    def images(self) -> dict[str, list[str]]:
        """Return the images of each guest, relative to the directory of the test."""
        return {
            name: [str(Path(disk.image or "").relative_to(self.directory)) for disk in self.disks(name)]
            for name in self.qemus
        }

    def disks(self, name: str) -> list[DiskView]:
        return self.client.disks(self.domain(name))

    def copy(self, name: str, target: Path, **options: Any) -> str:
        """Start a copy of disk0, and return its id."""
        request_id = options.pop("request_id", None)
        request = CopyRequest(disks=[CopyDisk(disk="disk0", image=str(target))], **options)
        return self.client.start(self.domain(name), request, request_id=request_id).id

    def pivots(self, *names: str) -> list[Pivot]:
        """Return the pivots of the guests of this test, or of those named, oldest first."""
        wanted = {self.domain(name) for name in names or self.qemus}
        return [pivot for pivot in self.client.pivots() if pivot.domain in wanted][::-1]

    def is_copying(self) -> bool:
        return any(pivot.phase == "copying" for pivot in self.pivots())

    def outcomes(self) -> list[tuple[str, str | None]]:
        return [(pivot.domain.removesuffix(self.mark), pivot.outcome) for pivot in self.pivots()]


def moved(answer: Answer) -> list[str]:
    """Return the domains that have moved, by the JSON document."""
    return [move["domain"] for move in answer.json["moves"] if move["done"]]


def reasons(answer: Answer) -> dict[str, str]:
    """Return what stays, and why, by the JSON document."""
    return {f"{one['domain']} {one['disk']}": one["reason"] for one in answer.json["left"]}
