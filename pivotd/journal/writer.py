"""The writer thread: group commit, one bad change fails alone, checkpoints only while no guest is in its pause.

This thread opens, uses and closes the connection (SQLite's thread check stays on). All waiting changes go into one
transaction, each in a savepoint of its own. No caller gets an answer before COMMIT has returned.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from pivotd import limits
from pivotd.core.pivot import Record
from pivotd.counts import COUNTS
from pivotd.errors import JournalError, JournalWriteError, PivotdError
from pivotd.journal.changes import Change, last_seq
from pivotd.journal.sqlite_failures import is_refusal, may_leave_frames, on_write
from pivotd.log import get_logger

log = get_logger()
T = TypeVar("T")

CHECKPOINT_ROWS = 3000
"""Checkpoint after this many rows even if busy: a WAL of about 20 MB, replayed in milliseconds after a kill."""
CHECKPOINT_IDLE_S = 1.0
"""Checkpoint the rest after this time without a request."""

_MAYBE = "the record may or may not be there"
_RESTART = "restart pivotd"

Announce = Callable[[list[Record]], None]


class _Job:
    """One change and its result."""

    __slots__ = ("change", "error", "future", "records", "result")

    def __init__(self, change: Change[Any], future: asyncio.Future[Any]) -> None:
        self.change = change
        self.future = future
        self.forget()

    def forget(self) -> None:
        """Forget a try that was rolled back."""
        self.result: Any = None
        self.records: Sequence[Record] = ()
        self.error: Exception | None = None

    def run(self, connection: sqlite3.Connection) -> None:
        self.result, self.records = self.change(connection)


class _Task:
    """One function that runs on the thread outside a transaction."""

    __slots__ = ("function", "future", "last")

    def __init__(self, function: Callable[[sqlite3.Connection], Any], *, last: bool) -> None:
        self.function = function
        self.future: concurrent.futures.Future[Any] = concurrent.futures.Future()
        self.last = last


class Writer:
    """Owns the read-write connection."""

    def __init__(
        self,
        path: Path,
        connect: Callable[[], sqlite3.Connection],
        settle: Callable[[sqlite3.Connection], bool],
        announce: Announce,
    ) -> None:
        """Prepare.

        ``settle`` removes what a failed commit may have left and says whether that is certain; ``announce`` gets the
        records of each durable batch in the event loop, before the callers.
        """
        self._path = path
        self._connect = connect
        self._settle = settle
        self._announce = announce
        self._queue: queue.SimpleQueue[_Job | _Task] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="journal-writer", daemon=True)
        self._opened: concurrent.futures.Future[None] = concurrent.futures.Future()
        self._waiting = 0
        self._holds = 0
        self._held_since = 0.0
        self._free = asyncio.Event()
        self._free.set()
        self._rows_since_checkpoint = self._rows_at_checkpoint = 0
        self._closed = False
        self.healthy = True
        self.alive = True
        """False once an unexpected error has ended the thread: nothing is written any more."""
        self._at_work: list[_Job | _Task] = []
        self.in_doubt = False
        """A commit has failed in a way that leaves its fate open, and none has succeeded since."""
        self.committed_seq = 0
        """The last record whose COMMIT returned; written on the thread only."""

    def start(self) -> None:
        """Open the connection on its thread. Raises: sqlite3.Error, JournalError."""
        self._thread.start()
        self._opened.result()

    def hold(self, change: int) -> None:
        """Count holders of checkpoints up or down; for the first one the WAL restarts.

        Commits then overwrite existing blocks of the file: without a change of its size fdatasync takes half the time.
        """
        if change > 0 and not self._holds and self._rows_since_checkpoint and self.alive:
            self.call(self._checkpoint)
        if not self._holds:
            self._held_since = asyncio.get_running_loop().time()
            self._free.clear()
        self._holds += change
        assert self._holds >= 0, "released more often than held"
        if not self._holds:
            self._free.set()

    @property
    def held(self) -> bool:
        """Whether checkpoints are held."""
        return self._holds > 0

    async def released(self, patience_s: float) -> None:
        """Return once checkpoints are not held, or have been held for longer than patience_s."""
        with suppress(TimeoutError):
            async with asyncio.timeout_at(self._held_since + patience_s):
                await self._free.wait()

    async def submit(self, change: Change[T]) -> T:
        """Return the answer of a change once it is durable.

        A cancelled caller changes nothing: the change may still be written, and its records are still announced.

        Raises: whatever the change raises on purpose, JournalError and its subclasses.
        """
        if self._closed:
            raise JournalError(f"{self._path} is closed; nothing was recorded; start the daemon again")
        if self._waiting >= limits.JOURNAL_QUEUE_MAX:
            raise JournalError(
                f"{self._path}: {self._waiting} changes wait to be written; nothing was recorded; try again later"
            )
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._waiting += 1
        self._put(_Job(change, future))
        return await future

    def call(self, function: Callable[[sqlite3.Connection], T], *, last: bool = False) -> concurrent.futures.Future[T]:
        """Run a function on the thread, after everything queued before; ``last`` ends the thread."""
        if self._closed:
            raise JournalError(f"{self._path} is closed; start the daemon again")
        self._closed = last
        task = _Task(function, last=last)
        self._put(task)
        return task.future

    def _put(self, item: _Job | _Task) -> None:
        self._queue.put(item)
        if not self.alive:  # it may have died before this came, and after it looked for what is left
            self._fail_queued()

    def _run(self) -> None:
        try:
            connection = self._connect()
            seq = last_seq(connection)
        except BaseException as error:  # noqa: BLE001 - handed to the thread that waits for the start
            self._opened.set_exception(error)
            return
        self.committed_seq = seq
        self._opened.set_result(None)
        try:
            self._work(connection)
        except BaseException as error:  # noqa: BLE001 - whatever it was, those who wait must be told
            self._die(connection, error)

    def _work(self, connection: sqlite3.Connection) -> None:
        while True:
            jobs, task = self._next()
            self._at_work = [*jobs] if task is None else [*jobs, task]
            if jobs:
                self._write(connection, jobs)
                # Before the answer: whoever is told may hold checkpoints next, and that asks for this number.
                self._rows_since_checkpoint = connection.total_changes - self._rows_at_checkpoint
                self._deliver(jobs)
            self._at_work = [] if task is None else [task]
            if task is not None:
                self._run_task(connection, task)
                if task.last:
                    return
            self._at_work = []
            idle = not jobs and task is None
            if self._rows_since_checkpoint >= (1 if idle else CHECKPOINT_ROWS) and not self._holds:
                self._checkpoint(connection)

    def _die(self, connection: sqlite3.Connection, error: BaseException) -> None:
        """Fail every waiting caller; the batch being written may or may not be on disk."""
        self.alive = self.healthy = False
        log.error("journal.writer-died", error=repr(error))
        with suppress(Exception):
            connection.close()
        for item in self._at_work:
            self._fail(item, JournalWriteError(f"{self._path}: its writer has died ({error!r}); {_MAYBE}; {_RESTART}"))
        self._fail_queued()

    def _fail_queued(self) -> None:
        with suppress(queue.Empty):
            while True:
                item = self._queue.get_nowait()
                self._fail(item, JournalError(f"{self._path}: its writer has died; nothing was recorded; {_RESTART}"))

    def _fail(self, item: _Job | _Task, error: JournalError) -> None:
        if isinstance(item, _Task):
            with suppress(concurrent.futures.InvalidStateError):  # it has its answer, or the caller has left
                item.future.set_exception(error)
            return
        item.records, item.error = (), error
        self._deliver([item])

    def _next(self) -> tuple[list[_Job], _Task | None]:
        """Wait for work and take all of it that fits into one transaction, up to the next task."""
        jobs: list[_Job] = []
        try:
            item = self._queue.get(timeout=CHECKPOINT_IDLE_S if self._rows_since_checkpoint else None)
            while isinstance(item, _Job):
                jobs.append(item)
                if len(jobs) == limits.JOURNAL_BATCH_MAX:
                    return jobs, None
                item = self._queue.get_nowait()
        except queue.Empty:
            return jobs, None
        return jobs, item

    def _write(self, connection: sqlite3.Connection, jobs: list[_Job]) -> None:
        """Commit jobs together; if that fails, one by one, so that a bad one fails alone."""
        try:
            self._transaction(connection, jobs)
        except Exception as error:  # noqa: BLE001 - every job must get an answer, the thread must go on
            self.in_doubt = self.in_doubt or may_leave_frames(error)
            if len(jobs) > 1:
                for job in jobs:
                    self._write(connection, [job])
                return
            jobs[0].forget()
            if self.in_doubt:
                self.in_doubt = not self._settle(connection)
            jobs[0].error = (
                error if isinstance(error, PivotdError) else on_write(error, self._path, in_doubt=self.in_doubt)
            )
            if not is_refusal(error):
                self.healthy = False
                COUNTS.commits_failed += 1
        else:
            self.healthy = True
            self.in_doubt = False
            self.committed_seq = max((record.seq for job in jobs for record in job.records), default=self.committed_seq)

    def _transaction(self, connection: sqlite3.Connection, jobs: list[_Job]) -> None:
        for job in jobs:
            job.forget()
        began_s = time.monotonic()
        try:
            connection.execute("BEGIN IMMEDIATE")
            if len(jobs) == 1:
                jobs[0].run(connection)
            else:
                for job in jobs:
                    self._run_in_savepoint(connection, job)
            connection.execute("COMMIT")
            COUNTS.commits.observe(time.monotonic() - began_s)
        except BaseException:
            # An error of storage has ended the transaction already; then there is nothing left to roll back.
            if connection.in_transaction:
                with suppress(sqlite3.Error):
                    connection.execute("ROLLBACK")
            raise

    def _run_in_savepoint(self, connection: sqlite3.Connection, job: _Job) -> None:
        connection.execute("SAVEPOINT change")
        try:
            job.run(connection)
        except Exception as error:
            if not is_refusal(error):
                raise
            connection.execute("ROLLBACK TO change")
            job.error = error if isinstance(error, PivotdError) else on_write(error, self._path)
        connection.execute("RELEASE change")

    def _deliver(self, jobs: list[_Job]) -> None:
        """Wake the event loop once for a whole batch."""
        # A closed loop has no callers left; the records are on disk all the same.
        with suppress(RuntimeError):
            jobs[0].future.get_loop().call_soon_threadsafe(self._resolve, jobs)

    def _resolve(self, jobs: list[_Job]) -> None:
        self._waiting -= len(jobs)
        if records := [record for job in jobs for record in job.records]:
            self._announce(records)
        for job in jobs:
            if job.future.done():
                continue
            if job.error is not None:
                job.future.set_exception(job.error)
            else:
                job.future.set_result(job.result)

    @staticmethod
    def _run_task(connection: sqlite3.Connection, task: _Task) -> None:
        if not task.future.set_running_or_notify_cancel():
            return  # the caller has left
        try:
            result = task.function(connection)
        except BaseException as error:  # noqa: BLE001 - handed to the caller
            task.future.set_exception(error)
        else:
            task.future.set_result(result)

    def _checkpoint(self, connection: sqlite3.Connection) -> None:
        """Move the WAL into the file; PASSIVE waits for no reader. A failure loses nothing: the WAL stays."""
        with suppress(sqlite3.Error):
            connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
        self._rows_since_checkpoint, self._rows_at_checkpoint = 0, connection.total_changes
