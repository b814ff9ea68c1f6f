"""The undo window on real QEMU: the old image follows the new one, and the disk returns to it or does not."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from pivotd.core import names
from pivotd.core.pivot import Outcome, Phase, Pivot
from pivotd.core.request import Requester
from pivotd.core.undo import Undo
from pivotd.engine.driver import Driver
from pivotd.engine.inbox import Cancel, Release, TakeBack
from pivotd.errors import DiskBusyError
from tests.conftest import QemuFactory
from tests.support.qemu import Disk, Qemu, create_image

from .conftest import TIMEOUT_S, Engine
from .test_copy import assert_clean, content, write

WHO = Requester(0, 0, 1)
pytestmark = pytest.mark.qemu

UNDO = "01K9ABCDEFGHJKMNPQRSTVUND{}"


async def in_window(engine: Engine, driver: Driver) -> Pivot:
    """Wait until the pivot rests, and its window is open."""
    pivot = await engine.resting(driver)
    assert (pivot.phase, pivot.outcome, pivot.window_open) == (Phase.DECIDED, "switched", True), pivot.error
    return pivot


async def undone(engine: Engine, driver: Driver, name: str = "web1") -> Driver:
    """Take a pivot back; return the driver of the pivot that does it."""
    driver.state.inbox.post(TakeBack(WHO, undo=Undo(UNDO.format(0), WHO)))
    await engine.closed(driver)
    assert driver.successor is not None
    async with asyncio.timeout(TIMEOUT_S):
        while driver.successor.id not in engine.host.get(name).drivers:
            await asyncio.sleep(0)
    return engine.host.get(name).drivers[driver.successor.id]


@pytest.mark.parametrize("legacy", [False, True], ids=["blockdev", "drive"])
@pytest.mark.parametrize("bus", ["virtio-blk", "virtio-scsi", "ide", "nvme"])
async def test_an_undo_returns_to_the_old_image_with_every_later_write(
    engine: Engine, qemu_factory: QemuFactory, tmp_path: Path, bus: str, legacy: bool
):
    """What was written during the window is in the old image, the guest runs, nothing is left."""
    qemu = qemu_factory([Disk(create_image(tmp_path / "old.qcow2"), bus=bus, legacy=legacy)])
    await engine.connect(qemu)
    write(qemu, "disk0", 1)
    driver = await engine.copy("web1", {"disk0": tmp_path / "new.qcow2"}, keep_synced=True)
    first = await in_window(engine, driver)
    assert qemu.run_state() == "running"
    write(qemu, "disk0", 2)
    second = await engine.closed(await undone(engine, driver))
    assert (driver.pivot.phase, driver.pivot.outcome) == (Phase.CLOSED, "switched")
    assert second.outcome == Outcome.SWITCHED, second.error
    assert second.undo_of == first.id
    assert qemu.root("disk0").filename == str(tmp_path / "old.qcow2")
    assert qemu.run_state() == "running"
    assert_clean(qemu)
    qemu.kill(15)
    qemu.wait()
    assert content(tmp_path / "old.qcow2", "qcow2") == content(tmp_path / "new.qcow2", "qcow2")


async def test_several_disks_return_as_one(engine: Engine, qemu_factory: QemuFactory, tmp_path: Path):
    """One pause there, one pause back."""
    qemu = qemu_factory([Disk(create_image(tmp_path / f"old{i}.qcow2")) for i in range(3)])
    await engine.connect(qemu)
    driver = await engine.copy("web1", {f"disk{i}": tmp_path / f"new{i}.qcow2" for i in range(3)}, keep_synced=True)
    await in_window(engine, driver)
    second = await engine.closed(await undone(engine, driver))
    assert second.outcome == Outcome.SWITCHED, second.error
    assert len(second.pauses) == 1
    assert [qemu.root(f"disk{i}").filename for i in range(3)] == [str(tmp_path / f"old{i}.qcow2") for i in range(3)]
    assert_clean(qemu, 3)


@pytest.mark.parametrize("legacy", [False, True], ids=["blockdev", "drive"])
async def test_a_release_ends_the_window(engine: Engine, qemu_factory: QemuFactory, tmp_path: Path, legacy: bool):
    """The guest stays on the new image, the mirror and the old nodes are gone."""
    qemu = qemu_factory([Disk(create_image(tmp_path / "old.qcow2"), legacy=legacy)])
    await engine.connect(qemu)
    driver = await engine.copy("web1", {"disk0": tmp_path / "new.qcow2"}, keep_synced=True)
    await in_window(engine, driver)
    driver.state.inbox.post(Release(WHO))
    pivot = await engine.closed(driver)
    assert pivot.outcome == Outcome.SWITCHED
    assert engine.events(pivot)[-2:] == ["window-ended", "closed"]
    assert qemu.root("disk0").filename == str(tmp_path / "new.qcow2")
    assert_clean(qemu)


async def test_the_window_ends_by_itself(engine: Engine, qemu_factory: QemuFactory, tmp_path: Path):
    """--for 1s."""
    qemu = qemu_factory([Disk(create_image(tmp_path / "old.qcow2"))])
    await engine.connect(qemu)
    driver = await engine.copy("web1", {"disk0": tmp_path / "new.qcow2"}, keep_synced=True, keep_synced_s=1)
    await in_window(engine, driver)
    assert (await engine.closed(driver)).outcome == Outcome.SWITCHED
    assert_clean(qemu)


async def test_a_disk_in_its_window_is_busy(engine: Engine, qemu_factory: QemuFactory, tmp_path: Path):
    """The message names the pivot."""
    qemu = qemu_factory([Disk(create_image(tmp_path / "old.qcow2"))])
    await engine.connect(qemu)
    driver = await engine.copy("web1", {"disk0": tmp_path / "new.qcow2"}, keep_synced=True)
    pivot = await in_window(engine, driver)
    with pytest.raises(DiskBusyError, match=pivot.id):
        await engine.copy("web1", {"disk0": tmp_path / "third.qcow2"})


async def test_a_mirror_back_that_fails_ends_the_window_and_not_the_guest(
    engine: Engine, qemu_factory: QemuFactory, tmp_path: Path
):
    """The old storage dies: one record, the guest runs on with the new image."""
    # Writes above 32 MiB fail, as on a disk with a bad region; the guest touches it only in the window.
    bad = [{"event": "pwritev", "errno": 5, "once": False, "sector": (32 << 20) // 512}]
    old = create_image(tmp_path / "old.raw", image_format="raw")
    inner = {"driver": "blkdebug", "inject-error": bad, "image": {"driver": "file", "filename": str(old)}}
    qemu = qemu_factory([Disk(old, format="raw", node={"file": inner})])
    await engine.connect(qemu)
    driver = await engine.copy("web1", {"disk0": tmp_path / "new.raw"}, keep_synced=True)
    await in_window(engine, driver)
    qemu.spy("human-monitor-command", {"command-line": f'qemu-io -d {qdev(qemu)} "write -q -P 5 32M 4k"'})
    pivot = await engine.closed(driver)
    assert pivot.outcome == Outcome.SWITCHED
    assert engine.events(pivot)[-2:] == ["window-ended", "closed"]
    assert qemu.run_state() == "running"
    assert qemu.root("disk0").filename == str(tmp_path / "new.raw")


def qdev(qemu: Qemu) -> str:
    return next(str(entry["qdev"]) for entry in qemu.spy("query-block") if "disk0" in entry["qdev"])


async def test_an_undo_without_its_mirror_keeps_the_new_image(
    engine: Engine, qemu_factory: QemuFactory, tmp_path: Path
):
    """Somebody cancels the mirror in the window: it is never started anew, and the window ends."""
    qemu = qemu_factory([Disk(create_image(tmp_path / "old.qcow2"))])
    await engine.connect(qemu)
    driver = await engine.copy("web1", {"disk0": tmp_path / "new.qcow2"}, keep_synced=True)
    pivot = await in_window(engine, driver)
    qemu.spy("job-cancel", id=names.back_job(pivot.id, 0))
    driver.state.inbox.post(TakeBack(WHO, undo=Undo(UNDO.format(0), WHO)))
    closed = await engine.closed(driver)
    assert closed.outcome == Outcome.SWITCHED
    assert qemu.root("disk0").filename == str(tmp_path / "new.qcow2")
    async with asyncio.timeout(TIMEOUT_S):
        while engine.journal.open_pivots():
            await asyncio.sleep(0)
    assert_clean(qemu)


async def test_an_undo_that_is_cancelled_keeps_the_new_image(engine: Engine, qemu_factory: QemuFactory, tmp_path: Path):
    """No time for the pause, then a cancel: the new image stays, nothing is left."""
    qemu = qemu_factory([Disk(create_image(tmp_path / "old.qcow2"))])
    await engine.connect(qemu)
    driver = await engine.copy("web1", {"disk0": tmp_path / "new.qcow2"}, keep_synced=True)
    await in_window(engine, driver)
    back = await undone(engine, driver)
    back.state.inbox.post(Cancel(WHO))
    pivot = await engine.closed(back)
    where = {"kept": "new.qcow2", "switched": "old.qcow2"}[pivot.outcome or ""]
    assert qemu.root("disk0").filename == str(tmp_path / where)
    assert qemu.run_state() == "running"
    assert_clean(qemu)


async def test_a_qemu_that_dies_in_the_window_leaves_the_new_image(
    engine: Engine, qemu_factory: QemuFactory, tmp_path: Path
):
    """The old one was a copy only as long as the mirror lived."""
    qemu = qemu_factory([Disk(create_image(tmp_path / "old.qcow2"))])
    await engine.connect(qemu)
    driver = await engine.copy("web1", {"disk0": tmp_path / "new.qcow2"}, keep_synced=True)
    await in_window(engine, driver)
    qemu.kill()
    pivot = await engine.closed(driver)
    assert (pivot.outcome, pivot.window_open) == ("switched", False)
    assert "window-ended" in engine.events(pivot)
