"""The rules after a pivot was given up or decided: jobs end, the guest runs, nothing is left behind. Pure."""

from __future__ import annotations

from pivotd.core import names
from pivotd.core.actions import Action, CancelJobs, CleanUp, Close, EndWindow, HandOver, Wait
from pivotd.core.observation import OUR_PAUSE, STATUS_ENDED, STATUS_FOLLOWING, Observation, Qemu, Root
from pivotd.core.pivot import Outcome, Pivot
from pivotd.core.rules.endings import by_chains, by_roots, lost_sight, resume, root
from pivotd.core.rules.pausing import reversing


def cancelling(pivot: Pivot, seen: Observation) -> Action:
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
        return by_roots(pivot, seen, "the disk had been switched before it could be cancelled")
    if any(root(seen, disk) is Root.OTHER for disk in pivot.disks):
        return by_roots(pivot, seen, "somebody else has put another image under a disk")
    if pivot.switches and lost_sight(pivot, seen):
        return by_roots(pivot, seen, "a disk was unplugged while its switch was under way")
    return by_chains(pivot, seen, pivot.error or "cancelled")


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
    if any(root(seen, disk) is not Root.DESTINATION for disk in pivot.disks):
        return "a disk was changed or unplugged by somebody else"
    for disk in pivot.disks:
        job = seen.job(names.back_job(pivot.id, disk.index))
        if job.status not in STATUS_FOLLOWING:
            why = job.error or f"its job is {job.status}"
            return f"{disk.source.filename} of {disk.disk} is not followed any more: {why}"
    if seen.release_requested:
        return "released"
    return f"{pivot.options.keep_synced_s} seconds have passed" if seen.window_over else None


def decided(pivot: Pivot, seen: Observation) -> Action:
    """Return the action once the outcome of every disk is durable."""
    if pivot.window_open and seen.qemu is not Qemu.SAME:
        return _window(pivot, seen)
    if seen.qemu is not Qemu.SAME or pivot.outcome == Outcome.UNKNOWN.value:
        return Close()
    if pivot.owes_resume:
        return resume(seen)
    if pivot.window_open:
        return _window(pivot, seen)
    wanted = {names.reopened_source(pivot.id, disk.index) for disk in pivot.disks} | {
        name
        for disk in pivot.disks
        if disk.outcome is Outcome.SWITCHED
        for name in (disk.destination.node, names.file_node(pivot.id, disk.index))
    }
    if pivot.undo_of is not None:
        wanted |= {
            name
            for disk in pivot.disks
            if disk.outcome is not Outcome.SWITCHED
            for name in (disk.source.node, names.file_node(pivot.undo_of, disk.index))
        }
    if (seen.jobs or seen.nodes - wanted or seen.has_nonce) and not seen.clean_up_failed:
        return CleanUp()
    return Close()
