"""Histories with pivots that are old enough to be archived, and the archiving of them."""

from __future__ import annotations

from dataclasses import replace

from pivotd.app.retention import Progress, Retention
from pivotd.core.pivot import Outcome, Pause, Phase, Pivot
from pivotd.journal.journal import Journal
from tests.journal.samples import make_pivot

OLD_AT = "2021-03-04T05:06:07.000000Z"
DAY_S = 86_400
PAUSES = (Pause(1, 1.5, "decided"),)


async def run(
    journal: Journal,
    number: int,
    *,
    disk: str = "disk0",
    move: tuple[str, str] | None = None,
    closed_at: str | None = OLD_AT,
    records: int = 0,
) -> Pivot:
    """Move a disk from one image to another, ``closed_at`` a time or not at all; return the pivot at its end."""
    planned = make_pivot(number, disk=disk)
    if move is not None:
        sides = {
            side: replace(getattr(planned.disks[0], side), filename=name)
            for side, name in zip(("source", "destination"), move, strict=True)
        }
        planned = replace(planned, disks=(replace(planned.disks[0], **sides),))
    pivot, _ = await journal.accept(planned, {"number": number})
    for count in range(records):
        pivot = await journal.advance(pivot, "ready", {"count": count}, phase=Phase.READY)
    disks = tuple(replace(one, outcome=Outcome.SWITCHED) for one in pivot.disks)
    pivot = await journal.advance(
        pivot, "switched", {}, phase=Phase.DECIDED, disks=disks, pauses=PAUSES, decided_at=OLD_AT
    )
    if closed_at is None:
        return pivot
    return await journal.advance(pivot, "closed", {}, phase=Phase.CLOSED, closed_at=closed_at)


async def back_and_forth(journal: Journal, pivots: int, *, first: int = 1, records: int = 0) -> None:
    """Move one disk between the same two images: only the last two pivots are the last that knew an image."""
    for number in range(first, first + pivots):
        move = ("/old/a", "/new/a") if number % 2 else ("/new/a", "/old/a")
        await run(journal, number, move=move, records=records)


async def archive(journal: Journal, keep_s: int = DAY_S) -> Progress:
    """Archive all that may be archived."""
    retention = Retention(journal, None)
    done = await retention.step(keep_s, deadline_s=float("inf"))
    assert done.following is None
    return done
