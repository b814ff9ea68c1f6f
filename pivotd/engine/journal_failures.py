"""How a guest in pivotd's pause continues if a record cannot be written, or not in time."""

from __future__ import annotations

import contextlib

from pivotd.core.observation import OUR_PAUSE, STATUS_ENDED, STATUS_PENDING, Observation, Qemu, Root
from pivotd.engine.driver_state import DriverState, moment
from pivotd.engine.pause_steps import take_back
from pivotd.errors import JournalError, QmpError
from pivotd.log import get_logger

log = get_logger()


async def without_record(state: DriverState, seen: Observation, error: JournalError) -> None:
    """Nothing can be recorded while the guest is in pivotd's pause: go back to the source and resume it there.

    Only a ``switched`` whose fate is unknown forbids this, however long ago its write failed: it might be on disk,
    and a process that starts from that disk would then continue on the destination. So pivotd takes no disk back
    before the record is certainly absent: a process that finds it after a crash must find the disks on their
    destinations.
    """
    session = state.domain.session
    paused = state.pivot.owes_resume and seen.run_state in OUR_PAUSE and seen.qemu is Qemu.SAME
    if session is None or not paused:
        return
    log.error("journal.not-written", pivot=state.pivot.id, error=error.message)
    moved = tuple(disk.disk for disk in state.pivot.disks if seen.roots.get(disk.disk) is Root.DESTINATION)
    if state.attempt.switch_in_doubt:
        state.remember(switch_in_doubt=not await state.journal.settle())
    if state.attempt.switch_in_doubt:
        return
    with contextlib.suppress(QmpError):
        await take_back(state, session, moved)
        before = moment(session)
        now = await session.look(state.pivot)
        if set(now.roots.values()) == {Root.SOURCE} and now.run_state in OUR_PAUSE and before == moment(session):
            live = [name for name, job in now.jobs.items() if job.status not in STATUS_ENDED]
            completing = state.attempt.completing != frozenset() or any(
                now.jobs[name].status == STATUS_PENDING for name in live
            )
            await session.cancel(live if completing else [], resume=True)
            state.remember(resumed_at=state.clock.monotonic())
