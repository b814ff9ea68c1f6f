"""QEMU's iotests on mirrors that fail: I/O errors, a QEMU that quits, a server that dies, a graph that changes."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from pivotd.core.pivot import Outcome, Phase
from pivotd.core.request import Requester
from pivotd.engine.inbox import Cancel
from pivotd.errors import PhaseConflictError
from tests.ported_cases.fixture import Bed, assert_sound, content, fill_image, meanwhile, small_file_system
from tests.support.qemu import Disk, create_image, popen_tied
from tests.support.qmp_spy import SpyError
from tests.support.tiny_guest import SPREAD_SECTORS

WHO = Requester(0, 0, 1)
pytestmark = pytest.mark.qemu

CANCEL_S = 30.0
"""Long on a busy machine; whatever waits for the job or the server waits for ever."""


def failing(path: Path, **error: Any) -> Disk:
    """Return an IDE disk whose image reports an error where blkdebug is told to."""
    inject = {"errno": 5, "once": True} | error
    file = {"driver": "blkdebug", "image": {"driver": "file", "filename": str(path)}, "inject-error": [inject]}
    return Disk(path, format="raw", bus="ide", node={"file": file})


@pytest.mark.parametrize("once", [True, False], ids=["once", "for ever"])
async def test_041_errors_reading_the_source(bed: Bed, once: bool):
    """QEMU iotests 041, read error with report: kept, in QEMU's words, the guest runs; if it was once, the next copy works."""
    source = bed.image("old.raw", fill="4M")
    broken = failing(source, event="read_aio", sector=(33 << 20) // 512, once=once)
    await bed.guest(broken)
    pivot = await bed.engine.closed(await bed.copy(bed.target("new.raw")))
    bed.assert_kept(pivot)
    assert "Input/output error" in (pivot.error or "")
    await bed.acks()
    pivot = await bed.engine.closed(await bed.copy(bed.target("again.raw")))
    assert pivot.outcome == (Outcome.SWITCHED if once else Outcome.KEPT), pivot.error
    await bed.acks()
    bed.assert_holds_all(pivot)


@pytest.mark.parametrize("event", ["pwritev", "flush_to_disk"])
async def test_041_errors_writing_one_of_two_destinations(bed: Bed, event: str):
    """QEMU iotests 041, write error with report: neither disk is switched, for they move as one."""
    await bed.guest(bed.image("old0.raw"), bed.image("old1.raw"))
    driver = await bed.to_ready(bed.target("new0.raw"), bed.target("new1.raw"))
    inject: dict[str, Any] = {"event": event, "errno": 5, "once": False}
    if event == "flush_to_disk":
        inject["iotype"] = "flush"
    below = f"p{driver.pivot.id}-1f"
    bed.qemu.spy("blockdev-add", {"driver": "blkdebug", "node-name": "bad", "image": below, "inject-error": [inject]})
    broken = {"driver": "raw", "node-name": driver.pivot.disks[1].destination.node, "file": "bad"}
    bed.qemu.spy("blockdev-reopen", {"options": [broken]})
    # Where a write has failed before the switch is asked for, that is as good.
    with contextlib.suppress(PhaseConflictError):
        await driver.complete(driver.pivot.requested_by)
    pivot = await bed.engine.closed(driver)
    bed.assert_kept(pivot)
    await bed.acks()
    bed.assert_holds_all(pivot)


@pytest.mark.parametrize("errno", [5, 28], ids=["EIO", "ENOSPC"])
async def test_041_errors_that_stop_the_guest(bed: Bed, errno: int):
    """QEMU iotests 041, stop then resume: a guest in io-error is moved, stays so, and its failed write then succeeds."""
    source = bed.image("old.raw")
    stuck = 60
    disk = failing(source, event="pwritev", sector=stuck * SPREAD_SECTORS, errno=errno)
    disk = Disk(disk.image, format="raw", bus="ide", node=disk.node, device="werror=stop")
    await bed.guest(disk, acks=10)
    bed.qemu.await_event("STOP")
    assert bed.qemu.run_state() == "io-error"
    pivot = await bed.engine.closed(await bed.copy(bed.target("new.raw")))
    bed.assert_switched(pivot, run_state="io-error")
    assert pivot.pause_ms is None, "it was not our pause"
    bed.qemu.spy("cont")
    await bed.acks(60)
    assert not bed.judge.failed(), "the guest never saw the error"
    bed.assert_holds_all(pivot)


@pytest.mark.parametrize("errno", [5, 28], ids=["EIO", "ENOSPC"])
@pytest.mark.thinned(2)
async def test_041_errors_that_stop_the_guest_while_it_is_copied(bed: Bed, errno: int):
    """QEMU iotests 041: io-error comes at ready; completed then, the guest stays in io-error until a person resumes it."""
    source = bed.image("old.raw")
    disk = failing(source, event="pwritev", sector=255 * SPREAD_SECTORS, errno=errno)
    disk = Disk(disk.image, format="raw", bus="ide", node=disk.node, device="werror=stop")
    await bed.guest(disk, pause_ms=6, stopped=True)
    driver = await bed.to_ready(bed.target("new.raw"))
    assert bed.qemu.run_state() == "paused", "the guest has not yet come to the bad sector"
    bed.qemu.spy_events()
    bed.qemu.spy("cont")
    bed.qemu.await_event("BLOCK_IO_ERROR")
    bed.qemu.await_event("STOP")
    assert bed.qemu.run_state() == "io-error"
    assert driver.pivot.phase is Phase.READY
    pivot = await bed.complete(driver)
    bed.assert_switched(pivot, run_state="io-error")
    bed.qemu.spy("cont")
    await bed.acks(60)
    bed.assert_holds_all(pivot)


@pytest.mark.parametrize("phase", [Phase.COPYING, Phase.READY])
@pytest.mark.parametrize("disks", [1, 2])
async def test_185_qemu_quits(bed: Bed, phase: Phase, disks: int):
    """QEMU iotests 185: `quit` while the mirror runs or is ready: kept, the source holds everything, both images are sound."""
    await bed.guest(*(bed.image(f"old{index}.qcow2", fill="8M") for index in range(disks)))
    targets = [bed.target(f"new{index}.qcow2") for index in range(disks)]
    driver = await (bed.to_copying(*targets) if phase is Phase.COPYING else bed.to_ready(*targets))
    bed.qemu.spy("quit")
    bed.qemu.wait()
    pivot = await bed.engine.closed(driver)
    assert pivot.outcome == Outcome.KEPT, pivot.error
    assert "gone" in (pivot.error or "")
    bed.assert_holds_all(pivot)
    for target in targets:
        assert_sound(target)


async def test_229_cancel_of_a_mirror_that_stands_still(bed: Bed):
    """QEMU iotests 229: a mirror that is paused can be given up at once."""
    await bed.guest(bed.image(fill="16M"))
    driver = await bed.to_copying(bed.target())
    bed.qemu.spy("job-pause", id=driver.pivot.disks[0].job)
    started_s = time.monotonic()
    pivot = await bed.cancel(driver)
    assert time.monotonic() - started_s < CANCEL_S
    bed.assert_kept(pivot)
    bed.assert_holds_all(pivot)


async def test_229_a_target_that_is_too_small_for_what_comes(bed: Bed):
    """QEMU iotests 229: the destination's file system fills up at ready: the pivot waits for room, and can be given up."""
    with small_file_system(bed.directory, "3m") as place:
        await bed.guest(bed.image())
        driver = await bed.copy(place / "new.qcow2", pivot=False)
        await bed.waits_for_room(driver)
        await bed.acks()
        bed.assert_kept(await bed.cancel(driver))
        pivot = driver.pivot
        bed.assert_holds_all(pivot)


# -- a server that dies -------------------------------------------------------------------------------------------


@contextmanager
def server(image: Path, path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Serve a raw image over NBD."""
    command = ["qemu-nbd", "-k", str(path), "-f", "raw", "-t", "--cache=none", str(image)]
    process = popen_tied(command, path.with_suffix(".log"), path.parent)
    deadline_s = time.monotonic() + 60
    while not listens(path):
        assert time.monotonic() < deadline_s, "qemu-nbd does not listen"
        assert process.poll() is None, path.with_suffix(".log").read_text()
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex(str(path)) == 0


def over_nbd(image: Path, path: Path, **options: Any) -> Disk:
    client = {"driver": "nbd", "server": {"type": "unix", "path": str(path)}, **options}
    return Disk(image, format="raw", bus="ide", node={"file": client})


@pytest.mark.parametrize("delay_s", [0, 2], ids=["error at once", "waits for the server"])
async def test_264_the_source_s_server_dies(bed: Bed, delay_s: int):
    """QEMU iotests 264: a cancel ends, as soon as QEMU waits no longer for the source's server.

    QEMU gives up requests that wait for the server of a mirror's target, but not those of its source.
    """
    source = bed.image("old.raw", fill="16M")
    with server(source, bed.directory / "nbd.sock") as process:
        disk = over_nbd(source, bed.directory / "nbd.sock", **{"reconnect-delay": delay_s})
        await bed.guest(disk, pause_ms=30)
        driver = await bed.to_copying(bed.target(), bandwidth_bytes_per_s=1 << 20)
        process.kill()
        process.wait()
        started_s = time.monotonic()
        driver.state.inbox.post(Cancel(WHO))
        pivot = await bed.until(driver, lambda pivot: pivot.outcome is not None)
        took_s = time.monotonic() - started_s
    assert pivot.outcome == Outcome.KEPT, pivot.error
    assert took_s < CANCEL_S
    assert bed.qemu.root().node == "src0"


async def test_264_the_source_s_server_comes_back(bed: Bed):
    """QEMU iotests 264: a server that is back before the delay has passed costs nothing: the pivot switches."""
    source = bed.image("old.raw", fill="8M")
    path = bed.directory / "nbd.sock"
    with server(source, path):
        await bed.guest(over_nbd(source, path, **{"reconnect-delay": 60}), pause_ms=30)
        driver = await bed.to_copying(bed.target(), bandwidth_bytes_per_s=1 << 20)
    path.unlink(missing_ok=True)
    with server(source, path):
        bed.qemu.spy("block-job-set-speed", device=driver.pivot.disks[0].job, speed=0)
        pivot = await bed.engine.closed(driver)
        assert pivot.outcome == Outcome.SWITCHED, pivot.error
        await bed.acks()
        bed.assert_holds_all(pivot)


# -- a graph that changes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["guest", "iothread"])
async def test_graph_changes_while_io(bed: Bed, kind: str):
    """QEMU iotests graph-changes-while-io, 281, iothreads: nodes come and go under the guest's I/O, three pivots switch."""
    if kind == "guest":
        await bed.guest(bed.image())
    else:
        await bed.domain(Disk(bed.image(), iothread=True))
    numbers = count()

    def edit() -> None:
        name = f"edit{next(numbers)}"
        bed.qemu.spy("blockdev-add", driver="null-co", node_name=f"{name}n", read_zeroes=True)
        bed.qemu.spy("blockdev-add", driver="throttle", node_name=name, throttle_group="group", file=f"{name}n")
        bed.qemu.spy("blockdev-del", node_name=name)
        bed.qemu.spy("blockdev-del", node_name=f"{name}n")

    bed.qemu.spy("object-add", qom_type="throttle-group", id="group")
    targets = [bed.target(f"new{number}.qcow2") for number in range(3)]
    async with meanwhile(edit) as edits:
        pivots = [await bed.engine.closed(await bed.copy(target)) for target in targets]
    assert edits[0] > 0
    for pivot in pivots:
        assert pivot.outcome == Outcome.SWITCHED, pivot.error
    bed.assert_switched(pivots[-1])
    if kind == "guest":
        await bed.acks()
        bed.assert_holds_all(pivots[-1])


async def test_graph_changes_below_the_source(bed: Bed):
    """QEMU iotests graph-changes-while-io: a filter put over the source by somebody makes the switch somebody else's matter."""
    await bed.domain(bed.image())
    driver = await bed.to_ready(bed.target())
    bed.qemu.spy("object-add", qom_type="throttle-group", id="group")
    with pytest.raises(SpyError):
        bed.qemu.spy(
            "blockdev-snapshot-sync", {"node-name": "src0", "snapshot-file": str(bed.directory / "snapshot.qcow2")}
        )
    bed.qemu.spy("blockdev-add", driver="throttle", node_name="filter", throttle_group="group", file="src0")
    pivot = await bed.complete(driver)
    # The filter is a second user of the source: whatever QEMU makes of that, disk and outcome agree.
    root = bed.qemu.root().filename
    assert {str(bed.target()): "switched", str(bed.directory / "old.qcow2"): "kept"}[root] == pivot.outcome
    assert bed.qemu.run_state() == "running"


def test_fill_is_seen(tmp_path: Path):
    """The data that these cases copy changes what a guest reads."""
    image = create_image(tmp_path / "a.qcow2")
    before = content(image)
    fill_image(image, "1M")
    assert content(image) != before
