"""What becomes of a guest in our pause where a record cannot be written, or not in time."""

from __future__ import annotations

import contextlib

from pivotd.core.observation import OUR_PAUSE, STATUS_ENDED, STATUS_PENDING, Observation, Qemu, Root
from pivotd.engine.driver_state import DriverState, moment
from pivotd.engine.pause_steps import take_back
from pivotd.engine.ports import Session
from pivotd.errors import JournalError, QmpError
from pivotd.log import get_logger

log = get_logger()


async def without_record(state: DriverState, seen: Observation, error: JournalError) -> bool:
    """Nothing can be recorded while the guest is in our pause: go back to the source and let it run there.

    Only a ``switched`` whose fate is unknown forbids that, however long ago it failed: it might be on disk after
    all, and whoever starts from that disk then goes on with the destination. So no disk is taken back before it
    certainly is not there: whoever finds it after a crash must find the disks on their destinations.

    Returns: whether nothing is left to do: the guest is in no pause of ours any more.
    """
    session = state.domain.session
    paused = state.pivot.owes_resume and seen.run_state in OUR_PAUSE and seen.qemu is Qemu.SAME
    if not paused or state.attempt.resumed_at is not None:
        return True
    if session is None:
        return False
    if not state.unrecorded:
        log.error("journal.not-written", pivot=state.pivot.id, error=error.message)
    state.unrecorded = True
    if state.attempt.switch_in_doubt:
        state.remember(switch_in_doubt=not await state.journal.settle())
    if state.attempt.switch_in_doubt:
        return False
    with contextlib.suppress(QmpError):
        return await _let_run(state, session, seen)
    return False


async def _let_run(state: DriverState, session: Session, seen: Observation) -> bool:
    """Take disks back and let the guest run on its sources. Raises: QmpError."""
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
