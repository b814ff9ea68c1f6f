"""New images of pivots that ended before anything was copied: the same command may use their names again."""

from __future__ import annotations

from typing import Protocol

from pivotd import limits
from pivotd.core.pivot import Outcome, Phase, Pivot, PivotDisk, Record
from pivotd.host import files, process
from pivotd.host.threads import in_thread


class History(Protocol):
    """What the journal says of an image; app.reads.Reads has it."""

    async def moved(self, image: str) -> list[tuple[Pivot, PivotDisk]]:
        """Return, for each disk that has ever had an image of this name, its last such pivot."""
        ...

    async def records(self, pivot: str) -> list[Record]:
        """Return every record of one pivot, oldest first."""
        ...


async def unused_since(history: History, path: str) -> int | None:
    """Return the change time in ns of a file that a pivot of this boot has made, without ever copying to it.

    None for any other file, and if anybody has touched it since that pivot ended.
    """
    known = await history.moved(path)
    if not known or not all(_made(pivot, disk, path) for pivot, disk in known):
        return None
    pivot, disk = max(known, key=lambda one: one[0].created_at)
    records = await history.records(pivot.id)
    if any(record.phase in {Phase.COPYING, Phase.READY, Phase.PAUSING} for record in records):
        return None
    closed = next((record.facts for record in reversed(records) if record.event == "closed"), {})
    at_its_end: int | None = closed.get("made", {}).get(path)
    try:
        now = await in_thread(limits.FILE_TIMEOUT_S, files.change_times, [disk.destination], paths=[path])
    except TimeoutError:
        return None
    return at_its_end if now.get(path) == at_its_end else None


def _made(pivot: Pivot, disk: PivotDisk, path: str) -> bool:
    """Return whether this is an image that the pivot has made and that its disk has never used."""
    return (
        pivot.phase is Phase.CLOSED
        and disk.outcome is Outcome.KEPT
        and disk.accepted is None
        and disk.destination.filename == path
        and disk.destination.file_id is not None
        and disk.switches
        and pivot.undo_of is None
        and not (pivot.options.reuse or pivot.options.adopted)
        and pivot.identity.boot_id == process.boot_id()
    )
