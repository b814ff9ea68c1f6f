"""Takes a finished switch back while the guest is still: both images are identical, so nothing is copied."""

from __future__ import annotations

import asyncio
import contextlib
import time

from pivotd import limits
from pivotd.core import names
from pivotd.core.image_names import options
from pivotd.core.observation import STATUS_ENDED, JobSeen
from pivotd.core.pivot import Pivot, PivotDisk
from pivotd.core.request import Kind
from pivotd.errors import QmpRefusedError
from pivotd.host.files import resolve, with_drivers
from pivotd.host.threads import in_thread
from pivotd.qmp import blocks, opening, replies
from pivotd.qmp.monitor import Monitor, ask, command


async def take_back(monitor: Monitor, pivot: Pivot, disk: PivotDisk, resumes: int) -> None:
    """Bring the source back under the disk. What QEMU refuses shows in the root, which the caller reads.

    From the start of the job on, the guest's writes go to both images. If the guest was resumed before, since
    ``resumes`` was counted, only the destination has its writes: then nothing is taken back.
    """
    if pivot.options.keep_synced:
        await _stop_following(monitor, names.back_job(pivot.id, disk.index))
    job = names.reverse_job(pivot.id, disk.index)
    dismissals = [command("job-dismiss", id=name) for name in (job, disk.job)]
    await monitor.burst(dismissals, limits.ROLLBACK_TIMEOUT_S)
    with contextlib.suppress(QmpRefusedError):
        match pivot.kind:
            case Kind.COPY:
                await _mirror_back(monitor, pivot, disk, resumes)
            case Kind.SNAPSHOT:
                await _commit_overlay(monitor, pivot, disk, resumes)
            case Kind.COMMIT:
                await _put_back_on_top(monitor, pivot, disk, resumes)


async def _stop_following(monitor: Monitor, job: str) -> None:
    """End the mirror that keeps the source in sync, so that both images are free for another job."""
    await monitor.burst([command("job-cancel", id=job)], limits.ROLLBACK_TIMEOUT_S)
    await await_job(monitor, job, {"concluded"})
    await monitor.burst([command("job-dismiss", id=job)], limits.ROLLBACK_TIMEOUT_S)


async def _mirror_back(monitor: Monitor, pivot: Pivot, disk: PivotDisk, resumes: int) -> None:
    target = await source_node(monitor, pivot, disk)
    job = names.reverse_job(pivot.id, disk.index)
    start = command(
        "blockdev-mirror",
        job_id=job,
        device=disk.destination.node,
        target=target,
        sync="none",
        auto_dismiss=False,
    )
    await _run(monitor, job, start, resumes)


async def source_node(monitor: Monitor, pivot: Pivot, disk: PivotDisk) -> str:
    """Return the node of the source, opened again if a legacy -drive has deleted it. Raises: QmpRefusedError."""
    present = (await ask(monitor, blocks.graph)).nodes
    if disk.source.node in present:
        return disk.source.node
    again = names.reopened_source(pivot.id, disk.index)
    if again not in present:
        await monitor.execute(await _source(disk, again))
    return again


async def _commit_overlay(monitor: Monitor, pivot: Pivot, disk: PivotDisk, resumes: int) -> None:
    """The overlay is empty: the guest has not written since the snapshot."""
    job = names.reverse_job(pivot.id, disk.index)
    start = command(
        "block-commit", job_id=job, device=disk.destination.node, base_node=disk.source.node, auto_dismiss=False
    )
    await _run(monitor, job, start, resumes)


async def _put_back_on_top(monitor: Monitor, pivot: Pivot, disk: PivotDisk, resumes: int) -> None:
    """A base cannot be mirrored to an image that it backs: close the old top and reopen it as an overlay of the base.

    The layers between them are left out, because the base now holds their data. Those that QEMU does not close by
    itself are closed too: QEMU puts no overlay on a node that backs another one.
    """
    again = names.reopened_source(pivot.id, disk.index)
    graph = await ask(monitor, blocks.graph)
    lost = dict.fromkeys([*graph.below(disk.source.node), *pivot.options.nodes_below])
    kept = {node for other in pivot.disks for node in graph.below(other.destination.node)}
    closing = [node for node in lost if node in graph.nodes and node not in kept]
    await monitor.burst([command("blockdev-del", node_name=node) for node in closing], limits.ROLLBACK_TIMEOUT_S)
    if again not in graph.nodes:
        start = await _source(disk, again)
        start["arguments"]["backing"] = None
        await monitor.execute(start)
    if monitor.resumes == resumes:
        await monitor.execute(command("blockdev-snapshot", node=disk.destination.node, overlay=again))


async def _source(disk: PivotDisk, node: str) -> dict[str, dict[str, object]]:
    """Return the command that opens the source again. Raises: QmpRefusedError: its name leads to another file now."""
    try:
        now = await in_thread(limits.FILE_TIMEOUT_S, resolve, disk.source.filename, None, paths=[disk.source.filename])
    except TimeoutError as error:
        raise QmpRefusedError(str(error)) from None
    if disk.source.file_id not in {None, now.file_id}:
        raise QmpRefusedError(f"{disk.source.filename} leads to another file than the one that the disk has left")
    cache = {"direct": disk.cache_direct, "no-flush": False}
    described = options(disk.source.filename)
    if described is not None:
        try:
            whole = await in_thread(limits.FILE_TIMEOUT_S, with_drivers, described, paths=[disk.source.filename])
        except TimeoutError as error:
            raise QmpRefusedError(str(error)) from None
        return command("blockdev-add", **(whole | {"node-name": node, "cache": cache}))
    inner = await opening.protocol(disk.source.filename) | {"cache": cache}
    return command("blockdev-add", driver=disk.source.format, node_name=node, file=inner, cache=cache)


async def _run(monitor: Monitor, job: str, start: dict[str, object], resumes: int) -> None:
    await monitor.execute(start)
    if monitor.resumes == resumes and await await_job(monitor, job, {"ready"}):
        await monitor.execute(command("job-complete", id=job))
        await await_job(monitor, job, {"concluded"})


async def await_job(monitor: Monitor, job: str, wanted: set[str]) -> bool:
    """Return whether the job reached one of these statuses in time, and before it ended in another way."""
    deadline = time.monotonic() + limits.ROLLBACK_TIMEOUT_S
    changed = asyncio.Event()
    unsubscribe = monitor.subscribe(changed.set)
    try:
        while time.monotonic() < deadline:
            changed.clear()
            status = (await ask(monitor, replies.jobs)).get(job, JobSeen("null")).status
            if status in wanted:
                return True
            if status in STATUS_ENDED:
                return False
            await _until(changed, 0.05)
    finally:
        unsubscribe()
    return False


async def _until(event: asyncio.Event, timeout_s: float) -> None:
    try:
        async with asyncio.timeout(timeout_s):
            await event.wait()
    except TimeoutError:
        return
