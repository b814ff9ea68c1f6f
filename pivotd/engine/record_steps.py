"""The steps that only write a record and do not change QEMU."""

from __future__ import annotations

import contextlib
from collections.abc import Collection
from dataclasses import replace
from typing import Any

from pivotd import limits
from pivotd.core import actions, names, undo
from pivotd.core.kinds.new_image import half_made
from pivotd.core.observation import Observation, Root
from pivotd.core.pivot import FleetStage, JsonObject, Outcome, Phase, PivotDisk
from pivotd.core.request import Manager
from pivotd.engine import pivot_log, record_shapes
from pivotd.engine.driver_state import DriverState
from pivotd.engine.intent import look_for_destinations
from pivotd.engine.journal_failures import holding_writes, in_time, let_write, without_paused, without_record
from pivotd.engine.pause_steps import note_resumed
from pivotd.errors import JournalError, JournalWriteError
from pivotd.host.files import change_times, with_file
from pivotd.host.threads import in_thread


async def record(state: DriverState, action: actions.Action, seen: Observation) -> None:
    """Make a recording action durable; if this fails, the guest goes back to its source where that is safe."""
    try:
        match action:
            case actions.Close():
                fleet = FleetStage.TOLD if state.attempt.fleet_told else state.pivot.fleet
                now = state.clock.utc_now()
                await state.record("closed", await _made(state), phase=Phase.CLOSED, closed_at=now, fleet=fleet)
            case actions.HandOver():
                await _hand_over(state, seen)
            case actions.NoteResumed(run_state):
                await note_resumed(state, "resume-not-needed", {"run_state": run_state})
            case _:
                await _in_time(state, action, seen)
    except JournalError as error:
        if isinstance(action, actions.RecordOutcome) and isinstance(error, JournalWriteError):
            in_doubt = Outcome.SWITCHED in dict(action.outcomes).values()
            state.remember(switch_in_doubt=state.attempt.switch_in_doubt or in_doubt)
        if isinstance(action, record_shapes.RECORD_ONLY):
            await without_record(state, seen, error)
        raise


async def note_whose_pause(state: DriverState) -> None:
    """Record whose pause it is, if that is due: another client's, pivotd's after all, or one that pivotd has ended."""
    attempt = state.attempt
    if attempt.not_ours is not None:
        await _note_not_ours(state, attempt.not_ours)
    if attempt.ours is not None:
        await _note_ours(state, attempt.ours)
    if state.attempt.resumed_at is not None and state.pivot.owes_resume:
        await note_resumed(state, "resumed", {})


async def _note_not_ours(state: DriverState, run_state: str) -> None:
    """Record that the pause is another client's, who may end it at any time; without a record hold no write."""
    work = state.record("not-our-pause", {"run_state": run_state}, owes_resume=False)
    try:
        await state.unless_late(work, limits.RECORD_PATIENCE_S, lambda: let_write(state))
    except JournalError:
        await let_write(state)
        raise
    state.remember(not_ours=None)


async def _note_ours(state: DriverState, run_state: str) -> None:
    """Record that the pause is pivotd's although the intent found the guest paused; without a record end the pause."""
    facts = {"run_state": run_state}
    work = state.record("paused", facts, owes_resume=True, run_state_before="running")
    try:
        await state.unless_late(work, limits.RECORD_PATIENCE_S, lambda: without_paused(state))
    except JournalError:
        if await without_paused(state):
            state.remember(ours=None)
        raise
    state.remember(ours=None)


async def _hand_over(state: DriverState, seen: Observation) -> None:
    """Record the pivot that undoes this one, and the end of this one, in one transaction."""
    assert state.attempt.undo is not None
    successor = undo.successor(state.pivot, state.attempt.undo, seen.nodes, state.clock.utc_now())
    facts = {"undo": successor.id, "uid": successor.requested_by.uid}
    closed = await state.journal.hand_over(state.pivot, successor, facts)
    state.successor = successor
    state.recorded(closed)
    pivot_log.accepted(successor)


async def _in_time(state: DriverState, action: actions.Action, seen: Observation) -> None:
    """Record; if the storage hangs beyond the deadline of a pause, resume the guest first if nothing moved.

    pivotd must wait for a ``switched`` that hangs: it may or may not be on disk, so the guest can run on neither image.
    """
    moved = isinstance(action, actions.RecordOutcome | actions.EndWindow) or Root.DESTINATION in seen.roots.values()
    if state.pivot.manager is Manager.LIBVIRT:
        moved = False  # the next boot of libvirt's guests names the right image without a record, too
    work = _write(state, action, seen)
    if holding_writes(state, seen):
        await in_time(state, seen, work)
    elif state.pivot.owes_resume and moved:
        why = "the storage of the journal does not answer, and nobody can say whether it has the record of the switch"
        await state.telling(work, why)
    elif state.pivot.owes_resume:
        await in_time(state, seen, work)
    else:
        await work


async def _write(state: DriverState, action: actions.Action, seen: Observation) -> None:
    """Write the record of an action. Raises: PhaseConflictError, JournalError."""
    event, facts, changes = record_shapes.written(state.pivot, action, seen, state.attempt, state.clock.utc_now())
    if changes["phase"] is Phase.COPYING:
        changes["disks"] = await _with_file_ids(changes["disks"])
    elif isinstance(action, actions.Abandon) and state.pivot.phase is Phase.PREPARING:
        await _name_made(state, seen, changes)
    await state.record(event, facts, **changes)
    if changes["phase"] is Phase.COPYING and any(disk.destination.file_id is None for disk in state.pivot.disks):
        # Made by QEMU, and not there: rather now than after hours of copying.
        await look_for_destinations(state, limits.FILE_TIMEOUT_S)
    if isinstance(action, actions.Retreat):
        delay_s = min(limits.RETRY_FIRST_S * 2 ** (state.pivot.attempt - 1), limits.RETRY_MAX_S)
        state.remember(retry_at=state.clock.monotonic() + delay_s)


async def _made(state: DriverState) -> JsonObject:
    """Return the change times of files that the pivot has made and no disk uses: who writes to one changes that."""
    images = [
        disk.destination for disk in state.pivot.disks if half_made(state.pivot, disk) and not state.pivot.attempt
    ]
    if not images or state.pivot.options.adopted:
        return {}
    names = [image.filename for image in images]
    with contextlib.suppress(TimeoutError):
        found = await in_thread(limits.FILE_TIMEOUT_S, change_times, images, paths=names)
        return {"made": found} if found else {}
    return {}


async def _name_made(state: DriverState, seen: Observation, changes: dict[str, Any]) -> None:
    """Add to the record which files pivotd has made for nothing: the jobs that made them are there until the end."""
    made = {
        disk.index
        for disk in state.pivot.disks
        if (job := seen.job(names.create_file_job(state.pivot.id, disk.index))).status == "concluded" and not job.error
    }
    if made:
        changes["disks"] = await _with_file_ids(state.pivot.disks, made)
        files = ", ".join(disk.destination.filename for disk in state.pivot.disks if disk.index in made)
        changes["error"] += f"; pivotd has made {files}, which no disk uses: the same command will use it again"


async def _with_file_ids(disks: tuple[PivotDisk, ...], only: Collection[int] | None = None) -> tuple[PivotDisk, ...]:
    """Return the disks with the id of each destination file, which now exists; ``only``: of these disks, by index."""
    found = []
    for disk in disks:
        known = disk.destination
        # One with an id was there when the pivot was planned.
        if known.file_id is None and (only is None or disk.index in only):
            with contextlib.suppress(TimeoutError):
                known = await in_thread(limits.FILE_TIMEOUT_S, with_file, known, paths=[known.filename])
        found.append(replace(disk, destination=known))
    return tuple(found)
