"""How a guest in pivotd's pause continues if a record cannot be written, or not in time."""

from __future__ import annotations

import contextlib
from collections.abc import Coroutine
from typing import Any

from pivotd import limits
from pivotd.core.observation import OUR_PAUSE, STATUS_ENDED, STATUS_PENDING, Observation, Qemu, Root
from pivotd.core.request import Manager
from pivotd.core.rules.agreement import may_run
from pivotd.engine.driver_state import DriverState, moment
from pivotd.engine.pause_steps import take_back
from pivotd.engine.ports import Session
from pivotd.errors import JournalError, QmpError
from pivotd.log import get_logger

log = get_logger()


async def in_time(state: DriverState, seen: Observation, record: Coroutine[Any, Any, None]) -> bool:
    """Wait for a record; if the storage hangs beyond the deadline of a pause, resume the guest first if that is safe.

    Returns: False if the record was late. Raises: PhaseConflictError, JournalError.
    """
    left_s = (state.attempt.deadline or 0.0) - state.clock.monotonic()
    in_time = True

    async def late() -> bool:
        nonlocal in_time
        in_time = False
        return await without_record(state, seen, JournalError("the storage of the journal does not answer"))

    await state.unless_late(record, max(left_s, limits.RECORD_PATIENCE_S), late)
    return in_time


async def without_record(state: DriverState, seen: Observation, error: JournalError) -> bool:
    """Nothing can be recorded while the guest is in pivotd's pause: go back to the source and resume it there.

    Only a ``switched`` whose fate is unknown forbids this, however long ago its write failed: it might be on disk,
    and a process that starts from that disk would then continue on the destination. So pivotd takes no disk back
    before the record is certainly absent: a process that finds it after a crash must find the disks on their
    destinations.

    Returns: True if nothing is left to do: the guest is no longer in pivotd's pause.
    """
    session = state.domain.session
    if holding_writes(state, seen):
        return await let_write(state)
    paused = state.pivot.owes_resume and seen.run_state in OUR_PAUSE and seen.qemu is Qemu.SAME
    if not paused or state.attempt.resumed_at is not None:
        return True
    if session is None:
        return False
    if not state.unrecorded:
        log.error("journal.not-written", domain=state.pivot.domain, pivot=state.pivot.id, error=error.message)
    state.unrecorded = True
    if state.attempt.switch_in_doubt and state.pivot.manager is Manager.PIVOTD:
        state.remember(switch_in_doubt=not await state.journal.settle())
    if state.attempt.switch_in_doubt and state.pivot.manager is Manager.PIVOTD:
        return False
    with contextlib.suppress(QmpError):
        return await _let_run(state, session, seen)
    return False


def holding_writes(state: DriverState, seen: Observation) -> list[str]:
    """Return the jobs at ``pending``, or on the way there, of a guest that somebody else lets run, or may let run.

    They hold its writes. Of a guest in pivotd's pause the resume sees to that.
    """
    pivot = state.pivot
    if seen.qemu is not Qemu.SAME or pivot.manager is not Manager.PIVOTD or not pivot.switches:
        return []
    if pivot.owes_resume and state.attempt.not_ours is None and seen.run_state in OUR_PAUSE:
        return []
    told = state.attempt.completing or frozenset()
    status = {disk.job: seen.job(disk.job).status for disk in pivot.disks}
    return [job for job, now in status.items() if now == STATUS_PENDING or (job in told and now not in STATUS_ENDED)]


async def let_write(state: DriverState) -> bool:
    """Cancel such jobs, although that cannot be recorded: their disks stay on their sources.

    No other decision is left to record for them: a guest that has run since ``stop`` may have a write waiting there.

    Returns: True if no write is held any more.
    """
    if (session := state.domain.session) is None:
        return False
    with contextlib.suppress(QmpError):
        if jobs := holding_writes(state, await session.look(state.pivot)):
            await session.cancel(jobs, resume=False)
        return True
    return False


async def without_paused(state: DriverState) -> bool:
    """Whose pause it is cannot be recorded, and the guest ran before pivotd's ``stop``: resume it on its sources.

    Returns: True if nothing is left to do: the guest is no longer in pivotd's pause.
    """
    if state.attempt.resumed_at is not None:
        return True
    if (session := state.domain.session) is not None:
        with contextlib.suppress(QmpError):
            return await _let_run(state, session, await session.look(state.pivot))
    return False


async def _let_run(state: DriverState, session: Session, seen: Observation) -> bool:
    """Take disks back and resume the guest on its sources. Raises: QmpError."""
    if state.pivot.manager is Manager.LIBVIRT:
        return await _let_libvirts_run(state, session)
    moved = tuple(disk.disk for disk in state.pivot.disks if seen.roots.get(disk.disk) is Root.DESTINATION)
    await take_back(state, session, moved)
    before = moment(session)
    now = await session.look(state.pivot)
    if now.run_state not in OUR_PAUSE:
        return True
    if set(now.roots.values()) != {Root.SOURCE} or before != moment(session):
        return False
    live = [name for name, job in now.jobs.items() if job.status not in STATUS_ENDED]
    completing = state.attempt.completing != frozenset() or any(
        now.jobs[name].status == STATUS_PENDING for name in live
    )
    await session.cancel(live if completing else [], resume=True)
    state.remember(resumed_at=state.clock.monotonic())
    return True


async def _let_libvirts_run(state: DriverState, session: Session) -> bool:
    """Resume the guest although nothing can be recorded, if QEMU and libvirt name one image of each disk.

    Returns: True if the guest is no longer in pivotd's pause. Raises: QmpError.
    """
    before = moment(session)
    now = await session.look(state.pivot)
    if now.run_state not in OUR_PAUSE:
        return True
    if before != moment(session) or not may_run(state.pivot, now, state.attempt):
        return False
    await session.resume()
    state.remember(resumed_at=state.clock.monotonic())
    return True
