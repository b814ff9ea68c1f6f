"""The journal fails in the middle of a pause: the guest goes on with the source, and nobody is told of a switch."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.rounds import call
from tests.conftest import QemuFactory
from tests.support.daemon import Daemon
from tests.support.proxy import Direction, Message, When
from tests.support.qemu import Disk, Qemu, create_image

pytestmark = [pytest.mark.qemu, pytest.mark.chaos]


@pytest.fixture
def small_state(tmp_path: Path) -> Iterator[Path]:
    """A state directory on a file system of 4 MB."""
    state = tmp_path / "state"
    state.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(state)], check=False, capture_output=True
    )
    if done.returncode:
        pytest.skip("needs root to mount a small file system")
    try:
        yield state
    finally:
        subprocess.run(["umount", "-l", str(state)], check=True)


class FillAt:
    """Fills the file system when a message passes for the first time."""

    def __init__(self, state: Path, label: str) -> None:
        self.filler = state / "filler"
        self.label = label
        self.done = False

    def __call__(self, direction: Direction, index: int, message: Message, when: When) -> None:
        if message.label == self.label and when is When.BEFORE and not self.done:
            self.done = True
            with self.filler.open("wb", buffering=0) as file:
                try:
                    while True:
                        file.write(b"x" * 4096)
                except OSError:
                    return


@pytest.mark.parametrize(
    ("legacy", "disks"),
    [
        pytest.param(
            legacy, disks, id=f"{'drive' if legacy else 'blockdev'}-{disks}", marks=[pytest.mark.long] * seldom
        )
        for legacy, disks, seldom in ((False, 1, 0), (False, 2, 1), (True, 1, 1), (True, 2, 0))
    ],
)
@pytest.mark.parametrize("label", ["command:stop", "return:stop", "command:job-finalize", "return:job-finalize"])
@pytest.mark.thinned(2)
def test_a_disk_that_fills_up_in_the_pause_costs_nothing(
    qemu_factory: QemuFactory, tmp_path: Path, small_state: Path, label: str, legacy: bool, disks: int
):
    """The journal has written so much before the pause that it only overwrites blocks in it, also where none is free.

    What becomes of a switch whose record finds no space is shown by tests/journal_disk, at every write.
    """
    fill = FillAt(small_state, label)
    proxy = Qemu.proxy_for(tmp_path, on_message=fill)
    old = [create_image(tmp_path / f"old{i}.qcow2") for i in range(disks)]
    qemu = qemu_factory([Disk(path, legacy=legacy) for path in old], proxy=proxy)
    with Daemon(tmp_path, {"web1": qemu.qmp}) as daemon:
        targets = [{"disk": f"disk{i}", "image": str(tmp_path / f"new{i}.qcow2")} for i in range(disks)]
        body = {"disks": targets, "max_pause_ms": 60_000}  # one pause, also on a busy machine
        pivot = call(daemon, "POST", "/v1/domains/web1/copy", body)["id"]
        qemu.await_event("STOP")
        qemu.await_event("RESUME")
        assert fill.done
        new = [target["image"] for target in targets]
        assert [qemu.root(f"disk{i}").filename for i in range(disks)] == new
        assert {v["image"] for v in daemon.ctl("verdict", "web1", offline=True).json} == set(new)
        fill.filler.unlink()
        assert call(daemon, "GET", f"/v1/pivots/{pivot}/wait?timeout_s=60", timeout_s=90)["outcome"] == "switched"
        assert qemu.run_state() == "running"
        assert qemu.jobs() == {}


def test_nothing_new_starts_while_nothing_can_be_recorded(qemu_factory: QemuFactory, tmp_path: Path, small_state: Path):
    """A request is refused with the reason, QEMU is not touched; it works again when there is space."""
    qemu = qemu_factory([Disk(create_image(tmp_path / "old.qcow2"))])
    with Daemon(tmp_path, {"web1": qemu.qmp}) as daemon:
        fill = FillAt(small_state, "x")
        fill(Direction.TO_QEMU, 0, Message(b"", {}, "x", 1, Direction.TO_QEMU, 0, 0, 0), When.BEFORE)
        answer = daemon.ctl("copy", "web1", f"disk0={tmp_path}/new.qcow2")
        assert (answer.status, answer.json["error"]["kind"]) == (4, "journal-full")
        assert qemu.jobs() == {}
        fill.filler.unlink()
        assert daemon.ctl("copy", "web1", f"disk0={tmp_path}/new.qcow2").status == 0
