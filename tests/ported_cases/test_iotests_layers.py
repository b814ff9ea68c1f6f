"""QEMU's iotests on backing chains: what is left of a chain, and in which image the data is. Scenarios, in our own words."""

from __future__ import annotations

import shutil
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from pivotd.core.pivot import Outcome, Phase, Pivot
from pivotd.core.request import Sync
from pivotd.errors import BadRequestError, DiskBusyError
from tests.ported_cases.fixture import Bed, assert_sound, content, fill_image, meanwhile, mostly_long, overlay
from tests.support.moves import Move
from tests.support.qemu import Disk
from tests.support.qmp_spy import SpyError

pytestmark = pytest.mark.qemu

COMMITS = (Move.COMMIT, Move.INNER_COMMIT)
MERGES = (*COMMITS, Move.PULL)
LAYERS = ("base.qcow2", "one.qcow2", "two.qcow2", "top.qcow2")
FILLED_MIB = 32


def left(move: Move, images: list[Path]) -> list[Path]:
    """Return the chain, the lowest image first, that is to be left of this one."""
    return {Move.COMMIT: images[:1], Move.INNER_COMMIT: [images[0], images[-1]], Move.PULL: images[-1:]}[move]


def assert_moved(bed: Bed, move: Move, pivot: Pivot, images: list[Path], **options: Any) -> None:
    """The outcome is that of the move, and the chain what it leaves."""
    (bed.assert_switched if move.switches else bed.assert_merged)(pivot, **options)
    bed.assert_chain(*left(move, images))


# -- 030 and 040: merges under writes -----------------------------------------------------------------------------


@pytest.mark.parametrize("names", mostly_long(["absolute", "relative"], "relative"))
@pytest.mark.parametrize("move", MERGES)
async def test_030_040_a_merge_under_writes(bed: Bed, move: Move, names: str):
    """QEMU iotests 030 and 040: no write lost, data of every layer is there, QEMU and headers agree on the chain."""
    images = bed.chain(*LAYERS, relative=names == "relative")
    before = content(images[-1], beyond_mib=FILLED_MIB)
    await bed.guest(images[-1])
    pivot = await bed.engine.closed(await bed.move(move, images))
    await bed.acks()
    assert_moved(bed, move, pivot, images)
    bed.assert_holds_all(pivot)
    assert content(left(move, images)[-1], beyond_mib=FILLED_MIB) == before


@pytest.mark.long
async def test_030_a_stream_of_a_part_and_then_of_the_rest(bed: Bed):
    """QEMU iotests 030, stream to an intermediate base: each pull leaves the chain that was asked for."""
    images = bed.chain(*LAYERS)
    before = content(images[-1], beyond_mib=FILLED_MIB)
    await bed.guest(images[-1])
    bed.assert_merged(await bed.engine.closed(await bed.pull(base=images[1])))
    bed.assert_chain(images[0], images[1], images[3])
    bed.assert_merged(await bed.engine.closed(await bed.pull(base=images[0])))
    bed.assert_chain(images[0], images[3])
    pivot = await bed.engine.closed(await bed.pull())
    bed.assert_merged(pivot)
    bed.assert_chain(images[3])
    await bed.acks()
    bed.assert_holds_all(pivot)
    assert content(images[3], beyond_mib=FILLED_MIB) == before


async def test_040_commits_of_every_part(bed: Bed):
    """QEMU iotests 040: of one layer into the next, of two into the base, of the active one into what is left."""
    images = bed.chain(*LAYERS, "active.qcow2")
    before = content(images[-1], beyond_mib=FILLED_MIB)
    await bed.guest(images[-1])
    bed.assert_merged(await bed.engine.closed(await bed.commit(top=images[3], base=images[2])))
    bed.assert_chain(*images[:3], images[4])
    bed.assert_merged(await bed.engine.closed(await bed.commit(top=images[2], base=images[0])))
    bed.assert_chain(images[0], images[4])
    pivot = await bed.engine.closed(await bed.commit())
    bed.assert_switched(pivot)
    bed.assert_chain(images[0])
    await bed.acks()
    bed.assert_holds_all(pivot)
    assert content(images[0], beyond_mib=FILLED_MIB) == before


@pytest.mark.parametrize("move", mostly_long(MERGES, Move.PULL))
async def test_030_040_a_second_job_on_the_chain(bed: Bed, move: Move):
    """QEMU iotests 030, overlapping jobs: every other pivot of the disk is refused until the first has ended."""
    images = bed.chain(*LAYERS, fill="4M")
    await bed.guest(images[-1])
    driver = await bed.to_moving(move, images)
    before = bed.engine.journal.last_seq
    for other in (*MERGES, Move.SNAPSHOT):
        with pytest.raises(DiskBusyError, match=driver.pivot.id):
            await bed.move(other, images)
    assert bed.engine.journal.last_seq == before
    bed.hurry(driver)
    assert_moved(bed, move, await bed.engine.closed(driver), images)


# -- 030 and 040: errors of the storage ---------------------------------------------------------------------------


def broken_base(bed: Bed, event: str) -> tuple[list[Path], Disk]:
    """Return a chain whose raw base reports an I/O error once, to what the guest does not do, and the disk that uses it."""
    images = bed.chain("base.raw", "top.qcow2", fill="4M")
    inject: dict[str, Any] = {"event": event, "errno": 5, "once": True}
    if event == "read_aio":
        inject["sector"] = (FILLED_MIB << 20) // 512
    file = {"driver": "blkdebug", "image": {"driver": "file", "filename": str(images[0])}, "inject-error": [inject]}
    backing = {"driver": "raw", "node-name": "base", "file": file}
    return images, Disk(images[-1], bus="ide", node={"backing": "base"}, before=(backing,))


@pytest.mark.parametrize(
    ("move", "event"), [(Move.PULL, "read_aio"), (Move.COMMIT, "pwritev")], ids=["reading", "writing"]
)
async def test_030_040_an_error_of_the_base(bed: Bed, move: Move, event: str):
    """QEMU iotests 030 and 040, EIO: kept, in QEMU's words, the chain as it was; it was once, and the next try works."""
    images, disk = broken_base(bed, event)
    await bed.guest(disk, pause_ms=30)
    before = bed.shown_chain()
    pivot = await bed.engine.closed(await bed.move(move, images))
    bed.assert_kept(pivot)
    assert "Input/output error" in (pivot.error or "")
    assert bed.shown_chain() == before
    await bed.acks()
    pivot = await bed.engine.closed(await bed.move(move, images))
    assert pivot.outcome == (Outcome.SWITCHED if move.switches else Outcome.MERGED), pivot.error
    await bed.acks()
    bed.qemu.kill()
    assert bed.judge.missing(left(move, images)[-1], left(move, images)[-1].suffix[1:]) == []


# -- 040: chains that are not what they seem ----------------------------------------------------------------------


@pytest.mark.parametrize("move", mostly_long(MERGES, Move.INNER_COMMIT))
async def test_040_a_chain_other_than_the_headers_say(bed: Bed, move: Move):
    """QEMU iotests 040, overridden backing: the chain in use counts, and what is written afterwards is that chain."""
    images = bed.chain("base.qcow2", "one.qcow2", "top.qcow2", guest=False, fill="1M")
    before = content(images[-1])
    shutil.copy(images[1], bed.directory / "used.qcow2")
    fill_image(images[1], "3M", offset="0", pattern=99)
    used = [images[0], bed.directory / "used.qcow2", images[2]]
    backing = {"driver": "qcow2", "node-name": "used", "file": {"driver": "file", "filename": str(used[1])}}
    await bed.domain(Disk(images[2], node={"backing": backing}))
    assert bed.shown_chain() == [str(image) for image in reversed(used)]
    pivot = await bed.engine.closed(await bed.move(move, used))
    (bed.assert_switched if move.switches else bed.assert_merged)(pivot)
    bed.assert_chain(*left(move, used))
    bed.qemu.kill()
    assert content(left(move, used)[-1]) == before


async def test_040_a_filter_in_the_chain(bed: Bed):
    """QEMU iotests 040, filters: refused in a line that names them, nothing recorded."""
    images = bed.chain("base.qcow2", "top.qcow2")
    below = {"driver": "qcow2", "file": {"driver": "file", "filename": str(images[0])}}
    above = {"driver": "copy-on-read", "node-name": "filter", "file": below}
    await bed.domain(Disk(images[1], node={"backing": "filter"}, before=(above,)))
    for move in MERGES:
        with pytest.raises(BadRequestError, match="filter nodes in its chain"):
            await bed.move(move, images)
    assert bed.engine.journal.last_seq == 0


# -- 274: layers of different sizes -------------------------------------------------------------------------------


def sized_chain(bed: Bed, *sizes: str) -> list[Path]:
    """Create a chain of images of these sizes, the lowest first and full of data, and return it."""
    images = [bed.image("base.qcow2", size=sizes[0])]
    fill_image(images[0], sizes[0], offset="0")
    for number, size in enumerate(sizes[1:]):
        images.append(overlay(bed.directory / f"layer{number}.qcow2", images[-1], size=size))
    return images


@pytest.mark.parametrize(
    ("move", "sizes"),
    [
        (Move.COMMIT, ("1M", "2M")),
        (Move.COMMIT, ("2M", "1M", "2M")),
        (Move.INNER_COMMIT, ("1M", "2M", "2M")),
        (Move.INNER_COMMIT, ("2M", "1M", "2M", "2M")),
        (Move.INNER_COMMIT, ("2M", "1M", "1M")),
        (Move.PULL, ("2M", "1M", "2M")),
    ],
    ids=str,
)
async def test_274_what_the_guest_reads_stays(bed: Bed, move: Move, sizes: tuple[str, ...]):
    """QEMU iotests 274: a shorter base grows, and what lies behind the end of a short layer reads as zeroes for ever."""
    images = sized_chain(bed, *sizes)
    before = content(images[-1])
    await bed.domain(images[-1])
    pivot = await bed.engine.closed(await bed.move(move, images))
    assert_moved(bed, move, pivot, images)
    bed.qemu.kill()
    assert content(left(move, images)[-1]) == before


@pytest.mark.parametrize(
    ("move", "sizes", "words"),
    [
        (Move.COMMIT, ("2M", "1M"), "would grow"),
        (Move.INNER_COMMIT, ("2M", "1M", "2M"), "behind its end"),
        (Move.INNER_COMMIT, ("2M", "2M", "1M", "2M"), "behind its end"),
    ],
)
async def test_274_what_the_guest_reads_would_change(bed: Bed, move: Move, sizes: tuple[str, ...], words: str):
    """QEMU iotests 274: QEMU itself would bring back data that a short layer hides, or let the disk grow: refused."""
    images = sized_chain(bed, *sizes)
    before = content(images[-1])
    await bed.domain(images[-1])
    with pytest.raises(BadRequestError, match=words):
        await bed.move(move, images)
    assert bed.engine.journal.last_seq == 0
    assert content(images[-1]) == before


async def test_274_a_pull_above_a_larger_base(bed: Bed):
    """QEMU iotests 274, stream: the same where a base stays below, which a pull of everything then does not need."""
    images = sized_chain(bed, "2M", "1M", "2M")
    before = content(images[-1])
    await bed.domain(images[-1])
    with pytest.raises(BadRequestError, match="behind its end"):
        await bed.pull(base=images[0])
    assert bed.engine.journal.last_seq == 0
    bed.assert_merged(await bed.engine.closed(await bed.pull()))
    bed.qemu.kill()
    assert content(images[-1]) == before


@pytest.mark.parametrize("base", mostly_long(["base.qcow2", "base.raw"], "base.raw"))
async def test_274_a_base_that_grows_under_writes(bed: Bed, base: str):
    """QEMU iotests 274 and 040: writes behind the end of the old base are in the base after the commit."""
    lowest = bed.image(base, size="8M")
    top = overlay(bed.directory / "top.qcow2", lowest, size="64M")
    await bed.guest(top)
    await bed.acks(300)
    pivot = await bed.engine.closed(await bed.commit())
    bed.assert_switched(pivot)
    await bed.acks(300)
    bed.assert_chain(lowest)
    bed.assert_holds_all(pivot)


# -- 141 and 219: jobs in the hands of others ---------------------------------------------------------------------


@pytest.mark.parametrize("move", mostly_long(MERGES, Move.PULL))
async def test_141_245_nodes_of_a_merge_are_left_alone(bed: Bed, move: Move):
    """QEMU iotests 141 and 245: deleting or reopening a layer is refused to others, and the pivot goes on."""
    images = bed.chain("base.qcow2", "one.qcow2", "top.qcow2", fill="4M")
    await bed.guest(images[-1])
    driver = await bed.to_moving(move, images)
    disk = driver.pivot.disks[0]
    nodes = {disk.source.node, *(image.node for image in (disk.top, disk.base) if image)}
    for node in nodes:
        with pytest.raises(SpyError):
            bed.qemu.spy("blockdev-del", node_name=node)
    top = {"driver": "qcow2", "node-name": disk.source.node, "file": f"{disk.source.node}file", "backing": None}
    with pytest.raises(SpyError):
        bed.qemu.spy("blockdev-reopen", {"options": [top]})
    bed.hurry(driver)
    assert_moved(bed, move, await bed.engine.closed(driver), images)


async def test_141_a_cancelled_commit_that_says_completed(bed: Bed):
    """QEMU iotests 141: a ready commit cancelled softly by somebody reports COMPLETED without an error: kept."""
    images = bed.chain(*LAYERS)
    await bed.guest(images[-1])
    driver = await bed.move(Move.COMMIT, images, pivot=False)
    await bed.engine.resting(driver)
    job = driver.pivot.disks[0].job
    bed.qemu.spy("block-job-cancel", device=job)
    bed.qemu.await_event("BLOCK_JOB_PENDING", id=job)
    bed.qemu.spy("job-finalize", id=job)
    completed = bed.qemu.await_event("BLOCK_JOB_COMPLETED", device=job)
    assert "error" not in completed["data"]
    pivot = await bed.engine.closed(driver)
    bed.assert_kept(pivot)
    bed.assert_chain(*images)
    await bed.acks()
    bed.assert_holds_all(pivot)


@pytest.mark.parametrize("verb", mostly_long(["job-cancel", "block-job-cancel"], "job-cancel"))
@pytest.mark.parametrize("move", mostly_long(MERGES, Move.INNER_COMMIT))
async def test_219_somebody_cancels_a_merge(bed: Bed, move: Move, verb: str):
    """QEMU iotests 219: kept, the reason names somebody else, the chain is as it was."""
    images = bed.chain("base.qcow2", "one.qcow2", "top.qcow2", fill="4M")
    await bed.guest(images[-1])
    driver = await bed.to_moving(move, images)
    bed.qemu.spy(verb, {"id" if verb == "job-cancel" else "device": driver.pivot.disks[0].job})
    pivot = await bed.engine.closed(driver)
    bed.assert_kept(pivot)
    assert "somebody else" in (pivot.error or "") or "cancel" in (pivot.error or ""), pivot.error
    bed.assert_chain(*images)
    await bed.acks()
    bed.assert_holds_all(pivot)


@pytest.mark.parametrize("move", mostly_long(MERGES, Move.PULL))
async def test_219_somebody_pauses_a_merge(bed: Bed, move: Move):
    """QEMU iotests 219 and 030, pause: it waits, the guest writes on; resumed it comes to its end."""
    images = bed.chain("base.qcow2", "one.qcow2", "top.qcow2", fill="4M")
    await bed.guest(images[-1])
    driver = await bed.to_moving(move, images)
    job = driver.pivot.disks[0].job
    bed.qemu.spy("job-pause", id=job)
    bed.qemu.await_event("JOB_STATUS_CHANGE", id=job, status="paused")
    bed.hurry(driver)
    await bed.acks()
    assert (driver.pivot.phase, bed.qemu.jobs()[job]["status"]) == (Phase.COPYING, "paused")
    bed.qemu.spy("job-resume", id=job)
    pivot = await bed.engine.closed(driver)
    assert_moved(bed, move, pivot, images)
    bed.assert_holds_all(pivot)


# -- 144, 155, 156: snapshots, commits and mirrors in turn --------------------------------------------------------


async def test_144_snapshot_commit_snapshot(bed: Bed):
    """QEMU iotests 144: a snapshot while the commit is ready is refused to everybody, and possible right after it."""
    old, overlays = bed.image(fill="4M"), [bed.target(f"over{number}.qcow2") for number in range(3)]
    await bed.guest(old)
    bed.assert_switched(await bed.engine.closed(await bed.snapshot(overlays[0])))
    bed.assert_chain(old, overlays[0])
    driver = await bed.commit(pivot=False)
    await bed.engine.resting(driver)
    with pytest.raises(DiskBusyError):
        await bed.snapshot(overlays[1])
    theirs = {"node-name": driver.pivot.disks[0].source.node, "snapshot-file": str(overlays[1])}
    with pytest.raises(SpyError):
        bed.qemu.spy("blockdev-snapshot-sync", theirs)
    bed.assert_switched(await bed.complete(driver))
    bed.assert_chain(old)
    pivot = await bed.engine.closed(await bed.snapshot(overlays[2]))
    bed.assert_switched(pivot)
    bed.assert_chain(old, overlays[2])
    await bed.acks()
    bed.assert_holds_all(pivot)


@pytest.mark.parametrize("sync", mostly_long([Sync.FULL, Sync.TOP], Sync.TOP))
async def test_155_156_a_mirror_of_an_overlay(bed: Bed, sync: Sync):
    """QEMU iotests 155 and 156: overlay, mirror of it, overlay of that, commit of all: each chain is as asked for."""
    old, over, new, last = (bed.directory / f"{name}.qcow2" for name in ("old", "over", "new", "last"))
    await bed.guest(bed.image(fill="4M"))
    before = content(old, beyond_mib=FILLED_MIB)
    bed.assert_switched(await bed.engine.closed(await bed.snapshot(over)))
    bed.assert_switched(await bed.engine.closed(await bed.copy(new, sync=sync)))
    below = [old] if sync is Sync.TOP else []
    bed.assert_chain(*below, new)
    bed.assert_switched(await bed.engine.closed(await bed.snapshot(last)))
    bed.assert_chain(*below, new, last)
    pivot = await bed.engine.closed(await bed.commit())
    bed.assert_switched(pivot)
    lowest = [*below, new][0]
    bed.assert_chain(lowest)
    await bed.acks()
    bed.assert_holds_all(pivot)
    assert content(lowest, beyond_mib=FILLED_MIB) == before


# -- 185: QEMU quits ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("move", mostly_long(MERGES, Move.PULL, Move.INNER_COMMIT))
async def test_185_qemu_quits_during_a_merge(bed: Bed, move: Move):
    """QEMU iotests 185: kept, the active image holds every write, the chain is whole and each image sound."""
    images = bed.chain("base.qcow2", "one.qcow2", "top.qcow2", fill="4M")
    before = content(images[-1], beyond_mib=FILLED_MIB)
    await bed.guest(images[-1])
    driver = await bed.to_moving(move, images)
    bed.qemu.spy("quit")
    bed.qemu.wait()
    pivot = await bed.engine.closed(driver)
    assert pivot.outcome == Outcome.KEPT, pivot.error
    assert "gone" in (pivot.error or "")
    bed.assert_holds_all(pivot)
    assert content(images[-1], beyond_mib=FILLED_MIB) == before
    for image in images:
        assert_sound(image)


# -- 281: disks in threads of their own ---------------------------------------------------------------------------


@pytest.mark.parametrize("bus", mostly_long(["virtio-blk", "virtio-scsi"], "virtio-blk"))
@pytest.mark.parametrize("move", mostly_long([*MERGES, Move.SNAPSHOT], Move.COMMIT, Move.PULL))
async def test_281_chains_of_a_disk_in_an_iothread(bed: Bed, move: Move, bus: str):
    """QEMU iotests 281 and graph-changes-while-io: nodes come and go meanwhile; the chain is as asked for, no data lost."""
    images = bed.chain("base.qcow2", "one.qcow2", "top.qcow2")
    before = content(images[-1])
    await bed.domain(Disk(images[-1], bus=bus, iothread=True))
    numbers = count()

    def edit() -> None:
        name = f"edit{next(numbers)}"
        bed.qemu.spy("blockdev-add", driver="null-co", node_name=name, read_zeroes=True)
        bed.qemu.spy("blockdev-del", node_name=name)

    async with meanwhile(edit) as edits:
        pivot = await bed.engine.closed(await bed.move(move, images))
    assert edits[0] > 0
    kept = [*images, bed.target("new0.qcow2")] if move is Move.SNAPSHOT else left(move, images)
    (bed.assert_switched if move.switches else bed.assert_merged)(pivot)
    bed.assert_chain(*kept)
    bed.qemu.kill()
    assert content(kept[-1]) == before
