"""The images of a disk before and after a pivot, as far as the journal knows them. Pure.

The journal holds the images that a pivot touches, and none that it leaves alone: a gap stands where there may be more.
"""

from __future__ import annotations

from enum import StrEnum

from msgspec import Struct

from pivotd.client import Pivot, PivotDisk


class Mark(StrEnum):
    """What an image is to the disk."""

    RIGHT = "right"
    LAYER = "layer"
    LEFT = "left"
    UNSURE = "unsure"
    GAP = "gap"


class Layer(Struct, frozen=True):
    """One image, and one or two words on what it is to the disk."""

    name: str
    format: str
    note: str
    mark: Mark


class Chain(Struct, frozen=True):
    """The images of a disk from the one that the guest writes to downwards, and beside them those that it has left."""

    caption: str
    layers: tuple[Layer, ...]
    beside: tuple[Layer, ...] = ()


class Word(Struct, frozen=True):
    """A person's word on the image that holds a disk's data."""

    image: str
    format: str
    uid: int
    reason: str
    at: str


GAP = Layer("", "", "more layers, if any", Mark.GAP)
HOLDS = "holds the data"


def before(pivot: Pivot, disk: PivotDisk) -> Chain:
    """Return the chain when the pivot began."""
    return Chain("before", (_right(disk.source, disk.source_format), *_below_source(pivot, disk)))


def after(pivot: Pivot, disk: PivotDisk, word: Word | None) -> Chain:
    """Return the chain when the pivot had ended; of an open one what it is to become."""
    if word is not None:
        return _accepted(disk, word)
    match disk.outcome:
        case "switched" | "merged":
            return _moved(pivot, disk, "after")
        case "kept":
            unused = () if disk.source == disk.destination or pivot.kind == "commit" else (_unused(disk),)
            return Chain("after: nothing moved", before(pivot, disk).layers, unused)
        case "unknown":
            return Chain("after: one of these", (_unsure(disk.source, disk.source_format),), _candidates(disk))
        case _:
            return _moved(pivot, disk, "after, if it succeeds")


def is_merge(disk: PivotDisk) -> bool:
    """Return whether the disk keeps its image, on a shorter chain."""
    return disk.top is not None and disk.source == disk.destination


def _below_source(pivot: Pivot, disk: PivotDisk) -> tuple[Layer, ...]:
    merged = [_layer(name) for name in disk.between]
    base = [] if disk.base is None else [_layer(disk.base, "base")]
    match pivot.kind:
        case "commit" if is_merge(disk):
            return GAP, _layer(disk.top or ""), *merged, *base, GAP
        case "commit":
            return *merged, _layer(disk.destination, "base"), GAP
        case "pull":
            top = [] if disk.top is None else [_layer(disk.top)]
            return *top, *merged, *base, *([GAP] if base else [])
        case _:
            return *base, GAP


def _moved(pivot: Pivot, disk: PivotDisk, caption: str) -> Chain:
    right = _right(disk.destination, disk.destination_format)
    base = () if disk.base is None else (_layer(disk.base, "base"), GAP)
    match pivot.kind:
        case "snapshot":
            return Chain(caption, (right, Layer(disk.source, disk.source_format, "base now", Mark.LAYER), GAP))
        case "commit" if is_merge(disk):
            return Chain(caption, (right, GAP, *base), _merged(disk, "written into the base: stale"))
        case "commit":
            gone = tuple(_left(name, "", "stale") for name in (disk.source, *disk.between))
            return Chain(caption, (right, GAP), gone)
        case "pull":
            return Chain(caption, (right, *base), _merged(disk, "not in the chain any more"))
        case _:
            # pivotd makes images without a backing file, and knows nothing of the header of one that was there.
            below = base or ((GAP,) if pivot.options.reuse or pivot.options.adopted else ())
            note = f"in sync until {pivot.undo_until[:19]}Z" if pivot.undo_until else "stale"
            return Chain(caption, (right, *below), (_left(disk.source, disk.source_format, note),))


def _accepted(disk: PivotDisk, word: Word) -> Chain:
    sides = {disk.source: disk.source_format, disk.destination: disk.destination_format}
    sides.pop(word.image, None)
    others = tuple(_left(name, form, "not the one") for name, form in sides.items())
    right = Layer(word.image, word.format, f"holds the data, says uid {word.uid}", Mark.RIGHT)
    return Chain("after, by a person's word", (right, GAP), others)


def _merged(disk: PivotDisk, note: str) -> tuple[Layer, ...]:
    return tuple(_left(name, "", note) for name in (disk.top, *disk.between) if name is not None)


def _candidates(disk: PivotDisk) -> tuple[Layer, ...]:
    if disk.destination == disk.source:
        return ()
    return (_unsure(disk.destination, disk.destination_format),)


def _unused(disk: PivotDisk) -> Layer:
    return _left(disk.destination, disk.destination_format, "never switched to")


def _right(name: str, form: str) -> Layer:
    return Layer(name, form, HOLDS, Mark.RIGHT)


def _layer(name: str, note: str = "layer") -> Layer:
    return Layer(name, "", note, Mark.LAYER)


def _left(name: str, form: str, note: str) -> Layer:
    return Layer(name, form, note, Mark.LEFT)


def _unsure(name: str, form: str) -> Layer:
    return Layer(name, form, "may hold the data", Mark.UNSURE)
