"""Dirty bitmaps, which say what a backup has to copy: they belong to an image and must follow the disk. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pivotd.core.words import Kind, Pivot


@dataclass(frozen=True, slots=True)
class Bitmap:
    """One named bitmap that can be used; ``dirty_bytes`` is what it marks, ``recording``: it marks new writes."""

    name: str
    granularity_bytes: int
    persistent: bool
    recording: bool
    dirty_bytes: int


Bitmaps = Mapping[str, tuple[Bitmap, ...]]
"""By disk."""


def owed(pivot: Pivot, found: Bitmaps) -> Bitmaps:
    """Return the bitmaps of the sources that the destinations must have before the switch; only qcow2 keeps any."""
    if pivot.kind is not Kind.COPY:
        return {}
    qcow2 = {disk.disk: disk.destination.format == "qcow2" for disk in pivot.disks}
    return {
        disk: kept
        for disk, bitmaps in found.items()
        if (kept := tuple(bitmap for bitmap in bitmaps if qcow2[disk] or not bitmap.persistent))
    }


def wrong(carried: Bitmaps, found: Bitmaps) -> str | None:
    """Return what a destination lacks of the bitmaps that were carried to it, None for nothing.

    It may mark more than the source did, where it had a bitmap of that name before: a backup then copies too much.
    """
    for disk, bitmaps in carried.items():
        there = {bitmap.name: bitmap for bitmap in found.get(disk, ())}
        for bitmap in bitmaps:
            new = there.get(bitmap.name)
            if new is None:
                return f"bitmap {bitmap.name} of {disk} has not come along"
            same = (new.granularity_bytes, new.persistent, new.recording)
            if same != (bitmap.granularity_bytes, bitmap.persistent, bitmap.recording):
                return f"bitmap {bitmap.name} of {disk} has come along with other properties"
            if new.dirty_bytes < bitmap.dirty_bytes:
                return f"bitmap {bitmap.name} of {disk} has lost what it marks"
    return None
