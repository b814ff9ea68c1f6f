"""QEMU's raw replies, reduced to what pivotd uses. Pure: no connection, no decision.

Shapes: QEMU QAPI reference, query-block, query-jobs, query-block-jobs,
x-debug-query-block-graph (unstable by name, the same on 4.2 to 11.1).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pivotd.core import names
from pivotd.core.observation import JobSeen, Root
from pivotd.core.words import Pivot

PERIPHERAL = "/machine/peripheral/"
BACKING_DEPTH_MAX = 256


@dataclass(frozen=True, slots=True)
class Layer:
    """One image of a backing chain; ``backing_file`` is what it names as the one below, as it is written in it."""

    filename: str
    format: str
    backing_file: str | None = None


@dataclass(frozen=True, slots=True)
class DiskSeen:
    """One disk as query-block shows it; ``filename`` as QEMU writes it, perhaps relative or ``json:``."""

    disk: str
    device: str
    qdev: str
    node: str
    filename: str
    format: str
    size_bytes: int
    read_only: bool
    cache_direct: bool
    cache_no_flush: bool
    layers: tuple[Layer, ...]
    """The active image first."""

    @property
    def backing_chain(self) -> tuple[str, ...]:
        """File names of the layers below the active image."""
        return tuple(layer.filename for layer in self.layers[1:])


def disk_name(entry: Mapping[str, Any]) -> str:
    """Return the name by which people know the disk of a query-block entry: its device id.

    virtio-blk shows ``/machine/peripheral/disk0/virtio-backend``, SCSI, IDE and NVMe show the id itself; a device
    without an id is known by its legacy drive id, else by its QOM path.
    """
    qdev = str(entry.get("qdev") or "")
    if qdev.startswith(PERIPHERAL):
        return qdev[len(PERIPHERAL) :].split("/", 1)[0]
    if qdev and not qdev.startswith("/"):
        return qdev
    return str(entry.get("device") or "") or qdev


def disks(query_block: Iterable[Mapping[str, Any]]) -> dict[str, DiskSeen]:
    """Return every disk with a medium by its name."""
    found = {}
    for entry in query_block:
        inserted = entry.get("inserted")
        if not inserted:
            continue
        image = inserted["image"]
        seen = DiskSeen(
            disk=disk_name(entry),
            device=str(entry.get("device") or ""),
            qdev=str(entry.get("qdev") or ""),
            node=str(inserted["node-name"]),
            filename=str(image["filename"]),
            format=str(inserted["drv"]),
            size_bytes=int(image["virtual-size"]),
            read_only=bool(inserted["ro"]),
            cache_direct=bool(inserted["cache"]["direct"]),
            cache_no_flush=bool(inserted["cache"]["no-flush"]),
            layers=tuple(_layers(image)),
        )
        found[seen.disk] = seen
    return found


def _layers(image: Mapping[str, Any] | None) -> Iterator[Layer]:
    for _ in range(BACKING_DEPTH_MAX):
        if image is None:
            return
        yield Layer(str(image["filename"]), str(image["format"]), image.get("backing-filename"))
        image = image.get("backing-image")


def roots(query_block: Iterable[Mapping[str, Any]], pivot: Pivot) -> dict[str, Root]:
    """Return which image is under each disk, by node name: the destination's was chosen by pivotd and is unique."""
    found = {disk_name(entry): entry["inserted"]["node-name"] for entry in query_block if entry.get("inserted")}
    seen = {}
    for disk in pivot.disks:
        match found.get(disk.disk):
            case None:
                seen[disk.disk] = Root.ABSENT
            case node if node in {disk.source.node, names.reopened_source(pivot.id, disk.index)}:
                seen[disk.disk] = Root.SOURCE
            case disk.destination.node:
                seen[disk.disk] = Root.DESTINATION
            case _:
                seen[disk.disk] = Root.OTHER
    return seen


def merged(graph: Graph, roots: Mapping[str, Root], pivot: Pivot) -> frozenset[str]:
    """Return the disks, still on their source, whose chain no longer holds the layers that were to be merged."""
    return frozenset(
        disk.disk
        for disk in pivot.disks
        if disk.top is not None
        and roots.get(disk.disk) is Root.SOURCE
        and disk.top.node not in graph.chain(disk.source.node)
    )


def jobs(
    query_jobs: Iterable[Mapping[str, Any]], query_block_jobs: Iterable[Mapping[str, Any]] = ()
) -> dict[str, JobSeen]:
    """Return every job; the backlog in bytes where query-block-jobs was asked too."""
    backlog = {str(job["device"]): int(job["len"]) - int(job["offset"]) for job in query_block_jobs}
    return {
        str(job["id"]): JobSeen(str(job["status"]), job.get("error"), backlog.get(str(job["id"]))) for job in query_jobs
    }


@dataclass(frozen=True, slots=True)
class Graph:
    """Block graph: all nodes, node name -> names of its children, node name -> ids of the block jobs that use it.

    ``backing``: node name -> name of the node that it is backed by.
    """

    nodes: frozenset[str]
    children: Mapping[str, tuple[str, ...]]
    jobs: Mapping[str, tuple[str, ...]]
    backing: Mapping[str, str]

    def chain(self, root: str) -> list[str]:
        """Return root and the nodes that back it, downwards."""
        order = [root]
        while (below := self.backing.get(order[-1])) is not None and below not in order:
            order.append(below)
        return order

    def below(self, root: str) -> list[str]:
        """Return root and every node under it, each before its children."""
        order: list[str] = []
        queue = [root]
        while queue:
            name = queue.pop(0)
            if name in order:
                continue
            order.append(name)
            queue.extend(self.children.get(name, ()))
        return order


def graph(reply: Mapping[str, Any]) -> Graph:
    """Return the graph from x-debug-query-block-graph."""
    named = {node["id"]: str(node["name"]) for node in reply["nodes"]}
    kinds = {node["id"]: node["type"] for node in reply["nodes"]}
    children: dict[str, list[str]] = {}
    users: dict[str, list[str]] = {}
    backing: dict[str, str] = {}
    for edge in reply["edges"]:
        parent, child = edge["parent"], edge["child"]
        if kinds[parent] == "block-driver":
            children.setdefault(named[parent], []).append(named[child])
            if edge["name"] == "backing":
                backing[named[parent]] = named[child]
        elif kinds[parent] == "block-job":
            users.setdefault(named[child], []).append(named[parent])
    drivers = frozenset(named[number] for number, kind in kinds.items() if kind == "block-driver")
    below = {parent: tuple(nodes) for parent, nodes in children.items()}
    return Graph(drivers, below, {node: tuple(jobs) for node, jobs in users.items()}, backing)
