"""A write that fails: test_journal_faults.py has those that leave the fate of the record open."""

from __future__ import annotations

import resource
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pivotd.core.pivot import Phase
from pivotd.errors import JournalError, JournalWriteError
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


async def test_a_write_that_fails_is_certainly_absent(tmp_path: Path) -> None:
    """The frames of the failed commit are cut off at once, so the error says so and the retry succeeds."""
    journal = Journal.open(tmp_path)
    before, _ = await journal.accept(make_pivot(1), {})
    wal = tmp_path / "journal.db-wal"
    counted_bytes = wal.stat().st_size
    with (
        files_no_longer_than(counted_bytes + 5000),
        pytest.raises(JournalError, match="nothing was recorded") as caught,
    ):
        await journal.advance(before, "switched", {"text": "x" * 20000}, phase=Phase.DECIDED)
    assert not isinstance(caught.value, JournalWriteError)
    assert not journal.healthy
    assert wal.stat().st_size == counted_bytes
    assert journal.open_pivots() == [before]
    after = await journal.advance(before, "switched", {}, phase=Phase.DECIDED)
    assert journal.healthy
    await journal.close()
    connection = sqlite3.connect(journal.path)
    assert connection.execute("SELECT seq, event FROM record").fetchall() == [(1, "accepted"), (2, "switched")]
    connection.close()
    assert after.phase is Phase.DECIDED
