"""What the disks, the graph and the jobs of one QEMU show of one pivot. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from pivotd.core import names
from pivotd.core.dirty_bitmaps import Bitmap, ends
from pivotd.core.observation import STATUS_ENDED, JobSeen, Root
from pivotd.core.pivot import Phase, Pivot, PivotDisk
from pivotd.core.request import Kind, Sync
from pivotd.errors import QmpUnknownError
from pivotd.qmp.blocks import Blocks, DiskSeen, Graph, Layer, find
from pivotd.qmp.whole_names import name_of


def roots(disks: Mapping[str, DiskSeen], pivot: Pivot) -> dict[str, Root]:
    """Return which image is under each disk, by node name: pivotd chose the destination's, and it is unique."""
    seen = {}
    first = {disk.source.node: disk.index for disk in pivot.movers}
    for disk in pivot.disks:
        shown = find(disks, disk)
        match None if shown is None else shown.node:
            case None:
                seen[disk.disk] = Root.ABSENT
            case node if node in {disk.source.node, names.reopened_source(pivot.id, first[disk.source.node])}:
                seen[disk.disk] = Root.SOURCE
            case disk.destination.node:
                seen[disk.disk] = Root.DESTINATION
            case _:
                seen[disk.disk] = Root.OTHER
    return seen


def images(disks: Mapping[str, DiskSeen], pivot: Pivot, directory: Path | None) -> dict[str, tuple[str, str]]:
    """Return complete name and format of the root of each disk, if another client opened the destination.

    ``directory``: QEMU's working directory.
    """
    if not pivot.options.adopted:
        return {}
    found = {disk.disk: find(disks, disk) for disk in pivot.disks}
    return {name: (name_of(seen.layers, directory), seen.format) for name, seen in found.items() if seen is not None}


def merged(graph: Graph, roots: Mapping[str, Root], pivot: Pivot) -> frozenset[str]:
    """Return the disks, still on their source, whose chain no longer contains the layers to be merged."""
    return frozenset(
        disk.disk
        for disk in pivot.disks
        if disk.top is not None
        and roots.get(disk.disk) is Root.SOURCE
        and disk.top.node not in graph.chain(disk.source.node)
    )


def jobs(found: Mapping[str, JobSeen], blocks: Blocks, pivot: Pivot) -> dict[str, JobSeen]:
    """Return the jobs of a pivot: those with its names, and an adopted one while it works on the same destination.

    Another client may start a job under the name of an adopted job that has ended: it is not the pivot's.
    """
    adopted = {disk.job: disk.destination.node for disk in pivot.disks if pivot.options.adopted}
    return {
        name: _with_progress(job, name, blocks)
        for name, job in found.items()
        if names.belongs_to(name, *pivot.family)
        or (name in adopted and (job.status in STATUS_ENDED or blocks.graph.targets.get(name) == adopted[name]))
    }


def _with_progress(job: JobSeen, name: str, blocks: Blocks) -> JobSeen:
    shown = blocks.jobs.get(name)
    if shown is None:
        return job
    return replace(job, backlog_bytes=shown.left_bytes, copied_bytes=shown.copied_bytes, io_status=shown.io_status)


def writers(others: Mapping[str, tuple[str, ...]], blocks: Blocks, pivot: Pivot) -> tuple[str, ...]:
    """Return what else may write to the present images of the pivot's disks, in words."""
    shown = [(disk.disk, find(blocks.disks, disk)) for disk in pivot.disks]
    found = [(name, seen) for name, seen in shown if seen is not None]
    return tuple(f"{what} may write to {name}" for name, seen in found for what in others.get(seen.disk, ()))


def exchanged(graph: Graph, pivot: Pivot) -> str | None:
    """Return in words that a destination which pivotd has opened does not lie on its file any more, else None."""
    for disk in pivot.movers:
        node, file = names.destination_node(pivot.id, disk.index), names.file_node(pivot.id, disk.index)
        if disk.destination.node == node and node in graph.nodes and file not in graph.below(node):
            return f"another client has put another file below node {node}, which is to be {disk.destination.filename}"
    return None


def nodes_below(graph: Graph, pivot: Pivot) -> tuple[str, ...]:
    """Return the nodes below the disks' images, except those that QEMU has named: QEMU deletes those itself."""
    below = [node for disk in pivot.disks for node in graph.below(disk.source.node)[1:]]
    return tuple(node for node in dict.fromkeys(below) if not node.startswith("#"))


def bitmaps(blocks: Blocks, pivot: Pivot) -> dict[str, tuple[Bitmap, ...]]:
    """Return the dirty bitmaps of each disk of the pivot that has any, of its present root.

    For a commit of inner layers: those of the uppermost layer, and after the commit those of the base.
    """
    found = {}
    for disk in pivot.disks:
        seen = find(blocks.disks, disk)
        if seen is None:
            continue
        bitmaps = seen.bitmaps
        if not disk.switches and disk.top is not None and disk.base is not None:
            upper, base = (image.node for image in ends(disk))
            node = upper if upper in blocks.graph.chain(disk.source.node) else base
            layer = _layer(seen, blocks.graph, node)
            bitmaps = () if layer is None else layer.bitmaps
        if bitmaps:
            found[disk.disk] = bitmaps
    return found


def snapshots(blocks: Blocks, pivot: Pivot) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Return the snapshots inside the images that the disks would leave or spoil: an image, and their names.

    Which these are is as in planning/properties.py. Only at READY: there the disks are on their sources.
    """
    found = []
    for disk in pivot.movers if pivot.phase is Phase.READY else ():
        seen = find(blocks.disks, disk)
        layers = () if seen is None else seen.layers[_spoilt(blocks.graph, pivot, disk, seen)]
        upper = disk.top if pivot.kind is Kind.COMMIT and disk.top is not None else disk.source
        names_of = [upper.filename, *(layer.filename for layer in layers[1:])]
        found += [(name, layer.snapshots) for name, layer in zip(names_of, layers, strict=False) if layer.snapshots]
    return tuple(found)


def _spoilt(graph: Graph, pivot: Pivot, disk: PivotDisk, seen: DiskSeen) -> slice:
    """Return which layers of a disk's chain a pivot leaves or spoils; an undo shares those below the image."""
    merged = 1 + len(disk.between)
    match pivot.kind:
        case Kind.SNAPSHOT:
            return slice(0)
        case Kind.COPY if pivot.undo_of is not None or pivot.options.sync is Sync.TOP:
            return slice(1)
        case Kind.PULL:
            return slice(None if disk.base is None else 1 + merged)
        case Kind.COMMIT if disk.switches:
            return slice(merged)
        case Kind.COMMIT if disk.top is not None:
            first = len(seen.layers) - len(graph.chain(disk.top.node))
            return slice(first, first + merged)
    return slice(None)


def between(blocks: Blocks, disk: PivotDisk) -> dict[str, frozenset[str]]:
    """Return, by node, the names of the bitmaps of the layers committed together with the uppermost one.

    Raises: QmpUnknownError: QEMU does not show these layers.
    """
    seen = find(blocks.disks, disk)
    if disk.top is None or disk.base is None or seen is None:
        return {}
    chain = blocks.graph.chain(disk.top.node)
    if disk.base.node not in chain:
        raise QmpUnknownError(f"{disk.base.filename} is no longer below {disk.top.filename}")
    layers = {node: _layer(seen, blocks.graph, node) for node in chain[1 : chain.index(disk.base.node)]}
    if None in layers.values():
        raise QmpUnknownError(f"QEMU shows more nodes than images in the chain of {disk.disk}")
    return {node: frozenset(bitmap.name for bitmap in layer.bitmaps) for node, layer in layers.items() if layer}


def _layer(seen: DiskSeen, graph: Graph, node: str) -> Layer | None:
    """Return the image of a node in a disk's chain. Jobs put filters above a node of theirs: it is counted from below.

    None: QEMU shows fewer images than nodes.
    """
    place = len(graph.chain(node))
    return seen.layers[-place] if place <= len(seen.layers) else None
