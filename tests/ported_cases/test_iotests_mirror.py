"""QEMU's iotests on mirrors that work: what is copied, and when it is complete. Scenarios, in our own words."""

from __future__ import annotations

import subprocess

import pytest

from pivotd.core.pivot import Phase
from pivotd.core.request import CopyMode, Sync
from pivotd.errors import BadRequestError, NotFoundError
from tests.ported_cases.fixture import Bed, assert_sound, content, fill_image, overlay
from tests.support.qemu import Disk
from tests.support.qmp_spy import SpyError

pytestmark = pytest.mark.qemu

GENTLE_MS = 30
"""A guest that makes less dirty in a second than a limited mirror copies."""


async def test_041_complete_under_writes(bed: Bed):
    """QEMU iotests 041, complete: the destination has every write from before and after the switch, the source up to it."""
    await bed.guest(bed.image())
    driver = await bed.to_ready(bed.target())
    await bed.acks()
    before = bed.judge.last_ack()
    pivot = await bed.complete(driver)
    await bed.acks()
    bed.assert_switched(pivot)
    bed.assert_holds_all(pivot)
    assert bed.judge.missing(bed.directory / "old.qcow2", "qcow2", before) == []


@pytest.mark.parametrize("size", ["0", "512", "1049088", "46341120"])
@pytest.mark.parametrize(("old", "new"), [("old.raw", "new.qcow2"), ("old.qcow2", "new.raw")])
async def test_041_odd_sizes(bed: Bed, size: str, old: str, new: str):
    """QEMU iotests 041, zero-length and unaligned images: the copy is as long as the source, and equal."""
    source = bed.image(old, size=size)
    if size != "0":
        fill_image(source, "512", offset=str(int(size) - 512))
    await bed.domain(source)
    pivot = await bed.engine.closed(await bed.copy(bed.target(new)))
    bed.assert_switched(pivot)
    bed.qemu.kill()
    assert content(source) == content(bed.target(new))


@pytest.mark.parametrize(("old", "new"), [("4k", "2M"), ("2M", "4k")])
async def test_041_other_cluster_sizes(bed: Bed, old: str, new: str):
    """QEMU iotests 041, target with larger clusters: no neighbour of a written block is lost."""
    source = bed.image(options=f"cluster_size={old}", size="40M")
    target = bed.image("new.qcow2", options=f"cluster_size={new}", size="40M")
    await bed.guest(source)
    pivot = await bed.engine.closed(await bed.copy(target, reuse=True))
    await bed.acks(300)
    bed.assert_switched(pivot)
    bed.assert_holds_all(pivot)


async def test_041_a_drive_without_a_medium(bed: Bed):
    """QEMU iotests 041, no medium: there is no disk to move, and the message names those that there are."""
    await bed.domain(bed.image(), extra=["-device", "ide-cd,id=cd0,bus=ide.0"])
    with pytest.raises(NotFoundError, match="disk0"):
        await bed.engine.copy("web1", {"cd0": bed.target()})


@pytest.mark.parametrize("disk", ["nothing", "src0", "orphan"])
async def test_041_what_is_no_disk(bed: Bed, disk: str):
    """QEMU iotests 041, missing device and orphaned node: only what the guest uses can be moved."""
    await bed.domain(bed.image())
    bed.qemu.spy("blockdev-add", driver="null-co", node_name="orphan", read_zeroes=True)
    with pytest.raises(NotFoundError):
        await bed.engine.copy("web1", {disk: bed.target()})
    assert bed.engine.journal.last_seq == 0


async def test_041_an_image_to_reuse_that_is_missing(bed: Bed):
    """QEMU iotests 041, missing image: refused, nothing recorded, nothing created."""
    await bed.domain(bed.image())
    assert "does not exist" in await bed.refused(BadRequestError, bed.target(), reuse=True)
    assert not bed.target().exists()


async def test_041_an_image_that_is_none(bed: Bed):
    """QEMU iotests 041: a file that is not of the format named is refused, and left as it is."""
    await bed.domain(bed.image())
    bed.target().write_bytes(b"no image at all" * 100)
    with pytest.raises(BadRequestError, match="holds no qcow2 image"):
        await bed.copy(bed.target(), reuse=True)
    assert bed.target().read_bytes() == b"no image at all" * 100


# -- backing chains -----------------------------------------------------------------------------------------------


async def test_155_a_full_copy_stands_alone(bed: Bed):
    """QEMU iotests 155, sync=full: data of every layer is in the copy, and nothing is below it."""
    base = bed.image("base.qcow2", fill="8M")
    top = overlay(bed.directory / "top.qcow2", overlay(bed.directory / "mid.qcow2", base))
    fill_image(top, "1M", offset="33M", pattern=7)
    before = content(top)
    await bed.domain(Disk(top))
    assert len(bed.shown_chain()) == 3
    pivot = await bed.engine.closed(await bed.copy(bed.target()))
    bed.assert_switched(pivot)
    assert bed.shown_chain() == [str(bed.target())]
    bed.qemu.kill()
    assert content(bed.target()) == before


async def test_155_a_copy_of_the_top_layer_stands_on_the_same_base(bed: Bed):
    """QEMU iotests 155 and 156, sync=top: the chain shown is the new top and the old base."""
    base = bed.image("base.qcow2", fill="8M")
    top = overlay(bed.directory / "top.qcow2", base)
    fill_image(top, "1M", offset="33M", pattern=7)
    before = content(top)
    target = bed.target()
    await bed.domain(Disk(top))
    pivot = await bed.engine.closed(await bed.copy(target, sync=Sync.TOP))
    bed.assert_switched(pivot)
    assert bed.shown_chain() == [str(target), str(base)]
    bed.qemu.kill()
    assert content(target) == before
    assert_sound(base)
    assert target.stat().st_size < (4 << 20), "only the top layer was copied"


async def test_156_the_image_below_is_not_taken_as_destination(bed: Bed):
    """QEMU iotests 156, forced backing: an image of the chain itself cannot be the copy."""
    base = bed.image("base.qcow2", fill="1M")
    await bed.domain(Disk(overlay(bed.directory / "top.qcow2", base)))
    before = base.read_bytes()
    assert "present image" in await bed.refused(BadRequestError, base, reuse=True)
    assert base.read_bytes() == before


# -- formats and permissions --------------------------------------------------------------------------------------


@pytest.mark.parametrize("old", ["old.raw", "old.qcow2"])
async def test_109_a_guest_that_writes_an_image_header(bed: Bed, old: str):
    """QEMU iotests 109, probing: a disk whose data looks like a qcow2 image is copied as data, and stays raw."""
    header = bed.image("header.qcow2", size="1G").read_bytes()[:65536]
    (bed.directory / "header").write_bytes(header)
    source = bed.image(old)
    write = f"write -q -s {bed.directory}/header 0 64k"
    subprocess.run(["qemu-io", "-f", source.suffix[1:], "-c", write, str(source)], check=True, capture_output=True)
    await bed.domain(source)
    pivot = await bed.engine.closed(await bed.copy(bed.target("new.raw")))
    bed.assert_switched(pivot)
    shown = next(entry for entry in bed.qemu.spy("query-block") if entry.get("inserted"))["inserted"]
    assert (shown["drv"], shown["image"]["virtual-size"]) == ("raw", 64 << 20)
    bed.qemu.kill()
    assert bed.target("new.raw").read_bytes()[:65536] == header


async def test_283_an_image_that_another_qemu_writes(bed: Bed):
    """QEMU iotests 283, permissions: an image locked by another process is refused in words, and left as it is."""
    await bed.domain(bed.image())
    other = bed.image("other.qcow2", fill="1M")
    before = content(other)
    locked = bed._factory([Disk(other)], name="web2")
    pivot = await bed.engine.closed(await bed.copy(other, reuse=True))
    bed.assert_kept(pivot)
    assert "lock" in (pivot.error or ""), pivot.error
    locked.kill()
    assert content(other) == before


# -- how writes follow --------------------------------------------------------------------------------------------


async def test_151_write_blocking_needs_no_turn_of_the_job(bed: Bed):
    """QEMU iotests 151: at ready a write is in the destination when it is done, though the job itself stands still."""
    source = bed.image("old.raw")
    await bed.domain(source)
    driver = await bed.to_ready(bed.target("new.raw"), copy_mode=CopyMode.WRITE_BLOCKING)
    job = driver.pivot.disks[0].job
    bed.qemu.spy("job-pause", id=job)
    line = 'qemu-io -d /machine/peripheral/disk0/virtio-backend "write -P 33 1M 64k"'
    bed.qemu.spy("human-monitor-command", {"command-line": line})
    assert bed.target("new.raw").read_bytes()[1 << 20 : (1 << 20) + 65536] == bytes([33]) * 65536
    bed.qemu.spy("job-resume", id=job)
    bed.assert_switched(await bed.complete(driver))


async def test_151_a_throttled_guest(bed: Bed):
    """QEMU iotests 151 and 194, completion under throttled load: slow writes delay nothing, and the limit stays."""
    await bed.guest(bed.image())
    limit = dict.fromkeys(("bps", "bps_rd", "bps_wr", "iops_rd", "iops_wr"), 0) | {"iops": 40, "id": "disk0"}
    bed.qemu.spy("block_set_io_throttle", limit)
    pivot = await bed.engine.closed(await bed.copy(bed.target()))
    bed.assert_switched(pivot)
    await bed.acks(4)
    shown = next(entry for entry in bed.qemu.spy("query-block") if entry.get("inserted"))["inserted"]
    assert shown["iops"] == 40
    bed.assert_holds_all(pivot)


async def test_194_a_slow_copy_is_not_a_stalled_one(bed: Bed):
    """QEMU iotests 194: a copy that takes seconds advances and ends; the pause does not grow with it."""
    await bed.guest(bed.image(fill="16M"), pause_ms=GENTLE_MS)
    driver = await bed.copy(bed.target(), bandwidth_bytes_per_s=8 << 20)
    await bed.until(driver, lambda pivot: pivot.phase is not Phase.PREPARING)
    assert driver.pivot.phase is Phase.COPYING
    pivot = await bed.engine.closed(driver)
    bed.assert_switched(pivot)
    assert bed.engine.events(pivot).count("copying") == 1
    bed.assert_holds_all(pivot)


async def test_mirror_change_copy_mode(bed: Bed):
    """QEMU iotests mirror-change-copy-mode: where QEMU (8.2) can change the mode it does, else the copy goes on as it was."""
    await bed.guest(bed.image())
    driver = await bed.to_ready(bed.target())
    session = bed.engine.host.get("web1").session
    assert session is not None
    commands = {command["name"] for command in bed.qemu.spy("query-commands")}
    changed = await session.write_blocking(driver.pivot)
    assert changed == ("block-job-change" in commands)
    (job,) = bed.qemu.spy("query-block-jobs")
    assert job["status"] == "ready"
    pivot = await bed.complete(driver)
    bed.assert_switched(pivot)
    bed.assert_holds_all(pivot)


# -- jobs in the hands of others ----------------------------------------------------------------------------------


async def test_141_nodes_of_a_running_job_cannot_be_deleted(bed: Bed):
    """QEMU iotests 141: somebody's blockdev-del of source, destination or their files is refused, and the pivot goes on."""
    await bed.guest(bed.image(fill="16M"))
    driver = await bed.to_copying(bed.target())
    disk = driver.pivot.disks[0]
    for node in (disk.source.node, disk.destination.node, f"p{driver.pivot.id}-0f"):
        with pytest.raises(SpyError, match="in use"):
            bed.qemu.spy("blockdev-del", node_name=node)
    bed.qemu.spy("block-job-set-speed", device=disk.job, speed=0)
    bed.assert_switched(await bed.engine.closed(driver))


async def test_141_a_cancelled_mirror_that_says_completed(bed: Bed):
    """QEMU iotests 141: a ready mirror cancelled softly by somebody reports COMPLETED without an error; it is not a switch."""
    await bed.guest(bed.image())
    driver = await bed.to_ready(bed.target())
    job = driver.pivot.disks[0].job
    bed.qemu.spy_events()
    bed.qemu.spy("block-job-cancel", device=job)
    bed.qemu.await_event("BLOCK_JOB_PENDING", id=job)
    bed.qemu.spy("job-finalize", id=job)
    completed = bed.qemu.await_event("BLOCK_JOB_COMPLETED", device=job)
    assert "error" not in completed["data"]
    pivot = await bed.engine.closed(driver)
    bed.assert_kept(pivot)
    await bed.acks()
    bed.assert_holds_all(pivot)
