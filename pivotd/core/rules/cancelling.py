"""The rules after the decision to stay on the source: end the jobs, resume the guest, record the outcome. Pure."""

from __future__ import annotations

from pivotd.core.actions import Action, CancelJobs, Wait
from pivotd.core.attempt import Attempt
from pivotd.core.observation import OUR_PAUSE, STATUS_ENDED, Observation, Root
from pivotd.core.pivot import Pivot
from pivotd.core.rules.endings import by_chains, by_roots, lost_sight, resume, reversing, root


def cancelling(pivot: Pivot, seen: Observation, attempt: Attempt) -> Action:
    """Return the action after the decision to stay on the source."""
    if living := reversing(pivot, seen):
        return CancelJobs(living, resume=False)
    jobs = tuple(disk.job for disk in pivot.disks)
    live = tuple(job for job in jobs if seen.job(job).status not in STATUS_ENDED)
    ours = pivot.owes_resume and seen.run_state in OUR_PAUSE
    moved = any(root(seen, disk) is Root.DESTINATION for disk in pivot.disks)
    aborting = any(seen.job(job).status == "aborting" for job in jobs)
    if live:
        return CancelJobs(live, resume=ours and not moved)
    if pivot.owes_resume and not moved:
        return resume(seen)
    if aborting:
        return Wait("a job is being cancelled")
    if moved:
        return by_roots(pivot, seen, attempt, "the disk had been switched before it could be cancelled")
    if any(root(seen, disk) is Root.OTHER for disk in pivot.disks):
        return by_roots(pivot, seen, attempt, "somebody else has put another image under a disk")
    if pivot.switches and lost_sight(pivot, seen, attempt):
        return by_roots(pivot, seen, attempt, "a disk was unplugged while its switch was under way")
    return by_chains(pivot, seen, pivot.error or "cancelled")
