"""A bitmap that cannot come along stops a move before it copies, and one that is only in use makes it wait."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from pivotd.core.creation import ImageOptions
from pivotd.core.pivot import Outcome, Phase, Pivot
from pivotd.core.request import Kind, Target
from pivotd.engine.driver import Driver
from pivotd.errors import BadRequestError, ConflictError
from tests.conftest import QemuFactory
from tests.support.qemu import Disk, Qemu, create_image

from .conftest import Engine
from .test_bitmaps import bitmaps
from .test_bitmaps_layers import give_bitmap, overlays

pytestmark = pytest.mark.qemu


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not holds():
            await asyncio.sleep(0.02)


def hold(qemu: Qemu, node: str, bitmap: str = "backup") -> None:
    """Export a node with its bitmap, as a backup client asks for it."""
    qemu.spy("nbd-server-start", {"addr": {"type": "unix", "data": {"path": str(qemu.directory / "nbd")}}})
    qemu.spy(
        "block-export-add", {"type": "nbd", "id": "backup", "node-name": node, "name": "backup", "bitmaps": [bitmap]}
    )


async def waits_and_goes_on(engine: Engine, qemu: Qemu, driver: Driver) -> Pivot:
    """Return the pivot, which says what it waits for, pauses nobody meanwhile, and ends when the backup does."""
    await until(lambda: "bitmap" in driver.waits_for)
    assert (driver.pivot.phase, driver.pivot.attempt) == (Phase.READY, 0)
    qemu.spy("nbd-server-stop")
    return await engine.closed(driver)


async def test_a_bitmap_in_use_is_refused_before_anything_is_made(
    engine: Engine, qemu_factory: QemuFactory, tmp_path: Path
):
    """By each kind that would have to take it along; --force leaves it behind."""
    images = overlays(tmp_path, "base", "top")
    qemu = qemu_factory([Disk(images[-1])])
    await engine.connect(qemu)
    qemu.spy("block-dirty-bitmap-add", node="src0", name="backup", persistent=True, disabled=True)
    hold(qemu, "src0")
    new = str(tmp_path / "new.qcow2")
    for kind, target in (
        (Kind.COPY, Target("disk0", new)),
        (Kind.SNAPSHOT, Target("disk0", new)),
        (Kind.COMMIT, Target("disk0")),
    ):
        with pytest.raises(ConflictError, match="bitmap backup of disk0 is in use"):
            await engine.start(kind, "web1", target)
    assert sorted(path.name for path in tmp_path.glob("*.qcow2")) == ["base.qcow2", "top.qcow2"]
    pivot = await engine.closed(await engine.start(Kind.COPY, "web1", Target("disk0", new), force=True))
    assert pivot.outcome == Outcome.SWITCHED, pivot.error


async def test_a_finished_copy_waits_for_a_bitmap_that_came_into_use(
    engine: Engine, qemu_factory: QemuFactory, tmp_path: Path
):
    """A backup that began during the copy costs neither the copy nor a pause of the guest."""
    qemu = qemu_factory([Disk(create_image(tmp_path / "old.qcow2"))])
    await engine.connect(qemu)
    qemu.spy("block-dirty-bitmap-add", node="src0", name="backup", persistent=True, disabled=True)
    driver = await engine.copy("web1", {"disk0": tmp_path / "new.qcow2"}, pivot=False)
    await engine.resting(driver)
    hold(qemu, "src0")
    await driver.complete(driver.pivot.requested_by)
    pivot = await waits_and_goes_on(engine, qemu, driver)
    assert pivot.outcome == Outcome.SWITCHED, pivot.error
    assert "backup" in bitmaps(qemu)


async def test_a_merge_waits_for_the_bitmap_of_a_lower_layer(engine: Engine, qemu_factory: QemuFactory, tmp_path: Path):
    """QEMU does not show that it is in use: the copy of the bitmaps is tried before the intent, and changes nothing."""
    images = overlays(tmp_path, "base", "one", "top")
    give_bitmap(images[1], 1)
    qemu = qemu_factory([Disk.of_named_nodes(images)])
    await engine.connect(qemu)
    hold(qemu, "layer0-1")
    driver = await engine.start(Kind.COMMIT, "web1", Target("disk0", top=str(images[1]), base=str(images[0])))
    pivot = await waits_and_goes_on(engine, qemu, driver)
    assert pivot.outcome == Outcome.MERGED, pivot.error
    shown = subprocess.run(["qemu-img", "info", "-U", images[0]], check=True, capture_output=True, text=True)
    assert "name: backup" in shown.stdout


async def test_an_image_that_cannot_take_the_bitmap_is_refused_first(
    engine: Engine, qemu_factory: QemuFactory, tmp_path: Path
):
    """What it is made as, or what it has of that name already: its file says so."""
    crashed = create_image(tmp_path / "crashed.qcow2")
    give_bitmap(crashed, 1)
    qemu_factory([Disk(crashed)], name="dead").stop()
    coarse, old, same = (create_image(tmp_path / f"{name}.qcow2") for name in ("coarse", "two", "same"))
    subprocess.run(["qemu-img", "bitmap", "--add", "-g", "1M", coarse, "backup"], check=True)
    subprocess.run(["qemu-img", "amend", "-o", "compat=0.10", old], check=True)
    give_bitmap(same, 1)
    qemu = qemu_factory([Disk(create_image(tmp_path / "old.qcow2"))])
    await engine.connect(qemu)
    qemu.spy("block-dirty-bitmap-add", node="src0", name="backup", persistent=True)
    for image, why in ((crashed, "crashed"), (coarse, "other properties"), (old, "version 2")):
        with pytest.raises(BadRequestError, match=why):
            await engine.copy("web1", {"disk0": image}, reuse=True)
    with pytest.raises(BadRequestError, match="version 2"):
        await engine.copy("web1", {"disk0": tmp_path / "new.qcow2"}, image_options=ImageOptions(version="v2"))
    pivot = await engine.closed(await engine.copy("web1", {"disk0": same}, reuse=True))
    assert pivot.outcome == Outcome.SWITCHED, pivot.error
