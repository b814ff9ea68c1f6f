"""The table from action to step, and the steps that are not part of a pause.

A step carries out one action over one connection. It returns the resulting observation, None to look again.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any

from pivotd import limits
from pivotd.core import actions
from pivotd.core.observation import Observation
from pivotd.engine import intent, libvirt_steps, pause_steps
from pivotd.engine.driver_state import DriverState
from pivotd.engine.ports import Session
from pivotd.log import get_logger

log = get_logger()
Seen = Observation | None
Step = Callable[[DriverState, Any, Any, Observation], Coroutine[Any, Any, Seen]]
"""The session of a guest of libvirt's is a LibvirtSession."""


async def place_nonce(state: DriverState, session: Session, _action: actions.PlaceNonce, _seen: Observation) -> Seen:
    """Put the nonce object into the QEMU process."""
    await session.place_nonce(state.pivot)
    return None


async def prepare(state: DriverState, session: Session, action: actions.Prepare, _seen: Observation) -> Seen:
    """Do one step of the preparation of one disk; before its job, see whether the image is where QEMU has made it."""
    if action.step is actions.Step.START_JOB:
        await intent.look_for_destinations(state, limits.FILE_TIMEOUT_S, action.index)
        if state.attempt.lost is not None:
            return None
    await session.prepare(state.pivot, state.pivot.disks[action.index], action.step)
    state.remember(started=state.attempt.started | {action.index})
    return None


async def go_on(state: DriverState, session: Session, action: actions.GoOn, seen: Observation) -> Seen:
    """Record the interruption, and resume the jobs with back-off."""
    facts = state.retry_target.begin(state.pivot, action.jobs, seen, state.clock.monotonic())
    if facts is not None:
        await state.note("interrupted", facts | {"reason": action.reason})
    wait_s = state.retry_target.wait_s(state.clock.monotonic())
    if wait_s > 0:
        await state.wait(action.reason, wait_s)
    else:
        await session.go_on(action.jobs)
    return None


async def set_bandwidth(
    state: DriverState, session: Session, _action: actions.SetBandwidth, _seen: Observation
) -> Seen:
    """Set the requested bandwidth on the jobs."""
    await session.set_bandwidth(state.pivot)
    state.converger.pace.begin_again(state.clock.monotonic())
    await state.record("bandwidth-set", {}, options=replace(state.pivot.options, bandwidth_due=False))
    return None


async def restore_limits(
    state: DriverState, session: Session, _action: actions.RestoreLimits, _seen: Observation
) -> Seen:
    """Restore the limits on the guest's writes."""
    others = await session.restore_limits(state.pivot)
    options = replace(state.pivot.options, write_limits=())
    await state.record("limits-restored", {"left_alone": others}, options=options)
    return None


async def clean_up(state: DriverState, session: Session, _action: actions.CleanUp, _seen: Observation) -> Seen:
    """Dismiss jobs, remove nodes and the nonce. The pauses of other guests end first: after a kill there are many."""
    await state.journal.calm(limits.CLEAN_UP_HELD_BACK_S)
    left = await session.clean_up(state.pivot)
    state.remember(clean_up_failed=bool(left))
    if left:
        log.warning("pivot.leftovers", domain=state.pivot.domain, pivot=state.pivot.id, names=left)
        await state.note("leftovers", {"names": left})
    return None


STEPS: dict[type[actions.Action], Step] = {
    actions.PlaceNonce: place_nonce,
    actions.Prepare: prepare,
    actions.GoOn: go_on,
    actions.Converge: intent.converge,
    actions.Stop: pause_steps.stop,
    actions.Complete: pause_steps.complete,
    actions.CarryBitmaps: pause_steps.carry_bitmaps,
    actions.Finalize: pause_steps.finalize,
    actions.Snapshot: pause_steps.snapshot,
    actions.KeepSynced: pause_steps.keep_synced,
    actions.AskLibvirt: libvirt_steps.ask_libvirt,
    actions.Agree: libvirt_steps.agree,
    actions.RollBack: libvirt_steps.roll_back,
    actions.CancelJobs: pause_steps.cancel_jobs,
    actions.Resume: pause_steps.resume,
    actions.SetBandwidth: set_bandwidth,
    actions.RestoreLimits: restore_limits,
    actions.CleanUp: clean_up,
}
REFUSABLE = (actions.Prepare, actions.PlaceNonce, actions.Snapshot)
"""If QEMU refuses one of these, nothing was changed, and the pivot is given up with QEMU's message."""
