"""tp-qemu's tests of commits, streams and snapshots (autotest): what people, guests and storage do to chains at work."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest

from pivotd.core.pivot import Outcome, Phase
from pivotd.errors import BadRequestError, NotFoundError
from tests.ported_cases.fixture import Bed, content, fill_image, lay_chain, mostly_long, overlay, small_file_system
from tests.ported_cases.test_iotests_faults import server
from tests.ported_cases.test_iotests_layers import FILLED_MIB, MERGES, assert_moved, left
from tests.ported_cases.test_tp_qemu import FORBIDDEN
from tests.support.moves import Move
from tests.support.qemu import Disk, create_image
from tests.support.qmp_spy import SpyError

pytestmark = pytest.mark.qemu


# -- storage ------------------------------------------------------------------------------------------------------


async def test_commit_to_a_base_that_is_full(bed: Bed):
    """tp-qemu, commit with no space at the base: it waits, and the guest writes on; given up, a pull needs no base."""
    with small_file_system(bed.directory, "4m") as place:
        images = [create_image(place / "base.qcow2"), bed.directory / "top.qcow2"]
        fill_image(overlay(images[1], images[0]), "16M")
        before = content(images[1], beyond_mib=FILLED_MIB)
        await bed.guest(images[1])
        driver = await bed.commit(force=True)
        await bed.waits_for_room(driver)
        assert f"{images[0]} is full: the commit goes on when there is room" in driver.waits_for
        bed.assert_kept(await bed.cancel(driver))
        bed.assert_chain(*images)
        await bed.acks()
        pivot = await bed.engine.closed(await bed.pull())
        bed.assert_merged(pivot)
        await bed.acks()
        bed.assert_holds_all(pivot)
        assert content(images[1], beyond_mib=FILLED_MIB) == before


async def test_stream_into_an_image_that_is_full(bed: Bed):
    """tp-qemu, stream with no space: kept, the chain stays, the guest writes on."""
    with small_file_system(bed.directory, "24m") as place:
        base = bed.image("base.qcow2", fill="28M")
        top = overlay(place / "top.qcow2", base)
        await bed.guest(top)
        await bed.acks(300)  # from here on the guest needs no more space
        pivot = await bed.engine.closed(await bed.pull(force=True))
        bed.assert_kept(pivot)
        assert "No space" in (pivot.error or ""), pivot.error
        bed.assert_chain(base, top)
        await bed.acks()
        bed.assert_holds_all(pivot)


async def test_commit_frees_a_guest_whose_overlay_is_full(bed: Bed):
    """tp-qemu, commit by a guest in io-error: it stays so, and its failed write succeeds on the base once a person resumes it."""
    with small_file_system(bed.directory, "6m") as place:
        base = bed.image("base.qcow2")
        top = overlay(place / "top.qcow2", base)
        await bed.guest(Disk(top, bus="ide", device="werror=stop"), acks=5)
        bed.qemu.await_event("BLOCK_IO_ERROR")
        pivot = await bed.engine.closed(await bed.commit())
        bed.assert_switched(pivot, run_state="io-error")
        assert pivot.pause_ms is None, "it was not our pause"
        bed.qemu.spy("cont")
        await bed.acks(100)
        assert not bed.judge.failed(), "the guest never saw the error"
        bed.assert_chain(base)
        bed.assert_holds_all(pivot)


async def test_stream_from_a_server_that_dies(bed: Bed):
    """tp-qemu, stream with the remote server down: kept, and the chain is as it was."""
    base = bed.image("base.raw", fill="8M")
    socket = bed.directory / "nbd.sock"
    top = create_image(bed.directory / "top.qcow2")
    with server(base, socket) as process:
        file = {"driver": "nbd", "server": {"type": "unix", "path": str(socket)}}
        below = {"driver": "raw", "node-name": "below", "file": file}
        await bed.domain(Disk(top, node={"backing": "below"}, before=(below,)))
        before = bed.shown_chain()
        driver = await bed.to_moving(Move.PULL, [base, top])
        process.kill()
        process.wait()
        bed.hurry(driver)
        pivot = await bed.engine.closed(driver)
    bed.assert_kept(pivot)
    assert pivot.error
    assert bed.shown_chain() == before


@pytest.mark.long
async def test_commit_to_a_base_that_another_qemu_uses(bed: Bed):
    """tp-qemu, a shared base: QEMU's lock of it is a refusal in words, and the other guest's image stays as it is."""
    images = bed.chain("base.qcow2", "top.qcow2")
    other = overlay(bed.directory / "other.qcow2", images[0])
    await bed.guest(images[1])
    bed._factory([Disk(other)], name="web2")
    before = content(other)
    pivot = await bed.engine.closed(await bed.commit())
    bed.assert_kept(pivot)
    assert "lock" in (pivot.error or ""), pivot.error
    bed.assert_chain(*images)
    assert content(other) == before
    await bed.acks()
    bed.assert_holds_all(pivot)


# -- several disks ------------------------------------------------------------------------------------------------


def two_chains(bed: Bed) -> list[list[Path]]:
    return [lay_chain(*(bed.directory / f"d{disk}{name}.qcow2" for name in ("base", "one", "top"))) for disk in (0, 1)]


@pytest.mark.parametrize("move", mostly_long(MERGES, Move.PULL))
async def test_several_disks_at_once(bed: Bed, move: Move):
    """tp-qemu, commit and stream of multiple disks under I/O: one pause, all done, each chain as asked for."""
    chains = two_chains(bed)
    await bed.guest(*(chain[-1] for chain in chains))
    pivot = await bed.engine.closed(await bed.move(move, *chains))
    (bed.assert_switched if move.switches else bed.assert_merged)(pivot)
    assert len([pause for pause in pivot.pauses if pause.ended in {"switched", "merged"}]) == 1
    for disk, chain in enumerate(chains):
        bed.assert_chain(*left(move, chain), disk=f"disk{disk}", disks=2)
    await bed.acks()
    bed.assert_holds_all(pivot)


@pytest.mark.parametrize("move", mostly_long([Move.COMMIT, Move.PULL], Move.PULL))
async def test_one_of_several_disks_fails(bed: Bed, move: Move):
    """tp-qemu, multiple disks, one with a bad base: no disk is changed, both are free for another try."""
    chains = two_chains(bed)
    file = {"driver": "file", "filename": str(chains[1][0])}
    inject = {"event": "read_aio" if move is Move.PULL else "pwritev", "errno": 5, "once": True}
    bad = {"driver": "blkdebug", "node-name": "bad", "image": file, "inject-error": [inject]}
    base = {"driver": "qcow2", "node-name": "base", "file": "bad"}
    one = {"driver": "qcow2", "node-name": "one", "backing": "base"}
    one["file"] = {"driver": "file", "filename": str(chains[1][1])}  # type: ignore[assignment]
    second = Disk(chains[1][-1], node={"backing": "one"}, before=(bad, base, one))
    await bed.domain(Disk(chains[0][-1]), second)
    before = [bed.shown_chain(f"disk{disk}") for disk in (0, 1)]
    pivot = await bed.engine.closed(await bed.move(move, *chains))
    bed.assert_kept(pivot)
    assert "Input/output error" in (pivot.error or ""), pivot.error
    assert [bed.shown_chain(f"disk{disk}") for disk in (0, 1)] == before
    pivot = await bed.engine.closed(await bed.move(move, *chains))
    assert pivot.outcome == (Outcome.SWITCHED if move.switches else Outcome.MERGED), pivot.error


async def test_one_of_several_overlays_cannot_be_made(bed: Bed):
    """tp-qemu, snapshots of multiple disks, one target without space: no disk gets its overlay."""
    olds = [bed.image("old0.qcow2"), bed.image("old1.qcow2")]
    with small_file_system(bed.directory, "4k") as place:
        await bed.guest(*olds)
        pivot = await bed.engine.closed(await bed.snapshot(bed.target("over0.qcow2"), place / "over1.qcow2"))
        bed.assert_kept(pivot)
        assert "No space" in (pivot.error or ""), pivot.error
        assert len(bed.qemu.nodes()) == 4
        await bed.acks()
        bed.assert_holds_all(pivot)


async def test_two_overlays_of_one_name(bed: Bed):
    """tp-qemu, snapshots of multiple disks: one file under two names cannot hold both; no disk gets it."""
    (bed.directory / "link").symlink_to(bed.directory)
    await bed.guest(bed.image("old0.qcow2"), bed.image("old1.qcow2"))
    pivot = await bed.engine.closed(await bed.snapshot(bed.target(), bed.directory / "link" / "new.qcow2"))
    bed.assert_kept(pivot)
    assert "exists already" in (pivot.error or ""), pivot.error
    await bed.acks()
    bed.assert_holds_all(pivot)


# -- snapshots ----------------------------------------------------------------------------------------------------


async def test_a_chain_of_snapshots(bed: Bed):
    """tp-qemu, snapshot chains and merges: each snapshot keeps what was written up to it; the chain comes apart again in parts."""
    images = [bed.image("s0.qcow2", fill="1M")]
    await bed.guest(images[0])
    acks = []
    for number in range(1, 5):
        overlay_of = bed.target(f"s{number}.qcow2")
        acks.append(await bed.acks(8))
        bed.assert_switched(await bed.engine.closed(await bed.snapshot(overlay_of)))
        images.append(overlay_of)
        bed.assert_chain(*images)
    for image, ack in zip(images, acks, strict=False):
        assert bed.judge.missing(image, "qcow2", ack) == []
    bed.assert_merged(await bed.engine.closed(await bed.commit(top=images[3], base=images[1])))
    bed.assert_chain(images[0], images[1], images[4])
    bed.assert_merged(await bed.engine.closed(await bed.pull(base=images[0])))
    bed.assert_chain(images[0], images[4])
    pivot = await bed.engine.closed(await bed.commit())
    bed.assert_switched(pivot)
    bed.assert_chain(images[0])
    await bed.acks()
    bed.assert_holds_all(pivot)


@pytest.mark.parametrize("old", mostly_long(["old.raw", "with-data-file.qcow2"], "with-data-file.qcow2"))
async def test_snapshot_of_other_images(bed: Bed, old: str):
    """tp-qemu, snapshot of raw and of qcow2 with a data file: on and off again, no file left open."""
    data = f"data_file={bed.directory / 'data.raw'}" if old.endswith("qcow2") else ""
    source = bed.image(old, options=data)
    await bed.guest(source)
    nodes = len(bed.qemu.nodes())
    bed.assert_switched(await bed.engine.closed(await bed.snapshot(bed.target())))
    assert len(bed.qemu.nodes()) == nodes + 2
    pivot = await bed.engine.closed(await bed.commit())
    bed.assert_switched(pivot)
    assert len(bed.qemu.nodes()) == nodes
    bed.assert_switched(await bed.engine.closed(await bed.snapshot(bed.target("again.qcow2"))))
    pivot = await bed.engine.closed(await bed.pull())
    bed.assert_merged(pivot)
    bed.assert_chain(bed.target("again.qcow2"))
    await bed.acks()
    bed.assert_holds_all(pivot)


# -- people and guests meanwhile ----------------------------------------------------------------------------------


@pytest.mark.parametrize("move", mostly_long(MERGES, Move.PULL))
async def test_forbidden_actions_while_a_chain_changes(bed: Bed, move: Move):
    """tp-qemu, forbidden actions: each of another tool's is refused by QEMU, or makes no difference to the outcome's truth."""
    images = bed.chain("base.qcow2", "one.qcow2", "top.qcow2", fill="12M")
    await bed.guest(images[-1])
    bed.image("spare.qcow2")
    spare = {"driver": "file", "filename": str(bed.directory / "spare.qcow2")}
    bed.qemu.spy("blockdev-add", {"driver": "qcow2", "node-name": "spare", "file": spare, "backing": None})
    driver = await bed.to_moving(move, images)
    allowed = []
    for name, (command, arguments) in FORBIDDEN.items():
        with suppress(SpyError):
            bed.qemu.spy(command, arguments)
            allowed.append(name)
    assert allowed == []
    bed.hurry(driver)
    pivot = await bed.engine.closed(driver)
    bed.qemu.spy("blockdev-del", node_name="spare")
    assert_moved(bed, move, pivot, images)
    await bed.acks()
    bed.assert_holds_all(pivot)


@pytest.mark.parametrize("move", mostly_long(MERGES, Move.INNER_COMMIT))
async def test_reboots_while_a_chain_changes(bed: Bed, move: Move):
    """tp-qemu, commit and stream during reboot: three resets cost no write and no merge."""
    images = bed.chain("base.qcow2", "one.qcow2", "top.qcow2", fill="4M")
    await bed.guest(images[-1])
    driver = await bed.to_moving(move, images)
    for boots in (2, 3, 4):
        bed.qemu.spy("system_reset")
        await bed.acks(2)
        assert bed.judge.boots() == boots
    bed.hurry(driver)
    pivot = await bed.engine.closed(driver)
    assert_moved(bed, move, pivot, images)
    await bed.acks()
    bed.assert_holds_all(pivot)


@pytest.mark.parametrize("move", mostly_long(MERGES, Move.PULL))
async def test_powerdown_while_a_chain_changes(bed: Bed, move: Move):
    """tp-qemu, powerdown: the merge ends for a guest that has shut down, and all is on disk when QEMU is killed right after."""
    images = bed.chain("base.qcow2", "one.qcow2", "top.qcow2", fill="4M")
    before = content(images[-1], beyond_mib=FILLED_MIB)
    await bed.guest(images[-1], no_shutdown=True, extra=["-no-reboot"])
    driver = await bed.to_moving(move, images)
    bed.qemu.spy("system_reset")
    bed.qemu.await_event("STOP")
    bed.hurry(driver)
    pivot = await bed.engine.closed(driver)
    assert_moved(bed, move, pivot, images, run_state="shutdown")
    bed.assert_holds_all(pivot)
    assert content(left(move, images)[-1], beyond_mib=FILLED_MIB) == before


@pytest.mark.parametrize("move", mostly_long(MERGES, Move.INNER_COMMIT))
async def test_hotunplug_while_a_chain_changes(bed: Bed, move: Move):
    """tp-qemu, hot-unplug during a commit: closed, no job left, and the images still hold what they held."""
    images = bed.chain("base.qcow2", "one.qcow2", "top.qcow2", fill="8M")
    before = content(images[-1])
    await bed.domain(Disk(images[-1], bus="virtio-scsi"))
    driver = await bed.to_moving(move, images)
    bed.qemu.spy("device_del", id="disk0")
    bed.qemu.await_event("DEVICE_DELETED", device="disk0")
    pivot = await bed.engine.closed(driver)
    assert pivot.outcome == Outcome.KEPT, pivot.error
    assert "unplugged" in (pivot.error or "")
    assert (bed.qemu.run_state(), bed.qemu.jobs()) == ("running", {})
    bed.qemu.kill()
    assert content(images[-1]) == before


@pytest.mark.long
async def test_speed_of_a_stream(bed: Bed):
    """tp-qemu, stream with set speed: it crawls, is told to hurry, and ends."""
    images = bed.chain("base.qcow2", "top.qcow2", fill="8M")
    await bed.guest(images[-1])
    driver = await bed.to_moving(Move.PULL, images)
    await bed.acks()
    assert driver.pivot.phase is Phase.COPYING
    await driver.set_bandwidth(0, driver.pivot.requested_by)
    pivot = await bed.engine.closed(driver)
    bed.assert_merged(pivot)
    bed.assert_holds_all(pivot)


async def test_layers_that_are_none(bed: Bed):
    """tp-qemu, commit and stream with invalid nodes: another disk's layer, the disk itself, an image without any below."""
    chains = two_chains(bed)
    alone = bed.image("alone.qcow2")
    await bed.domain(chains[0][-1], chains[1][-1], alone)
    for refused in (bed.commit(base=chains[1][0]), bed.commit(top=chains[1][1]), bed.pull(base=chains[1][0])):
        with pytest.raises(NotFoundError, match=r"not in the chain of disk0; its layers are: .*d0top.*d0base"):
            await refused
    for refused in (bed.commit(base=chains[0][-1]), bed.pull(base=chains[0][-1]), bed.commit(top=chains[0][0])):
        with pytest.raises(BadRequestError):
            await refused
    for move in (Move.COMMIT, Move.PULL):
        with pytest.raises(BadRequestError, match="stands alone"):
            await bed.move(move, *chains, [alone])
    assert bed.engine.journal.last_seq == 0
