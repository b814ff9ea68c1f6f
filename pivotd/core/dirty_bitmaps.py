"""Dirty bitmaps say what a backup has to copy. They belong to an image and must follow the disk. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pivotd.core.pivot import Image, Pivot, PivotDisk


@dataclass(frozen=True, slots=True)
class Bitmap:
    """One named, consistent bitmap. ``dirty_bytes``: how much it marks; ``recording``: it marks new writes."""

    name: str
    granularity_bytes: int
    persistent: bool
    recording: bool
    dirty_bytes: int
    busy: bool = False
    """A backup or an export uses it: QEMU copies it only once that has ended."""


Bitmaps = Mapping[str, tuple[Bitmap, ...]]
"""By disk."""


def ends(disk: PivotDisk) -> tuple[Image, Image]:
    """Return the image whose bitmaps must come along, and the image that takes them.

    For a commit these are the uppermost committed layer and the base; if the active layer is committed, they are the
    source and the destination.
    """
    if disk.top is None or disk.base is None:
        return disk.source, disk.destination
    return disk.top, disk.base


def owed(pivot: Pivot, found: Bitmaps) -> Bitmaps:
    """Return the bitmaps that must come along before the switch or the merge; only qcow2 stores any."""
    qcow2 = {disk.disk: ends(disk)[1].format == "qcow2" for disk in pivot.disks}
    return {
        disk: kept
        for disk, bitmaps in found.items()
        if (kept := tuple(bitmap for bitmap in bitmaps if qcow2[disk] or not bitmap.persistent))
    }


def in_use(pivot: Pivot, found: Bitmaps) -> str | None:
    """Return one sentence on a bitmap that must come along and that QEMU would not copy now, None if there is none."""
    if pivot.options.force:
        return None
    busy = ((disk, bitmap.name) for disk, bitmaps in owed(pivot, found).items() for bitmap in bitmaps if bitmap.busy)
    return next((busy_sentence(disk, name) for disk, name in busy), None)


def busy_sentence(disk: str, name: str) -> str:
    """Return one sentence on a bitmap that is in use."""
    return f"dirty bitmap {name} of {disk} is in use by a backup or an export, and cannot come along before its end"


def wrong(carried: Bitmaps, found: Bitmaps, *, may_differ: bool) -> str | None:
    """Return what a destination lacks of the bitmaps that were copied to it, None if it has all of them.

    A destination that already had a bitmap of that name may mark more than the source: a backup then copies too much.
    ``may_differ``: the destination keeps the granularity and the persistence of such a bitmap.
    """
    for disk, bitmaps in carried.items():
        there = {bitmap.name: bitmap for bitmap in found.get(disk, ())}
        for bitmap in bitmaps:
            new = there.get(bitmap.name)
            if new is None:
                return f"bitmap {bitmap.name} of {disk} has not come along"
            same = (new.granularity_bytes, new.persistent) == (bitmap.granularity_bytes, bitmap.persistent)
            as_good = same or (may_differ and (new.persistent or not bitmap.persistent))
            if not as_good or new.recording is not bitmap.recording:
                return f"bitmap {bitmap.name} of {disk} has come along with other properties"
            # The last bit of the coarser one may stand for bytes beyond the end of the disk.
            beyond = 0 if new.granularity_bytes == bitmap.granularity_bytes else bitmap.granularity_bytes
            if new.dirty_bytes + beyond < bitmap.dirty_bytes:
                return f"bitmap {bitmap.name} of {disk} has lost what it marks"
    return None
