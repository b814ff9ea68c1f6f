"""One daemon and one QEMU for all tests of a module; they start in well under a second."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from pivotd.client import Client
from pivotd.core.pivot import Phase
from pivotd.errors import PivotdError
from tests.cli.ctl import REPOSITORY, Answer, ctl
from tests.support.daemon import Daemon
from tests.support.qemu import Disk, Qemu, create_image

LONG_PAUSE = "[pause]\nmax_ms = 20000"
"""A busy machine can take longer than the usual 500 ms in a pause, and each attempt that gives up is one more pause."""
PATIENT = [
    sys.executable,
    "-c",
    "from pivotd import daemon, limits; limits.OTHERS_FILE_TIMEOUT_S = 30.0; daemon.main()",
]
"""Runs a pivotd that does not take a busy machine for storage that hangs: the usual 0.5 s may pass before a look begins."""


class Bench:
    """A domain ``web1`` with two disks, its daemon, and pivotctl for both."""

    def __init__(self, directory: Path, qemu: Qemu, daemon: Daemon) -> None:
        self.directory, self.qemu, self.daemon = directory, qemu, daemon
        self._images = 0

    def ctl(self, *arguments: str | Path) -> Answer:
        return ctl("--socket", self.daemon.socket, *arguments)

    def json(self, *arguments: str | Path) -> Answer:
        return ctl("--socket", self.daemon.socket, "--json", *arguments)

    def image(self) -> Path:
        """Return a path that no image has yet."""
        self._images += 1
        return self.directory / f"new{self._images}.qcow2"

    def at_ready(self) -> str:
        """Return the id of a new pivot that waits at ready."""
        answer = self.json("copy", "web1", f"disk1={self.image()}", "--no-pivot")
        assert answer.status == 0, answer
        return str(answer.json["id"])

    def settle(self) -> None:
        """Wait until every pivot that ends has ended: its disks are busy until then."""
        client = Client(self.daemon.socket, patience_s=0)
        with suppress(PivotdError):  # a test may have ended the daemon
            for pivot in client.pivots(open_only=True):
                if pivot.phase in {Phase.CANCELLING, Phase.PAUSING, Phase.DECIDED}:
                    client.wait(pivot.id, 60)

    def restart(self) -> None:
        """SIGKILL the daemon and start another one."""
        self.daemon.kill()
        self.daemon.start()


@pytest.fixture(autouse=True)
def settled(request: pytest.FixtureRequest) -> Iterator[None]:
    """A test leaves no pivot behind that is about to end."""
    yield
    if "bench" in request.fixturenames and isinstance(bench := request.getfixturevalue("bench"), Bench):
        bench.settle()


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    with tempfile.TemporaryDirectory(prefix="pivotd-") as name:
        directory = Path(name)
        disks = [Disk(create_image(directory / f"{letter}.qcow2")) for letter in "ab"]
        daemon = Daemon(
            directory,
            {"web1": directory / "web1.qmp"},
            configuration=LONG_PAUSE,
            command=PATIENT,
            environment={"PYTHONPATH": str(REPOSITORY)},
        )
        with Qemu(directory, disks) as qemu, daemon:
            yield Bench(directory, qemu, daemon)
