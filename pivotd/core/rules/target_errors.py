"""Copies that wait for a failed destination: what decide() does about them. Pure.

QEMU's mirror itself knows what it has not yet copied, and with ``on-target-error=stop`` it keeps this while it waits.
``enospc`` limits that to a full destination, which loses nothing: each copy and commit waits for room, and for other
errors only a copy that is resumable.
The destination stays open meanwhile, so that its tables in QEMU's memory are not lost either.
"""

from __future__ import annotations

from pivotd.core.actions import Abandon, Action, GoOn
from pivotd.core.observation import Observation
from pivotd.core.pivot import Pivot, PivotDisk
from pivotd.core.request import Kind

WORDS = {"nospace": "is full", "failed": "fails"}


def failing(pivot: Pivot, seen: Observation) -> str | None:
    """Return a sentence on the first destination that has interrupted its copy, None if there is none."""
    disks = _interrupted(pivot, seen)
    return _sentence(pivot, disks[0], seen) if disks else None


def go_on(pivot: Pivot, seen: Observation) -> Action | None:
    """Return the action for interrupted copies, None if there are none."""
    disks = _interrupted(pivot, seen)
    for disk in disks:
        job = seen.job(disk.job)
        if job.io_status == "failed" and job.backlog_bytes == 0 and job.copied_bytes:
            # Everything was written: what failed is the flush. After that nothing tells what the storage still has.
            # With nothing done either, the mirror is still filling the image with zeroes and has not begun to count.
            return Abandon(f"{disk.destination.filename} failed to make durable what it had taken: copy it anew")
    if not disks:
        return None
    what = pivot.kind.value
    when = "there is room" if seen.job(disks[0].job).io_status == "nospace" else "it is back"
    return GoOn(
        tuple(disk.job for disk in disks), f"{_sentence(pivot, disks[0], seen)}: the {what} goes on when {when}"
    )


def _interrupted(pivot: Pivot, seen: Observation) -> list[PivotDisk]:
    jobs = [(disk, seen.job(disk.job)) for disk in pivot.disks if not pivot.options.adopted]
    return [disk for disk, job in jobs if job.interrupted and (pivot.options.resumable or job.io_status == "nospace")]


def _sentence(pivot: Pivot, disk: PivotDisk, seen: Observation) -> str:
    status = seen.job(disk.job).io_status
    written = disk.base if pivot.kind is Kind.COMMIT and disk.base is not None else disk.destination
    return f"{written.filename} {WORDS.get(status, status)}"
