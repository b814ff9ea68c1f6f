"""What history says of one image: whether a disk's data is on it, below it, or no longer there. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from pivotd.core import kinds
from pivotd.core.pivot import Image, Outcome, Pivot, PivotDisk
from pivotd.core.request import Kind, Sync
from pivotd.core.verdict import Presence, Verdict

_ELSEWHERE = frozenset({Presence.GONE, Presence.REPLACED})
Moved = tuple[Pivot, PivotDisk]
"""A pivot, and one of its disks."""


class Standing(StrEnum):
    """How an image stands to a disk that has had it at some time."""

    CURRENT = "current"
    """It holds the disk's data."""
    BASE = "base"
    """It is a layer below the image that holds the data."""
    IN_SYNC = "in sync"
    """The old image of a switch that can still be undone: QEMU writes to it too, as long as it lives."""
    DESTINATION = "destination"
    """A pivot is writing to it, and has not switched to it."""
    UNUSED = "never switched to"
    """It was the destination of a pivot that kept the source; it holds a part of the data, or nothing."""
    RELEASED = "released"
    """A pull has copied its data into the image above. It holds what it held, but not what was written since."""
    STALE = "stale"
    """The disk's data has moved on: a guest that starts from it loses writes."""
    UNKNOWN = "unknown"
    """A person must look."""


@dataclass(frozen=True, slots=True)
class Asked:
    """An image by its names, and by its file if it was made before a pivot that knew the file (``born``, UTC).

    The number of a file counts within one boot, and a new file may get that of a deleted one. ``below``: the file of a
    loop device, whose names are among those of the device.
    """

    names: frozenset[str]
    file_id: str | None = None
    boot_id: str | None = None
    born: str | None = None
    below: Asked | None = None

    @property
    def file_ids(self) -> frozenset[str]:
        """Return the ids of the file, and of the one below it."""
        below = frozenset[str]() if self.below is None else self.below.file_ids
        return below if self.file_id is None else below | {self.file_id}

    def is_named(self, moved: Moved) -> bool:
        """Return whether a pivot knew an image of this name."""
        _, disk = moved
        layers = [one.filename for one in (disk.source, disk.destination, disk.top, disk.base) if one is not None]
        accepted = [disk.accepted.filename] if disk.accepted is not None else []
        return not self.names.isdisjoint([*layers, *disk.between, *accepted])

    def is_file(self, moved: Moved) -> bool:
        """Return whether a pivot knew this file, under whatever name."""
        _, disk = moved
        sides = (disk.source, disk.destination, disk.top, disk.base)
        return any(one is not None and self.finds(one, moved[0]) for one in sides)

    def has_name(self, filename: str) -> bool:
        """Return whether this is a name of the image, or of the file below it."""
        return filename in self.names or (self.below is not None and self.below.has_name(filename))

    def finds(self, image: Image, pivot: Pivot) -> bool:
        """Return whether an image that a pivot knew is this one.

        Under another name it is the one with its number and time of birth. Where nobody knows when it was born, and for
        devices, it is one that is no younger than the pivot: that goes wrong once a clock was set back.
        """
        if image.filename in self.names or (self.below is not None and self.below.finds(image, pivot)):
            return True
        number, until = image.file_id, pivot.decided_at or pivot.closed_at
        if number is None or number != self.file_id or pivot.identity.boot_id != self.boot_id or self.born is None:
            return False
        if image.born is not None and not number.startswith("block:"):
            return image.born == self.born
        return until is None or self.born <= until


@dataclass(frozen=True, slots=True)
class Finding:
    """How an image stands to a disk. ``of``: the image above it; ``since`` and ``pivot``: when and by which pivot."""

    standing: Standing
    why: str
    since: str | None
    pivot: str | None
    of: str | None = None


@dataclass(frozen=True, slots=True)
class ImageFound:
    """What history says of one image, ``asked`` as it was named, and one disk with its verdict."""

    asked: str
    verdict: Verdict
    finding: Finding
    known: tuple[str, str] | None = None
    """Boot id, and Image.file_id of the file that this name led to then; None if that is not known."""


@dataclass(slots=True)
class History:
    """One disk: its verdict, and the last pivot of it that knew an image, by the image's name."""

    right: Verdict
    find: Callable[[str], Moved | None]
    ran_on: Mapping[str, str] = field(default_factory=dict)
    """Other images on which its guest has run since a person has last said which one is right, and when."""
    seen: set[str] = field(default_factory=set)

    def of_image(self, asked: Asked, moved: Moved) -> Finding:
        """Return how the image stands to the disk, from the last pivot that knew it."""
        right, (pivot, disk) = self.right, moved
        ran_at = max((at for name, at in self.ran_on.items() if name in asked.names), default=None)
        if ran_at is not None and not (right.certain and self._is_right(asked, moved)):
            why = (
                f"the guest ran on it at {ran_at}, without pivotd, and may have written to it; `pivotctl verdict "
                f"accept` the right image of {right.domain} {right.disk} once you have looked"
            )
            return Finding(Standing.UNKNOWN, why, ran_at, right.pivot)
        if self._is_right(asked, moved):
            if right.file in _ELSEWHERE and right.outcome is not Outcome.UNKNOWN and right.image not in asked.names:
                why = f"it is the file of {right.image}, which has this name now"
                return Finding(Standing.CURRENT, why, right.since, right.pivot)
            if right.certain:
                why = f"it holds the data of {right.domain} {right.disk}"
                return Finding(Standing.CURRENT, why, right.since, right.pivot)
            return Finding(Standing.UNKNOWN, right.reason, right.since, right.pivot)
        said = _while_open(asked, pivot, disk) if disk.outcome is None else _after(asked, pivot, disk)
        if said is not None:
            return said
        after = disk.destination if disk.outcome is Outcome.SWITCHED else disk.source
        if asked.finds(after, pivot):
            why = f"{right.domain} {right.disk} has gone on with {right.image}"
            return Finding(Standing.STALE, why, right.since, right.pivot)
        return self._below(after.filename, pivot)

    def _is_right(self, asked: Asked, moved: Moved) -> bool:
        if self.right.image is None:
            return False
        pivot, disk = moved
        known = next((side for side in (disk.source, disk.destination) if side.filename == self.right.image), None)
        return asked.finds(known or Image(self.right.image, "", ""), pivot)

    def _below(self, image: str, pivot: Pivot) -> Finding:
        """Return how a layer below ``image`` stands to the disk: as that image does, one layer down."""
        right = self.right
        if image == right.image:
            return Finding(Standing.BASE, f"it is below {image}", right.since, right.pivot, image)
        moved = self.find(image)
        if moved is None or image in self.seen:
            return Finding(
                Standing.STALE, f"it was below {image}, which is not in use", pivot.decided_at, pivot.id, image
            )
        self.seen.add(image)
        later, disk = moved
        on_top = later.kind is Kind.COPY and later.options.sync is Sync.TOP and disk.outcome is Outcome.SWITCHED
        if on_top and disk.source.filename == image:
            return self._below(disk.destination.filename, later)  # the copy has the layers of its source
        found = self.of_image(Asked(frozenset({image})), moved)
        if found.standing in {Standing.CURRENT, Standing.BASE, Standing.IN_SYNC}:
            return Finding(Standing.BASE, f"it is below {image}", found.since, found.pivot, image)
        why = f"it was below {image}: {found.why}"
        return Finding(found.standing, why, found.since, found.pivot, image)


def _while_open(asked: Asked, pivot: Pivot, disk: PivotDisk) -> Finding | None:
    if asked.finds(disk.destination, pivot):
        return Finding(Standing.DESTINATION, f"pivot {pivot.id} is writing to it", pivot.created_at, pivot.id)
    return None


def _after(asked: Asked, pivot: Pivot, disk: PivotDisk) -> Finding | None:
    """Return what the outcome of a pivot says by itself of the image, None if it is a part of the disk's chain."""
    since = pivot.decided_at or pivot.closed_at
    is_destination = asked.finds(disk.destination, pivot)
    is_source = asked.finds(disk.source, pivot)
    if disk.outcome is Outcome.UNKNOWN and disk.accepted is None and (is_source or is_destination):
        return Finding(Standing.UNKNOWN, f"nobody knows what pivot {pivot.id} has done", since, pivot.id)
    if disk.outcome is Outcome.KEPT and is_destination and disk.switches:
        return Finding(Standing.UNUSED, f"pivot {pivot.id} did not switch to it", since, pivot.id)
    if pivot.window_open and is_source:
        return Finding(Standing.IN_SYNC, f"pivot {pivot.id} can be undone", since, pivot.id)
    stale = kinds.of(pivot).stale(pivot, disk)
    layers = [disk.source.filename] if is_source else []
    layers += [disk.top.filename] if disk.top is not None and asked.has_name(disk.top.filename) else []
    layers += [name for name in disk.between if asked.has_name(name)]
    if not set(layers).isdisjoint(stale):
        why = f"pivot {pivot.id} has moved the data to {disk.destination.filename}"
        return Finding(Standing.STALE, why, since, pivot.id)
    if pivot.kind is Kind.PULL and disk.outcome is Outcome.MERGED and layers and not is_source:
        why = f"pivot {pivot.id} has copied its data into {disk.source.filename}"
        return Finding(Standing.RELEASED, why, since, pivot.id, disk.source.filename)
    return None
