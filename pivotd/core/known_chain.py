"""What the journal knows of the header of an image, for where nobody can read it. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from pivotd.core.pivot import Image, Outcome, Pivot, PivotDisk
from pivotd.core.request import Kind


def right_below(image: str, moved: Iterable[tuple[Pivot, PivotDisk]]) -> list[Image] | None:
    """Return the image that the header of ``image`` names, none if it names none; None: the journal cannot say.

    ``moved``: every pivot that had the image, the newest first. pivotd knows the header of an image that it has made
    and that was not merged since. A person's word, or another client's job, may have meant another header, and an image
    that was there before may have an external data file.
    """
    for pivot, disk in moved:
        if pivot.options.adopted or disk.accepted is not None or disk.outcome in {None, Outcome.UNKNOWN}:
            return None
        if disk.outcome is Outcome.KEPT:
            continue
        if pivot.kind not in {Kind.COPY, Kind.SNAPSHOT}:
            return None
        if image == disk.destination.filename and pivot.undo_of is None:
            return None if pivot.options.reuse else [below for below in (disk.below,) if below is not None]
    return None


def had(pivots: Iterable[Pivot], disk: str, image: str) -> list[tuple[Pivot, PivotDisk]]:
    """Return those of the pivots of a domain in which the disk had the image, in their order."""
    return [
        (pivot, one)
        for pivot in pivots
        for one in pivot.disks
        if one.disk == disk
        and (
            image in one.between
            or any(image == side.filename for side in (one.source, one.destination, one.top, one.base) if side)
        )
    ]
