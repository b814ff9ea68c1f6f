"""Dirty bitmaps stay with their disk when its chain grows by a snapshot or shrinks by a commit."""

from __future__ import annotations

import itertools
import subprocess
from pathlib import Path

import pytest

from pivotd.core.creation import ImageOptions
from pivotd.core.pivot import Outcome, Pivot
from pivotd.core.request import Kind, Target
from pivotd.errors import BadRequestError
from tests.conftest import QemuFactory
from tests.support.qemu import Disk, Qemu, create_image
from tests.support.qemus import qemus

from .conftest import Engine
from .test_bitmaps import allocated_bytes, backup, bitmaps, guest_view, increment, touch
from .test_copy import assert_clean, content

pytestmark = pytest.mark.qemu

CHUNK = 65536


def overlays(directory: Path, *names: str, options: str = "compat=1.1") -> list[Path]:
    """Create a chain of empty images, the lowest first."""
    images = [directory / f"{name}.qcow2" for name in names]
    create_image(images[0], options=options)
    for below, image in itertools.pairwise(images):
        create_image(image, options=f"backing_file={below},backing_fmt=qcow2")
    return images


def give_bitmap(image: Path, at: int) -> None:
    """Give an image a persistent bitmap `backup` that marks the 64 KiB at this MiB."""
    subprocess.run(["qemu-img", "bitmap", "--add", "-f", "qcow2", str(image), "backup"], check=True)
    mark = ["-c", f"write -q -P {at} {at}M 64k"]
    subprocess.run(["qemu-io", "-f", "qcow2", *mark, str(image)], check=True)


async def snapshot(engine: Engine, overlay: Path, **options: object) -> Pivot:
    target = Target("disk0", str(overlay))
    return await engine.closed(await engine.start(Kind.SNAPSHOT, "web1", target, **options))


async def commit(engine: Engine, top: Path | None = None, base: Path | None = None, *, force: bool = False) -> Pivot:
    layers = {"top": str(top) if top else None, "base": str(base) if base else None}
    return await engine.closed(await engine.start(Kind.COMMIT, "web1", Target("disk0", **layers), force=force))


def marked(qemu: Qemu) -> int:
    """Return what the bitmap of the active image marks; it must record and be persistent."""
    found = bitmaps(qemu)["backup"]
    assert (found["recording"], found["persistent"]) == (True, True), found
    return int(found["count"])


@pytest.mark.parametrize("version", qemus())
async def test_incremental_backups_go_on_across_a_snapshot_and_a_commit(
    engine: Engine, qemu_factory: QemuFactory, tmp_path: Path, version: str
):
    """Each increment holds what was written since the last one, and restores exactly what the guest sees."""
    source = create_image(tmp_path / "old.qcow2")
    qemu = qemu_factory([Disk(source)], binary=qemus()[version])
    await engine.connect(qemu)
    touch(qemu, 1, "0")
    qemu.spy("block-dirty-bitmap-add", node="src0", name="backup", persistent=True)
    backup(qemu, tmp_path / "full.qcow2", None, sync="full")
    touch(qemu, 2, "1M")
    pivot = await snapshot(engine, tmp_path / "over.qcow2")
    assert pivot.outcome == Outcome.SWITCHED, pivot.error
    touch(qemu, 3, "2M")
    increment(qemu, tmp_path / "one.qcow2", tmp_path / "full.qcow2")
    assert allocated_bytes(tmp_path / "one.qcow2") == 2 * CHUNK
    assert content(tmp_path / "one.qcow2", "qcow2") == guest_view(qemu, tmp_path)
    touch(qemu, 4, "3M")
    pivot = await commit(engine)
    assert pivot.outcome == Outcome.SWITCHED, pivot.error
    touch(qemu, 5, "4M")
    increment(qemu, tmp_path / "two.qcow2", tmp_path / "one.qcow2")
    assert content(tmp_path / "two.qcow2", "qcow2") == guest_view(qemu, tmp_path)
    assert_clean(qemu)


async def test_a_base_without_the_bitmap_gets_it(engine: Engine, qemu_factory: QemuFactory, tmp_path: Path):
    """A bitmap that was made on the overlay marks in the base what it marked, and nothing else."""
    images = overlays(tmp_path, "base", "top")
    qemu = qemu_factory([Disk(images[-1])])
    await engine.connect(qemu)
    touch(qemu, 1, "0")
    qemu.spy("block-dirty-bitmap-add", node="src0", name="backup", persistent=True, granularity=4096)
    touch(qemu, 2, "1M")
    before = bitmaps(qemu)
    pivot = await commit(engine)
    assert pivot.outcome == Outcome.SWITCHED, pivot.error
    assert bitmaps(qemu) == before
    qemu.kill(15)
    qemu.wait()
    shown = subprocess.run(["qemu-img", "info", str(images[0])], check=True, capture_output=True, text=True).stdout
    assert "name: backup" in shown


async def test_what_layers_in_between_mark_is_marked_in_the_base(
    engine: Engine, qemu_factory: QemuFactory, tmp_path: Path
):
    """As other tools leave a chain: each layer has the bitmap, and each marks only what was written into itself."""
    images = overlays(tmp_path, "base", "one", "two", "top")
    for at, image in enumerate(images[1:]):
        give_bitmap(image, at)
    qemu = qemu_factory([Disk(images[-1])])
    await engine.connect(qemu)
    assert marked(qemu) == CHUNK
    pivot = await commit(engine)
    assert pivot.outcome == Outcome.SWITCHED, pivot.error
    assert marked(qemu) == 3 * CHUNK


async def test_a_bitmap_that_the_active_image_does_not_have_is_not_made_up(
    engine: Engine, qemu_factory: QemuFactory, tmp_path: Path
):
    """Nothing has recorded what was written since: in the base it would look whole."""
    images = overlays(tmp_path, "base", "one", "top")
    give_bitmap(images[1], 1)
    qemu = qemu_factory([Disk(images[-1])])
    await engine.connect(qemu)
    pivot = await commit(engine)
    assert pivot.outcome == Outcome.SWITCHED, pivot.error
    assert bitmaps(qemu) == {}


@pytest.mark.parametrize("version", qemus())
async def test_the_bitmap_of_an_inner_layer_ends_up_in_the_base(
    engine: Engine, qemu_factory: QemuFactory, tmp_path: Path, version: str
):
    """The base did not have it; committed on, the active image gets every mark of every layer."""
    images = overlays(tmp_path, "base", "one", "two", "top")
    for at, image in enumerate(images[1:]):
        give_bitmap(image, at)
    qemu = qemu_factory([Disk(images[-1])], binary=qemus()[version])
    await engine.connect(qemu)
    pivot = await commit(engine, images[2], images[0])
    assert pivot.outcome == Outcome.MERGED, pivot.error
    assert engine.facts(pivot, "merged")["bitmaps"] == {"disk0": ["backup"]}
    pivot = await commit(engine)
    assert pivot.outcome == Outcome.SWITCHED, pivot.error
    assert marked(qemu) == 3 * CHUNK
    assert_clean(qemu)


async def test_a_bitmap_of_the_base_stays_as_fine_as_it_was(engine: Engine, qemu_factory: QemuFactory, tmp_path: Path):
    """The base has one of that name with another granularity: it marks what both marked."""
    images = overlays(tmp_path, "base", "top")
    subprocess.run(["qemu-img", "bitmap", "--add", "-g", "4096", "-f", "qcow2", str(images[0]), "backup"], check=True)
    give_bitmap(images[1], 1)
    qemu = qemu_factory([Disk(images[-1])])
    await engine.connect(qemu)
    pivot = await commit(engine)
    assert pivot.outcome == Outcome.SWITCHED, pivot.error
    assert (marked(qemu), bitmaps(qemu)["backup"]["granularity"]) == (CHUNK, 4096)


@pytest.mark.parametrize("inner", [False, True], ids=["active", "inner"])
async def test_a_raw_base_cannot_take_them(engine: Engine, qemu_factory: QemuFactory, tmp_path: Path, inner: bool):
    """Refused in one line, with nothing recorded; with --force the layers are committed without."""
    base = create_image(tmp_path / "base.raw", image_format="raw")
    one = create_image(tmp_path / "one.qcow2", options=f"backing_file={base},backing_fmt=raw")
    give_bitmap(one, 1)
    top = create_image(tmp_path / "top.qcow2", options=f"backing_file={one},backing_fmt=qcow2") if inner else one
    await engine.connect(qemu_factory([Disk(top)]))
    layers = (one, base) if inner else ()
    with pytest.raises(BadRequestError, match="raw cannot hold the dirty bitmaps of disk0"):
        await commit(engine, *layers)
    assert engine.journal.last_seq == 0
    pivot = await commit(engine, *layers, force=True)
    assert pivot.outcome == (Outcome.MERGED if inner else Outcome.SWITCHED), pivot.error


@pytest.mark.parametrize("force", [False, True])
async def test_a_base_of_version_2_keeps_the_source(
    engine: Engine, qemu_factory: QemuFactory, tmp_path: Path, force: bool
):
    """QEMU would say so in the pause only: the file says it before, unless --force leaves them behind."""
    images = overlays(tmp_path, "base", "top", options="compat=0.10")
    give_bitmap(images[1], 1)
    qemu = qemu_factory([Disk(images[-1])])
    await engine.connect(qemu)
    if force:
        pivot = await commit(engine, force=True)
        assert pivot.outcome == Outcome.SWITCHED, pivot.error
        return
    with pytest.raises(BadRequestError, match="version 2 cannot hold the dirty bitmaps"):
        await commit(engine)
    assert (marked(qemu), qemu.run_state(), qemu.jobs()) == (CHUNK, "running", {})


async def test_an_overlay_of_version_2_keeps_the_source(engine: Engine, qemu_factory: QemuFactory, tmp_path: Path):
    """No snapshot is made whose overlay could not go on recording."""
    qemu = qemu_factory([Disk(create_image(tmp_path / "old.qcow2"))])
    await engine.connect(qemu)
    qemu.spy("block-dirty-bitmap-add", node="src0", name="backup", persistent=True)
    with pytest.raises(BadRequestError, match="version 2 cannot hold the dirty bitmaps"):
        await snapshot(engine, tmp_path / "over.qcow2", image_options=ImageOptions(version="v2"))
    assert (marked(qemu), qemu.run_state()) == (0, "running")
    assert_clean(qemu)


@pytest.mark.parametrize("legacy", [False, True], ids=["blockdev", "drive"])
async def test_a_bitmap_that_comes_into_the_base_wrongly_takes_the_switch_back(
    engine: Engine, qemu_factory: QemuFactory, tmp_path: Path, legacy: bool
):
    """Somebody has put a passing bitmap of that name there: read back it is not persistent, and the source is kept."""
    images = overlays(tmp_path, "base", "top")
    give_bitmap(images[1], 1)
    qemu = qemu_factory([Disk(images[-1], legacy=legacy)])
    await engine.connect(qemu)
    driver = await engine.start(Kind.COMMIT, "web1", Target("disk0"), pivot=False)
    pivot = await engine.resting(driver)
    qemu.spy("block-dirty-bitmap-add", node=pivot.disks[0].destination.node, name="backup", granularity=CHUNK)
    await driver.complete(pivot.requested_by)
    pivot = await engine.closed(driver)
    assert pivot.outcome == Outcome.KEPT
    assert "other properties" in (pivot.error or ""), pivot.error
    assert qemu.root("disk0").filename == str(images[1])
    assert (marked(qemu), qemu.run_state(), qemu.jobs()) == (CHUNK, "running", {})


async def test_every_property_of_a_bitmap_goes_up_and_down(engine: Engine, qemu_factory: QemuFactory, tmp_path: Path):
    """Of two disks at once, to new overlays and back: granularity, persistence, recording or not, what is marked."""
    qemu = qemu_factory([Disk(create_image(tmp_path / f"old{i}.qcow2")) for i in range(2)])
    await engine.connect(qemu)
    qemu.spy("block-dirty-bitmap-add", node="src0", name="fine", granularity=4096, persistent=True)
    qemu.spy("block-dirty-bitmap-add", node="src0", name="passing")
    qemu.spy("block-dirty-bitmap-add", node="src1", name="off", granularity=131072, persistent=True)
    for disk in ("disk0", "disk1"):
        touch(qemu, 1, "1M", disk)
    qemu.spy("block-dirty-bitmap-disable", node="src1", name="off")
    before = [bitmaps(qemu, disk) for disk in ("disk0", "disk1")]
    targets = [Target(f"disk{i}", str(tmp_path / f"over{i}.qcow2")) for i in range(2)]
    pivot = await engine.closed(await engine.start(Kind.SNAPSHOT, "web1", *targets))
    assert pivot.outcome == Outcome.SWITCHED, pivot.error
    assert [bitmaps(qemu, disk) for disk in ("disk0", "disk1")] == before
    pivot = await engine.closed(await engine.start(Kind.COMMIT, "web1", Target("disk0"), Target("disk1")))
    assert pivot.outcome == Outcome.SWITCHED, pivot.error
    assert [bitmaps(qemu, disk) for disk in ("disk0", "disk1")] == before
    assert_clean(qemu, 2)
