"""Room for what a pivot will write, by statvfs: a copy that must fail for want of it is refused before it begins."""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Sequence

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

    What cannot be known is not counted: a copy that runs out of room waits for it. Raises: BadRequestError.
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
                f"{image.filename}: its file system has room for {_shown(room)}, and {disk.disk} needs about "
                f"{_shown(needed[device])}: make room, choose another place, or use --force to go on all the same",
                disk=disk.disk,
            )


def _written(domain: DomainSnapshot, kind: Kind, disk: PivotDisk) -> int:
    """Return about how much the destination will hold, in bytes; 0 if that is unknown."""
    seen = domain.find(disk.disk)
    new = kind in {Kind.COPY, Kind.SNAPSHOT} and not domain.options.reuse
    if new and domain.options.image_options.preallocation in FULL:
        return disk.size_bytes
    if kind is Kind.SNAPSHOT:
        return 0
    if kind is Kind.COPY:
        layers = seen.layers[:1] if domain.options.sync is Sync.TOP else seen.layers
        return min(disk.size_bytes, sum(_allocated_bytes(domain, seen, layer) for layer in layers))
    # The layers may hold the same parts of the disk, and of what they are merged into: only the largest one counts.
    return max((_allocated_bytes(domain, seen, layer) for layer in _merged(domain, seen, disk)), default=0)


def _merged(domain: DomainSnapshot, seen: DiskSeen, disk: PivotDisk) -> Sequence[Layer]:
    nodes = domain.blocks.graph.chain(seen.node)
    if disk.top is None or disk.top.node not in nodes:
        return ()
    end = len(nodes) if disk.base is None else nodes.index(disk.base.node)
    return seen.layers[nodes.index(disk.top.node) : end]


def _allocated_bytes(domain: DomainSnapshot, seen: DiskSeen, layer: Layer) -> int:
    """Return how much of an image QEMU will copy, 0 if nobody knows, as for exports and for qcow2 on devices."""
    if layer.allocated_bytes:
        return layer.allocated_bytes
    whole = layer.format in {"raw", *PROTOCOLS} and seen.detect_zeroes == "off"
    device = whole and (files.resolve(layer.filename, domain.directory).file_id or "").startswith("block:")
    return layer.size_bytes if device else 0


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
