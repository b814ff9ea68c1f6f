"""The writing thread: batches, order, cancellation, holds, close."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import struct
from pathlib import Path

import pytest

from pivotd import limits
from pivotd.core.pivot import Phase, Record
from pivotd.errors import JournalError, JournalWriteError, PhaseConflictError
from pivotd.journal import changes
from pivotd.journal import writer as writer_module
from pivotd.journal.journal import Journal
from pivotd.journal.reader import Reader
from pivotd.journal.sqlite_failures import on_write
from tests.journal.samples import make_pivot


async def test_a_bad_change_fails_alone(journal: Journal) -> None:
    """In one batch a conflict and a refused row fail, their neighbours are durable."""
    answers = await asyncio.gather(
        journal.note("first", {}),
        journal.advance(make_pivot(9), "x", {}, phase=Phase.READY),
        journal.note("odd", {}, pivot="nobody"),
        journal.note("last", {}),
        return_exceptions=True,
    )
    assert isinstance(answers[1], PhaseConflictError)
    assert isinstance(answers[2], JournalError)
    reader = Reader.attach(journal.path)
    assert [(record.seq, record.event) for record in reader.events(0)] == [(1, "first"), (2, "last")]
    reader.close()


async def test_subscribers_see_durable_records_in_order_before_the_writers_return(journal: Journal) -> None:
    """Records come in seq order without a gap, readable by others, before the awaiting coroutine goes on."""
    seen: list[Record] = []
    reader = Reader.attach(journal.path)

    def callback(records: list[Record]) -> None:
        assert reader.last_seq() >= records[-1].seq
        seen.extend(records)

    unsubscribe = journal.subscribe(callback)

    async def write(number: int) -> None:
        record = await journal.note("n", {"number": number})
        assert record in seen
        assert journal.last_seq >= record.seq

    await asyncio.gather(*(write(number) for number in range(2 * limits.JOURNAL_BATCH_MAX + 3)))
    unsubscribe()
    await journal.note("unseen", {})
    assert [record.seq for record in seen] == list(range(1, 2 * limits.JOURNAL_BATCH_MAX + 4))
    assert seen == reader.events(0)[:-1]
    reader.close()


async def test_batches_are_group_committed(journal: Journal) -> None:
    """Changes queued in one turn of the loop share a transaction: one announcement for all of them."""
    batches: list[int] = []
    journal.subscribe(lambda records: batches.append(len(records)))
    await asyncio.gather(*(journal.note("n", {}) for _ in range(200)))
    assert sum(batches) == 200
    assert len(batches) < 50


async def test_a_failing_subscriber_harms_nobody(journal: Journal) -> None:
    """An exception in a callback goes to the loop's handler; writers and other callbacks go on."""
    faults: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: faults.append(context["exception"]))
    seen: list[Record] = []

    def bad(records: list[Record]) -> None:
        raise ZeroDivisionError

    journal.subscribe(bad)
    journal.subscribe(seen.extend)
    record = await journal.note("n", {})
    assert seen == [record]
    assert [type(fault) for fault in faults] == [ZeroDivisionError]


async def test_a_cancelled_caller_loses_nothing(journal: Journal) -> None:
    """A change whose caller was cancelled is written or not, whole; everything after it works."""
    task = asyncio.create_task(journal.accept(make_pivot(1), {}))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await journal.note("after", {})
    reader = Reader.attach(journal.path)
    assert [record.event for record in reader.events(0)] == ["accepted", "after"]
    reader.close()


async def test_the_queue_is_bounded(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the limit a change is refused at once, and room comes back."""
    monkeypatch.setattr(limits, "JOURNAL_QUEUE_MAX", 2)
    answers = await asyncio.gather(*(journal.note("n", {}) for _ in range(3)), return_exceptions=True)
    assert [isinstance(answer, JournalError) for answer in answers] == [False, False, True]
    assert (await journal.note("n", {})).seq == 3


async def test_no_checkpoint_while_held(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over the bound the writer checkpoints, but not between hold and the last release."""
    monkeypatch.setattr(writer_module, "CHECKPOINT_ROWS", 1)

    size = journal.path.stat().st_size
    journal.hold_checkpoints()
    journal.hold_checkpoints()
    for _ in range(20):
        await journal.note("n", {"text": "x" * 2000})
    journal.release_checkpoints()
    await journal.note("n", {})
    journal._writer.call(lambda connection: None).result()
    assert journal.path.stat().st_size == size
    journal.release_checkpoints()
    await journal.note("n", {})
    # The writer is serial: when it answers the second call, the checkpoint after the note is done.
    journal._writer.call(lambda connection: None).result()
    journal._writer.call(lambda connection: None).result()
    assert journal.path.stat().st_size > size


async def test_a_change_of_many_rows_counts_as_many(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    """Archiving deletes hundreds of rows at once, for hours: the WAL stays as small as by pivots."""
    monkeypatch.setattr(writer_module, "CHECKPOINT_ROWS", 1000)
    note = changes.note("n", {"text": "x" * 100}, None, None)

    def many(connection: sqlite3.Connection) -> tuple[None, list[Record]]:
        for _ in range(100):
            note(connection)
        return None, []

    for _ in range(50):
        await journal._writer.submit(many)
    size = journal.path.with_name("journal.db-wal").stat().st_size
    assert size < (1 << 20), "as much as ten of these changes and a commit write"


async def test_close_writes_what_is_queued(tmp_path: Path) -> None:
    """Everything handed over before close is durable after it, in the one file that is left."""
    journal = Journal.open(tmp_path)
    notes = [asyncio.create_task(journal.note("n", {})) for _ in range(500)]
    await asyncio.sleep(0)
    await journal.close()
    await asyncio.gather(*notes)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["journal.db", "journal.lock"]
    connection = sqlite3.connect(journal.path)
    assert connection.execute("SELECT count(*) FROM record").fetchone() == (500,)
    connection.close()


async def test_after_close_nothing_is_taken(tmp_path: Path) -> None:
    """A closed journal refuses changes and may be closed again."""
    journal = Journal.open(tmp_path)
    await journal.close()
    await journal.close()
    with pytest.raises(JournalError, match="is closed"):
        await journal.note("n", {})


async def test_settle_cuts_off_what_does_not_count(journal: Journal) -> None:
    """Frames behind the last committed one go, also under the eyes of a reader; the committed ones stay."""
    await journal.note("n", {})
    wal = journal.path.with_name("journal.db-wal")
    counted = wal.read_bytes()
    other = sqlite3.connect(f"file:{journal.path}?mode=ro", uri=True, isolation_level=None)
    other.execute("BEGIN")
    assert other.execute("SELECT count(*) FROM record").fetchone() == (1,)
    with wal.open("ab") as file:
        file.write(counted[32:])
    assert await journal.settle()
    assert wal.read_bytes() == counted
    assert (await journal.note("n", {})).seq == 2
    assert other.execute("SELECT count(*) FROM record").fetchone() == (1,)
    other.close()


async def test_settle_is_not_certain_while_somebody_else_writes(journal: Journal) -> None:
    """Then the frames behind the last committed one may be another's; nothing is touched."""
    await journal.note("n", {})
    other = sqlite3.connect(journal.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    assert not await journal.settle()
    other.close()
    assert await journal.settle()


UNKNOWN_INDEXES = {
    "empty": b"",
    "short": b"\0" * 19,
    "not filled": struct.pack("=I 8x ? x H I 28x", 3007000, False, 4096, 0),
    "of another version": struct.pack("=I 8x ? x H I 28x", 3007001, True, 4096, 0),
    "of the largest pages": struct.pack("=I 8x ? x H I 28x", 3007000, True, 1, 1),
}


@pytest.mark.parametrize("index", UNKNOWN_INDEXES.values(), ids=UNKNOWN_INDEXES.keys())
async def test_settle_knows_the_wal_index_or_does_nothing(journal: Journal, tmp_path: Path, index: bytes) -> None:
    """Not a byte of the WAL is cut by a number that may mean something else."""
    await journal.note("n", {})
    wal = journal.path.with_name("journal.db-wal")
    before = wal.read_bytes()
    (tmp_path / "index").write_bytes(index)
    known = journal._wal_index
    journal._wal_index = os.open(tmp_path / "index", os.O_RDONLY)
    assert not await journal.settle()
    os.close(journal._wal_index)
    journal._wal_index = known
    assert wal.read_bytes() == before
    assert await journal.settle()


@pytest.mark.parametrize(
    "code", [sqlite3.SQLITE_FULL, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_BUSY, sqlite3.SQLITE_IOERR]
)
def test_no_error_of_storage_is_certain_while_an_earlier_try_is_in_doubt(tmp_path: Path, code: int) -> None:
    """The record may have been part of that try; else each says that nothing was recorded."""
    error = sqlite3.OperationalError("it failed")
    error.sqlite_errorcode = code
    assert isinstance(on_write(error, tmp_path, in_doubt=True), JournalWriteError)
    certain = on_write(error, tmp_path)
    assert not isinstance(certain, JournalWriteError)
    assert "nothing was recorded" in certain.message


async def test_settle_is_not_certain_of_a_record_reported_as_failed(journal: Journal) -> None:
    """A record that can be seen though its commit was reported as failed makes settle refuse."""
    await journal.note("n", {})
    journal._writer.committed_seq = 0
    assert not await journal.settle()


async def test_a_strangers_write_lock_refuses_the_change_and_recovers(journal: Journal) -> None:
    """While another program writes, a change fails in bounded time as certainly absent; then all is well."""
    other = sqlite3.connect(journal.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(JournalError, match="another program") as caught:
        await journal.note("n", {})
    assert type(caught.value) is JournalError
    assert not journal.healthy
    other.execute("ROLLBACK")
    other.execute("PRAGMA wal_autocheckpoint = 0")
    other.close()
    assert (await journal.note("n", {})).seq == 1
    assert journal.healthy
