"""Reading the archives beside a journal. The journal says what is in which; what it does not say does not count."""

from __future__ import annotations

import json
import os
import re
import sqlite3
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

from pivotd import limits
from pivotd.core.pivot import Pivot, Record
from pivotd.errors import ArchiveError, JournalError, JournalLockedError, JournalNotAllowedError
from pivotd.journal import lock, offline, permissions, raw_files, schema
from pivotd.journal.rows import SELECT_NAMED, load_pivots, record
from pivotd.journal.sqlite_failures import READ_ERRORS, primary_code

T = TypeVar("T")
NAME = re.compile(r"archive-[0-9]{4}(-[2-9])?\.db")
"""Names are read from the journal, and lead to files."""
_READ_FAILURES = (*READ_ERRORS, ValueError, TypeError, LookupError)


class Archives:
    """Opens each archive when something in it is asked for, until ``close``; private copies stay in ``copies``.

    ``owner``: this process owns the journal, so that it may undo what a kill left half written.
    """

    def __init__(self, journal: Path, copies: dict[str, offline.Opened], *, owner: bool) -> None:
        self._directory = directory(journal)
        self._copies = copies
        self._owner = owner
        self._opened: dict[str, offline.Opened] = {}

    def pivots(self, wanted: Iterable[tuple[str, str]]) -> dict[str, Pivot]:
        """Return pivots by id; ``wanted``: the id of each, and the name of its archive. Raises: ArchiveError."""
        by_archive: dict[str, list[str]] = {}
        for pivot, name in wanted:
            by_archive.setdefault(name, []).append(pivot)
        found: dict[str, Pivot] = {}
        for name, ids in by_archive.items():
            text = json.dumps(ids)
            loaded = self.read(name, lambda connection, text=text: load_pivots(connection, SELECT_NAMED, (text,)))  # type: ignore[misc]
            found |= {pivot.id: pivot for pivot in loaded}
            if missing := [pivot for pivot in ids if pivot not in found]:
                raise self._error(name, f"lacks the pivot {missing[0]}")
        return found

    def records(self, name: str, pivot: str) -> list[Record]:
        """Return the records of a pivot in one archive, oldest first. Raises: ArchiveError."""
        query = "SELECT * FROM record WHERE pivot = ? ORDER BY seq"
        return self.read(name, lambda connection: [record(row) for row in connection.execute(query, (pivot,))])

    def events(self, name: str, after: int, limit: int, moved: Callable[[str, set[str]], set[str]]) -> list[Record]:
        """Return up to ``limit`` records with seq > after, oldest first, of pivots that count. Raises: ArchiveError.

        ``moved`` returns those of some pivots that the journal has moved to this archive.
        """
        query = "SELECT * FROM record WHERE seq > ? ORDER BY seq LIMIT ?"

        def look(connection: sqlite3.Connection) -> list[Record]:
            found: list[Record] = []
            last = after
            while len(found) < limit:
                page = [record(row) for row in connection.execute(query, (last, limit))]
                if not page:
                    break
                counts = moved(name, {one.pivot for one in page if one.pivot})
                found += [one for one in page if one.pivot in counts]
                last = page[-1].seq
            return found[:limit]

        return self.read(name, look)

    def faults(self, name: str) -> list[str]:
        """Return what SQLite finds wrong with an archive; reads the whole file. Raises: ArchiveError."""

        def look(connection: sqlite3.Connection) -> list[str]:
            lines = [row[0] for row in connection.execute("PRAGMA quick_check") if row[0] != "ok"]
            orphans = connection.execute("PRAGMA foreign_key_check").fetchall()
            return [
                f"{name}: {line}" for line in (*lines, *(f"{row[0]} row {row[1]} has no {row[2]}" for row in orphans))
            ]

        return self.read(name, look)

    def read(self, name: str, look: Callable[[sqlite3.Connection], T]) -> T:
        """Return what ``look`` finds in one archive. Raises: ArchiveError, JournalLockedError."""
        try:
            if name not in self._opened:
                self._opened[name] = self._open(name)
            return look(self._opened[name].connection)
        except (JournalLockedError, JournalNotAllowedError, ArchiveError):
            raise
        except JournalError as error:
            raise ArchiveError(error.message, archive=str(self._directory / name)) from error
        except _READ_FAILURES as error:
            if isinstance(error, sqlite3.Error) and primary_code(error) == sqlite3.SQLITE_BUSY:
                raise JournalLockedError(f"{self._directory / name} is being written; try again") from error
            raise self._error(name, f"cannot be read ({why(error)})") from error

    def close(self) -> None:
        """Close what this look has opened."""
        for opened in self._opened.values():
            if opened.copy is None:
                opened.close()
        self._opened.clear()

    def forget_copies(self) -> None:
        """Close, and remove the private copies."""
        self.close()
        for opened in self._copies.values():
            opened.close()
        self._copies.clear()

    def _error(self, name: str, what: str) -> ArchiveError:
        path = self._directory / name
        return ArchiveError(
            f"{path} {what}: restore it from a backup; all that is not in it can still be read", archive=str(path)
        )

    def _open(self, name: str) -> offline.Opened:
        if not NAME.fullmatch(name):
            raise self._error(name, "is no name of an archive")
        if name in self._copies:
            return self._copies[name]
        path = self._directory / name
        permissions.check(path)
        if not path.exists():
            raise self._error(name, "is missing")
        connection = schema.connect_read_only(path, "mode=rw" if self._owner else "mode=ro")
        try:
            connection.execute(f"PRAGMA busy_timeout = {limits.ARCHIVE_BUSY_TIMEOUT_MS}").fetchall()
            version = schema.check_version(connection, path)
            if version == schema.SCHEMA_VERSION:
                schema.check_objects(connection, path)
                return offline.Opened(connection)
        except sqlite3.OperationalError as error:
            connection.close()
            if not offline.needs_recovery(error):
                raise
        except BaseException:
            connection.close()
            raise
        connection.close()
        return self._copy(name, path)

    def _copy(self, name: str, path: Path) -> offline.Opened:
        """Return a private copy of an archive of an older schema, or that a kill left half written."""
        held = None if self._owner else lock.try_shared(path)
        if held is None:
            raise JournalLockedError(f"{path} is of an older pivotd, or half written; pivotd will mend it: try again")
        try:
            made = tempfile.TemporaryDirectory(prefix="pivotd-")
            try:
                copy = raw_files.copy(path, Path(made.name))
                self._copies[name] = offline.Opened(offline.connect_copy(copy, path), copy=made)
            except BaseException:
                made.cleanup()
                raise
        finally:
            lock.release(held)
        return self._copies[name]


def directory(journal: Path) -> Path:
    """Return where the archives of a journal are: beside the file, whatever leads to it."""
    return Path(os.path.realpath(journal)).parent


def upgrade(journal: Path, names: Iterable[str]) -> list[str]:
    """Give archives of an older schema this one, and undo what a kill left half written; return what was in the way.

    Only the owner of the journal may do this.
    """
    obstacles: list[str] = []
    for name in names:
        path = directory(journal) / name
        try:
            _upgrade(path)
        except JournalError as error:
            obstacles.append(error.message)
        except READ_ERRORS as error:
            obstacles.append(f"{path} cannot be used ({why(error)})")
    return obstacles


def _upgrade(path: Path) -> None:
    if not path.exists():
        raise ArchiveError(f"{path} is missing: restore it from a backup", archive=str(path))
    connection = schema.connect_read_only(path, "mode=rw")
    try:
        version = schema.check_version(connection, path)
    finally:
        connection.close()
    if version < schema.SCHEMA_VERSION:
        schema.build(path, leave_wal_mode, like=path)


def leave_wal_mode(path: Path) -> None:
    """Make a file one that a single writer and readers without any right to write can share."""
    schema.connect_archive(path).close()


def why(error: BaseException) -> str:
    """Return what SQLite, Python or the operating system says of an error, on one line."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    name = getattr(error, "sqlite_errorname", type(error).__name__)
    return f"{name}: {error}".replace("\n", " ")


def names(connection: sqlite3.Connection) -> list[str]:
    """Return the names of the archives that a journal knows."""
    return [row[0] for row in connection.execute("SELECT name FROM archive ORDER BY name")]
