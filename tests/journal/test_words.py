"""A word on the image of a disk ends the doubts that were known when it was given, and no other one."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from pivotd.core.overwritten import Overwritten
from pivotd.core.pivot import Accepted, Phase, Pivot, PivotDisk
from pivotd.errors import RevisionConflictError
from pivotd.journal import place
from pivotd.journal.journal import Journal
from pivotd.journal.reader import Reader
from tests.journal.samples import make_pivot

WORD = Accepted("/images/found.qcow2", "qcow2", "2026-11-30T17:00:00.000000Z", 0, "compared")


async def restored(journal: Journal, _last: Pivot) -> None:
    await journal.check_file()


async def left(journal: Journal, last: Pivot) -> None:
    await journal.left(last.domain)


async def ran_elsewhere(journal: Journal, last: Pivot) -> None:
    await journal.ran_on(last, last.disks[0], ("/images/other.qcow2", "qcow2"))


async def overwritten(journal: Journal, last: Pivot) -> None:
    other = make_pivot(2, domain="web2")
    mark = Overwritten(last.domain, last.disks[0].disk, "/images/new.qcow2", other.id, other.domain)
    await journal.accept(other, {}, [mark])


async def moved_again(journal: Journal, last: Pivot) -> None:
    await journal.accept(make_pivot(2, disk=last.disks[0].disk), {})


Doubt = Callable[[Journal, Pivot], Awaitable[None]]


def known(directory: Path, last: Pivot) -> tuple[PivotDisk, str | None]:
    """Return the first disk of a pivot, and the mark on it, as they are now."""
    reader = Reader.attach(directory)
    try:
        ((_, disk), *_) = reader.latest(last.domain, last.disks[0].disk, ("", ""), 1)
        mark = reader.overwritten().get((last.domain, disk.disk))
        return disk, None if mark is None else mark.pivot
    finally:
        reader.close()


@pytest.mark.parametrize("doubt", [restored, left, ran_elsewhere, overwritten, moved_again])
async def test_a_doubt_that_is_new_since(
    journal: Journal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, doubt: Doubt
) -> None:
    """Nothing is recorded; given again, the word counts."""
    await journal.check_file()
    monkeypatch.setattr(place, "identity", lambda _path: "another file")
    last, _ = await journal.accept(make_pivot(1), {})
    last = await journal.advance(last, "closed", {}, phase=Phase.CLOSED, closed_at="2026-11-30T16:00:00.000000Z")
    disk, mark = known(tmp_path, last)
    await doubt(journal, last)
    before = journal.last_seq
    with pytest.raises(RevisionConflictError, match=r"what is known of .* has changed"):
        await journal.accept_image(last, disk, WORD, {}, mark=mark, fleet_epoch=None)
    assert journal.last_seq == before
    if doubt is moved_again:
        return
    disk, mark = known(tmp_path, last)
    assert disk.doubtful or disk.left_at or disk.ran_on or mark
    again = await journal.accept_image(last, disk, WORD, {}, mark=mark, fleet_epoch=None)
    assert [one.accepted for one in again.disks] == [WORD, *(one.accepted for one in last.disks[1:])]
    disk, mark = known(tmp_path, last)
    assert (disk.doubtful, disk.left_at, disk.ran_on, mark) == (False, None, None, None)


@pytest.mark.parametrize("seen_as", ["qcow2", "raw"])
async def test_the_guest_is_seen_on_the_accepted_image_meanwhile(
    journal: Journal, tmp_path: Path, seen_as: str
) -> None:
    """That is no doubt about the word; the same file in another format is one."""
    await journal.check_file()
    last, _ = await journal.accept(make_pivot(1), {})
    last = await journal.advance(last, "closed", {}, phase=Phase.CLOSED, closed_at="2026-11-30T16:00:00.000000Z")
    disk, mark = known(tmp_path, last)
    await journal.ran_on(last, disk, (WORD.filename, seen_as))
    if seen_as != WORD.format:
        with pytest.raises(RevisionConflictError):
            await journal.accept_image(last, disk, WORD, {}, mark=mark, fleet_epoch=None)
        return
    accepted = await journal.accept_image(last, disk, WORD, {}, mark=mark, fleet_epoch=None)
    assert accepted.disks[0].accepted == WORD
    assert known(tmp_path, last)[0].ran_on is None
