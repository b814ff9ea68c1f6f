"""The rules while destinations are created and opened and jobs are started. Pure."""

from __future__ import annotations

from pivotd.core import names
from pivotd.core.actions import Abandon, Action, Advance, PlaceNonce, Prepare, Step, Wait
from pivotd.core.observation import MIGRATION_STATES, Observation, Root
from pivotd.core.pivot import Phase, Pivot, PivotDisk
from pivotd.core.request import Kind


def preparing(pivot: Pivot, seen: Observation) -> Action:
    """Return the first step of the preparation that has left no evidence in QEMU."""
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
    if pivot.options.adopted:
        return Abandon(f"job {disk.job} of {disk.disk} ended, or was replaced, before it could be adopted")
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
