"""docs/tasks.md: every command on it is run, in order, against two real QEMUs and a real daemon."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.daemon import Daemon
from tests.support.qemu import Disk, Qemu, create_image

pytestmark = pytest.mark.qemu

PAGE = Path(__file__).parents[1] / "docs" / "tasks.md"
CRASH = "After a crash of the host"


def sections() -> dict[str, list[list[str]]]:
    """Return the blocks of commands of each section."""
    found = {}
    for part in PAGE.read_text().split("\n## ")[1:]:
        title, _, body = part.partition("\n")
        found[title] = [block.strip().splitlines() for block in re.findall(r"```sh\n(.*?)```", body, re.DOTALL)]
    return found


class Host:
    """The two guests of the page, below a directory of the test's."""

    def __init__(self, directory: Path, stack: ExitStack) -> None:
        self.directory = directory
        for name in ("images", "new"):
            (directory / name).mkdir()
        images = directory / "images"
        web = [Disk(create_image(images / "web1.qcow2"))]
        base = [create_image(images / f"db1-{name}.qcow2") for name in ("system", "data", "log")]
        db = [Disk(image, name=name) for image, name in zip(base, ("system", "data", "log"), strict=True)]
        self.qemus = [stack.enter_context(Qemu(directory, disks, name=n)) for n, disks in (("web1", web), ("db1", db))]
        self.daemon = Daemon(directory, {qemu.name: qemu.qmp for qemu in self.qemus})
        stack.callback(self.daemon.kill)
        self.daemon.start()

    def run(self, command: str) -> subprocess.CompletedProcess[str]:
        """Run one line as a user would, with the page's paths below the test's directory."""
        line = re.sub(r"(?<![\w/])/(images|new)/", rf"{self.directory}/\1/", command)
        line = line.replace("/var/lib/pivotd", str(self.daemon.state_dir))
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        environment = {**os.environ, "PATH": path, "PIVOTCTL_SOCKET": str(self.daemon.socket)}
        return subprocess.run(["bash", "-c", line], env=environment, capture_output=True, text=True, check=False)

    def crash(self) -> None:
        """Everything is gone at once."""
        self.daemon.kill()
        for qemu in self.qemus:
            qemu.kill()


@pytest.fixture
def host() -> Iterator[Host]:
    with tempfile.TemporaryDirectory(prefix="pt") as name, ExitStack() as stack:
        yield Host(Path(name), stack)


def test_every_command_does_what_its_task_says(host: Host):
    """Status 0 and no complaint, also with everything dead."""
    found = sections()
    assert CRASH in found
    for title, blocks in found.items():
        if title == CRASH:
            host.crash()
        for block in blocks:
            for command in block:
                if title == CRASH and "--offline" not in command:
                    host.daemon.start()
                done = host.run(command)
                assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
                assert "pivotctl:" not in done.stderr, f"{command}: {done.stderr}"
                # These return once that is in the journal; what is left in QEMU goes after it.
                if " cancel " in command or " release " in command:
                    host.run(f"pivotctl wait {command.split()[-1]}")
    verdicts = {verdict["disk"]: verdict for verdict in host.daemon.ctl("verdict", offline=True).json}
    names = {disk: Path(verdict["image"]).name for disk, verdict in verdicts.items()}
    # The guest web1 has taken everything into its newest overlay; db1 was written back into its first images.
    assert names == {
        "disk0": "web1-tuesday.qcow2",
        "system": "db1-system.qcow2",
        "data": "db1-data.qcow2",
        "log": "db1-log.qcow2",
    }
