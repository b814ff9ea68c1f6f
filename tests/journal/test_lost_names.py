"""The journal's files lose their names while it is open: nothing new is recorded where the next daemon would not look."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from pivotd import limits
from pivotd.core.pivot import Phase
from pivotd.errors import JournalLostError
from pivotd.journal.journal import Journal
from tests.journal.samples import make_pivot

FILES = ("journal.db", "journal.db-wal", "journal.lock")


def remove(path: Path) -> None:
    path.unlink()


def rename(path: Path) -> None:
    path.rename(path.with_suffix(".away"))


def replace_by_a_copy(path: Path) -> None:
    shutil.copy2(path, path.with_suffix(".copy"))
    path.with_suffix(".copy").rename(path)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("how", [remove, rename, replace_by_a_copy])
async def test_no_pivot_is_accepted(journal: Journal, how: Callable[[Path], None], name: str):
    """What, why and what next in one line; the journal is not healthy from then on."""
    path = journal.path.with_name(name)
    how(path)
    with pytest.raises(JournalLostError, match=f"^{path} is .*nothing was recorded; move the file back"):
        await journal.accept(make_pivot(1), {})
    assert not journal.healthy


async def test_no_intent_is_recorded_and_everything_else_is(journal: Journal):
    """No pause begins; what has begun comes to its end. Once the name is there again, everything goes on."""
    pivot, _ = await journal.accept(make_pivot(1), {})
    for phase in (Phase.COPYING, Phase.READY):
        pivot = await journal.advance(pivot, phase.value, {}, phase=phase)
    away = journal.path.with_suffix(".away")
    journal.path.rename(away)
    with pytest.raises(JournalLostError):
        await journal.advance(pivot, "pausing", {}, phase=Phase.PAUSING)
    assert await journal.read(pivot.id) == pivot
    pivot = await journal.advance(pivot, "note", {}, attempt=1)
    away.rename(journal.path)
    assert (await journal.advance(pivot, "pausing", {}, phase=Phase.PAUSING)).phase is Phase.PAUSING
    assert journal.healthy


async def test_nothing_else_that_somebody_asks_for_is_recorded(journal: Journal):
    """Domains that are added or removed, and the undo of a pivot."""
    pivot, _ = await journal.accept(make_pivot(1), {})
    journal.path.unlink()
    with pytest.raises(JournalLostError):
        await journal.add_domain("web9", "/run/web9.qmp", 0)
    with pytest.raises(JournalLostError):
        await journal.remove_domain("web9", 0)
    with pytest.raises(JournalLostError):
        await journal.hand_over(pivot, replace(make_pivot(2), undo_of=pivot.id), {})


async def test_a_look_tells_without_a_record(journal: Journal, monkeypatch: pytest.MonkeyPatch):
    """Health asks for it."""
    monkeypatch.setattr(limits, "JOURNAL_NAMES_S", 60.0)
    await journal.look_for_names()
    assert journal.lost is None
    away = journal.path.with_suffix(".away")
    journal.path.rename(away)
    await journal.look_for_names()
    assert str(journal.path) in (journal.lost or "")
    assert not journal.healthy
    away.rename(journal.path)
    await journal.look_for_names()
    assert journal.healthy
