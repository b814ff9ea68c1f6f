"""QEMU's raw replies, reduced to what pivotd uses. Pure: no connection, no decision.

Shapes: QEMU QAPI reference, query-block, query-jobs, query-block-jobs, query-status, query-migrate, query-chardev,
x-debug-query-block-graph (unstable by name, the same on 4.2 to 11.1). Each function raises QmpUnknownError for a reply
of another shape: it leaves us without facts, and no list at all must not look like an empty one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from pivotd.core import names
from pivotd.core.dirty_bitmaps import Bitmap
from pivotd.core.observation import STATUS_ENDED, JobSeen, Root
from pivotd.core.pivot import Pivot, PivotDisk
from pivotd.core.request import Limits
from pivotd.errors import QmpUnknownError

P = ParamSpec("P")
T = TypeVar("T")

PERIPHERAL = "/machine/peripheral/"
BACKING_DEPTH_MAX = 256
MIGRATING = frozenset({"setup", "active", "device", "pre-switchover", "postcopy-active", "wait-unplug"})


def _answer_to(command: str) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Turn whatever a reply of another shape leads to into the one error that says so."""

    def decorate(read: Callable[P, T]) -> Callable[P, T]:
        @wraps(read)
        def checked(*args: P.args, **kwargs: P.kwargs) -> T:
            try:
                return read(*args, **kwargs)
            except (LookupError, TypeError, ValueError, AttributeError) as error:
                why = f"{type(error).__name__} {error}".splitlines()[0][:100]
                raise QmpUnknownError(
                    f"QEMU's answer to {command} has another shape than documented ({why})", command=command
                ) from error

        return checked

    return decorate


def _of(kind: type[T], value: object) -> T:
    """Return a value that has the documented type; a boolean is no integer. Raises: TypeError."""
    if type(value) is not kind:
        raise TypeError(f"{type(value).__name__} where {kind.__name__} is due")
    return value


@dataclass(frozen=True, slots=True)
class Layer:
    """One image of a backing chain; ``backing_file`` is what it names as the one below, as it is written in it."""

    filename: str
    format: str
    size_bytes: int
    backing_file: str | None = None
    bitmaps: tuple[Bitmap, ...] = ()
    """Those that its file names: all that a layer below the active one can have. How much they mark is not shown."""


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
    bitmaps: tuple[Bitmap, ...] = ()


def disk_name(entry: Mapping[str, Any]) -> str:
    """Return the name by which people know the disk of a query-block entry: its device id.

    virtio-blk shows ``/machine/peripheral/disk0/virtio-backend``, SCSI, IDE and NVMe show the id itself; a device
    without an id is known by its legacy drive id, else by its QOM path.
    """
    qdev = _of(str, entry.get("qdev", ""))
    if qdev.startswith(PERIPHERAL):
        return qdev[len(PERIPHERAL) :].split("/", 1)[0]
    if qdev and not qdev.startswith("/"):
        return qdev
    return _of(str, entry.get("device", "")) or qdev


@_answer_to("query-block")
def disks(query_block: Any) -> dict[str, DiskSeen]:
    """Return every disk with a medium by its name; two devices of one name are known by their QOM paths."""
    taken = Counter(disk_name(entry) for entry in _of(list, query_block))
    found = {}
    for entry in _of(list, query_block):
        inserted = _inserted(entry)
        if inserted is None:
            continue
        image = inserted["image"]
        seen = DiskSeen(
            disk=_of(str, entry["qdev"]) if taken[disk_name(entry)] > 1 and entry.get("qdev") else disk_name(entry),
            device=_of(str, entry.get("device", "")),
            qdev=_of(str, entry.get("qdev", "")),
            node=_of(str, inserted["node-name"]),
            filename=_of(str, image["filename"]),
            format=_of(str, inserted["drv"]),
            size_bytes=_of(int, image["virtual-size"]),
            read_only=_of(bool, inserted["ro"]),
            cache_direct=_of(bool, inserted["cache"]["direct"]),
            cache_no_flush=_of(bool, inserted["cache"]["no-flush"]),
            layers=tuple(_layers(image)),
            bitmaps=_bitmaps(inserted),
        )
        found[seen.disk] = seen
    return found


def _inserted(entry: Any) -> dict[str, Any] | None:
    """Return what a query-block entry says of its medium, None for no medium."""
    return _of(dict, entry["inserted"]) if "inserted" in _of(dict, entry) else None


def _layers(image: Mapping[str, Any]) -> Iterator[Layer]:
    for _ in range(BACKING_DEPTH_MAX):
        written = _of(str, image["backing-filename"]) if "backing-filename" in image else None
        size_bytes = _of(int, image["virtual-size"])
        bitmaps = _stored_bitmaps(image)
        yield Layer(_of(str, image["filename"]), _of(str, image["format"]), size_bytes, written, bitmaps)
        if "backing-image" not in image:
            return
        image = _of(dict, image["backing-image"])


def _stored_bitmaps(image: Mapping[str, Any]) -> tuple[Bitmap, ...]:
    """Return the bitmaps that a qcow2 file names; one that is in use is of memory, or of a QEMU that has crashed."""
    shown = _of(dict, image["format-specific"]) if "format-specific" in image else {}
    if shown.get("type") != "qcow2":
        return ()
    return tuple(
        Bitmap(
            name=_of(str, bitmap["name"]),
            granularity_bytes=_of(int, bitmap["granularity"]),
            persistent=True,
            recording="auto" in _of(list, bitmap["flags"]),
            dirty_bytes=0,
        )
        for bitmap in _of(list, shown["data"].get("bitmaps", []))
        if "in-use" not in bitmap["flags"]
    )


@_answer_to("query-block")
def detect_zeroes(query_block: Any, disk: str) -> str:
    """Return how zeroes that the guest writes to this disk are treated, ``off`` where there is no such disk."""
    for entry in _of(list, query_block):
        inserted = _inserted(entry)
        if inserted is not None and disk_name(entry) == disk:
            return _of(str, inserted.get("detect_zeroes", "off"))
    return "off"


@_answer_to("query-block")
def bitmaps(query_block: Any, graph: Graph, pivot: Pivot) -> dict[str, tuple[Bitmap, ...]]:
    """Return the dirty bitmaps of each disk of the pivot that has any: those of its present root.

    Where inner layers are committed, those of the uppermost of them, and of the base once they are.
    """
    wanted = {disk.disk: disk for disk in pivot.disks}
    found = {}
    for entry in _of(list, query_block):
        inserted = _inserted(entry)
        if inserted is None or (disk := wanted.get(disk_name(entry))) is None:
            continue
        if disk.switches or disk.top is None or disk.base is None:
            bitmaps = _bitmaps(inserted)
        else:
            node = disk.top.node if disk.top.node in graph.chain(disk.source.node) else disk.base.node
            layers = list(_layers(inserted["image"]))
            bitmaps = _layer(layers, graph, node).bitmaps if len(graph.chain(node)) <= len(layers) else ()
        if bitmaps:
            found[disk.disk] = bitmaps
    return found


def _layer(layers: list[Layer], graph: Graph, node: str) -> Layer:
    """Return the image of a node in a chain. Jobs put filters above a node of theirs, so it is counted from below."""
    return layers[-len(graph.chain(node))]


@_answer_to("query-block")
def between(query_block: Any, graph: Graph, disk: PivotDisk) -> dict[str, frozenset[str]]:
    """Return, by node, the names of the bitmaps of the layers that are committed together with the uppermost one."""
    if disk.top is None or disk.base is None:
        return {}
    nodes = graph.chain(disk.top.node)
    nodes = nodes[1 : nodes.index(disk.base.node)]
    shown = (_inserted(entry) for entry in _of(list, query_block) if disk_name(entry) == disk.disk)
    layers = [layer for inserted in shown if inserted is not None for layer in _layers(inserted["image"])]
    return {node: frozenset(bitmap.name for bitmap in _layer(layers, graph, node).bitmaps) for node in nodes}


def _bitmaps(inserted: Mapping[str, Any]) -> tuple[Bitmap, ...]:
    """Return named bitmaps: those without a name are of jobs, inconsistent ones are good for nothing any more."""
    return tuple(
        Bitmap(
            name=_of(str, bitmap["name"]),
            granularity_bytes=_of(int, bitmap["granularity"]),
            persistent=_of(bool, bitmap["persistent"]),
            recording=_of(bool, bitmap["recording"]),
            dirty_bytes=_of(int, bitmap["count"]),
        )
        for bitmap in _of(list, inserted.get("dirty-bitmaps", []))
        if bitmap.get("name") and not bitmap.get("inconsistent", False)
    )


@_answer_to("query-block")
def roots(query_block: Any, pivot: Pivot) -> dict[str, Root]:
    """Return which image is under each disk, by node name: the destination's was chosen by pivotd and is unique.

    A disk is told by its QOM path, which no two have; one without such a path by its name.
    """
    found = {}
    for entry in _of(list, query_block):
        inserted = _inserted(entry)
        if inserted is not None:
            found[_of(str, entry.get("qdev", "")) or disk_name(entry)] = _of(str, inserted["node-name"])
    seen = {}
    for disk in pivot.disks:
        match found.get(disk.qdev or disk.disk):
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


@_answer_to("query-jobs or query-block-jobs")
def jobs(query_jobs: Any, query_block_jobs: Any = None) -> dict[str, JobSeen]:
    """Return every job; bytes and I/O status where query-block-jobs was asked too."""
    copies = {
        _of(str, job["device"]): (
            _of(int, job["len"]) - _of(int, job["offset"]),
            job["offset"],
            _of(str, job.get("io-status", "ok")),
        )
        for job in _of(list, [] if query_block_jobs is None else query_block_jobs)
    }
    return {
        name: JobSeen(
            _of(str, job["status"]),
            _of(str, job["error"]) if "error" in job else None,
            *copies.get(name, ()),
        )
        for job in _of(list, query_jobs)
        for name in [_of(str, job["id"])]
    }


@dataclass(frozen=True, slots=True)
class BlockJob:
    """One block job of anybody."""

    kind: str
    status: str
    auto_finalize: bool
    auto_dismiss: bool


@_answer_to("query-block-jobs")
def block_jobs(query_block_jobs: Any) -> dict[str, BlockJob]:
    """Return every block job by its id."""
    return {
        _of(str, job["device"]): BlockJob(
            _of(str, job["type"]),
            _of(str, job["status"]),
            _of(bool, job["auto-finalize"]),
            _of(bool, job["auto-dismiss"]),
        )
        for job in _of(list, query_block_jobs)
    }


def pivot_jobs(found: Mapping[str, JobSeen], graph: Graph, pivot: Pivot) -> dict[str, JobSeen]:
    """Return the jobs of a pivot: those with its names, and an adopted one while it works on the same destination.

    Somebody may start another job under the name of an adopted one that has ended: that is not the pivot's.
    """
    adopted = {disk.job: disk.destination.node for disk in pivot.disks if pivot.options.adopted}
    return {
        name: job
        for name, job in found.items()
        if names.belongs_to(name, *pivot.family)
        or (name in adopted and (job.status in STATUS_ENDED or graph.targets.get(name) == adopted[name]))
    }


@_answer_to("query-block")
def io_limits(query_block: Any) -> dict[str, Limits]:
    """Return the limits of each disk's I/O by its QOM path, as block_set_io_throttle takes them."""
    found = {}
    for entry in _of(list, query_block):
        inserted = _inserted(entry)
        if inserted is not None and entry.get("qdev"):
            shown = {
                name: value for name, value in inserted.items() if name.startswith(("bps", "iops")) or name == "group"
            }
            found[_of(str, entry["qdev"])] = tuple(sorted(shown.items()))
    return found


@_answer_to("query-blockstats")
def writes(query_blockstats: Any) -> dict[str, tuple[int, int]]:
    """Return the bytes and the number of writes so far, by QOM path."""
    return {
        _of(str, entry["qdev"]): (_of(int, entry["stats"]["wr_bytes"]), _of(int, entry["stats"]["wr_operations"]))
        for entry in _of(list, query_blockstats)
        if entry.get("qdev")
    }


@_answer_to("query-status")
def run_state(query_status: Any) -> str:
    """Return the guest's run state."""
    return _of(str, query_status["status"])


@_answer_to("qom-list")
def object_names(qom_list: Any) -> frozenset[str]:
    """Return the names of the objects."""
    return frozenset(_of(str, item["name"]) for item in _of(list, qom_list))


@_answer_to("query-migrate")
def migrating(query_migrate: Any) -> bool:
    """Return whether a migration is under way; without a status there never was one."""
    return _of(str, _of(dict, query_migrate).get("status", "none")) in MIGRATING


@_answer_to("query-chardev")
def open_chardevs(query_chardev: Any) -> list[str]:
    """Return the labels of the character devices that somebody uses."""
    return sorted(_of(str, entry["label"]) for entry in _of(list, query_chardev) if _of(bool, entry["frontend-open"]))


@dataclass(frozen=True, slots=True)
class Graph:
    """Block graph: all nodes, node name -> names of its children, node name -> ids of the block jobs that use it.

    ``backing``: node name -> name of the node that it is backed by.
    """

    nodes: frozenset[str]
    children: Mapping[str, tuple[str, ...]]
    jobs: Mapping[str, tuple[str, ...]]
    backing: Mapping[str, str]
    targets: Mapping[str, str] = field(default_factory=dict)
    """Job id -> the node that it writes."""

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


@_answer_to("x-debug-query-block-graph")
def graph(reply: Any) -> Graph:
    """Return the graph from x-debug-query-block-graph."""
    nodes = _of(list, reply["nodes"])
    named = {_of(int, node["id"]): _of(str, node["name"]) for node in nodes}
    kinds = {node["id"]: _of(str, node["type"]) for node in nodes}
    children: dict[str, list[str]] = {}
    users: dict[str, list[str]] = {}
    backing: dict[str, str] = {}
    targets: dict[str, str] = {}
    for edge in _of(list, reply["edges"]):
        parent, child = edge["parent"], edge["child"]
        if kinds[parent] == "block-driver":
            children.setdefault(named[parent], []).append(named[child])
            if edge["name"] == "backing":
                backing[named[parent]] = named[child]
        elif kinds[parent] == "block-job":
            users.setdefault(named[child], []).append(named[parent])
            if edge["name"] == "target":
                targets[named[parent]] = named[child]
    drivers = frozenset(named[number] for number, kind in kinds.items() if kind == "block-driver")
    below = {parent: tuple(nodes) for parent, nodes in children.items()}
    return Graph(drivers, below, {node: tuple(jobs) for node, jobs in users.items()}, backing, targets)
