"""Reading the journal: inside the daemon, or without it and without leaving a trace."""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from pivotd import limits
from pivotd.core.list_filters import EventFilter, PivotFilter
from pivotd.core.overwritten import Overwritten
from pivotd.core.pivot import Pivot, Record
from pivotd.errors import JournalError, JournalLockedError, NotFoundError
from pivotd.journal import history, offline, place, schema, search
from pivotd.journal.archives import Archives
from pivotd.journal.changes import domains, last_seq
from pivotd.journal.history import ArchiveState, Page, Sizes
from pivotd.journal.rows import DomainRow, Moved, load_moved
from pivotd.journal.search import Found, Place, where
from pivotd.journal.sqlite_failures import on_read

T = TypeVar("T")
_WRONG_LATEST = """
    WITH newest AS (
        SELECT domain, disk, id, max(number) FROM pivot JOIN pivot_disk ON pivot_disk.pivot = pivot.id
        GROUP BY domain, disk
    )
    SELECT domain, disk FROM newest LEFT JOIN disk_latest USING (domain, disk)
    WHERE disk_latest.pivot IS NOT newest.id ORDER BY domain, disk
"""


class Reader:
    """A read-only view; each call sees one consistent state. Threads may share it.

    Raises from every method: JournalError and its subclasses.
    """

    def __init__(self, path: Path, opened: offline.Opened | None = None) -> None:
        """Use ``attach`` or ``offline``."""
        self.path = path
        self._opened = opened
        self._mutex = threading.RLock()
        self._state: sqlite3.Connection | None = None
        """The connection of ``at_once``, while that looks."""
        self._archive_copies: dict[str, offline.Opened] = {}
        self.beside_daemon = opened is not None
        """Whether a daemon owned the journal at the last look: more records may come."""

    @classmethod
    def attach(cls, state_dir_or_file: Path) -> Reader:
        """Read the live journal from inside the daemon, after ``Journal.open``. Raises: JournalError."""
        path = offline.journal_path(state_dir_or_file)
        try:
            return cls(path, offline.Opened(schema.connect_read_only(path), live=True))
        except sqlite3.Error as error:
            raise on_read(error, path) from error

    @classmethod
    def offline(cls, state_dir_or_file: Path) -> Reader:
        """Read a journal, or a copy of one, without creating or changing anything beside it.

        Each look opens it anew, which keeps a daemon from starting only for that time. If SQLite cannot read it in this
        way, the reader makes a private copy, which ``close`` removes.

        Raises: JournalError, JournalCorruptError, JournalNewerError.
        """
        reader = cls(offline.journal_path(state_dir_or_file))
        reader.last_seq()
        return reader

    def at_once(self, look: Callable[[], T]) -> T:
        """Run ``look``, for which all calls of this reader see one state; it must neither wait nor look at files."""

        def within(connection: sqlite3.Connection) -> T:
            if self._state is not None:  # one within another, in this thread
                return look()
            self._state = connection
            try:
                return look()
            finally:
                self._state = None

        return self._read(within)

    def pivots(
        self,
        domain: str | None = None,
        open_only: bool = False,
        limit: int = limits.PIVOTS_LISTED_MAX,
        before: str | None = None,
    ) -> list[Pivot]:
        """Return pivots, newest first; ``before``: only those that were accepted before the pivot with this id.

        Raises: NotFoundError: there is no pivot ``before``.
        """
        page = Page(domain, open_only, limit, before)
        return self._read_all(lambda connection, archives: history.pivots(connection, archives, page))

    def pivots_page(self, chosen: PivotFilter, place: Place[str]) -> Found[Pivot, str]:
        """Return the next pivots that a filter wants, newest first, and where to go on. Raises: NotFoundError."""
        return self._read_all(lambda connection, archives: search.pivots(connection, archives, chosen, place))

    def count(self, chosen: PivotFilter) -> int:
        """Return how many pivots a filter wants that is indexed."""
        return self._read(lambda connection: search.count(connection, chosen))

    def named(self, name: str, limit: int) -> list[Pivot]:
        """Return the pivot with this id or request id; else up to ``limit`` whose ids begin so, in order."""
        return self._read_all(lambda connection, archives: search.named(connection, archives, name, limit))

    def events_page(self, chosen: EventFilter, place: Place[int]) -> Found[Record, int]:
        """Return the next records that a filter wants, oldest first, and above which to go on."""
        return self._read_all(lambda connection, archives: search.records(connection, archives, chosen, place))

    def last_events(self, chosen: EventFilter, place: Place[int]) -> Found[Record, int]:
        """Return the last records that a filter wants, newest first, and below which to go on."""
        return self._read_all(lambda connection, archives: search.last_records(connection, archives, chosen, place))

    def pivot(self, id_or_request_id: str) -> Pivot | None:
        """Return one pivot by its id, else by its request id."""
        return self._read_all(lambda connection, archives: history.pivot(connection, archives, id_or_request_id))

    def undo(self, pivot_id: str) -> Pivot | None:
        """Return the pivot that undoes this one, None if there is none."""
        return self._read_all(lambda connection, archives: history.undo(connection, archives, pivot_id))

    def records(self, pivot_id: str) -> list[Record]:
        """Return every record of one pivot, oldest first."""
        return self._read_all(lambda connection, archives: history.records(connection, archives, pivot_id))

    def with_records(self, id_or_request_id: str) -> tuple[Pivot, list[Record]] | None:
        """Return one pivot by its id, else by its request id, and its records, oldest first, as of one moment."""

        def look(connection: sqlite3.Connection, archives: Archives) -> tuple[Pivot, list[Record]] | None:
            found = history.pivot(connection, archives, id_or_request_id)
            return None if found is None else (found, history.records(connection, archives, found.id))

        return self._read_all(look)

    def events(self, after: int, limit: int = limits.EVENTS_PAGE_MAX) -> list[Record]:
        """Return up to ``limit`` records with seq > after, oldest first."""
        return self._read_all(lambda connection, archives: history.events(connection, archives, after, limit))

    def last_seq(self) -> int:
        """Return the sequence number of the last record, 0 if there is none."""
        return self._read(last_seq)

    def domains(self) -> list[DomainRow]:
        """Return the domains that were added at run time, by name."""
        return self._read(domains)

    def latest(
        self,
        domain: str | None = None,
        disk: str | None = None,
        after: tuple[str, str] = ("", ""),
        limit: int = limits.PIVOTS_LISTED_MAX,
    ) -> list[Moved]:
        """Return the last pivot of each disk and the disk in it, by domain and disk, up to ``limit`` of them.

        Last by order of acceptance, not by the clock. ``after``: domain and disk of the last one seen.
        """
        terms, parameters = where(("(domain, disk) > (?, ?)", ""), ("domain = ?", domain), ("disk = ?", disk))
        query = f"SELECT * FROM disk_latest {terms} ORDER BY domain, disk LIMIT ?"  # noqa: S608 - constants of ours
        every = (*after, *parameters[1:], limit)
        return self._read(lambda connection: load_moved(connection, query, every))

    def every_latest(self, domain: str | None = None, disk: str | None = None) -> Iterator[Moved]:
        """Yield the last pivot of every disk, as ``latest`` does; each page is a state of its own."""
        after = ("", "")
        while page := self.latest(domain, disk, after):
            yield from page
            after = (page[-1][0].domain, page[-1][1].disk)

    def image(self, names: Collection[str], file_ids: Collection[str] = ()) -> list[Moved]:
        """Return, for each disk that has ever had an image of these names, or these files, its last such pivot."""
        query = (
            "SELECT domain, disk, pivot FROM image_latest WHERE filename IN (SELECT value FROM json_each(?)) "
            "UNION SELECT domain, disk, pivot FROM image_latest WHERE file_id IN (SELECT value FROM json_each(?)) "
            "ORDER BY domain, disk, pivot"
        )
        parameters = json.dumps(list(names)), json.dumps(list(file_ids))
        return self._read(lambda connection: load_moved(connection, query, parameters))

    def images(self, after: str, limit: int) -> tuple[list[str], list[tuple[str, Moved, Moved]]]:
        """Return up to ``limit`` names of images after this one, in order, and a row for each and a disk that had it.

        A row is the name, the last pivot of the disk that knew the image, and the last pivot of the disk.
        """
        named = "FROM image_latest WHERE filename IN (SELECT value FROM json_each(?))"
        of_disks = f"SELECT * FROM disk_latest WHERE (domain, disk) IN (SELECT domain, disk {named})"  # noqa: S608 - ours
        every = f"SELECT * {named} ORDER BY filename, domain, disk"

        def look(connection: sqlite3.Connection) -> tuple[list[str], list[tuple[str, Moved, Moved]]]:
            query = "SELECT DISTINCT filename FROM image_latest WHERE filename > ? ORDER BY filename LIMIT ?"
            names = [row[0] for row in connection.execute(query, (after, limit))]
            text = (json.dumps(names),)
            of_name = [row["filename"] for row in connection.execute(every, text)]
            latest = {(one[0].domain, one[1].disk): one for one in load_moved(connection, of_disks, text)}
            moved = load_moved(connection, every, text)
            rows = zip(of_name, moved, strict=True)
            return names, [(name, one, latest[one[0].domain, one[1].disk]) for name, one in rows]

        return self._read(look)

    def overwritten(self) -> dict[tuple[str, str], Overwritten]:
        """Return, by domain and disk, the disks whose image a pivot of another one overwrites, or has moved on from."""
        query = "SELECT o.*, pivot.domain AS by_domain FROM overwritten o JOIN pivot ON pivot.id = o.pivot"
        rows = self._read(lambda connection: connection.execute(query).fetchall())
        return {
            (row["domain"], row["disk"]): Overwritten(
                row["domain"], row["disk"], row["image"], row["pivot"], row["by_domain"], bool(row["moved_on"])
            )
            for row in rows
        }

    def ran_on(self) -> dict[tuple[str, str], dict[str, str]]:
        """Return, by domain and disk, other images on which its guest has run since a person's last word, and when."""
        query = "SELECT domain, disk, filename, ran_on_at FROM image_latest WHERE ran_on_at IS NOT NULL"
        found: dict[tuple[str, str], dict[str, str]] = {}
        for domain, disk, filename, at in self._read(lambda connection: connection.execute(query).fetchall()):
            found.setdefault((domain, disk), {})[filename] = at
        return found

    def is_copy(self) -> bool:
        """Return whether this is another file than the one that its last daemon has used."""
        known = self._read(lambda connection: connection.execute("SELECT identity FROM journal_file").fetchone())
        try:
            return known is None or not place.is_same(known["identity"], place.identity(self.path))
        except OSError as error:
            raise on_read(error, self.path) from error

    def check(self) -> list[str]:
        """Return the faults that SQLite's quick_check and foreign_key_check find, and disks whose last pivot is wrong.

        Reads the whole file, and its archives.
        """

        def look(connection: sqlite3.Connection, archives: Archives) -> list[str]:
            found = [row[0] for row in connection.execute("PRAGMA quick_check")]
            orphans = connection.execute("PRAGMA foreign_key_check").fetchall()
            wrong = connection.execute(_WRONG_LATEST).fetchall()
            return [
                *(line for line in found if line != "ok"),
                *(f"{row[0]} row {row[1]} has no {row[2]}" for row in orphans),
                *(f"disk_latest does not name the last pivot of {row[0]} {row[1]}" for row in wrong),
                *history.faults(connection, archives),
            ]

        return self._read_all(look)

    def archives(self) -> list[ArchiveState]:
        """Return what the journal has moved to each archive, and what is wrong with its file."""
        return self._read_all(history.archive_states)

    def sizes(self) -> Sizes:
        """Return how much is in the journal."""
        return self._read(history.sizes)

    def close(self) -> None:
        """Close, and remove the private copy if there is one."""
        with self._mutex:
            for opened in (self._opened, *self._archive_copies.values()):
                if opened is not None:
                    opened.close()

    def _read_all(self, look: Callable[[sqlite3.Connection, Archives], T]) -> T:
        """Run ``look`` over one snapshot and the archives: what the journal has moved there was there before."""
        archives = Archives(self.path, self._archive_copies, owner=self._opened is not None and self._opened.live)

        def close_after(connection: sqlite3.Connection) -> T:
            try:
                return look(connection, archives)
            finally:
                archives.close()

        return self._read(close_after)

    def _read(self, look: Callable[[sqlite3.Connection], T]) -> T:
        """Run ``look`` over one snapshot, and end the snapshot: an old one would keep the WAL from being emptied."""
        with self._mutex:
            if self._state is not None:
                return look(self._state)
            for _ in range(limits.DEAD_DAEMON_LOOKS):
                with suppress(JournalLockedError):
                    return self._look(look)
            return self._look(look)

    def _look(self, look: Callable[[sqlite3.Connection], T]) -> T:
        opened = self._opened or offline.open_journal(self.path)
        self.beside_daemon = opened.live
        try:
            opened.connection.execute("BEGIN")
            return look(opened.connection)
        except (JournalError, NotFoundError):
            raise
        except sqlite3.OperationalError as error:
            if opened.live and offline.needs_recovery(error):
                raise JournalLockedError(f"{self.path}: the daemon died while it was read; try again") from error
            raise on_read(error, self.path) from error
        except (sqlite3.Error, ValueError, TypeError, LookupError) as error:
            raise on_read(error, self.path) from error
        finally:
            with suppress(sqlite3.Error):
                if opened.connection.in_transaction:
                    opened.connection.execute("ROLLBACK")
            if opened.copy is not None:
                self._opened = opened  # worth keeping: each would be as dear as the first
            elif self._opened is None:
                opened.close()
