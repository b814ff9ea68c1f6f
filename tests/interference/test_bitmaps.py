"""Somebody takes a dirty bitmap away between its coming along and the switch: what is read back decides."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pivotd.core.pivot import Outcome, Pivot
from pivotd.core.request import Kind, Target
from tests.engine.test_bitmaps_layers import give_bitmap, marked, overlays
from tests.ported_cases.fixture import Bed
from tests.support.moves import Move
from tests.support.qemu import Disk

from .conftest import Moment

pytestmark = pytest.mark.qemu


async def moved_without(bed: Bed, moment: Callable[[str], Moment], images: list[Path], move: Move) -> Pivot:
    """Move the disk, with the bitmap gone from the image that has just got it."""
    await bed.domain(Disk(images[-1]))
    at = moment("pending")
    layers = {"top": str(images[1]), "base": str(images[0])} if move is Move.INNER_COMMIT else {}
    overlay = str(bed.target()) if move is Move.SNAPSHOT else ""
    driver = await bed.engine.start(move.kind, "web1", Target("disk0", overlay, **layers))
    disk = driver.pivot.disks[0]
    taker = disk.destination if move is not Move.INNER_COMMIT or disk.base is None else disk.base
    at.what = lambda: bed.qemu.spy("block-dirty-bitmap-remove", node=taker.node, name="backup")
    pivot = await bed.engine.closed(driver)
    assert at.done
    assert bed.qemu.run_state() == "running"
    assert bed.qemu.jobs() == {}
    return pivot


@pytest.mark.parametrize("move", [Move.COMMIT, Move.SNAPSHOT])
async def test_a_switch_without_the_bitmap_is_taken_back(bed: Bed, moment: Callable[[str], Moment], move: Move):
    """The source is kept, and its bitmap goes on."""
    images = overlays(bed.directory, "base", "top")
    give_bitmap(images[-1], 1)
    pivot = await moved_without(bed, moment, images, move)
    assert pivot.outcome == Outcome.KEPT
    assert "bitmap backup of disk0 has not come along" in (pivot.error or "")
    assert bed.qemu.root().filename == str(images[-1])
    assert marked(bed.qemu) == 65536


async def test_a_merge_without_the_bitmap_says_so(bed: Bed, moment: Callable[[str], Moment]):
    """It cannot be taken back, and no data is in the wrong place: the record tells what is missing."""
    images = overlays(bed.directory, "base", "one", "top")
    give_bitmap(images[1], 1)
    pivot = await moved_without(bed, moment, images, Move.INNER_COMMIT)
    assert (pivot.kind, pivot.outcome) == (Kind.COMMIT, Outcome.MERGED)
    assert "bitmap backup of disk0 has not come along" in bed.engine.facts(pivot, "merged")["reason"]


async def test_a_bitmap_that_comes_into_use_in_the_pause_keeps_the_source(bed: Bed, moment: Callable[[str], Moment]):
    """Nobody looks again between the intent and the switch: with QEMU's words, and one short pause."""
    await bed.domain(Disk(bed.image()))
    bed.qemu.spy("block-dirty-bitmap-add", node="src0", name="backup", persistent=True, disabled=True)
    bed.qemu.spy("nbd-server-start", {"addr": {"type": "unix", "data": {"path": str(bed.directory / "nbd")}}})
    export = {"type": "nbd", "id": "e", "node-name": "src0", "name": "e", "bitmaps": ["backup"]}
    at = moment("stopped")
    at.what = lambda: bed.qemu.spy("block-export-add", export)
    pivot = await bed.engine.closed(await bed.engine.copy("web1", {"disk0": bed.target()}))
    assert at.done
    assert pivot.outcome == Outcome.KEPT
    assert "'backup' is currently in use" in (pivot.error or "")
    assert len(pivot.pauses) == 1
    assert bed.qemu.run_state() == "running"
    assert bed.qemu.root().node == "src0"
