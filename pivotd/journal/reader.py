"""Reading the journal: beside the daemon, or without it and without leaving a trace."""

from __future__ import annotations

import sqlite3
import tempfile
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

from pivotd import limits
from pivotd.core.pivot import Pivot, Record
from pivotd.errors import JournalError
from pivotd.journal import offline, schema
from pivotd.journal.changes import domains, last_seq
from pivotd.journal.failures import on_read
from pivotd.journal.rows import DomainRow, load_pivots, record

T = TypeVar("T")


class Reader:
    """A read-only view; each call sees one consistent state. Threads may share it.

    Raises from every method: JournalError and its subclasses.
    """

    def __init__(
        self, path: Path, connection: sqlite3.Connection, directory: tempfile.TemporaryDirectory[str] | None = None
    ) -> None:
        """Use ``attach`` or ``offline``."""
        self.path = path
        self._connection = connection
        self._directory = directory
        self._mutex = threading.Lock()

    @property
    def beside_daemon(self) -> bool:
        """Whether a daemon owned the journal when it was opened: more records may come."""
        return self._directory is None

    @classmethod
    def attach(cls, state_dir_or_file: Path) -> Reader:
        """Read the live journal from inside the daemon, after ``Journal.open``. Raises: JournalError."""
        path = offline.journal_path(state_dir_or_file)
        try:
            return cls(path, schema.connect_read_only(path))
        except sqlite3.Error as error:
            raise on_read(error, path) from error

    @classmethod
    def offline(cls, state_dir_or_file: Path) -> Reader:
        """Read a journal, or a copy of one, without creating or changing anything beside it.

        While a daemon owns it: the live file, read only, not even its shared memory is written. Otherwise: a private
        copy that is gone after ``close``, with the daemon kept out for the moment of copying.

        Raises: JournalError, JournalCorruptError, JournalNewerError.
        """
        path, connection, directory = offline.open_journal(state_dir_or_file)
        return cls(path, connection, directory)

    def pivots(
        self, domain: str | None = None, open_only: bool = False, limit: int = limits.PIVOTS_LISTED_MAX
    ) -> list[Pivot]:
        """Return pivots, newest first."""
        terms, parameters = _where(("domain = ?", domain), ("phase <> 'closed'", open_only or None))
        parameters = [value for value in parameters if value is not True]
        query = f"SELECT * FROM pivot {terms} ORDER BY number DESC LIMIT ?"  # noqa: S608 - constants of ours
        return self._load(query, (*parameters, limit))

    def pivot(self, id_or_request_id: str) -> Pivot | None:
        """Return one pivot by its id, else by its request id."""
        query = "SELECT * FROM pivot WHERE id = ?1 OR request_id = ?1 ORDER BY id <> ?1 LIMIT 1"
        found = self._load(query, (id_or_request_id,))
        return found[0] if found else None

    def undo(self, pivot_id: str) -> Pivot | None:
        """Return the pivot that takes this one back, None if there is none."""
        found = self._load("SELECT * FROM pivot WHERE undo_of = ?", (pivot_id,))
        return found[0] if found else None

    def records(self, pivot_id: str) -> list[Record]:
        """Return every record of one pivot, oldest first."""
        return self._records("SELECT * FROM record WHERE pivot = ? ORDER BY seq", (pivot_id,))

    def events(self, after: int, limit: int = limits.EVENTS_PAGE_MAX) -> list[Record]:
        """Return up to ``limit`` records with seq > after, oldest first."""
        return self._records("SELECT * FROM record WHERE seq > ? ORDER BY seq LIMIT ?", (after, limit))

    def last_seq(self) -> int:
        """Return the sequence number of the last record, 0 if there is none."""
        return self._read(last_seq)

    def domains(self) -> list[DomainRow]:
        """Return the domains that were added at run time, by name."""
        return self._read(domains)

    def disk_history(self, domain: str | None = None, disk: str | None = None) -> list[Pivot]:
        """Return every pivot that touches a disk, newest first by order of acceptance, not by the clock.

        Without a bound on purpose: a verdict on a list that was cut could name the wrong image.
        """
        terms, parameters = _where(
            ("domain = ?", domain), ("id IN (SELECT pivot FROM pivot_disk WHERE disk = ?)", disk)
        )
        query = f"SELECT * FROM pivot {terms} ORDER BY number DESC"  # noqa: S608 - constants of ours
        return self._load(query, parameters)

    def check(self) -> list[str]:
        """Return what SQLite's quick_check and foreign_key_check find wrong; reads the whole file."""

        def look(connection: sqlite3.Connection) -> list[str]:
            found = [row[0] for row in connection.execute("PRAGMA quick_check")]
            orphans = connection.execute("PRAGMA foreign_key_check").fetchall()
            return [line for line in found if line != "ok"] + [
                f"{row[0]} row {row[1]} has no {row[2]}" for row in orphans
            ]

        return self._read(look)

    def close(self) -> None:
        """Close, and remove the private copy if there is one."""
        with self._mutex:
            self._connection.close()
            if self._directory is not None:
                self._directory.cleanup()

    def _load(self, query: str, parameters: Iterable[object]) -> list[Pivot]:
        return self._read(lambda connection: load_pivots(connection, query, parameters))

    def _records(self, query: str, parameters: Iterable[object]) -> list[Record]:
        return self._read(lambda connection: [record(row) for row in connection.execute(query, tuple(parameters))])

    def _read(self, look: Callable[[sqlite3.Connection], T]) -> T:
        """Run ``look`` over one snapshot, and end the snapshot: an old one would keep the WAL from being emptied."""
        with self._mutex:
            try:
                self._connection.execute("BEGIN")
                try:
                    return look(self._connection)
                finally:
                    if self._connection.in_transaction:
                        self._connection.execute("ROLLBACK")
            except JournalError:
                raise
            except (sqlite3.Error, ValueError, TypeError, LookupError) as error:
                raise on_read(error, self.path) from error


def _where(*terms: tuple[str, object | None]) -> tuple[str, list[object]]:
    """Return a WHERE clause of the terms that have a value, and the values."""
    used = [(term, value) for term, value in terms if value is not None]
    if not used:
        return "", []
    return "WHERE " + " AND ".join(term for term, _ in used), [value for _, value in used]
