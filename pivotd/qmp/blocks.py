"""The disks of one QEMU at one moment, with the graph below them and the jobs on them.

This is the only place that reads query-block, x-debug-query-block-graph (unstable by name, the same on 4.2 to 11.1)
and query-block-jobs. Shapes: QEMU QAPI reference. Pure: no connection, no decision.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from pivotd.core import names
from pivotd.core.dirty_bitmaps import Bitmap
from pivotd.core.image_names import of_own_node
from pivotd.core.pivot import PivotDisk
from pivotd.core.request import Limits
from pivotd.qmp import descriptions
from pivotd.qmp.question import asks, of

PERIPHERAL = "/machine/peripheral/"
BACKING_DEPTH_MAX = 256


@dataclass(frozen=True, slots=True)
class Layer:
    """One image of a backing chain; ``backing_file`` is the name of the image below, as written in this image.

    ``names``: where that name leads, as QEMU would open it from here, None if there is none or QEMU cannot say.
    """

    filename: str
    format: str
    size_bytes: int
    backing_file: str | None = None
    bitmaps: tuple[Bitmap, ...] = ()
    """The bitmaps that its file names; layers below the active one have no more. QEMU does not show what they mark."""
    encrypted: bool | None = False
    """Whether QEMU encrypts it, by itself or in a node below it; None: QEMU does not show all nodes below it."""
    snapshots: tuple[str, ...] = ()
    """The names of the snapshots inside it, of one without a name its id."""
    data_file: str | None = None
    """The external file that holds its data, as its header says; QEMU may have been given another one."""
    data_file_is_raw: bool = False
    """It promises that this file holds its data as a raw image would (``data-file-raw``)."""
    allocated_bytes: int | None = None
    """What its storage has allocated for it; None if QEMU cannot tell, 0 for a device."""
    names: str | None = None


@dataclass(frozen=True, slots=True)
class DiskSeen:
    """One disk with a medium; ``filename`` as QEMU writes it, possibly relative or ``json:``."""

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
    detect_zeroes: str
    limits: Limits
    layers: tuple[Layer, ...]
    """The active image first."""
    bitmaps: tuple[Bitmap, ...] = ()
    """The bitmaps of the root, in memory."""
    is_limited: bool = False
    """pivotd has opened a raw image with the size of the disk; ``filename`` does not say so."""
    write_threshold_bytes: int = 0
    """QEMU sends an event at the first write beyond it; 0: there is none."""


@dataclass(frozen=True, slots=True)
class BlockJob:
    """One block job of any client; ``io_status`` is QEMU's BlockDeviceIoStatus."""

    kind: str
    status: str
    auto_finalize: bool
    auto_dismiss: bool
    left_bytes: int
    copied_bytes: int
    io_status: str


@dataclass(frozen=True, slots=True)
class Graph:
    """All nodes; by node: its children, its backing node, and the block jobs that use it."""

    nodes: frozenset[str] = frozenset()
    children: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    backing: Mapping[str, str] = field(default_factory=dict)
    jobs: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    targets: Mapping[str, str] = field(default_factory=dict)
    """Job id -> the node that it writes."""
    writing: Mapping[str, tuple[tuple[str, str], ...]] = field(default_factory=dict)
    """Node -> type and name of each parent that may write to it."""
    with_data_file: frozenset[str] = frozenset()
    """Nodes whose data is in an external file."""
    held: frozenset[str] = frozenset()
    """Nodes that a device, an export or a job has."""

    def unused(self, nodes: Collection[str]) -> list[str]:
        """Return those of the nodes that nothing uses but others of them, parents before children."""
        parents: dict[str, set[str]] = {}
        for parent, children in self.children.items():
            for child in children:
                parents.setdefault(child, set()).add(parent)
        found: list[str] = []
        left = sorted(self.nodes.intersection(nodes) - self.held)
        while more := [node for node in left if node not in found and parents.get(node, set()) <= set(found)]:
            found += more
        return found

    def chain(self, root: str) -> list[str]:
        """Return root and the nodes that back it, downwards."""
        order = [root]
        while (below := self.backing.get(order[-1])) is not None and below not in order:
            order.append(below)
        return order

    def stands_alone(self, root: str) -> bool:
        """Return whether no node under root has a backing node."""
        return self.backing.keys().isdisjoint(self.below(root))

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


@dataclass(frozen=True, slots=True)
class Blocks:
    """One QEMU's disks by name, its graph, and its block jobs by id; empty if they were not queried."""

    disks: Mapping[str, DiskSeen]
    graph: Graph
    jobs: Mapping[str, BlockJob] = field(default_factory=dict)

    def disk_of_job(self, job: str) -> DiskSeen | None:
        """Return the disk on whose image a block job works, None if it works on no disk."""
        return next((seen for seen in self.disks.values() if job in self.graph.jobs.get(seen.node, ())), None)


def find(disks: Mapping[str, DiskSeen], disk: PivotDisk) -> DiskSeen | None:
    """Return a pivot's disk by its QOM path, which is unique; a disk without such a path by its name."""
    wanted = disk.qdev or disk.disk
    return next((seen for seen in disks.values() if (seen.qdev or seen.disk) == wanted), None)


def disk_name(entry: Mapping[str, Any]) -> str:
    """Return the name under which users know the disk of a query-block entry: its device id.

    virtio-blk shows ``/machine/peripheral/disk0/virtio-backend``, SCSI, IDE and NVMe show the id itself; a device
    without an id is known by its legacy drive id, else by its QOM path.
    """
    qdev = of(str, entry.get("qdev", ""))
    if qdev.startswith(PERIPHERAL):
        return qdev[len(PERIPHERAL) :].split("/", 1)[0]
    if qdev and not qdev.startswith("/"):
        return qdev
    return of(str, entry.get("device", "")) or qdev


@asks("query-block")
def disks(answer: Any) -> dict[str, DiskSeen]:
    """Return every disk with a medium by its name; if two devices have one name, by their QOM paths."""
    entries = [of(dict, entry) for entry in of(list, answer)]
    taken = Counter(disk_name(entry) for entry in entries)
    found = {}
    for entry in entries:
        if "inserted" in entry:
            shared = taken[disk_name(entry)] > 1 and entry.get("qdev")
            seen = _disk(entry["qdev"] if shared else disk_name(entry), entry, of(dict, entry["inserted"]))
            found[seen.disk] = seen
    return found


def _disk(name: str, entry: Mapping[str, Any], inserted: Mapping[str, Any]) -> DiskSeen:
    image = inserted["image"]
    limits = {name: value for name, value in inserted.items() if name.startswith(("bps", "iops")) or name == "group"}
    kinds: dict[str, type[int | str]] = {"group": str}
    layers = list(_layers(image))
    # pivotd opens a longer raw image only as far as the disk goes: it still has the whole of it.
    shown = layers[0].filename
    layers[0] = replace(layers[0], filename=of_own_node(shown, of(str, inserted["node-name"])))
    return DiskSeen(
        disk=name,
        device=of(str, entry.get("device", "")),
        qdev=of(str, entry.get("qdev", "")),
        node=of(str, inserted["node-name"]),
        filename=layers[0].filename,
        format=of(str, inserted["drv"]),
        size_bytes=of(int, image["virtual-size"]),
        read_only=of(bool, inserted["ro"]),
        cache_direct=of(bool, inserted["cache"]["direct"]),
        cache_no_flush=of(bool, inserted["cache"]["no-flush"]),
        detect_zeroes=of(str, inserted.get("detect_zeroes", "off")),
        limits=tuple((name, of(kinds.get(name, int), limits[name])) for name in sorted(limits)),
        layers=tuple(layers),
        is_limited=layers[0].filename != shown,
        bitmaps=_bitmaps(inserted),
        write_threshold_bytes=of(int, inserted.get("write_threshold", 0)),
    )


def _layers(image: Mapping[str, Any]) -> Iterator[Layer]:
    for _ in range(BACKING_DEPTH_MAX):
        yield _layer(image)
        if "backing-image" not in image:
            return
        image = of(dict, image["backing-image"])


def _layer(image: Mapping[str, Any]) -> Layer:
    filename = of(str, image["filename"])
    shown = of(dict, image["format-specific"]) if "format-specific" in image else {}
    qcow2 = of(dict, shown["data"]) if shown.get("type") == "qcow2" else {}
    return Layer(
        filename=filename,
        format=of(str, image["format"]),
        size_bytes=of(int, image["virtual-size"]),
        backing_file=of(str, image["backing-filename"]) if "backing-filename" in image else None,
        bitmaps=tuple(_stored(of(list, qcow2.get("bitmaps", [])))),
        encrypted=of(bool, image.get("encrypted", False)) or descriptions.encrypted(filename),
        snapshots=tuple(of(str, kept["name"] or kept["id"]) for kept in of(list, image.get("snapshots", []))),
        data_file=of(str, qcow2["data-file"]) if "data-file" in qcow2 else None,
        data_file_is_raw=of(bool, qcow2.get("data-file-raw", False)),
        allocated_bytes=of(int, image["actual-size"]) if "actual-size" in image else None,
        names=of(str, image["full-backing-filename"]) if "full-backing-filename" in image else None,
    )


def _stored(bitmaps: list[Any]) -> Iterator[Bitmap]:
    """Return the bitmaps that a qcow2 file names; one in use belongs to memory, or to a QEMU that has crashed."""
    for bitmap in bitmaps:
        if "in-use" not in bitmap["flags"]:
            yield Bitmap(
                name=of(str, bitmap["name"]),
                granularity_bytes=of(int, bitmap["granularity"]),
                persistent=True,
                recording="auto" in of(list, bitmap["flags"]),
                dirty_bytes=0,
            )


def _bitmaps(inserted: Mapping[str, Any]) -> tuple[Bitmap, ...]:
    """Return named, consistent bitmaps: unnamed ones belong to jobs, inconsistent ones are useless.

    Those of qmp/load_guard.py mark nothing.
    """
    return tuple(
        Bitmap(
            name=of(str, bitmap["name"]),
            granularity_bytes=of(int, bitmap["granularity"]),
            persistent=of(bool, bitmap["persistent"]),
            recording=of(bool, bitmap["recording"]),
            dirty_bytes=of(int, bitmap["count"]),
            busy=of(bool, bitmap.get("busy", False)),
        )
        for bitmap in of(list, inserted.get("dirty-bitmaps", []))
        if bitmap.get("name") and not bitmap.get("inconsistent", False) and not names.is_load_guard(bitmap["name"])
    )


@asks("query-block-jobs")
def block_jobs(answer: Any) -> dict[str, BlockJob]:
    """Return every block job by its id."""
    return {
        of(str, job["device"]): BlockJob(
            kind=of(str, job["type"]),
            status=of(str, job["status"]),
            auto_finalize=of(bool, job["auto-finalize"]),
            auto_dismiss=of(bool, job["auto-dismiss"]),
            left_bytes=of(int, job["len"]) - of(int, job["offset"]),
            copied_bytes=job["offset"],
            io_status=of(str, job.get("io-status", "ok")),
        )
        for job in of(list, answer)
    }


@asks("x-debug-query-block-graph")
def graph(answer: Any) -> Graph:
    """Return the block graph."""
    nodes = of(list, answer["nodes"])
    named = {of(int, node["id"]): of(str, node["name"]) for node in nodes}
    kinds = {node["id"]: of(str, node["type"]) for node in nodes}
    children: dict[str, tuple[str, ...]] = {}
    users: dict[str, tuple[str, ...]] = {}
    backing: dict[str, str] = {}
    targets: dict[str, str] = {}
    writing: dict[str, tuple[tuple[str, str], ...]] = {}
    held: set[str] = set()
    with_data_file: set[str] = set()
    for edge in of(list, answer["edges"]):
        kind = kinds[edge["parent"]]
        parent, child = named[edge["parent"]], named[edge["child"]]
        if "write" in edge.get("perm", ()):
            writing[child] = (*writing.get(child, ()), (kind, parent))
        if kind != "block-driver":
            held.add(child)
        if kind == "block-driver":
            children[parent] = (*children.get(parent, ()), child)
            if edge["name"] == "backing":
                backing[parent] = child
            if edge["name"] == "data-file":
                with_data_file.add(parent)
        elif kind == "block-job":
            users[child] = (*users.get(child, ()), parent)
            if edge["name"] == "target":
                targets[parent] = child
    drivers = frozenset(named[number] for number, kind in kinds.items() if kind == "block-driver")
    return Graph(drivers, children, backing, users, targets, writing, frozenset(with_data_file), frozenset(held))
