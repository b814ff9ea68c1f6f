"""Watches over what takes too long while a guest stands still.

A connection to an NBD destination that hangs is cut, so that neither the guest nor the pivot hangs with it. This is
done only while every disk concerned has its source as root: only the copy then depends on the connection.
"""

from __future__ import annotations

import contextlib
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

from pivotd import limits
from pivotd.core import actions, kinds, nbd
from pivotd.core.observation import Observation, Root
from pivotd.core.pivot import Pivot, PivotDisk
from pivotd.core.request import Manager
from pivotd.engine.driver_state import DriverState
from pivotd.errors import QmpError
from pivotd.log import get_logger

T = TypeVar("T")
log = get_logger()


async def bound(state: DriverState, work: Coroutine[Any, Any, T], action: actions.Action, seen: Observation) -> T:
    """Return the result of the work for an action; if it takes too long, cut the connections first."""
    disks = _exports(state.pivot, seen)
    if disks and isinstance(action, actions.CancelJobs):
        # At once: QEMU 7.2 does not always let go of a mirror that was cancelled before its server was cut off.
        with contextlib.suppress(QmpError):
            await _cut(state, disks)
        return await work
    patience_s = _patience_s(state, action) if disks else None
    if patience_s is None:
        return await telling(state, work)
    return await state.unless_late(work, patience_s, lambda: _cut_off(state, disks))


async def telling(state: DriverState, work: Coroutine[Any, Any, T]) -> T:
    """Return the result of work; if libvirt answers it so late that a guest stands still for too long, tell that."""
    if state.pivot.manager is not Manager.LIBVIRT or not state.in_window:
        return await work
    deadline = state.attempt.deadline
    left_s = state.pivot.options.max_pause_ms / 1000  # the pause may begin in this very step
    if deadline is not None:
        left_s = max(0.0, deadline - state.clock.monotonic())

    async def late() -> bool:
        state.attempt = state.attempt.at(state.pivot, state.clock.monotonic(), state.clock.utc_now())
        await state.note_guest_waits(state.guest_waits_for or "libvirt has not answered yet")
        return state.guest_waits_for is not None  # else the pause has begun later than this step

    return await state.unless_late(work, left_s + limits.YANK_GRACE_S, late)


def _patience_s(state: DriverState, action: actions.Action) -> float | None:
    """Return how long an action may take; None: no limit."""
    match action:
        case actions.Prepare():
            return limits.PREPARE_PATIENCE_S
        case actions.Stop():
            return state.pivot.options.max_pause_ms / 1000 + limits.YANK_GRACE_S
        case actions.Complete():
            left_s = (state.attempt.deadline or 0.0) - state.clock.monotonic()
            return limits.YANK_GRACE_S + max(0.0, left_s)
    # Actions after a job-finalize are left alone: the guest may then depend on the destination.
    return None


async def _cut(state: DriverState, disks: Sequence[PivotDisk]) -> bool:
    session = state.domain.session
    return session is not None and await session.cut(state.pivot, disks)


async def _cut_off(state: DriverState, disks: Sequence[PivotDisk]) -> bool:
    """Cut the connections to exports that do not answer, once; this ends their copies with an error."""
    done = False
    with contextlib.suppress(QmpError):
        done = await _cut(state, disks)
    exports = [disk.destination.filename for disk in disks]
    state.remember(lost=f"{exports[0]} does not answer: it was cut off")
    log.error("destination.hangs", domain=state.pivot.domain, pivot=state.pivot.id, exports=exports, cut=done)
    await state.note_in_time("destination-hangs", {"exports": exports, "cut": done})
    return True


def _exports(pivot: Pivot, seen: Observation) -> list[PivotDisk]:
    """Return the disks that are copied to an export and are still on their source."""
    if not kinds.of(pivot).may_hang:
        return []
    return [
        disk
        for disk in pivot.disks
        if nbd.is_uri(disk.destination.filename) and seen.roots.get(disk.disk) is Root.SOURCE
    ]
