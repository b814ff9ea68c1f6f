"""README.md, docs/evacuate.md and docs/doctor.md show sessions: on real guests, each prints what the page says.

Ids, times, lengths and sizes differ, and so does the place of the directories; words, columns and their order do not.
"""

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

from tests.documents import ROOT
from tests.support.daemon import Daemon
from tests.support.qemu import Disk, Qemu, create_image

pytestmark = pytest.mark.qemu


CACHES = {"db1": "unsafe", "web1": "writeback"}
"""The guests of docs/doctor.md."""


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def sessions(page: str) -> list[tuple[str, str]]:
    """Return each command of a page of which it shows the output, with that."""
    blocks = re.findall(r"```console\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    pairs = re.findall(r"^\$ (pivotctl .*)\n((?:(?!\$ ).*\n)+)", "\n".join(blocks), re.MULTILINE)
    return [(command, output) for command, output in pairs if output.strip()]


def shape(output: str) -> list[str]:
    """Return the words, with one word for each kind of value that differs from run to run."""
    for pattern, word in (
        (r"\b01[0-9A-Z]{24}\b", "ID"),
        (r"\d{4}-\d\d-\d\dT[\d:.]+Z", "TIME"),
        (r"\b\d+(\.\d+)? (ms|s)\b", "LENGTH"),
        (r"\b\d+(\.\d+)? [KMGT]iB\b", "SIZE"),
        (r"\b\d+\.\d+\.\d+\b", "RELEASE"),
    ):
        output = re.sub(pattern, word, output)
    return output.split()


def run(daemon: Daemon, *words: str) -> subprocess.CompletedProcess[str]:
    """Run pivotctl as on a wide terminal's pipe."""
    environment = {**os.environ, "PIVOTCTL_SOCKET": str(daemon.socket), "COLUMNS": "250"}
    command = [Path(sys.executable).parent / words[0], *words[1:]]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


def play(page: str, directory: Path, daemon: Daemon) -> int:
    """Play the sessions of a page with its directories below ``directory``; return how many there were."""
    found = sessions(page)
    for command, output in found:
        done = run(daemon, *re.sub(r"(?<=[ =])/", f"{directory}/", command).split())
        advice = "" if done.returncode == 0 else done.stderr
        shown = (done.stdout + advice).replace(str(directory), "")
        assert shape(shown) == shape(output), f"{command}: {shown}{done.stderr}"
    return len(found)


def test_the_tour(stack: ExitStack):
    """README.md: a domain, a copy, the verdict."""
    directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pt")))
    for name in ("old", "new"):
        (directory / name).mkdir()
    qemu = stack.enter_context(Qemu(directory, [Disk(create_image(directory / "old/web1.qcow2"))]))
    daemon = stack.enter_context(Daemon(directory, {"web1": qemu.qmp}))
    assert play("README.md", directory, daemon) == 3


def test_the_plan_of_an_evacuation(stack: ExitStack):
    """docs/evacuate.md: three disks move, and one that lies elsewhere keeps its backing image in the old place."""
    directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pt")))
    for name in ("old", "new", "fast", "old/db1"):
        (directory / name).mkdir()
    system, data = (create_image(directory / "old/db1" / f"{name}.qcow2") for name in ("system", "data"))
    golden = create_image(directory / "old/golden.qcow2")
    overlay = create_image(directory / "fast/test1.qcow2", options=f"backing_file={golden},backing_fmt=qcow2")
    guests = {
        "db1": [Disk(system, name="disk0"), Disk(data, name="disk1")],
        "web1": [Disk(create_image(directory / "old/web1.qcow2"))],
        "test1": [Disk(overlay)],
    }
    qemus = [stack.enter_context(Qemu(directory, disks, name=name)) for name, disks in guests.items()]
    daemon = stack.enter_context(Daemon(directory, {qemu.name: qemu.qmp for qemu in qemus}))
    assert play("docs/evacuate.md", directory, daemon) == 1


def test_the_findings_of_doctor(stack: ExitStack):
    """docs/doctor.md: a guest with cache=unsafe, and one that somebody has paused."""
    directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pt")))
    disks = {name: Disk(create_image(directory / f"{name}.qcow2"), cache=cache) for name, cache in CACHES.items()}
    qemus = {name: stack.enter_context(Qemu(directory, [disk], name=name)) for name, disk in disks.items()}
    qemus["web1"].spy("stop")
    daemon = stack.enter_context(Daemon(directory, {name: qemu.qmp for name, qemu in qemus.items()}))
    page = (ROOT / "docs" / "doctor.md").read_text()
    findings = re.findall(r"^(?:error|warning)  .*\n    .*\n    -> .*$", page, re.MULTILINE)
    assert len(findings) == 2
    done = run(daemon, "pivotctl", "doctor", "--ignore", "storage-room", "--ignore", "state-dir-room")
    assert done.returncode == 8
    assert re.findall(r"^(?:error|warning)  .*\n    .*\n    -> .*$", done.stdout, re.MULTILINE) == findings
