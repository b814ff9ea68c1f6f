"""Dirty bitmaps follow their disk across a switch, so that incremental backups go on."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from pivotd.core.pivot import Outcome
from pivotd.errors import BadRequestError
from tests.conftest import QemuFactory
from tests.support.qemu import Disk, Qemu, create_image

from .conftest import Engine
from .test_copy import assert_clean, content, qemu_io_name, write
from .test_undo import in_window, undone

pytestmark = pytest.mark.qemu


def bitmaps(qemu: Qemu, disk: str = "disk0") -> dict[str, dict[str, Any]]:
    """Return the bitmaps of a disk's root as QEMU shows them, by name."""
    inserted = next(e for e in qemu.spy("query-block") if disk in e["qdev"])["inserted"]
    return {bitmap["name"]: bitmap for bitmap in inserted.get("dirty-bitmaps", []) if "name" in bitmap}


def touch(qemu: Qemu, pattern: int, at: str, disk: str = "disk0") -> None:
    """Write 64 KiB through the disk's device."""
    line = f'qemu-io {qemu_io_name(qemu, disk)} "write -q -P {pattern} {at} 64k"'
    qemu.spy("human-monitor-command", {"command-line": line})


def backup(qemu: Qemu, image: Path, backing: Path | None, **options: Any) -> None:
    """Back the disk up into a new image, with QEMU's own backup job."""
    below = ["-b", str(backing), "-F", "qcow2"] if backing else []
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *below, str(image), "64M"], check=True)
    node = image.stem
    file = {"driver": "file", "filename": str(image)}
    qemu.spy("blockdev-add", {"driver": "qcow2", "node-name": node, "file": file, "backing": None})
    qemu.spy("blockdev-backup", job_id=node, device=qemu.root().node, target=node, auto_dismiss=True, **options)
    qemu.await_event("BLOCK_JOB_COMPLETED", device=node)
    qemu.spy("blockdev-del", node_name=node)


def increment(qemu: Qemu, image: Path, backing: Path) -> None:
    """Back up what the bitmap marks, on top of the last backup."""
    backup(qemu, image, backing, sync="bitmap", bitmap="backup", bitmap_mode="on-success")


def guest_view(qemu: Qemu, directory: Path) -> str:
    """Return a digest of what the guest would read now."""
    backup(qemu, directory / "whole.qcow2", None, sync="full")
    digest = content(directory / "whole.qcow2", "qcow2")
    (directory / "whole.qcow2").unlink()
    return digest


def allocated_bytes(image: Path) -> int:
    """Return how much data the image itself holds."""
    shown = subprocess.run(["qemu-img", "map", "-f", "qcow2", str(image)], check=True, capture_output=True, text=True)
    rows = [line.split() for line in shown.stdout.splitlines()[1:]]
    return sum(int(row[1], 16) for row in rows if row[3] == str(image))


@pytest.mark.parametrize("legacy", [False, True], ids=["blockdev", "drive"])
async def test_incremental_backups_go_on_across_a_switch_and_back(
    engine: Engine, qemu_factory: QemuFactory, tmp_path: Path, legacy: bool
):
    """Each increment, before the switch, after it and after the undo, restores exactly what the guest sees.

    And each holds only what was written since the last one: the bitmap was carried, not filled.
    """
    qemu = qemu_factory([Disk(create_image(tmp_path / "old.qcow2"), legacy=legacy)])
    await engine.connect(qemu)
    touch(qemu, 1, "0")
    qemu.spy("block-dirty-bitmap-add", node=qemu.root().node, name="backup", persistent=True)
    backup(qemu, tmp_path / "full.qcow2", None, sync="full")
    touch(qemu, 2, "1M")
    increment(qemu, tmp_path / "one.qcow2", tmp_path / "full.qcow2")
    touch(qemu, 3, "2M")
    driver = await engine.copy("web1", {"disk0": tmp_path / "new.qcow2"}, keep_synced=True)
    pivot = await in_window(engine, driver)
    assert not pivot.error
    touch(qemu, 4, "3M")
    back = await engine.closed(await undone(engine, driver))
    assert back.outcome == Outcome.SWITCHED, back.error
    touch(qemu, 5, "4M")
    increment(qemu, tmp_path / "two.qcow2", tmp_path / "one.qcow2")
    assert content(tmp_path / "two.qcow2", "qcow2") == guest_view(qemu, tmp_path)
    assert allocated_bytes(tmp_path / "two.qcow2") == 3 * 65536


async def test_an_increment_right_after_the_switch_is_right(engine: Engine, qemu_factory: QemuFactory, tmp_path: Path):
    """What was written before the switch and after it, and nothing else."""
    qemu = qemu_factory([Disk(create_image(tmp_path / "old.qcow2"))])
    await engine.connect(qemu)
    write(qemu, "disk0", 1)
    qemu.spy("block-dirty-bitmap-add", node="src0", name="backup", persistent=True)
    backup(qemu, tmp_path / "full.qcow2", None, sync="full")
    touch(qemu, 2, "8M")
    pivot = await engine.closed(await engine.copy("web1", {"disk0": tmp_path / "new.qcow2"}))
    assert pivot.outcome == Outcome.SWITCHED, pivot.error
    touch(qemu, 3, "16M")
    increment(qemu, tmp_path / "one.qcow2", tmp_path / "full.qcow2")
    assert content(tmp_path / "one.qcow2", "qcow2") == guest_view(qemu, tmp_path)
    assert allocated_bytes(tmp_path / "one.qcow2") == 2 * 65536
    assert_clean(qemu)


async def test_every_property_of_a_bitmap_comes_along(engine: Engine, qemu_factory: QemuFactory, tmp_path: Path):
    """Name, granularity, persistence, recording or not, and what is marked; persistent ones survive QEMU's end."""
    qemu = qemu_factory([Disk(create_image(tmp_path / f"old{i}.qcow2")) for i in range(2)])
    await engine.connect(qemu)
    qemu.spy("block-dirty-bitmap-add", node="src0", name="fine", granularity=4096, persistent=True)
    qemu.spy("block-dirty-bitmap-add", node="src0", name="passing")
    qemu.spy("block-dirty-bitmap-add", node="src1", name="off", granularity=131072, persistent=True)
    for disk in ("disk0", "disk1"):
        touch(qemu, 1, "1M", disk)
    qemu.spy("block-dirty-bitmap-disable", node="src1", name="off")
    before = [bitmaps(qemu, disk) for disk in ("disk0", "disk1")]
    pivot = await engine.closed(await engine.copy("web1", {f"disk{i}": tmp_path / f"new{i}.qcow2" for i in range(2)}))
    assert pivot.outcome == Outcome.SWITCHED, pivot.error
    assert [bitmaps(qemu, disk) for disk in ("disk0", "disk1")] == before
    carried = engine.facts(pivot, "switched")["bitmaps"]
    assert {disk: sorted(names) for disk, names in carried.items()} == {"disk0": ["fine", "passing"], "disk1": ["off"]}
    qemu.kill(15)
    qemu.wait()
    shown = [
        subprocess.run(["qemu-img", "info", tmp_path / f"new{i}.qcow2"], check=True, capture_output=True, text=True)
        for i in range(2)
    ]
    assert ["name: fine" in shown[0].stdout, "name: passing" in shown[0].stdout] == [True, False]
    assert "name: off" in shown[1].stdout


async def test_a_format_without_bitmaps_is_refused(engine: Engine, qemu_factory: QemuFactory, tmp_path: Path):
    """A raw image would lose them."""
    qemu = qemu_factory([Disk(create_image(tmp_path / "old.qcow2"))])
    await engine.connect(qemu)
    qemu.spy("block-dirty-bitmap-add", node="src0", name="backup", persistent=True)
    with pytest.raises(BadRequestError, match="backup"):
        await engine.copy("web1", {"disk0": tmp_path / "new.raw"}, "raw")


async def test_a_bitmap_that_comes_along_wrongly_takes_the_switch_back(
    engine: Engine, qemu_factory: QemuFactory, tmp_path: Path
):
    """A reused image has a passing bitmap of that name: read back it is not persistent, and the source is kept."""
    qemu = qemu_factory([Disk(create_image(tmp_path / "old.qcow2"))])
    await engine.connect(qemu)
    qemu.spy("block-dirty-bitmap-add", node="src0", name="backup", persistent=True)
    target = create_image(tmp_path / "new.qcow2")
    driver = await engine.copy("web1", {"disk0": target}, reuse=True, pivot=False)
    pivot = await engine.resting(driver)
    qemu.spy("block-dirty-bitmap-add", node=pivot.disks[0].destination.node, name="backup", granularity=65536)
    await driver.complete(pivot.requested_by)
    pivot = await engine.closed(driver)
    assert pivot.outcome == Outcome.KEPT
    assert "other properties" in (pivot.error or ""), pivot.error
    assert "rolling-back" in engine.events(pivot)
    assert qemu.run_state() == "running"
    assert qemu.root("disk0").filename == str(tmp_path / "old.qcow2")
    assert_clean(qemu)


async def test_two_devices_of_one_name_keep_their_bitmaps(engine: Engine, qemu_factory: QemuFactory, tmp_path: Path):
    """A device without an id is known by its drive's, which may be another device's too: the QOM path tells them apart."""
    disk = Disk(create_image(tmp_path / "old.qcow2"))
    other = create_image(tmp_path / "other.qcow2")
    drive = [
        "-drive",
        f"if=none,id=disk0,format=qcow2,cache=none,file={other}",
        "-device",
        "virtio-blk-pci,drive=disk0",
    ]
    qemu = qemu_factory([disk], guest=[], extra=drive)
    supervisor = await engine.connect(qemu)
    assert supervisor.session is not None
    (name,) = [name for name, seen in (await supervisor.session.disks()).items() if seen.node == "src0"]
    touch(qemu, 1, "0")
    qemu.spy("block-dirty-bitmap-add", node="src0", name="backup", persistent=True)
    touch(qemu, 2, "1M")
    pivot = await engine.closed(await engine.copy("web1", {name: tmp_path / "new.qcow2"}))
    assert pivot.outcome == Outcome.SWITCHED, pivot.error
    assert bitmaps(qemu)["backup"]["count"] == 65536
