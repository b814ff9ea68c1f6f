"""The rules once every outcome is durable: resume the guest, end the undo window, clean up. Pure."""

from __future__ import annotations

from pivotd.core import names
from pivotd.core.actions import Action, CleanUp, Close, EndWindow, HandOver, Wait
from pivotd.core.attempt import Attempt
from pivotd.core.observation import STATUS_FOLLOWING, Observation, Qemu, Root
from pivotd.core.pivot import Outcome, Pivot
from pivotd.core.rules.endings import resume, root


def _window(pivot: Pivot, seen: Observation, attempt: Attempt) -> Action:
    """The guest runs on its destinations and the sources are in sync: wait for the end of the window, or the undo."""
    ended = _end_of_window(pivot, seen, attempt)
    if ended is not None:
        return EndWindow(ended)
    if attempt.undo:
        return HandOver()
    return Wait("the old images are kept in sync: `pivot undo` returns to them, `pivot release` lets them go")


def _end_of_window(pivot: Pivot, seen: Observation, attempt: Attempt) -> str | None:
    if seen.qemu is not Qemu.SAME:
        return "QEMU has ended, and the mirrors back with it: the old images are out of date"
    if any(root(seen, disk) is not Root.DESTINATION for disk in pivot.disks):
        return "a disk was changed or unplugged by somebody else"
    for disk in pivot.disks:
        job = seen.job(names.back_job(pivot.id, disk.index))
        if job.status not in STATUS_FOLLOWING:
            why = job.error or f"its job is {job.status}"
            return f"{disk.source.filename} of {disk.disk} is not followed any more: {why}"
    if attempt.released_by:
        return "released"
    return f"{pivot.options.keep_synced_s} seconds have passed" if attempt.window_over else None


def decided(pivot: Pivot, seen: Observation, attempt: Attempt) -> Action:
    """Return the action once the outcome of every disk is durable."""
    if pivot.window_open and seen.qemu is not Qemu.SAME:
        return _window(pivot, seen, attempt)
    if seen.qemu is not Qemu.SAME or pivot.outcome == Outcome.UNKNOWN.value:
        return Close()
    if pivot.owes_resume:
        return resume(seen)
    if pivot.window_open:
        return _window(pivot, seen, attempt)
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
    if (seen.jobs or seen.nodes - wanted or seen.has_nonce) and not attempt.clean_up_failed:
        return CleanUp()
    return Close()
