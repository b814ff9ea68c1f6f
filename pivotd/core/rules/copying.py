"""The rules while the guest runs and QEMU copies its data, up to the intent. Pure."""

from __future__ import annotations

from pivotd.core import kinds
from pivotd.core.actions import Abandon, Action, Advance, Converge, Wait
from pivotd.core.attempt import Attempt
from pivotd.core.dirty_bitmaps import in_use
from pivotd.core.observation import PAUSABLE, STATUS_ENDED, STATUS_PENDING, Observation, Root
from pivotd.core.pivot import Phase, Pivot
from pivotd.core.rules import target_errors
from pivotd.core.rules.endings import NO_JOB, by_chains, by_others, resume, root, unguarded


def copying(pivot: Pivot, seen: Observation, attempt: Attempt) -> Action:
    """Return the action while QEMU copies data or merges layers and not every job waits for the switch."""
    trouble = _trouble(pivot, seen, attempt) or target_errors.go_on(pivot, seen)
    if trouble is not None:
        return trouble
    if _all_ready(pivot, seen):
        return Advance(Phase.READY)
    if any(seen.job(disk.job).status == "paused" for disk in pivot.disks):
        return Wait("a job was paused, by somebody else or by an error of its storage: it goes on when that resumes it")
    return Wait("copying" if pivot.switches else "merging")


def _all_ready(pivot: Pivot, seen: Observation) -> bool:
    """Return whether every job waits for the switch: a mirror at ready, a merge of lower layers at pending.

    At standby another client has paused the job: a guest paused now would wait in vain for the last bytes.
    """
    wanted = "ready" if pivot.switches else STATUS_PENDING
    return not kinds.of(pivot).has_jobs or all(seen.job(disk.job).status == wanted for disk in pivot.disks)


def held_up(pivot: Pivot, seen: Observation) -> Wait | None:
    """Return what a pivot waits for at READY besides its jobs, None for nothing; whoever carries it out."""
    if pivot.hold:
        return Wait("ready: waits for `pivot complete` or `pivot cancel`")
    if seen.migrating:
        return Wait("the guest is being migrated")
    if seen.run_state not in PAUSABLE:
        return Wait(f"a switch is not possible while the guest is {seen.run_state}")
    if seen.snapshots and not pivot.options.drop_internal_snapshots:
        image, names = seen.snapshots[0]
        return Wait(
            f"ready: {image} has got internal snapshots, which the disk would lose: {', '.join(names)}; delete them "
            "(snapshot-delete), or cancel and begin again with --drop-internal-snapshots"
        )
    return None


def ready(pivot: Pivot, seen: Observation, attempt: Attempt) -> Action:
    """Return the action while every job waits for the switch and the guest runs."""
    trouble = _trouble(pivot, seen, attempt)
    if trouble is not None:
        return trouble
    if pivot.owes_resume:
        return resume(seen)
    interrupted = target_errors.go_on(pivot, seen)
    if interrupted is not None:
        return interrupted
    if (wait := held_up(pivot, seen)) is not None:
        return wait
    if not _all_ready(pivot, seen):
        return Wait("a job is not ready, or was paused by somebody else")
    busy = in_use(pivot, seen.bitmaps) if kinds.of(pivot).carries_bitmaps else None
    return Converge() if busy is None else Wait(f"ready: {busy}")


def _trouble(pivot: Pivot, seen: Observation, attempt: Attempt) -> Action | None:
    """Return the action if the copy cannot continue, None if it can. Common to COPYING and READY."""
    if any(root(seen, disk) is Root.DESTINATION for disk in pivot.disks):
        return unguarded(pivot, seen, attempt, by_others(pivot, seen))
    if seen.merged == {disk.disk for disk in pivot.disks}:
        return by_chains(pivot, seen, "the jobs were finalized by somebody else")
    for disk in pivot.disks:
        job = seen.job(disk.job) if kinds.of(pivot).has_jobs else NO_JOB
        if job.status in STATUS_ENDED:
            return Abandon(f"the copy of {disk.disk} ended: {job.error or 'its job was cancelled by somebody else'}")
        if root(seen, disk) is not Root.SOURCE:
            return Abandon(f"{disk.disk} was changed or unplugged by somebody else")
        if job.status == STATUS_PENDING and pivot.switches:
            return Abandon(f"the job of {disk.disk} was completed by somebody else")
    if seen.run_state == "postmigrate":
        return Abandon("the guest has been migrated away")
    if attempt.lost is not None:
        return Abandon(attempt.lost)
    if attempt.cancelled_by:
        return Abandon("cancelled")
    return None
