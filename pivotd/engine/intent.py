"""The step before a pause: wait for a small backlog, flush outside the pause, record the intent."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from dataclasses import asdict, replace
from functools import partial

from pivotd import limits
from pivotd.core import actions, kinds
from pivotd.core.decide import decide
from pivotd.core.observation import Observation
from pivotd.core.pivot import Phase, Pivot, PivotDisk
from pivotd.core.request import Manager
from pivotd.engine import fleet_steps
from pivotd.engine.converge import Converged, Failed, NotYet, Slow
from pivotd.engine.driver_state import DriverState, moment
from pivotd.engine.ports import Session
from pivotd.host.files import lost
from pivotd.host.threads import in_thread


async def converge(
    state: DriverState, session: Session, _action: actions.Converge, seen: Observation
) -> Observation | None:
    """Record the intent as soon as the pause can be short; return the observation made right before."""
    if state.inbox.ending:
        return None
    if seen.writers:
        await state.wait(f"{seen.writers[0]} while the guest is paused: remove it", limits.RETRY_MAX_S)
        return None
    if seen.exchanged is not None:
        await state.wait(f"{seen.exchanged}: cancel this pivot, and copy again", limits.RETRY_MAX_S)
        return None
    wait_s = state.attempt.retry_at - state.clock.monotonic()
    if wait_s > 0:
        await state.wait("the next attempt", wait_s)
        return None
    ready = await state.unless_told(state.converger.step(session, state.pivot, seen))
    match ready:
        case None:
            return None
        case Slow(write_limits):
            # What was there before is on disk before anything is changed.
            options = replace(state.pivot.options, write_limits=write_limits)
            await state.record("slowing", {"write_limits": list(map(asdict, write_limits))}, options=options)
            await session.place_limits(state.pivot)
            return None
        case NotYet(reason, wait_s):
            await state.wait(reason, wait_s)
            return None
        case Failed(reason):
            state.remember(lost=reason)
        case Converged():
            await look_for_destinations(state, limits.FILE_TIMEOUT_S)
    if not isinstance(ready, Converged) or state.attempt.lost is not None:
        return None
    if seen.bitmaps and kinds.of(state.pivot).carries_bitmaps and not state.pivot.options.force:
        refused = await session.refusal_of_bitmaps(state.pivot)
        if refused is not None:
            await state.wait(f"ready: {refused}")
            return None
    if not await fleet_steps.announced(state, seen):
        return None
    await state.enter_window()
    try:
        if not fleet_steps.is_fresh(state):
            return None
        return await _record_intent(state, session, ready)
    finally:
        if not state.in_window:
            state.leave_window()


async def look_for_destinations(state: DriverState, timeout_s: float, only: int | None = None) -> None:
    """Remember whether the name of each destination still leads to its file; ``only``: that of one disk, by index.

    The same goes for the image below it that a header names: it would be missing as soon as QEMU ends.
    """
    disks = [disk for disk in state.pivot.disks if only in {None, disk.index}]
    sides = [(disk.below, None if _libvirt_makes_it(state.pivot, disk) else disk.destination) for disk in disks]
    images = [image for pair in sides for image in pair if image is not None]
    with contextlib.suppress(TimeoutError):
        names = [image.filename for image in images]
        look = partial(lost, images, state.pivot.identity.pid, blind=state.pivot.options.force)
        state.remember(lost=await in_thread(timeout_s, look, paths=names))


def _libvirt_makes_it(pivot: Pivot, disk: PivotDisk) -> bool:
    """Return whether the destination need not be there yet: libvirt makes it with its job, or with the snapshot."""
    there = pivot.options.reuse or pivot.options.adopted or disk.destination == disk.base
    if pivot.manager is not Manager.LIBVIRT or there:
        return False
    return pivot.phase is Phase.PREPARING or not kinds.of(pivot).has_jobs


async def _record_intent(state: DriverState, session: Session, ready: Converged) -> Observation | None:
    """Record the intent if a new look allows it; only ``stop`` follows it."""
    facts = await session.intent_facts()
    before = moment(session)  # before the look: a resume in the middle of it must not pass for seen
    now = await session.look(state.pivot)
    if now.writers or now.exchanged is not None or state.inbox.interrupts:
        return None
    if not isinstance(decide(state.pivot, now, state.attempt), actions.Converge):
        return None  # a job that has just failed, or a guest that has just stopped, needs another decision
    state.attempt = state.attempt.begin(quick=ready.quick, moment=before)
    options = replace(state.pivot.options, write_thresholds=now.write_thresholds, guest_writes=())
    options = replace(options, own_monitor=facts.get("own_monitor", ""))
    if _names(now.snapshots) != _names(options.snapshots_left):
        options = replace(options, snapshots_left=now.snapshots)
        facts = facts | {"internal_snapshots": {image: list(kept) for image, kept in now.snapshots}}
    await state.record(
        "pausing",
        ready.facts | {"run_state": now.run_state} | facts,
        phase=Phase.PAUSING,
        attempt=state.pivot.attempt + 1,
        run_state_before=now.run_state,
        owes_resume=now.run_state == "running",
        pausing_since=state.clock.utc_now(),
        options=options,
    )
    return now


def _names(snapshots: Iterable[tuple[str, tuple[str, ...]]]) -> list[str]:
    """Return the names alone: QEMU's name of a lower image need not be the journal's."""
    return sorted(name for _, kept in snapshots for name in kept)
