"""The steps from the intent to the outcome; each returns the resulting observation, None to look again."""

from __future__ import annotations

from dataclasses import replace

from pivotd import limits
from pivotd.core import actions, kinds, names
from pivotd.core.observation import EXECUTING, STATUS_ENDED, STATUS_PENDING, JobSeen, Observation, Root
from pivotd.core.pivot import FleetStage
from pivotd.engine import guest_writes
from pivotd.engine.driver_state import DriverState, moment
from pivotd.engine.ports import Session
from pivotd.errors import QmpRefusedError

Seen = Observation | None


def same_moment(state: DriverState, session: Session) -> bool:
    """Return whether the guest cannot have been resumed since the last full look."""
    return state.attempt.looked == moment(session)


async def stop(state: DriverState, session: Session, action: actions.Stop, seen: Observation) -> Seen:
    """Pause the guest, with ``job-complete`` in the same write if the action says so."""
    again = state.attempt.stop_sent is None
    # Without an answer it is unknown what ran: a guest that was already paused shows nothing.
    state.remember(stop_sent=None, completing=frozenset(action.complete))

    def leaving() -> None:
        state.attempt = state.attempt.paused(state.pivot, state.clock.monotonic())
        guest_writes.begin(state, session)

    before, resumed, resumes = await session.stop(action.complete, leaving)
    state.remember(stop_sent=True)
    jobs = [disk.job for disk in state.pivot.disks] if kinds.of(state.pivot).has_jobs else []
    status = [session.job_status.get(job) for job in jobs]
    if None not in status and STATUS_ENDED.isdisjoint(status):
        state.remember(unmoved=(session, resumes))
    ours = before in EXECUTING or resumed or (again and _resumed_since_intent(state, session))
    if not ours and state.pivot.owes_resume and (seen.executing or not same_moment(state, session)):
        # Another client paused the guest between the last look and here: pivotd must not resume it. If the guest was
        # seen paused and not resumed since, the pause is pivotd's: an earlier process has already sent `stop`.
        state.remember(not_ours=before)
    if ours and not state.pivot.owes_resume:
        # The guest was paused at the intent, but another client has resumed it since: this `stop` paused it again.
        state.remember(ours=before)
        return None  # recorded before the next look
    if before != "running" or not same_moment(state, session):
        return None
    seen = replace(seen, run_state="paused")
    return await _await_pending(state, session, seen) if action.complete else seen


def _resumed_since_intent(state: DriverState, session: Session) -> bool:
    """Return whether another client is known to have resumed the guest under this intent.

    If a first ``stop`` got no answer in time, it may have paused that guest before the next one asked.
    """
    intended = state.attempt.intended
    return intended is not None and intended[0] is session and intended != moment(session)


async def complete(state: DriverState, session: Session, action: actions.Complete, seen: Observation) -> Seen:
    """Bring jobs to pending."""
    completing = (state.attempt.completing or frozenset()) | set(action.jobs)
    state.remember(completing=None)  # unknown without an answer, and asking twice does no harm
    await session.complete(action.jobs)
    state.remember(completing=completing)
    return await _await_pending(state, session, seen)


async def _await_pending(state: DriverState, session: Session, seen: Observation) -> Seen:
    """Wait until events show every completing job at pending or ended; None if a full look is needed."""
    waiting = state.attempt.completing or frozenset()
    while same_moment(state, session) and session.connected:
        status = {job: session.job_status.get(job, "") for job in waiting}
        if set(status.values()) <= {STATUS_PENDING}:
            return replace(seen, jobs={**seen.jobs, **{job: JobSeen(STATUS_PENDING) for job in waiting}})
        if any(now in STATUS_ENDED or not now for now in status.values()) or state.inbox.interrupts:
            return None
        if state.pivot.options.resumable and "standby" in status.values():
            return None  # its destination may have failed
        left_s = limits.LOOK_AGAIN_S
        if state.attempt.deadline is not None:
            left_s = state.attempt.deadline - state.clock.monotonic()
        if left_s <= 0:
            return seen
        state.inbox.woken.clear()
        await state.sleep(left_s)
    return None


async def carry_bitmaps(state: DriverState, session: Session, _action: actions.CarryBitmaps, seen: Observation) -> Seen:
    """Copy the dirty bitmaps of the sources to the destinations."""
    try:
        state.remember(carried=await session.carry_bitmaps(state.pivot))
    except QmpRefusedError as error:
        state.remember(carry_refused=error.message)
    return seen if same_moment(state, session) else None


async def finalize(state: DriverState, session: Session, action: actions.Finalize, seen: Observation) -> Seen:
    """Finalize and read the graph; anything but every disk on its destination, guest still, needs a full look.

    The jobs were read before the graph: their events come before the answer to job-finalize.
    """
    if not same_moment(state, session):
        return None  # another client may have resumed the guest since the look, and it may be writing
    roots = await session.finalize(state.pivot, action.jobs)
    if not state.pivot.switches or state.pivot.options.adopted or state.attempt.carried is not None:
        return None  # a look reads the bitmaps back, and names the images that another client opened
    ended = {job: JobSeen(session.job_status.get(job, "null")) for job in action.jobs}
    return _moved(state, session, replace(seen, jobs={**seen.jobs, **ended}, roots=roots))


async def snapshot(state: DriverState, session: Session, _action: actions.Snapshot, seen: Observation) -> Seen:
    """Put the overlays on all disks and read the graph."""
    if not same_moment(state, session):
        return None
    state.remember(snapshot_sent=None)
    roots = await session.snapshot(state.pivot)
    state.remember(snapshot_sent=True)
    if state.attempt.carried is not None:
        return None  # what came along is read back by the look
    return _moved(state, session, replace(seen, roots=roots))


def _moved(state: DriverState, session: Session, seen: Observation) -> Seen:
    """Return the observation if every disk is on its destination and the guest is still; else look again."""
    return seen if same_moment(state, session) and set(seen.roots.values()) == {Root.DESTINATION} else None


async def keep_synced(state: DriverState, session: Session, _action: actions.KeepSynced, seen: Observation) -> Seen:
    """Start the mirrors back. If this fails the switch still stands, without a window."""
    looked = state.attempt.looked
    if looked is None or looked != state.attempt.intended or looked[0] is not session:
        # A resume may have been missed: the old images would lack the guest's writes for ever.
        failed: str | None = "a resume of the guest may have been missed during the pause"
    else:
        failed = await session.keep_synced(state.pivot, looked[1])
    state.remember(back_failed=failed, back_started=failed is None)
    if failed is not None:
        return seen
    back = {names.back_job(state.pivot.id, disk.index): JobSeen("running") for disk in state.pivot.disks}
    return replace(seen, jobs={**seen.jobs, **back})


async def roll_back(state: DriverState, session: Session, action: actions.RollBack, _seen: Observation) -> Seen:
    """Take disks back; while the guest is still, source and destination are identical."""
    state.remember(rolled_back=action.reason)
    await take_back(state, session, action.disks)
    return None


async def take_back(state: DriverState, session: Session, disks: tuple[str, ...]) -> None:
    """Take disks back over the connection on which they were seen; remember what QEMU refuses."""
    looked = state.attempt.looked
    if not disks or looked is None or looked[0] is not session:
        return
    await state.note_in_time("rolling-back", {"disks": disks})
    for disk in state.pivot.disks:
        if disk.disk in disks and not await session.reverse(state.pivot, disk, looked[1]):
            state.remember(rollback_failed=True)


async def cancel_jobs(state: DriverState, session: Session, action: actions.CancelJobs, _seen: Observation) -> Seen:
    """Cancel jobs, and resume the guest in the same write if the pause is pivotd's."""
    if action.resume and not same_moment(state, session):
        return None  # whatever holds the guest now may not be our pause
    await session.cancel(action.jobs, resume=action.resume)
    if action.resume:
        await note_resumed(state, "resumed", {})
    else:
        await state.sleep(limits.CANCEL_AGAIN_S)
    return None


async def resume(state: DriverState, session: Session, action: actions.Resume, seen: Observation) -> Seen:
    """Resume the guest: the pause was pivotd's."""
    if not same_moment(state, session):
        return None
    await session.resume()
    if action.owed:
        return None
    await note_resumed(state, "resumed", {})
    await session.place_thresholds(state.pivot)
    return replace(seen, run_state="running")


async def note_resumed(state: DriverState, event: str, facts: dict[str, object]) -> None:
    """Record the end of the pause; the guest already runs, so only the next phase waits for this."""
    pivot, now = state.pivot, state.clock.monotonic()
    state.remember(resumed_at=state.attempt.resumed_at or now)
    pause = state.attempt.pause(pivot, now, state.clock.utc_now())
    facts = facts | {"pause_ms": pause.pause_ms} | ({} if pause.fleet_ms is None else {"fleet_ms": pause.fleet_ms})
    fleet = FleetStage.TOLD if state.attempt.fleet_told else pivot.fleet
    await state.record(event, facts, owes_resume=False, pauses=(*pivot.pauses, pause), fleet=fleet)
    state.remember(paused_at=None, resumed_at=None, fleet_since=None)
