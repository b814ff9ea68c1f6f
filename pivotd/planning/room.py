"""Room for what a pivot will write, by statvfs: a copy that must fail for want of it is refused before it begins.

What QEMU writes is not what the source has allocated: layers hold the same parts of a disk, a qcow2 file holds its
internal snapshots, and a raw one space that was reserved and never written. Only what is certain to be written counts.
Source: tests/engine/test_room.py.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Sequence

from pivotd import limits
from pivotd.core import nbd
from pivotd.core.pivot import PivotDisk
from pivotd.core.request import Kind, Sync
from pivotd.errors import BadRequestError
from pivotd.host import files
from pivotd.host.threads import look_at
from pivotd.planning.domain_snapshot import DomainSnapshot
from pivotd.qmp.blocks import DiskSeen, Layer
from pivotd.qmp.whole_names import PROTOCOLS

FULL = {"falloc", "full"}
"""Preallocations that take the whole size of the disk at once."""


def refuse_full(domain: DomainSnapshot, kind: Kind, planned: Collection[PivotDisk]) -> None:
    """Refuse if a file system has less room than the pivot is about to write there; this may block.

    A copy that runs out of room all the same waits for it. Raises: BadRequestError.
    """
    if domain.options.force or domain.options.adopted:
        return
    needed: dict[int, int] = {}
    for disk in planned:
        image = disk.base if kind is Kind.COMMIT and disk.base is not None else disk.destination
        found = None if nbd.is_uri(image.filename) else _place(image.filename)
        if found is None:
            continue
        path, there = found
        device = there.st_dev
        held = there.st_blocks * 512 if stat.S_ISREG(there.st_mode) else 0
        needed[device] = needed.get(device, 0) + max(0, _written(domain, kind, disk) - held)
        room = _room(path)
        if room is not None and needed[device] > room:
            raise BadRequestError(
                f"{image.filename}: its file system has room for {_shown(room)}, and {disk.disk} needs at least "
                f"{_shown(needed[device])}: make room, choose another place, or use --force to go on all the same",
                disk=disk.disk,
            )


def _written(domain: DomainSnapshot, kind: Kind, disk: PivotDisk) -> int:
    """Return how much the destination will hold at least, in bytes; 0 if that is unknown."""
    seen = domain.find(disk.disk)
    new = kind in {Kind.COPY, Kind.SNAPSHOT} and not domain.options.reuse
    if new and domain.options.image_options.preallocation in FULL:
        return disk.size_bytes
    if kind is Kind.SNAPSHOT:
        return 0
    layers: Sequence[Layer]
    if kind is Kind.COPY:
        layers = seen.layers[:1] if domain.options.sync is Sync.TOP else seen.layers
    else:
        layers = _merged(domain, seen, disk)
    # The layers may hold the same parts of the disk, and of what they are merged into: only the largest one counts.
    return min(disk.size_bytes, max((_copied_bytes(domain, seen, layer) for layer in layers), default=0))


def _merged(domain: DomainSnapshot, seen: DiskSeen, disk: PivotDisk) -> Sequence[Layer]:
    nodes = domain.blocks.graph.chain(seen.node)
    if disk.top is None or disk.top.node not in nodes:
        return ()
    end = len(nodes) if disk.base is None else nodes.index(disk.base.node)
    return seen.layers[nodes.index(disk.top.node) : end]


def _copied_bytes(domain: DomainSnapshot, seen: DiskSeen, layer: Layer) -> int:
    """Return how much of an image QEMU will copy, 0 if nobody knows, as for exports and for qcow2 on devices."""
    if layer.format not in {"raw", *PROTOCOLS}:
        return 0 if layer.snapshots else layer.allocated_bytes or 0
    file = files.resolve(layer.filename, domain.directory)
    if layer.allocated_bytes:
        return data_bytes(file.path) if file.path is not None and file.path.startswith("/") else 0
    device = seen.detect_zeroes == "off" and (file.file_id or "").startswith("block:")
    return layer.size_bytes if device else 0


def data_bytes(path: str) -> int:
    """Return how much of a file holds data, as QEMU asks for it: neither holes nor space that was only reserved.

    At least so much, where there are more than limits.EXTENTS_MAX pieces; 0 if pivotd may not look.
    """
    look_at(path)
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return 0
    found = end = 0
    try:
        for _ in range(limits.EXTENTS_MAX):
            begin = os.lseek(descriptor, end, os.SEEK_DATA)
            end = os.lseek(descriptor, begin, os.SEEK_HOLE)
            found += end - begin
    except OSError:
        pass  # no data after this
    finally:
        os.close(descriptor)
    return found


def _place(filename: str) -> tuple[str, os.stat_result] | None:
    """Return the file, or its directory if it does not exist yet; None for a device, or if pivotd may not look."""
    for path in (filename, os.path.dirname(filename)):  # noqa: PTH120
        look_at(path)
        try:
            found = os.stat(path)  # noqa: PTH116
        except FileNotFoundError:
            continue
        except OSError:
            return None
        return None if stat.S_ISBLK(found.st_mode) else (path, found)
    return None


def _room(path: str) -> int | None:
    try:
        found = os.statvfs(path)
    except OSError:
        return None
    # A file system without a size of its own shows none at all.
    return found.f_bavail * found.f_frsize if found.f_blocks else None


def _shown(size_bytes: int) -> str:
    return f"{size_bytes / (1 << 20):,.0f} MiB"
