"""Destinations that pivotd creates and opens, step by step; shared by copy and snapshot. Pure."""

from __future__ import annotations

from pivotd.core import names
from pivotd.core.actions import Abandon, Action, Prepare, Step, Wait
from pivotd.core.observation import Observation
from pivotd.core.pivot import Outcome, Pivot, PivotDisk


def next_step(pivot: Pivot, disk: PivotDisk, seen: Observation) -> Action | None:
    """Return the first step towards an open destination that has left no evidence in QEMU, None when it is open."""
    if disk.destination.node in seen.nodes:
        return None
    index, reuse = disk.index, pivot.options.reuse
    if names.file_node(pivot.id, index) in seen.nodes:
        if not reuse and names.create_file_job(pivot.id, index) not in seen.jobs:
            return Abandon(f"{disk.destination.filename} was there before pivotd could create it")
        if reuse or disk.destination.format == "raw":
            return Prepare(index, Step.OPEN_FORMAT)
        return _created(seen, names.create_format_job(pivot.id, index), index, Step.CREATE_FORMAT, Step.OPEN_FORMAT)
    if reuse:
        return Prepare(index, Step.OPEN_FILE)
    return _created(seen, names.create_file_job(pivot.id, index), index, Step.CREATE_FILE, Step.OPEN_FILE)


def _created(seen: Observation, job: str, index: int, create: Step, then: Step) -> Action:
    """Creation jobs are dismissed only at the end: until then they prove that the file is pivotd's."""
    if job not in seen.jobs:
        return Prepare(index, create)
    state = seen.job(job)
    if state.status != "concluded":
        return Wait("the destination is being created")
    if state.error is not None:
        return Abandon(f"QEMU could not create the destination: {state.error}")
    return Prepare(index, then)


def half_made(pivot: Pivot, disk: PivotDisk) -> list[str]:
    """Return a destination that the disk does not use, if pivotd has created it or it has lost its mirror."""
    created = not pivot.options.reuse and disk.destination.file_id is not None
    left = disk.outcome is Outcome.KEPT and not pivot.window_open
    return [disk.destination.filename] if left and (created or pivot.undo_of is not None) else []
