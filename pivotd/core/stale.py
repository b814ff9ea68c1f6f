"""Which images hold old or half data after a pivot, so that nobody starts a guest from one. Pure."""

from __future__ import annotations

from pivotd.core.pivot import Outcome, Pivot, PivotDisk
from pivotd.core.request import Kind


def stale(pivot: Pivot, disk: PivotDisk) -> list[str]:
    """Return the images of one disk that must not be used any more, as far as the pivot knows them.

    A source that is kept in sync is none yet. Layers that a pull has replaced and sources below a snapshot are not
    stale: they hold what they held. A destination counts where pivotd has created it and the disk is not on it.
    """
    if disk.outcome is None:
        return []
    match pivot.kind, disk.outcome:
        case Kind.COPY, Outcome.SWITCHED:
            return [] if pivot.window_open else [disk.source.filename]
        case Kind.COPY | Kind.SNAPSHOT, Outcome.KEPT if not pivot.window_open and _ours(pivot, disk):
            return [disk.destination.filename]
        case Kind.COMMIT, Outcome.SWITCHED | Outcome.MERGED if disk.top is not None:
            return [disk.top.filename, *disk.between]
    return []


def _ours(pivot: Pivot, disk: PivotDisk) -> bool:
    """Return whether the destination is of pivotd's making, or was a copy that has lost its mirror."""
    created = not pivot.options.reuse and disk.destination.file_id is not None
    return created or pivot.undo_of is not None
