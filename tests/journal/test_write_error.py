"""A write that fails in a way that leaves the fate of the record open."""

from __future__ import annotations

import resource
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pivotd.core.words import Phase
from pivotd.errors import JournalWriteError
from pivotd.journal.journal import Journal
from tests.journal.samples import make_pivot


@contextmanager
def files_no_longer_than(size_bytes: int) -> Iterator[None]:
    """Let the kernel refuse longer files with EFBIG, which SQLite reports as an I/O error of write."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


async def test_io_error_is_a_write_error_and_settle_makes_it_certain(tmp_path: Path) -> None:
    """A failed write is JournalWriteError; after settle the record is absent for certain and the retry succeeds."""
    journal = Journal.open(tmp_path)
    before, _ = await journal.accept(make_pivot(1), {})
    wal = tmp_path / "journal.db-wal"
    with files_no_longer_than(wal.stat().st_size + 5000), pytest.raises(JournalWriteError, match="may or may not"):
        await journal.advance(before, "switched", {"text": "x" * 20000}, phase=Phase.DECIDED)
    assert not journal.healthy
    assert await journal.settle()
    assert wal.stat().st_size == 0
    assert journal.open_pivots() == [before]
    after = await journal.advance(before, "switched", {}, phase=Phase.DECIDED)
    assert journal.healthy
    await journal.close()
    connection = sqlite3.connect(journal.path)
    assert connection.execute("SELECT seq, event FROM record").fetchall() == [(1, "accepted"), (2, "switched")]
    connection.close()
    assert after.phase is Phase.DECIDED


async def test_settle_that_cannot_write_is_not_certain(tmp_path: Path) -> None:
    """While the storage still refuses to take pages, settle says False and loses nothing."""
    journal = Journal.open(tmp_path)
    for _ in range(3):
        await journal.note("n", {"text": "x" * 20000})
    with files_no_longer_than(journal.path.stat().st_size):
        assert not await journal.settle()
    assert await journal.settle()
    await journal.close()
