"""Why an interrupted copy is a mirror that waits, and no backup job that is started again from a dirty bitmap."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import QemuFactory
from tests.engine.test_copy import qemu_io_name
from tests.journal_disk.disk import Disk as Storage
from tests.journal_disk.server import Fault
from tests.support.qemu import Disk, Qemu, create_image

pytestmark = pytest.mark.qemu

RATE = 1 << 20
TIMEOUT_S = 90.0


@pytest.fixture
def storage(tmp_path: Path) -> Iterator[Storage]:
    with Storage(tmp_path / "new") as storage:
        yield storage


def guest_write(qemu: Qemu, where: str) -> None:
    line = f'qemu-io {qemu_io_name(qemu, "disk0")} "write -P 18 {where}"'
    qemu.spy("human-monitor-command", {"command-line": line})


def open_destination(qemu: Qemu, image: Path) -> None:
    qemu.spy(
        "blockdev-add", {"driver": "qcow2", "node-name": "new", "file": {"driver": "file", "filename": str(image)}}
    )


def backup(qemu: Qemu, sync: str, **more: object) -> None:
    arguments = {"job-id": "j", "device": "src0", "target": "new", "bitmap": "b", "bitmap-mode": "always"}
    qemu.spy("blockdev-backup", {**arguments, "sync": sync, "auto-dismiss": False, **more})


def until_concluded(qemu: Qemu) -> None:
    deadline_s = time.monotonic() + TIMEOUT_S
    while qemu.jobs()["j"]["status"] != "concluded":
        assert time.monotonic() < deadline_s
        time.sleep(0.01)
    qemu.spy("job-dismiss", id="j")


def test_a_backup_job_disturbs_the_guest_and_forgets_what_it_has_copied(
    qemu_factory: QemuFactory, storage: Storage, tmp_path: Path
):
    """A write of the guest fails with the destination; opened again, a qcow2 destination lacks what the bitmap says it has."""
    source, destination = create_image(tmp_path / "old.qcow2"), storage.where / "new.qcow2"
    subprocess.run(["qemu-io", "-c", "write -q -P 17 0 32M", str(source)], check=True)
    create_image(destination)
    qemu = qemu_factory([Disk(source)])
    open_destination(qemu, destination)
    qemu.spy("block-dirty-bitmap-add", node="src0", name="b")
    backup(qemu, "full", speed=RATE)
    deadline_s = time.monotonic() + TIMEOUT_S
    while qemu.spy("query-block-jobs")[0]["offset"] < RATE:
        assert time.monotonic() < deadline_s
        time.sleep(0.01)
    storage.fail(Fault("any", 1, "eio", lasting=True))
    guest_write(qemu, "20M 64k")
    assert "write failed: Input/output error" in qemu.errors_path.read_text()
    qemu.spy("job-cancel", id="j")
    until_concluded(qemu)
    qemu.spy("blockdev-del", node_name="new")
    storage.fail()
    open_destination(qemu, destination)
    backup(qemu, "bitmap")
    until_concluded(qemu)
    qemu.spy("stop")
    compared = subprocess.run(
        ["qemu-img", "compare", "-U", str(source), str(destination)], capture_output=True, text=True, check=False
    )
    assert "Content mismatch" in compared.stdout
