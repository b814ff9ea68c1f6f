"""QEMU's iotest 219: every verb that somebody else can use on pivotd's job, and pivotd's own verbs in every phase."""

from __future__ import annotations

import pytest

from pivotd.core.pivot import Phase
from pivotd.core.request import Requester
from pivotd.engine.inbox import Cancel
from pivotd.errors import PhaseConflictError
from tests.ported_cases.fixture import Bed
from tests.support.qmp_spy import SpyError

WHO = Requester(0, 0, 1)
pytestmark = pytest.mark.qemu


@pytest.mark.parametrize("verb", ["job-cancel", "block-job-cancel"])
async def test_219_somebody_cancels_a_running_copy(bed: Bed, verb: str):
    """Both ways to cancel, while it copies: kept, and the reason names somebody else."""
    await bed.guest(bed.image(fill="16M"))
    driver = await bed.to_copying(bed.target())
    bed.qemu.spy(verb, {"id" if verb == "job-cancel" else "device": driver.pivot.disks[0].job})
    pivot = await bed.engine.closed(driver)
    bed.assert_kept(pivot)
    assert "somebody else" in (pivot.error or "") or "cancel" in (pivot.error or ""), pivot.error
    await bed.acks()
    bed.assert_holds_all(pivot)


async def test_219_somebody_cancels_a_ready_copy(bed: Bed):
    """A job-cancel at ready: kept."""
    await bed.guest(bed.image())
    driver = await bed.to_ready(bed.target())
    bed.qemu.spy("job-cancel", id=driver.pivot.disks[0].job)
    pivot = await bed.engine.closed(driver)
    bed.assert_kept(pivot)
    await bed.acks()
    bed.assert_holds_all(pivot)


async def test_219_somebody_completes_it(bed: Bed):
    """A job-complete while the guest runs holds the guest's writes: pivotd gives the copy up, and the guest goes on."""
    await bed.guest(bed.image())
    driver = await bed.to_ready(bed.target())
    bed.qemu.spy("job-complete", id=driver.pivot.disks[0].job)
    pivot = await bed.engine.closed(driver)
    bed.assert_kept(pivot)
    await bed.acks()
    bed.assert_holds_all(pivot)


async def test_219_somebody_completes_and_finalizes_it(bed: Bed):
    """A switch made by somebody else, seen in the graph, is recorded as one: the guest writes to the destination."""
    await bed.guest(bed.image())
    driver = await bed.to_ready(bed.target())
    # In a pause of their own, as it has to be.
    bed.qemu.spy("stop")
    job = driver.pivot.disks[0].job
    bed.qemu.spy("job-complete", id=job)
    try:
        bed.qemu.await_event("BLOCK_JOB_PENDING", id=job)
        bed.qemu.spy("job-finalize", id=job)
    except SpyError:
        pass  # pivotd was quicker, and has cancelled it
    bed.qemu.spy("cont")
    pivot = await bed.engine.closed(driver)
    await bed.acks()
    if bed.qemu.root().filename == str(bed.target()):
        bed.assert_switched(pivot)
    else:
        bed.assert_kept(pivot)
    bed.assert_holds_all(pivot)


async def test_219_somebody_pauses_a_running_copy(bed: Bed):
    """A job-pause: the pivot waits; job-resume: it goes on and switches."""
    await bed.guest(bed.image(fill="4M"))
    driver = await bed.to_copying(bed.target())
    job = driver.pivot.disks[0].job
    bed.qemu.spy("job-pause", id=job)
    bed.qemu.await_event("JOB_STATUS_CHANGE", id=job, status="paused")
    bed.qemu.spy("block-job-set-speed", device=job, speed=0)
    await bed.acks()
    assert (driver.pivot.phase, bed.qemu.jobs()[job]["status"]) == (Phase.COPYING, "paused")
    bed.qemu.spy("job-resume", id=job)
    pivot = await bed.engine.closed(driver)
    bed.assert_switched(pivot)
    bed.assert_holds_all(pivot)


async def test_219_somebody_pauses_a_ready_copy(bed: Bed):
    """A job-pause at ready: the guest is not paused for a switch that cannot come; job-resume: it is made."""
    await bed.guest(bed.image())
    driver = await bed.to_ready(bed.target(), max_pause_ms=60_000, attempts=1)
    job = driver.pivot.disks[0].job
    bed.qemu.spy("job-pause", id=job)
    bed.qemu.await_event("JOB_STATUS_CHANGE", id=job, status="standby")
    await driver.complete(driver.pivot.requested_by)
    await bed.until(driver, lambda pivot: not pivot.hold)
    await bed.acks(300)
    assert (driver.pivot.phase, driver.pivot.pauses) == (Phase.READY, ()), driver.pivot.error
    bed.qemu.spy("job-resume", id=job)
    pivot = await bed.engine.closed(driver)
    bed.assert_switched(pivot)
    bed.assert_holds_all(pivot)


async def test_219_somebody_dismisses_what_has_ended(bed: Bed):
    """A job that has vanished with its evidence was not a switch."""
    await bed.guest(bed.image())
    driver = await bed.to_ready(bed.target())
    job = driver.pivot.disks[0].job
    bed.qemu.spy("job-cancel", id=job)
    try:
        bed.qemu.await_event("JOB_STATUS_CHANGE", id=job, status="concluded")
        bed.qemu.spy("job-dismiss", id=job)
    except SpyError:
        pass  # pivotd was quicker
    pivot = await bed.engine.closed(driver)
    bed.assert_kept(pivot)
    bed.assert_holds_all(pivot)


@pytest.mark.parametrize("phase", [Phase.COPYING, Phase.READY])
async def test_219_verbs_that_qemu_refuses(bed: Bed, phase: Phase):
    """Verbs like finalize and dismiss in the wrong state are refused, and the pivot goes on."""
    await bed.guest(bed.image(fill="16M"))
    driver = await (bed.to_copying(bed.target()) if phase is Phase.COPYING else bed.to_ready(bed.target()))
    job = driver.pivot.disks[0].job
    verbs = ["job-finalize", "job-dismiss", *(["job-complete"] if phase is Phase.COPYING else [])]
    for verb in verbs:
        with pytest.raises(SpyError, match="cannot accept"):
            bed.qemu.spy(verb, id=job)
    bed.qemu.spy("block-job-set-speed", device=job, speed=0)
    pivot = await (bed.engine.closed(driver) if phase is Phase.COPYING else bed.complete(driver))
    bed.assert_switched(pivot)


async def test_219_own_verbs_in_every_phase(bed: Bed):
    """A complete is taken at ready and nowhere else; cancel of what is closed changes nothing."""
    await bed.guest(bed.image(fill="16M"))
    driver = await bed.to_copying(bed.target(), pivot=False)
    with pytest.raises(PhaseConflictError, match="copying"):
        await driver.complete(driver.pivot.requested_by)
    bed.qemu.spy("block-job-set-speed", device=driver.pivot.disks[0].job, speed=0)
    await bed.engine.resting(driver)
    pivot = await bed.complete(driver)
    bed.assert_switched(pivot)
    with pytest.raises(PhaseConflictError, match="closed"):
        await driver.complete(pivot.requested_by)
    driver.state.inbox.post(Cancel(WHO))
    assert driver.pivot == pivot
    bed.assert_switched(driver.pivot)
