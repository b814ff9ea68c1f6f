"""Removes what a decided pivot leaves in QEMU: jobs, nodes that no disk uses, objects."""

from __future__ import annotations

from collections.abc import Sequence

from pivotd import limits
from pivotd.core import names
from pivotd.core.observation import STATUS_ENDED
from pivotd.core.pivot import Outcome, Pivot, PivotDisk
from pivotd.core.request import Kind
from pivotd.errors import QmpUnknownError
from pivotd.qmp import blocks, exports, load_guard, of_pivot, opening, replies, rollback, secrets, write_thresholds
from pivotd.qmp.blocks import Blocks
from pivotd.qmp.looking import blocks_of
from pivotd.qmp.monitor import Monitor, ask, command


async def clean_up(monitor: Monitor, pivot: Pivot) -> list[str]:
    """Dismiss jobs, delete the nodes that no disk uses, lift sizes, remove the nonce; each may be done already.

    Returns: names of what QEMU did not remove.
    """
    await write_thresholds.place(monitor, pivot)
    jobs = await ask(monitor, replies.jobs)
    own = of_pivot.jobs(jobs, await blocks_of(monitor), pivot)
    live = [name for name, job in own.items() if job.status not in STATUS_ENDED]
    if live:
        await monitor.burst([command("job-cancel", id=name) for name in live], limits.COMMAND_TIMEOUT_S)
        for name in live:
            await rollback.await_job(monitor, name, {"concluded"})
    await monitor.burst([command("job-dismiss", id=name) for name in own], limits.COMMAND_TIMEOUT_S)
    await monitor.burst(load_guard.removals(pivot), limits.COMMAND_TIMEOUT_S)
    doomed = _unwanted(await blocks_of(monitor), pivot)
    # An export is cut off, too: to close it in order would wait for its server.
    await exports.cut(monitor, pivot, [disk for disk in pivot.disks if names.file_node(pivot.id, disk.index) in doomed])
    await monitor.burst([command("blockdev-del", node_name=node) for node in doomed], limits.COMMAND_TIMEOUT_S)
    limited = await opening.lift_sizes(monitor, pivot) if pivot.kind is Kind.COPY and pivot.options.reuse else []
    await secrets.remove_unused(monitor, pivot.id)
    await monitor.burst([command("object-del", id=pivot.identity.nonce)], limits.COMMAND_TIMEOUT_S)
    left = (await ask(monitor, blocks.graph)).nodes
    jobs = await ask(monitor, replies.jobs)
    ours = {disk.source.node for disk in pivot.disks} | {n for n in doomed if names.belongs_to(n, *pivot.family)}
    return [name for name in (*doomed, *own) if (name in left and name in ours) or name in jobs] + limited


async def remove(monitor: Monitor, nodes: Sequence[str]) -> list[str]:
    """Delete nodes that nobody uses, and passphrases of which no node is left; return the nodes that are still there.

    An export is closed in order, since it may hold the only copy of the last writes. If its server does not answer,
    and QEMU with it, it is cut off.
    """
    try:
        await monitor.burst([command("blockdev-del", node_name=node) for node in nodes], limits.LEFTOVERS_TIMEOUT_S)
    except QmpUnknownError:
        if monitor.out_of_band:
            await monitor.burst([exports.yank(node) for node in nodes], limits.YANK_TIMEOUT_S)
        raise
    await secrets.remove_unused(monitor, None)
    left = (await ask(monitor, blocks.graph)).nodes
    return [node for node in nodes if node in left]


def _unwanted(shown: Blocks, pivot: Pivot) -> list[str]:
    """Return the nodes that no disk needs any more, parents before children."""
    used = {node for disk in shown.disks.values() for node in shown.graph.below(disk.node)}
    found: list[str] = []
    for disk in pivot.disks:
        heads = _heads(pivot, disk)
        found += [node for head in heads for node in shown.graph.below(head)] if heads else _own(pivot, disk)
    found += pivot.options.nodes_below
    return [node for node in dict.fromkeys(found) if node in shown.graph.nodes and node not in used]


def _heads(pivot: Pivot, disk: PivotDisk) -> list[str]:
    """Return the nodes that a disk no longer uses, by name: they are deleted with the nodes below them."""
    match disk.outcome:
        case Outcome.SWITCHED:
            return [names.reopened_source(pivot.id, disk.index), *_with_file(disk.source.node)]
        case Outcome.MERGED if disk.top is not None:
            return [disk.top.node]
        case _ if pivot.undo_of is not None:
            return _with_file(disk.destination.node)
    return []


def _own(pivot: Pivot, disk: PivotDisk) -> list[str]:
    """Return the nodes of a destination, as far as they are pivotd's."""
    own = [disk.destination.node, names.file_node(pivot.id, disk.index)]
    return [node for node in own if names.belongs_to(node, pivot.id)]


def _with_file(node: str) -> list[str]:
    """Return a node and the file of an earlier pivot's image; its node may already be gone."""
    file = names.file_below(node)
    return [node, file] if file is not None else [node]
