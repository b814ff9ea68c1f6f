"""What cannot be written for want of room or of O_DIRECT is refused before anything is made."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pivotd.core.creation import ImageOptions
from pivotd.core.pivot import Outcome, Phase
from pivotd.core.request import Cache, Kind, Requester, Sync, Target
from pivotd.errors import BadRequestError
from tests.conftest import QemuFactory
from tests.ported_cases.fixture import small_file_system
from tests.support.qemu import Disk, Qemu, create_image, default_binary

from .conftest import Engine
from .storage import allocated_bytes
from .test_bitmaps_layers import overlays

pytestmark = [
    pytest.mark.qemu,
    pytest.mark.skipif(default_binary()[0] == "chroot", reason="a QEMU in another root does not see the file system"),
]


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    with small_file_system(tmp_path, "4m") as place:
        yield place


def fill(image: Path, at: str, size: str, image_format: str = "qcow2") -> Path:
    subprocess.run(["qemu-io", "-f", image_format, "-c", f"write -q -P 1 {at} {size}", image], check=True)
    return image


async def test_room_for_what_will_be_written(engine: Engine, qemu_factory: QemuFactory, tmp_path: Path, small: Path):
    """Of the layers that are copied, or of the whole disk where that is preallocated, over all disks; --force goes on."""
    images = overlays(tmp_path, "base", "top")
    fill(images[0], "0", "4M")
    fill(images[1], "8M", "1M")
    raw = fill(create_image(tmp_path / "r.raw", image_format="raw"), "0", "2M", "raw")
    qemu: Qemu = qemu_factory([Disk(images[-1]), Disk(raw, format="raw"), Disk(create_image(tmp_path / "e.qcow2"))])
    await engine.connect(qemu)
    new = [str(small / f"new{index}.qcow2") for index in range(3)]
    with pytest.raises(BadRequestError, match=r"has room for 4 MiB, and disk0 needs at least 4 MiB.*--force"):
        await engine.start(Kind.COPY, "web1", Target("disk0", new[0]))
    full = ImageOptions(preallocation="full")
    with pytest.raises(BadRequestError, match="disk1 needs at least 64 MiB"):
        await engine.start(Kind.COPY, "web1", Target("disk1", new[1], "raw"), image_options=full)
    with pytest.raises(BadRequestError, match="has room for 4 MiB"):
        await engine.start(Kind.COPY, "web1", Target("disk1", new[1], "raw"), Target("disk0", new[0]))
    assert list(small.iterdir()) == []
    for target, options in ((Target("disk0", new[0]), {"sync": Sync.TOP}), (Target("disk2", new[2]), {"force": True})):
        pivot = await engine.closed(await engine.start(Kind.COPY, "web1", target, **options))
        assert pivot.outcome == Outcome.SWITCHED, pivot.error
    qemu.stop()


async def test_space_that_is_not_copied_needs_no_room(
    engine: Engine, qemu_factory: QemuFactory, tmp_path: Path, small: Path
):
    """Reserved by fallocate, written twice in a chain, or held by an internal snapshot: the copy fits, and is made."""
    reserved = create_image(tmp_path / "reserved.raw", image_format="raw", options="preallocation=falloc")
    fill(reserved, "32M", "1M", "raw")
    layers = overlays(tmp_path, "base", "top")
    for layer in layers:
        fill(layer, "0", "3M")
    kept = fill(create_image(tmp_path / "kept.qcow2"), "0", "3M")
    subprocess.run(["qemu-img", "snapshot", "-c", "before", kept], check=True)
    fill(kept, "0", "3M")
    assert [allocated_bytes(image) > 4 << 20 for image in (reserved, kept)] == [True, True]
    qemu = qemu_factory([Disk(reserved, format="raw"), Disk(layers[-1]), Disk(kept)])
    await engine.connect(qemu)
    for index in range(3):
        new = small / f"new{index}"
        options = {"drop_internal_snapshots": True, "pivot": False}
        driver = await engine.start(Kind.COPY, "web1", Target(f"disk{index}", str(new), "qcow2"), **options)
        assert (await engine.resting(driver)).phase is Phase.READY, index
        await driver.cancel(Requester(0, 0, 1))
        await engine.closed(driver)
        new.unlink(missing_ok=True)
    qemu.stop()


async def test_room_for_what_a_base_takes(engine: Engine, qemu_factory: QemuFactory, tmp_path: Path, small: Path):
    """A commit writes into a base on a file system that cannot take it."""
    base = create_image(small / "base.qcow2")
    top = create_image(tmp_path / "top.qcow2", options=f"backing_file={base},backing_fmt=qcow2")
    fill(top, "0", "8M")
    qemu = qemu_factory([Disk(top)])
    await engine.connect(qemu)
    with pytest.raises(BadRequestError, match=r"base\.qcow2: its file system has room for"):
        await engine.start(Kind.COMMIT, "web1", Target("disk0"))
    qemu.stop()


async def test_a_file_system_without_direct_io(engine: Engine, qemu_factory: QemuFactory, tmp_path: Path):
    """Refused for an image that is to be opened as the source is, new or there already; --cache writeback is the way on."""
    place = tmp_path / "ram"
    place.mkdir()
    if subprocess.run(["mount", "-t", "ramfs", "ramfs", str(place)], check=False).returncode:
        pytest.skip("needs root to mount a file system without O_DIRECT")
    try:
        qemu = qemu_factory([Disk(create_image(tmp_path / "old.qcow2")), Disk(create_image(tmp_path / "two.qcow2"))])
        await engine.connect(qemu)
        there = create_image(place / "there.qcow2")
        new = place / "new.qcow2"
        for kind, image, options in (
            (Kind.COPY, new, {}),
            (Kind.COPY, there, {"reuse": True}),
            (Kind.SNAPSHOT, new, {}),
        ):
            with pytest.raises(BadRequestError, match=r"knows no O_DIRECT.*--cache writeback"):
                await engine.start(kind, "web1", Target("disk0", str(image)), **options)
        assert not new.exists()
        driver = await engine.start(Kind.COPY, "web1", Target("disk0", str(new)), cache=Cache.WRITEBACK)
        pivot = await engine.closed(driver)
        assert pivot.outcome == Outcome.SWITCHED, pivot.error
        driver = await engine.start(Kind.SNAPSHOT, "web1", Target("disk1", str(place / "over")), cache=Cache.WRITEBACK)
        assert (await engine.closed(driver)).outcome == Outcome.SWITCHED
        shown = {entry["qdev"].split("/")[3]: entry["inserted"]["cache"] for entry in qemu.spy("query-block")}
        assert [shown[f"disk{index}"]["direct"] for index in range(2)] == [False, False]
        driver = await engine.start(Kind.COPY, "web1", Target("disk0", str(tmp_path / "back")), cache=Cache.NONE)
        assert (await engine.closed(driver)).options.cache is Cache.NONE
        qemu.stop()
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)
