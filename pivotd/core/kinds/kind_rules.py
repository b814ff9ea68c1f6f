"""The interface of one kind of pivot: what differs between kinds. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pivotd.core.actions import Action
from pivotd.core.observation import Observation
from pivotd.core.pivot import Pivot, PivotDisk


@dataclass(frozen=True, slots=True)
class KindRules:
    """One kind. ``prepare`` and ``stale`` are called for each disk of a pivot."""

    prepare: Callable[[Pivot, PivotDisk, Observation], Action | None]
    """Return the first step of the preparation that has left no evidence in QEMU, None when all are done."""
    stale: Callable[[Pivot, PivotDisk], list[str]]
    """Return the images from which no guest may be started after the disk's outcome, as far as the pivot knows them."""
    has_jobs: bool = True
    """A block job works on each disk."""
    may_hang: bool = False
    """The job writes to an image that the guest does not need before the switch: pivotd may cut its connection."""
    carries_bitmaps: bool = True
    """The bitmaps of the image that goes must be copied to the image that stays."""
    bitmaps_may_differ: bool = False
    """The image that stays may have had bitmaps of these names before, whose granularity and persistence it keeps."""


def nothing_is_stale(_pivot: Pivot, _disk: PivotDisk) -> list[str]:
    """No image becomes stale."""
    return []
