"""The rules from the intent to the outcome of a pivot that libvirt carries out. Pure."""

from __future__ import annotations

from pivotd.core import kinds
from pivotd.core.actions import Abandon, Action, AskLibvirt, CancelJobs, RollBack, Stop, Wait
from pivotd.core.attempt import Attempt
from pivotd.core.observation import EXECUTING, MIGRATION_STATES, OUR_PAUSE, JobBelief, Observation, Root
from pivotd.core.pivot import Pivot
from pivotd.core.rules import agreement
from pivotd.core.rules.agreement import believed, in_doubt, live_jobs, settle
from pivotd.core.rules.endings import retreat, reversing, root


def pausing(pivot: Pivot, seen: Observation, attempt: Attempt) -> Action:
    """Return the action under a durable intent."""
    if living := reversing(pivot, seen):
        return CancelJobs(living, resume=False)
    roots = {root(seen, disk) for disk in pivot.disks}
    if seen.executing:
        return _executing(pivot, seen, attempt, roots)
    stopped = pivot.run_state_before in EXECUTING and seen.run_state not in OUR_PAUSE
    if stopped and Root.DESTINATION not in roots:
        return Abandon(f"the guest went into state {seen.run_state}")
    if roots == {Root.SOURCE}:
        return _all_source(pivot, seen, attempt)
    live = live_jobs(pivot, seen)
    if not roots <= agreement.SIDES:
        why = "the root of a disk is neither image" if Root.OTHER in roots else "a disk was unplugged"
        return Abandon(why) if live else settle(pivot, seen, attempt, why)
    if seen.run_state in MIGRATION_STATES:
        return settle(pivot, seen, attempt, f"the guest went into state {seen.run_state} after the switch had begun")
    return _moved(pivot, seen, attempt)


def ending(disk: str) -> str:
    """Return what to say while libvirt ends a job; it may never end if libvirt is stuck."""
    return f"libvirt is ending its job of {disk}; if it stays so, {agreement.restart()}"


def _executing(pivot: Pivot, seen: Observation, attempt: Attempt, roots: set[Root]) -> Action:
    """The guest runs although an intent is recorded."""
    live = live_jobs(pivot, seen)
    if Root.DESTINATION in roots or not roots <= agreement.SIDES:
        why = f"the guest was found {seen.run_state} after the switch"
        if Root.DESTINATION not in roots:
            why = "a disk was changed or unplugged by somebody else"
        return Abandon(why) if live else settle(pivot, seen, attempt, why)
    ended = kinds.of(pivot).has_jobs and len(live) < len(pivot.disks)
    if attempt.rolled_back is not None:
        return Abandon(f"the switch was taken back: {attempt.rolled_back}")
    if ended or in_doubt(pivot, seen, attempt):
        return Abandon("the guest was found running after libvirt had been asked, or after a job had ended")
    if pivot.owes_resume and attempt.stop_sent is False and not attempt.cancelled_by and not attempt.deadline_passed:
        return Stop()
    return retreat(pivot, "the guest was found running before the switch")


def _all_source(pivot: Pivot, seen: Observation, attempt: Attempt) -> Action:
    """The guest is still and every root is the source."""
    if attempt.rolled_back is not None:
        return Abandon(f"the switch was taken back: {attempt.rolled_back}")
    switch = not pivot.options.abort
    live = live_jobs(pivot, seen)
    if kinds.of(pivot).has_jobs and len(live) < len(pivot.disks):
        if not switch and not live:
            return settle(pivot, seen, attempt, "libvirt's jobs have ended without a switch, as requested")
        if switch:
            ended = next(disk for disk in pivot.disks if disk not in live)
            return Abandon(f"the switch of {ended.disk} failed: {seen.job(ended.job).error or 'its job has ended'}")
    if (enough := _enough(pivot, seen, attempt)) is not None:
        return enough
    if not kinds.of(pivot).has_jobs:
        disks = tuple(disk.disk for disk in pivot.disks)
        return Wait(agreement.CALLING) if in_doubt(pivot, seen, attempt) else AskLibvirt(disks, pivot=True)
    return _ask(pivot, seen, switch=switch)


def _enough(pivot: Pivot, seen: Observation, attempt: Attempt) -> Action | None:
    """Return the end of this pause if there is a reason for one; the jobs stay unless a switch may still come."""
    doubt = in_doubt(pivot, seen, attempt)
    refused = attempt.ask_refused
    reason = "cancelled" if attempt.cancelled_by else attempt.lost
    if reason is not None:
        return Abandon(reason)
    if attempt.deadline_passed:
        reason = f"max_pause of {pivot.options.max_pause_ms} ms passed before the switch"
    if refused is not None:
        reason = f"libvirt would not end its job: {refused}"
    if reason is None:
        return None
    if doubt or (refused is not None and not kinds.of(pivot).has_jobs):
        return Abandon(reason)
    return retreat(pivot, reason)


def _ask(pivot: Pivot, seen: Observation, *, switch: bool) -> Action:
    """Ask libvirt to end the jobs that are left; it refuses those that it is ending already."""
    live = live_jobs(pivot, seen)
    busy = [disk for disk in live if believed(seen, disk).job is not JobBelief.READY]
    return Wait(ending(busy[0].disk)) if busy else AskLibvirt(tuple(disk.disk for disk in live), pivot=switch)


def _moved(pivot: Pivot, seen: Observation, attempt: Attempt) -> Action:
    """The guest is still and at least one disk has moved: the others follow, or the set is split."""
    moved = tuple(disk.disk for disk in pivot.disks if root(seen, disk) is Root.DESTINATION)
    if (back := unknown_to_libvirt(pivot, seen, attempt)) is not None:
        return back
    live = live_jobs(pivot, seen)
    if not live:
        all_of_them = len(moved) == len(pivot.disks)
        reason = "every disk has its destination as root" if all_of_them else "some disks could not be switched"
        return settle(pivot, seen, attempt, reason)
    if attempt.cancelled_by or attempt.deadline_passed or attempt.ask_refused is not None:
        return Abandon(f"only {', '.join(moved)} could be switched: {attempt.ask_refused or 'max_pause passed'}")
    return _ask(pivot, seen, switch=not pivot.options.abort)


def unknown_to_libvirt(pivot: Pivot, seen: Observation, attempt: Attempt) -> Action | None:
    """Take back a switch of which libvirt has not learnt and will not, unless the guest may have written since.

    libvirt still learns of it as long as QEMU lists its job. A libvirtd that was killed and comes back with pivotd's
    hook knows of every copy and commit, but not of a snapshot, for which no job stands in its status file, nor of a
    job that QEMU ended only after libvirtd was back.
    """
    behind = tuple(
        disk.disk
        for disk in pivot.disks
        if root(seen, disk) is Root.DESTINATION
        and believed(seen, disk).live is Root.SOURCE
        and seen.job(disk.job).status == "null"
    )
    if not behind or attempt.rollback_failed or attempt.may_have_written or seen.run_state in MIGRATION_STATES:
        return None
    if not kinds.of(pivot).has_jobs and in_doubt(pivot, seen, attempt):
        return Wait(agreement.CALLING)  # libvirt would make the snapshot again; a job that is gone it cannot end
    return RollBack(behind, "libvirt has not learnt of the switch")
