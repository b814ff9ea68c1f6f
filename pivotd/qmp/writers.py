"""What may write to the image of a disk besides its guest: `stop` does not stop it.

Only devices of the guest stop with the guest. A writable export (NBD, vhost-user-blk, FUSE) goes on, on the image
itself, on its file, or on a node that another client has put above it.

Source: measured on 7.2, 10.0 and 11.1: each writer is a parent with the permission `write` in
x-debug-query-block-graph; devices have a name there, exports and block jobs have none (tests/engine/test_writers.py).
query-block-exports does not say which export may write.
"""

from __future__ import annotations

from typing import Any

from pivotd.qmp.blocks import Blocks, DiskSeen
from pivotd.qmp.monitor import Monitor, ask
from pivotd.qmp.question import asks, of


@asks("query-block-exports")
def exports(answer: Any) -> list[tuple[str, str]]:
    """Return each export's node, and its type and id in words."""
    found = [of(dict, export) for export in of(list, answer)]
    return [(of(str, one["node-name"]), f"{of(str, one['type'])} export {of(str, one['id'])}") for one in found]


async def of_disks(monitor: Monitor, blocks: Blocks) -> dict[str, tuple[str, ...]]:
    """Return, by disk, the writers that `stop` does not stop, in words; only disks that have any."""
    found = {name: _nodes(blocks, seen) for name, seen in blocks.disks.items()}
    if not any(writing for writing, _ in found.values()):
        return {}
    shown = await ask(monitor, exports)
    return {
        name: tuple(sorted(what for node, what in shown if node in around)) or _unnamed(blocks, writing)
        for name, (writing, around) in found.items()
        if writing
    }


def _unnamed(blocks: Blocks, writing: set[str]) -> tuple[str, ...]:
    jobs = [f"job {job}" for job, node in sorted(blocks.graph.targets.items()) if node in writing]
    return tuple(jobs) or tuple(f"a user of node {node}" for node in sorted(writing))


def _nodes(blocks: Blocks, seen: DiskSeen) -> tuple[set[str], set[str]]:
    """Return the nodes through which others may write to the image of a disk, and all nodes on the way to it.

    What backs the image is left out: QEMU lets nobody write to it but a job that merges layers, which changes no data.
    """
    graph = blocks.graph
    guest = {name for disk in blocks.disks.values() for name in (disk.qdev, disk.device)} - {""}
    queue, writing, around = [seen.node], set(), {seen.node}
    while queue:
        node = queue.pop()
        found = {child for child in graph.children.get(node, ()) if child != graph.backing.get(node)}
        for kind, parent in graph.writing.get(node, ()):
            if kind == "block-driver":
                found.add(parent)
            elif kind == "block-backend" and parent not in guest:
                writing.add(node)
        queue += found - around
        around |= found
    return writing, around
