"""The decision: one pure, total function from (journal record, observation) to the next action.

It drives a normal pivot and a recovery alike. Every rule of docs/protocol.md is one case below, and nothing else in
pivotd decides anything about a pivot. The rule behind all cases: without a durable ``switched`` the source holds the
guest's data; so an outcome is recorded from the graph alone, before the guest may run again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from pivotd.core import interruption, names
from pivotd.core.actions import (
    Abandon,
    Action,
    Advance,
    AskAgain,
    CancelJobs,
    CarryBitmaps,
    CleanUp,
    Close,
    Complete,
    Converge,
    Done,
    EndWindow,
    Finalize,
    HandOver,
    KeepSynced,
    NoteResumed,
    PlaceNonce,
    Prepare,
    RecordOutcome,
    RestoreLimits,
    Resume,
    Retreat,
    RollBack,
    SetBandwidth,
    Snapshot,
    Step,
    Stop,
    Wait,
)
from pivotd.core.bitmaps import owed, wrong
from pivotd.core.observation import (
    EXECUTING,
    MIGRATION_STATES,
    OUR_PAUSE,
    PAUSABLE,
    STATUS_ENDED,
    STATUS_FOLLOWING,
    STATUS_PENDING,
    STATUS_READY,
    JobSeen,
    Observation,
    Qemu,
    Root,
)
from pivotd.core.words import Kind, Outcome, Phase, Pivot, PivotDisk


def decide(pivot: Pivot, seen: Observation) -> Action:
    """Return the next action; total over every phase and everything QEMU can show.

    Source: docs/protocol.md, the decision table.
    """
    if pivot.phase is Phase.CLOSED:
        return Done()
    if seen.qemu is Qemu.SILENT:
        return AskAgain(seen.detail or "QEMU does not answer")
    if seen.qemu is Qemu.SAME and (owed := _owed(pivot, seen)) is not None:
        return owed
    if pivot.phase is Phase.DECIDED:
        return _decided(pivot, seen)
    if seen.qemu is Qemu.GONE:
        return _record_all(pivot, Outcome.KEPT, "QEMU is gone and no switch was recorded: the source has every write")
    if seen.qemu is Qemu.REPLACED:
        return _replaced(pivot, seen)
    return _PHASES[pivot.phase](pivot, seen)


def _owed(pivot: Pivot, seen: Observation) -> Action | None:
    """Return what QEMU is to be told before anything else; nothing in a pause, which must not wait for it."""
    if pivot.owes_resume or pivot.phase is Phase.PAUSING:
        return None
    resting = pivot.phase is Phase.DECIDED or (pivot.phase is Phase.READY and pivot.hold)
    if pivot.options.write_limits and resting:
        return RestoreLimits()
    running = any(seen.job(disk.job).status in {"running", "paused", *STATUS_READY} for disk in pivot.disks)
    if pivot.options.bandwidth_due and pivot.phase in {Phase.COPYING, Phase.READY} and running:
        return SetBandwidth()
    return None


def _replaced(pivot: Pivot, seen: Observation) -> Action:
    if seen.uses_destination and pivot.switches:
        return _record_all(
            pivot,
            Outcome.UNKNOWN,
            "no switch was recorded, yet another QEMU process now uses the destination: compare both images",
        )
    where = "the source" if seen.uses_source else "neither image"
    return _record_all(pivot, Outcome.KEPT, f"another QEMU process answers and uses {where}; no switch was recorded")


def _preparing(pivot: Pivot, seen: Observation) -> Action:
    if seen.cancel_requested:
        return Abandon("cancelled before the copy began")
    if seen.run_state in MIGRATION_STATES:
        return Abandon(f"the guest is in state {seen.run_state}: another process may own the images")
    for disk in pivot.disks:
        if seen.roots.get(disk.disk) is not Root.SOURCE:
            return Abandon(f"{disk.disk} was changed or unplugged while the copy was being prepared")
    if not seen.has_nonce:
        return PlaceNonce()
    for disk in pivot.disks:
        action = _next_step(pivot, disk, seen)
        if action is not None:
            return action
    return Advance(Phase.COPYING)


def _next_step(pivot: Pivot, disk: PivotDisk, seen: Observation) -> Action | None:
    """Return the first step of this disk without evidence in QEMU, None when its job has been started."""
    if pivot.has_jobs and disk.job in seen.jobs:
        return None
    if pivot.kind in {Kind.COMMIT, Kind.PULL}:
        return Prepare(disk.index, Step.START_JOB)
    if disk.destination.node in seen.nodes:
        return Prepare(disk.index, Step.START_JOB) if pivot.has_jobs else None
    return _next_of_destination(pivot, disk, seen)


def _next_of_destination(pivot: Pivot, disk: PivotDisk, seen: Observation) -> Action:
    """Return the first step towards an open destination."""
    index = disk.index
    formats = not pivot.options.reuse and disk.destination.format != "raw"
    if names.file_node(pivot.id, index) in seen.nodes:
        if not pivot.options.reuse and names.create_file_job(pivot.id, index) not in seen.jobs:
            return Abandon(f"{disk.destination.filename} was there before pivotd could create it")
        if not formats:
            return Prepare(index, Step.OPEN_FORMAT)
        return _created(seen, names.create_format_job(pivot.id, index), index, Step.CREATE_FORMAT, Step.OPEN_FORMAT)
    if pivot.options.reuse:
        return Prepare(index, Step.OPEN_FILE)
    return _created(seen, names.create_file_job(pivot.id, index), index, Step.CREATE_FILE, Step.OPEN_FILE)


def _created(seen: Observation, job: str, index: int, create: Step, then: Step) -> Action:
    """Creation jobs are dismissed only at the end: until then they are the evidence that the file is ours."""
    if job not in seen.jobs:
        return Prepare(index, create)
    state = seen.job(job)
    if state.status != "concluded":
        return Wait("the destination is being created")
    if state.error is not None:
        return Abandon(f"QEMU could not create the destination: {state.error}")
    return Prepare(index, then)


def _copying(pivot: Pivot, seen: Observation) -> Action:
    trouble = _trouble(pivot, seen) or interruption.go_on(pivot, seen)
    if trouble is not None:
        return trouble
    if _all_ready(pivot, seen):
        return Advance(Phase.READY)
    if any(seen.job(disk.job).status == "paused" for disk in pivot.disks):
        return Wait("a job was paused, by somebody else or by an error of its storage: it goes on when that resumes it")
    return Wait("copying" if pivot.switches else "merging")


def _all_ready(pivot: Pivot, seen: Observation) -> bool:
    """Return whether every job waits for the switch: a mirror at ready, a merge of lower layers at pending.

    At standby somebody has paused it: a guest paused now would wait in vain for its last bytes.
    """
    wanted = "ready" if pivot.switches else STATUS_PENDING
    return not pivot.has_jobs or all(seen.job(disk.job).status == wanted for disk in pivot.disks)


def _ready(pivot: Pivot, seen: Observation) -> Action:
    trouble = _trouble(pivot, seen)
    if trouble is not None:
        return trouble
    if pivot.owes_resume:
        return _resume(seen)
    interrupted = interruption.go_on(pivot, seen)
    if interrupted is not None:
        return interrupted
    if pivot.hold:
        return Wait("ready: waits for `pivot complete` or `pivot cancel`")
    if seen.migrating:
        return Wait("the guest is being migrated")
    if seen.run_state not in PAUSABLE:
        return Wait(f"a switch is not possible while the guest is {seen.run_state}")
    if not _all_ready(pivot, seen):
        return Wait("a job is not ready, or was paused by somebody else")
    return Converge()


def _trouble(pivot: Pivot, seen: Observation) -> Action | None:
    """Return what to do where the copy cannot go on, None where it can. Common to COPYING and READY."""
    if any(_root(seen, disk) is Root.DESTINATION for disk in pivot.disks):
        return _by_roots(pivot, seen, "the disk was switched by somebody else")
    if seen.merged == {disk.disk for disk in pivot.disks}:
        return _by_chains(pivot, seen, "the jobs were finalized by somebody else")
    for disk in pivot.disks:
        job = seen.job(disk.job) if pivot.has_jobs else _NONE
        if job.status in STATUS_ENDED:
            return Abandon(f"the copy of {disk.disk} ended: {job.error or 'its job was cancelled by somebody else'}")
        if _root(seen, disk) is not Root.SOURCE:
            return Abandon(f"{disk.disk} was changed or unplugged by somebody else")
        if job.status == STATUS_PENDING and pivot.switches:
            return Abandon(f"the job of {disk.disk} was completed by somebody else")
    if seen.run_state == "postmigrate":
        return Abandon("the guest has been migrated away")
    if seen.lost is not None:
        return Abandon(seen.lost)
    if seen.cancel_requested:
        return Abandon("cancelled")
    return None


def _reversing(pivot: Pivot, seen: Observation) -> tuple[str, ...]:
    """Return the reverse mirrors that may still move a root: no outcome can be told before they have ended."""
    jobs = (names.reverse_job(pivot.id, disk.index) for disk in pivot.disks)
    return tuple(job for job in jobs if seen.job(job).status not in STATUS_ENDED)


def _pausing(pivot: Pivot, seen: Observation) -> Action:
    if reversing := _reversing(pivot, seen):
        return CancelJobs(reversing, resume=False)
    roots = {_root(seen, disk) for disk in pivot.disks}
    if Root.OTHER in roots:
        return _by_roots(pivot, seen, "the root of a disk is neither image")
    if Root.ABSENT in roots and seen.executing:
        return _by_roots(pivot, seen, "a disk was unplugged while its switch was under way")
    if not pivot.switches:
        return _merging(pivot, seen)
    if seen.executing:
        return _executing(pivot, seen, roots)
    if pivot.run_state_before in EXECUTING and seen.run_state not in OUR_PAUSE and Root.DESTINATION not in roots:
        return Abandon(f"the guest went into state {seen.run_state}")
    if seen.run_state in MIGRATION_STATES and Root.DESTINATION in roots:
        return _by_roots(pivot, seen, f"the guest went into state {seen.run_state} after the switch had begun")
    if roots == {Root.SOURCE}:
        return _all_source(pivot, seen)
    if Root.ABSENT in roots and Root.DESTINATION not in roots:
        return Abandon("a disk was unplugged")
    return _some_destination(pivot, seen)


def _merging(pivot: Pivot, seen: Observation) -> Action:
    """Layers below the active image are merged. No disk gets another image, so no data can be in the wrong place.

    ``stop`` is for its flush: QEMU keeps tables of qcow2 images in memory, and an image that has stopped naming its
    backing file before they are written has lost what it took from there, should QEMU die then.
    """
    left = [disk for disk in pivot.disks if disk.disk not in seen.merged]
    if not left or any(_root(seen, disk) is not Root.SOURCE for disk in left):
        return _by_chains(pivot, seen, "every chain is as it was asked for" if not left else "a disk was unplugged")
    ended = next((disk for disk in left if seen.job(disk.job).status in STATUS_ENDED), None)
    if ended is not None:
        error = seen.job(ended.job).error or "its job was cancelled by somebody else"
        return Abandon(f"the merge of {ended.disk} failed: {error}")
    if len(left) == len(pivot.disks) and (seen.cancel_requested or seen.deadline_passed):
        if seen.cancel_requested:
            return Abandon("cancelled")
        return _retreat(pivot, f"max_pause of {pivot.options.max_pause_ms} ms passed before the merge")
    if not seen.stop_sent:
        return Stop()
    if seen.executing:
        return _retreat(pivot, "the guest was resumed by somebody else before the merge")
    return Finalize(tuple(disk.job for disk in left))


def _executing(pivot: Pivot, seen: Observation, roots: set[Root]) -> Action:
    """The guest runs although an intent is recorded."""
    if Root.DESTINATION in roots:
        return _by_roots(pivot, seen, f"somebody resumed the guest after the switch: it was found {seen.run_state}")
    jobs = [seen.job(disk.job) for disk in pivot.disks] if pivot.has_jobs else []
    if seen.completing or any(job.status not in STATUS_READY for job in jobs):
        # A write that was queued while a job was pending lands on the new root when the job is finalized, also if
        # the guest is stopped first: so from here no finalize is ever sent.
        return Abandon("the guest was found running after a job had been completed or had ended")
    if pivot.owes_resume and seen.stop_sent is False and not seen.cancel_requested and not seen.deadline_passed:
        return Stop(complete=tuple(disk.job for disk in pivot.disks) if seen.quick and pivot.has_jobs else ())
    return _retreat(pivot, "the guest was found running before the switch")


def _all_source(pivot: Pivot, seen: Observation) -> Action:
    """The guest is still and every root is the source."""
    if not pivot.has_jobs:
        return _before_snapshot(pivot, seen)
    status = {disk.job: seen.job(disk.job).status for disk in pivot.disks}
    ended = [disk for disk in pivot.disks if status[disk.job] in STATUS_ENDED]
    if ended:
        failed = next((disk for disk in ended if seen.job(disk.job).error), ended[0])
        error = seen.job(failed.job).error
        why = seen.rolled_back or error or "its job was cancelled by somebody else"
        return Abandon(f"the switch of {failed.disk} failed: {why}")
    failing = interruption.failing(pivot, seen)
    if seen.deadline_passed or seen.cancel_requested or failing:
        reason = failing or f"max_pause of {pivot.options.max_pause_ms} ms passed"
        reason = "cancelled" if seen.cancel_requested else reason
        clean = seen.completing == frozenset() and set(status.values()) <= STATUS_READY
        if clean and not seen.cancel_requested:
            return _retreat(pivot, f"{reason} before the switch")
        return Abandon(reason if clean else f"{reason} before every job was pending: the copy had to be given up")
    if set(status.values()) == {STATUS_PENDING}:
        return _carry(pivot, seen) or Finalize(tuple(status))
    ready = tuple(job for job, state in status.items() if state in STATUS_READY and job not in (seen.completing or ()))
    if ready:
        return Complete(ready)
    return Wait("the last bytes are being copied")


def _carry(pivot: Pivot, seen: Observation) -> Action | None:
    """Bitmaps stay behind by themselves, and every later incremental backup would lack what they mark."""
    if seen.carried is not None or not owed(pivot, seen.bitmaps):
        return None
    if seen.carry_refused is None:
        return CarryBitmaps()
    return None if pivot.options.force else Abandon(f"the dirty bitmaps cannot come along: {seen.carry_refused}")


def _before_snapshot(pivot: Pivot, seen: Observation) -> Action:
    if seen.cancel_requested:
        return Abandon("cancelled")
    if seen.deadline_passed:
        return _retreat(pivot, f"max_pause of {pivot.options.max_pause_ms} ms passed before the snapshot")
    return Snapshot()


def _some_destination(pivot: Pivot, seen: Observation) -> Action:
    """The guest is still, at least one disk has moved: finish the others, or take the moved ones back."""
    rest = [disk for disk in pivot.disks if _root(seen, disk) is Root.SOURCE]
    moved = tuple(disk.disk for disk in pivot.disks if _root(seen, disk) is Root.DESTINATION)
    if len(moved) == len(pivot.disks):
        return _all_destination(pivot, seen)
    if not rest or len(rest) + len(moved) < len(pivot.disks):
        return _by_roots(pivot, seen, "a disk was unplugged")
    status = {disk.job: seen.job(disk.job).status for disk in rest}
    if seen.rollback_failed:
        return _by_roots(pivot, seen, "some disks could be switched and not taken back, the others not switched")
    if any(state in STATUS_ENDED for state in status.values()):
        return RollBack(moved)
    pending = tuple(job for job, state in status.items() if state == STATUS_PENDING)
    if pending:
        return Finalize(pending)
    if seen.deadline_passed:
        return RollBack(moved)
    ready = tuple(job for job, state in status.items() if state in STATUS_READY and job not in (seen.completing or ()))
    if ready:
        return Complete(ready)
    return Wait("the last bytes are being copied")


def _all_destination(pivot: Pivot, seen: Observation) -> Action:
    """The guest is still, every disk has moved: record it; a mirror back has to start before the guest runs on."""
    reason = "every disk has its destination as root"
    lacking = wrong(seen.carried, seen.bitmaps) if seen.carried is not None and not pivot.options.force else None
    if lacking is not None and not seen.rollback_failed:
        return RollBack(tuple(disk.disk for disk in pivot.disks), lacking)
    if lacking is not None:
        reason += f"; {lacking}"
    if not pivot.options.keep_synced:
        return _by_roots(pivot, seen, reason)
    following = seen.back_started and _back_status(pivot, seen) <= STATUS_FOLLOWING
    if not following and seen.back_failed is None and not seen.deadline_passed:
        return KeepSynced()
    if not following:
        reason += f"; the sources are not kept in sync: {seen.back_failed or 'max_pause has passed'}"
    return replace(_by_roots(pivot, seen, reason), hold=following and seen.back_failed is None)


def _back_status(pivot: Pivot, seen: Observation) -> set[str]:
    return {seen.job(names.back_job(pivot.id, disk.index)).status for disk in pivot.disks}


def _cancelling(pivot: Pivot, seen: Observation) -> Action:
    if reversing := _reversing(pivot, seen):
        return CancelJobs(reversing, resume=False)
    jobs = tuple(disk.job for disk in pivot.disks)
    live = tuple(job for job in jobs if seen.job(job).status not in STATUS_ENDED)
    ours = pivot.owes_resume and seen.run_state in OUR_PAUSE
    moved = any(_root(seen, disk) is Root.DESTINATION for disk in pivot.disks)
    aborting = any(seen.job(job).status == "aborting" for job in jobs)
    if live:
        return CancelJobs(live, resume=ours and not moved)
    if pivot.owes_resume and not moved:
        return _resume(seen)
    if aborting:
        return Wait("a job is being cancelled")
    if moved:
        return _by_roots(pivot, seen, "the disk had been switched before it could be cancelled")
    if any(_root(seen, disk) is Root.OTHER for disk in pivot.disks):
        return _by_roots(pivot, seen, "somebody else has put another image under a disk")
    return _by_chains(pivot, seen, pivot.error or "cancelled")


def _window(pivot: Pivot, seen: Observation) -> Action:
    """The guest runs on its destinations and the sources follow: wait for the end of the window, or for the undo."""
    ended = _end_of_window(pivot, seen)
    if ended is not None:
        return EndWindow(ended)
    if seen.undo_requested:
        return HandOver()
    return Wait("the old images are kept in sync: `pivot undo` returns to them, `pivot release` lets them go")


def _end_of_window(pivot: Pivot, seen: Observation) -> str | None:
    if seen.qemu is not Qemu.SAME:
        return "QEMU has ended, and the mirrors back with it: the old images are out of date"
    if any(_root(seen, disk) is not Root.DESTINATION for disk in pivot.disks):
        return "a disk was changed or unplugged by somebody else"
    for disk in pivot.disks:
        job = seen.job(names.back_job(pivot.id, disk.index))
        if job.status not in STATUS_FOLLOWING:
            why = job.error or f"its job is {job.status}"
            return f"{disk.source.filename} of {disk.disk} is not followed any more: {why}"
    if seen.release_requested:
        return "released"
    return f"{pivot.options.keep_synced_s} seconds have passed" if seen.window_over else None


def _decided(pivot: Pivot, seen: Observation) -> Action:
    if pivot.window_open and seen.qemu is not Qemu.SAME:
        return _window(pivot, seen)
    if seen.qemu is not Qemu.SAME or pivot.outcome == Outcome.UNKNOWN.value:
        return Close()
    if pivot.owes_resume:
        return _resume(seen)
    if pivot.window_open:
        return _window(pivot, seen)
    wanted = {names.reopened_source(pivot.id, disk.index) for disk in pivot.disks} | {
        name
        for disk in pivot.disks
        if disk.outcome is Outcome.SWITCHED
        for name in (disk.destination.node, names.file_node(pivot.id, disk.index))
    }
    if pivot.options.undo_of is not None:
        wanted |= {
            name
            for disk in pivot.disks
            if disk.outcome is not Outcome.SWITCHED
            for name in (disk.source.node, names.file_node(pivot.options.undo_of, disk.index))
        }
    if (seen.jobs or seen.nodes - wanted or seen.has_nonce) and not seen.clean_up_failed:
        return CleanUp()
    return Close()


def _resume(seen: Observation) -> Action:
    if seen.run_state in OUR_PAUSE:
        return Resume()
    return NoteResumed(seen.run_state or "unknown")


def _retreat(pivot: Pivot, reason: str) -> Action:
    return Retreat(reason, hold=pivot.attempt >= pivot.options.attempts)


def _root(seen: Observation, disk: PivotDisk) -> Root:
    return seen.roots.get(disk.disk, Root.ABSENT)


def _by_roots(pivot: Pivot, seen: Observation, reason: str) -> RecordOutcome:
    """Record each disk as the graph shows it; only valid once no job of the pivot can still move a root."""
    outcome = {
        Root.SOURCE: Outcome.KEPT,
        Root.DESTINATION: Outcome.SWITCHED,
        Root.OTHER: Outcome.UNKNOWN,
        # Unplugged: the guest executed nothing since the pause if it is still, otherwise nobody can tell.
        Root.ABSENT: Outcome.UNKNOWN if seen.executing else Outcome.KEPT,
    }
    return RecordOutcome(tuple((disk.disk, outcome[_root(seen, disk)]) for disk in pivot.disks), reason)


def _by_chains(pivot: Pivot, seen: Observation, reason: str) -> Action:
    """Record which chains were merged; no disk has got another image."""
    outcome = {disk.disk: Outcome.MERGED if disk.disk in seen.merged else Outcome.KEPT for disk in pivot.disks}
    return RecordOutcome(tuple(outcome.items()), reason)


def _record_all(pivot: Pivot, outcome: Outcome, reason: str) -> Action:
    return RecordOutcome(tuple((disk.disk, outcome) for disk in pivot.disks), reason)


_NONE = JobSeen("ready")
"""Stands for the job of a disk whose pivot has none."""

_PHASES: dict[Phase, Callable[[Pivot, Observation], Action]] = {
    Phase.PREPARING: _preparing,
    Phase.COPYING: _copying,
    Phase.READY: _ready,
    Phase.PAUSING: _pausing,
    Phase.CANCELLING: _cancelling,
}
