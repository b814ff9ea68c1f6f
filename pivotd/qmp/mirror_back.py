"""Mirrors from the new image back to the old one, started while the guest is still paused after a switch.

Both images are identical then, so nothing is copied; from then on each write of the guest goes to both.
"""

from __future__ import annotations

from pivotd import limits
from pivotd.core import names
from pivotd.core.observation import EXECUTING, STATUS_ENDED
from pivotd.core.pivot import Pivot, PivotDisk
from pivotd.errors import QmpRefusedError
from pivotd.qmp import load_guard, replies, rollback
from pivotd.qmp.burst import Command
from pivotd.qmp.monitor import Monitor, ask, command


async def start(monitor: Monitor, pivot: Pivot, resumes: int) -> str | None:
    """Start one mirror for each disk; return why not all of them can follow the guest, None if they do.

    This first dismisses the jobs that copied forward: QEMU before 7.2 keeps their nodes until then. The graph already
    shows their result.
    """
    dismissals = [command("job-dismiss", id=disk.job) for disk in pivot.disks]
    mirrors = [_mirror(pivot, disk, disk.source.node) for disk in pivot.disks]
    guards = [load_guard.add(pivot, disk.source.node) for disk in pivot.disks]
    burst = [*dismissals, *guards, *mirrors, replies.run_state.command]
    got = (await monitor.burst(burst, limits.ROLLBACK_TIMEOUT_S))[len(dismissals) :]
    for disk, guarded, reply in zip(pivot.disks, got, got[len(guards) :], strict=False):
        if isinstance(reply, QmpRefusedError) and not await _under_way(monitor, pivot, disk):
            try:
                await _on_reopened(monitor, pivot, disk)
            except QmpRefusedError as error:
                return error.message
        elif (refusal := load_guard.refused(guarded)) is not None:
            return refusal.message
    run_state = await ask(monitor, replies.run_state)
    if monitor.resumes != resumes or run_state in EXECUTING:
        return "another client resumed the guest before the mirrors back were running"
    return None


def _mirror(pivot: Pivot, disk: PivotDisk, target: str) -> Command:
    return command(
        "blockdev-mirror",
        job_id=names.back_job(pivot.id, disk.index),
        device=disk.destination.node,
        target=target,
        sync="none",
        copy_mode="write-blocking",
        on_target_error="report",
        auto_finalize=False,
        auto_dismiss=False,
    )


async def _under_way(monitor: Monitor, pivot: Pivot, disk: PivotDisk) -> bool:
    """Return whether an earlier process has started this mirror."""
    job = (await ask(monitor, replies.jobs)).get(names.back_job(pivot.id, disk.index))
    return job is not None and job.status not in STATUS_ENDED


async def _on_reopened(monitor: Monitor, pivot: Pivot, disk: PivotDisk) -> None:
    """Open the image again: QEMU deletes the node of a legacy -drive at the switch. Raises: QmpRefusedError."""
    target = await rollback.source_node(monitor, pivot, disk)
    (guarded,) = await monitor.burst([load_guard.add(pivot, target)], limits.ROLLBACK_TIMEOUT_S)
    if (refusal := load_guard.refused(guarded)) is not None:
        raise refusal
    await monitor.execute(_mirror(pivot, disk, target))
