"""The rules from the intent to the outcome: make a switch, give it up or take it back. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from pivotd.core import kinds, names
from pivotd.core.actions import (
    Abandon,
    Action,
    CancelJobs,
    CarryBitmaps,
    Complete,
    Finalize,
    KeepSynced,
    RollBack,
    Snapshot,
    Stop,
    Wait,
)
from pivotd.core.attempt import Attempt
from pivotd.core.dirty_bitmaps import Bitmaps, owed, wrong
from pivotd.core.observation import (
    EXECUTING,
    MIGRATION_STATES,
    OUR_PAUSE,
    STATUS_ENDED,
    STATUS_FOLLOWING,
    STATUS_PENDING,
    STATUS_READY,
    Observation,
    Root,
)
from pivotd.core.pivot import Pivot
from pivotd.core.rules import target_errors
from pivotd.core.rules.endings import by_chains, by_roots, lost_sight, retreat, reversing, root, unguarded


def pausing(pivot: Pivot, seen: Observation, attempt: Attempt) -> Action:
    """Return the action under a durable intent."""
    if living := reversing(pivot, seen):
        return CancelJobs(living, resume=False)
    roots = {root(seen, disk) for disk in pivot.disks}
    if Root.OTHER in roots:
        return by_roots(pivot, seen, attempt, "the root of a disk is neither image")
    if Root.ABSENT in roots and (seen.executing or lost_sight(pivot, seen, attempt)):
        live = kinds.of(pivot).has_jobs and all(seen.job(disk.job).status not in STATUS_ENDED for disk in pivot.disks)
        if live and Root.DESTINATION not in roots:
            return Abandon("a disk was unplugged before the switch")  # no job has ended, so none has moved a disk
        return by_roots(pivot, seen, attempt, "a disk was unplugged while its switch was under way")
    if not pivot.switches:
        return _merging(pivot, seen, attempt)
    if seen.executing:
        return _executing(pivot, seen, attempt, roots)
    if pivot.run_state_before in EXECUTING and seen.run_state not in OUR_PAUSE and Root.DESTINATION not in roots:
        return Abandon(f"the guest went into state {seen.run_state}")
    if seen.run_state in MIGRATION_STATES and Root.DESTINATION in roots:
        return by_roots(pivot, seen, attempt, f"the guest went into state {seen.run_state} after the switch had begun")
    if roots == {Root.SOURCE}:
        return _all_source(pivot, seen, attempt)
    if Root.ABSENT in roots and Root.DESTINATION not in roots:
        live = any(seen.job(disk.job).status not in STATUS_ENDED for disk in pivot.disks)
        return Abandon("a disk was unplugged") if live else by_roots(pivot, seen, attempt, "a disk was unplugged")
    return _some_destination(pivot, seen, attempt)


def _merging(pivot: Pivot, seen: Observation, attempt: Attempt) -> Action:
    """Merge layers below the active image. No disk gets another image, so no data can be in the wrong place.

    ``stop`` is needed for its flush: QEMU keeps tables of qcow2 images in memory. If QEMU dies after an image has
    stopped naming its backing file and before the tables are written, the image has lost the data taken from there.
    """
    left = [disk for disk in pivot.disks if disk.disk not in seen.merged]
    if not left or any(root(seen, disk) is not Root.SOURCE for disk in left):
        reason = "every chain is as it was asked for" if not left else "a disk was unplugged"
        lacking = None if left or attempt.carried is None else _lacking(pivot, attempt.carried, seen)
        return by_chains(pivot, seen, reason if lacking is None else f"{reason}; {lacking}")
    ended = next((disk for disk in left if seen.job(disk.job).status in STATUS_ENDED), None)
    if ended is not None:
        error = seen.job(ended.job).error or "its job was cancelled by somebody else"
        return Abandon(f"the merge of {ended.disk} failed: {error}")
    if len(left) == len(pivot.disks) and (attempt.cancelled_by or attempt.deadline_passed):
        if attempt.cancelled_by:
            return Abandon("cancelled")
        return retreat(pivot, f"max_pause of {pivot.options.max_pause_ms} ms passed before the merge")
    if not attempt.stop_sent:
        return Stop()
    if seen.executing:
        return retreat(pivot, "the guest was resumed by somebody else before the merge")
    # All are left until the first is merged.
    carry = _carry(pivot, seen, attempt) if len(left) == len(pivot.disks) else None
    return carry or Finalize(tuple(disk.job for disk in left))


def _executing(pivot: Pivot, seen: Observation, attempt: Attempt, roots: set[Root]) -> Action:
    """The guest runs although an intent is recorded."""
    if Root.DESTINATION in roots:
        reason = f"somebody resumed the guest after the switch: it was found {seen.run_state}"
        return unguarded(pivot, seen, attempt, reason)
    jobs = [seen.job(disk.job) for disk in pivot.disks] if kinds.of(pivot).has_jobs else []
    if attempt.completing or any(job.status not in STATUS_READY for job in jobs):
        # A write that was queued while a job was pending lands on the new root when the job is finalized, also if
        # the guest is stopped first: so from here no finalize is ever sent.
        return Abandon("the guest was found running after a job had been completed or had ended")
    if pivot.owes_resume and attempt.stop_sent is False and not attempt.cancelled_by and not attempt.deadline_passed:
        at_once = attempt.quick and kinds.of(pivot).has_jobs
        return Stop(complete=tuple(disk.job for disk in pivot.disks) if at_once else ())
    return retreat(pivot, "the guest was found running before the switch")


def _all_source(pivot: Pivot, seen: Observation, attempt: Attempt) -> Action:
    """The guest is still and every root is the source."""
    if not kinds.of(pivot).has_jobs:
        return _before_snapshot(pivot, seen, attempt)
    status = {disk.job: seen.job(disk.job).status for disk in pivot.disks}
    ended = [disk for disk in pivot.disks if status[disk.job] in STATUS_ENDED]
    if ended:
        failed = next((disk for disk in ended if seen.job(disk.job).error), ended[0])
        error = seen.job(failed.job).error
        why = attempt.rolled_back or error or "its job was cancelled by somebody else"
        return Abandon(f"the switch of {failed.disk} failed: {why}")
    if attempt.lost is not None:
        return Abandon(attempt.lost)
    failing = target_errors.failing(pivot, seen)
    if attempt.deadline_passed or attempt.cancelled_by or failing:
        reason = failing or f"max_pause of {pivot.options.max_pause_ms} ms passed"
        reason = "cancelled" if attempt.cancelled_by else reason
        clean = attempt.completing == frozenset() and set(status.values()) <= STATUS_READY
        if clean and not attempt.cancelled_by:
            return retreat(pivot, f"{reason} before the switch")
        return Abandon(reason if clean else f"{reason} before every job was pending: the copy had to be given up")
    if set(status.values()) == {STATUS_PENDING}:
        return _carry(pivot, seen, attempt) or Finalize(tuple(status))
    return _complete(status, attempt)


def _complete(status: Mapping[str, str], attempt: Attempt) -> Action:
    """Complete the jobs that have not been told to; ``status`` is by job."""
    told = attempt.completing or ()
    ready = tuple(job for job, state in status.items() if state in STATUS_READY and job not in told)
    return Complete(ready) if ready else Wait("the last bytes are being copied")


def _carry(pivot: Pivot, seen: Observation, attempt: Attempt) -> Action | None:
    """Carry the bitmaps: otherwise they stay behind, and every later incremental backup would lack what they mark."""
    carries = kinds.of(pivot).carries_bitmaps and owed(pivot, seen.bitmaps)
    if attempt.carried is not None or not carries:
        return None
    if attempt.carry_refused is None:
        return CarryBitmaps()
    return None if pivot.options.force else Abandon(f"the dirty bitmaps cannot come along: {attempt.carry_refused}")


def _lacking(pivot: Pivot, carried: Bitmaps, seen: Observation) -> str | None:
    return wrong(carried, seen.bitmaps, may_differ=kinds.of(pivot).bitmaps_may_differ)


def _before_snapshot(pivot: Pivot, seen: Observation, attempt: Attempt) -> Action:
    if attempt.rolled_back is not None:
        return Abandon(f"the snapshot was taken back: {attempt.rolled_back}")
    if attempt.cancelled_by or attempt.lost is not None:
        return Abandon(attempt.lost or "cancelled")
    if attempt.deadline_passed:
        return retreat(pivot, f"max_pause of {pivot.options.max_pause_ms} ms passed before the snapshot")
    return _carry(pivot, seen, attempt) or Snapshot()


def _some_destination(pivot: Pivot, seen: Observation, attempt: Attempt) -> Action:
    """The guest is still and at least one disk has moved: finish the others, or take the moved ones back."""
    rest = [disk for disk in pivot.disks if root(seen, disk) is Root.SOURCE]
    moved = tuple(disk.disk for disk in pivot.disks if root(seen, disk) is Root.DESTINATION)
    if len(moved) == len(pivot.disks):
        return _all_destination(pivot, seen, attempt)
    if not rest or len(rest) + len(moved) < len(pivot.disks):
        return by_roots(pivot, seen, attempt, "a disk was unplugged")
    status = {disk.job: seen.job(disk.job).status for disk in rest}
    if attempt.rollback_failed:
        reason = "some disks could be switched and not taken back, the others not switched"
        return by_roots(pivot, seen, attempt, reason)
    if any(state in STATUS_ENDED for state in status.values()):
        return RollBack(moved)
    pending = tuple(job for job, state in status.items() if state == STATUS_PENDING)
    if pending:
        return Finalize(pending)
    if attempt.deadline_passed:
        return RollBack(moved)
    return _complete(status, attempt)


def _all_destination(pivot: Pivot, seen: Observation, attempt: Attempt) -> Action:
    """The guest is still and every disk has moved: record it; a mirror back must start before the resume."""
    reason = "every disk has its destination as root"
    read_back = attempt.carried if not pivot.options.force else None
    lacking = None if read_back is None else _lacking(pivot, read_back, seen)
    if lacking is not None and not attempt.rollback_failed:
        return RollBack(tuple(disk.disk for disk in pivot.disks), lacking)
    if lacking is not None:
        reason += f"; {lacking}"
    if not pivot.options.keep_synced:
        return by_roots(pivot, seen, attempt, reason)
    following = attempt.back_started and _back_status(pivot, seen) <= STATUS_FOLLOWING
    if not following and attempt.back_failed is None and not attempt.deadline_passed:
        return KeepSynced()
    if not following:
        reason += f"; the sources are not kept in sync: {attempt.back_failed or 'max_pause has passed'}"
    return replace(by_roots(pivot, seen, attempt, reason), hold=following and attempt.back_failed is None)


def _back_status(pivot: Pivot, seen: Observation) -> set[str]:
    return {seen.job(names.back_job(pivot.id, disk.index)).status for disk in pivot.disks}
