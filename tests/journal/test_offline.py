"""The offline reader reads everything and touches nothing."""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from pivotd.core.pivot import Phase
from pivotd.errors import JournalCorruptError, JournalError
from pivotd.journal import offline, raw_files
from pivotd.journal.journal import Journal
from pivotd.journal.reader import Reader
from tests.journal.process import look, wait_for, working

WAL_HEADER_BYTES = 32
SQLITE_WAITS_S = 10
READERS = 4
EVENTS = [(1, "accepted"), (2, "copying")]


def events(where: Path) -> list[tuple[int, str]]:
    reader = Reader.offline(where)
    try:
        assert [pivot.phase for pivot in reader.pivots()] == [Phase.COPYING]
        assert reader.check() == []
        return [(record.seq, record.event) for record in reader.events(0)]
    finally:
        reader.close()


def test_live_journal(tmp_path: Path) -> None:
    """Beside a running daemon the reader sees every durable record; no file changes, not even shared memory."""
    with working(tmp_path, "hold") as process:
        wait_for(process, "held")
        before = look(tmp_path)
        assert events(tmp_path) == EVENTS
        assert events(tmp_path / "journal.db") == EVENTS
        assert look(tmp_path) == before


def test_killed_daemon(tmp_path: Path) -> None:
    """After kill -9 the records that are only in the WAL are read, and it stays as the daemon left it."""
    with working(tmp_path, "hold") as process:
        wait_for(process, "held")
    assert (tmp_path / "journal.db-wal").stat().st_size
    before = look(tmp_path)
    assert events(tmp_path) == EVENTS
    assert look(tmp_path) == before


@pytest.mark.parametrize("killed", [False, True])
def test_no_copy_is_made_of_a_journal_that_can_be_read_in_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed: bool
) -> None:
    """Neither after an orderly end nor after kill -9: a journal may be as long as all of history."""
    with working(tmp_path, "hold") as process:
        wait_for(process, "held")
    if not killed:
        asyncio.run(Journal.open(tmp_path).close())
    monkeypatch.setattr(raw_files, "copy", None)
    before = look(tmp_path)
    assert events(tmp_path) == EVENTS
    assert look(tmp_path) == before


@pytest.mark.parametrize("place", [0, 12, 25])
def test_a_wal_with_a_damaged_header_is_read_as_sqlite_reads_it(tmp_path: Path, place: int) -> None:
    """As empty, and without the ten seconds for which SQLite waits where it may not write."""
    asyncio.run(Journal.open(tmp_path).close())
    with working(tmp_path, "hold") as process:
        wait_for(process, "held")
    with (tmp_path / "journal.db-wal").open("r+b") as file:
        file.seek(place)
        file.write(b"\xa5")
    began_s = time.monotonic()
    reader = Reader.offline(tmp_path)
    assert reader.events(0) == []
    reader.close()
    assert time.monotonic() - began_s < SQLITE_WAITS_S


async def test_an_open_reader_keeps_no_daemon_out_and_sees_what_it_writes(tmp_path: Path) -> None:
    """Each look is one of its own: before a daemon starts, while it runs, and after it has ended."""
    await Journal.open(tmp_path).close()
    reader = Reader.offline(tmp_path)
    assert (reader.last_seq(), reader.beside_daemon) == (0, False)
    journal = Journal.open(tmp_path)
    await journal.note("n", {})
    assert (reader.last_seq(), reader.beside_daemon) == (1, True)
    await journal.note("n", {})
    await journal.close()
    assert (reader.last_seq(), reader.beside_daemon) == (2, False)
    reader.close()


def test_readers_that_come_and_go_keep_no_daemon_out(tmp_path: Path) -> None:
    """However many there are: each looks for milliseconds, but together they would hold the lock for ever."""
    asyncio.run(Journal.open(tmp_path).close())
    with ExitStack() as stack:
        for _ in range(READERS):
            wait_for(stack.enter_context(working(tmp_path, "look")), "looked")
        for _ in range(3):
            asyncio.run(Journal.open(tmp_path).close())


@pytest.mark.long
def test_daemon_that_dies_while_its_journal_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader that found the lock taken, and the daemon dead a moment later, still reads.

    SQLite waits for ten seconds where a WAL has no record yet and its writer is gone: longer than the reader's patience.
    """
    with working(tmp_path, "hold") as process:
        wait_for(process, "held")

        def open_too_late(path: Path) -> offline.Opened | None:
            process.kill()
            process.wait()
            os.truncate(tmp_path / "journal.db-wal", WAL_HEADER_BYTES)
            return open_live(path)

        open_live = offline._open_live
        monkeypatch.setattr(offline, "_open_live", open_too_late)
        reader = Reader.offline(tmp_path)
    assert reader.pivots() == []
    reader.close()


@pytest.mark.parametrize("with_wal", [True, False])
def test_copy_in_a_read_only_directory(tmp_path: Path, with_wal: bool) -> None:
    """A copy under another name in a directory that cannot be written is read, with and without its WAL."""
    state, aside = tmp_path / "state", tmp_path / "aside"
    state.mkdir()
    aside.mkdir()
    with working(state, "hold") as process:
        wait_for(process, "held")
    if not with_wal:
        asyncio.run(Journal.open(state).close())
    for suffix in ["", "-wal"] if with_wal else [""]:
        shutil.copy(state / f"journal.db{suffix}", aside / f"evidence.db{suffix}")
    aside.chmod(0o500)
    before = look(aside)
    assert events(aside / "evidence.db") == EVENTS
    assert look(aside) == before
    aside.chmod(0o700)


def test_private_copy_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is left in the temporary directory after close, nor after a refusal."""
    state, temporary = tmp_path / "state", tmp_path / "temporary"
    state.mkdir()
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    asyncio.run(Journal.open(state).close())
    Reader.offline(state).close()
    (tmp_path / "text.db").write_text("no journal " * 100)
    with pytest.raises(JournalCorruptError):
        Reader.offline(tmp_path / "text.db")
    assert list(temporary.iterdir()) == []


def test_missing_journal_is_not_made(tmp_path: Path) -> None:
    """Reading where no journal is raises an error and creates none."""
    with pytest.raises(JournalError, match="there is no journal"):
        Reader.offline(tmp_path)
    assert list(tmp_path.iterdir()) == []
