"""Copying to archives what no verdict, stale list or undo rests on. Everything here is read from the journal.

A pivot is copied and durable in its archive before the journal forgets a row of it (see forgetting.py): after a kill at
any point each row is in both files or in one.
"""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Iterable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pivotd import limits
from pivotd.errors import ArchiveError, JournalError, JournalFullError
from pivotd.journal import archives, schema
from pivotd.journal.sqlite_failures import READ_ERRORS, on_read, primary_code

ARCHIVABLE = """
    p.phase = 'closed' AND p.owes_resume = 0 AND p.fleet <> 'announced'
    AND NOT EXISTS (SELECT 1 FROM disk_latest WHERE pivot = p.id)
    AND NOT EXISTS (SELECT 1 FROM overwritten WHERE pivot = p.id)
    AND NOT EXISTS (SELECT 1 FROM pivot AS undo WHERE undo.undo_of = p.id AND undo.phase <> 'closed')
    AND p.id IS NOT (SELECT pivot FROM record ORDER BY seq DESC LIMIT 1)
"""
"""Of ``pivot AS p``: nothing rests on its records. The last record stays: the next one goes on from its number."""
IMAGE_NAMES_IT = "EXISTS (SELECT 1 FROM image_latest WHERE pivot = p.id)"
"""Its row, disks and pauses stay: what history says of that image, and the list of stale images, rest on them."""
_CANDIDATES = f"""
    SELECT p.id, p.closed_at, archived.archive,
        (SELECT count(*) FROM record WHERE pivot = p.id) AS records
    FROM pivot AS p LEFT JOIN archived ON archived.number = p.number
    WHERE p.number > ? AND p.number <= ? AND p.closed_at < ? AND {ARCHIVABLE}
        AND (archived.number IS NULL OR NOT {IMAGE_NAMES_IT} OR EXISTS (SELECT 1 FROM record WHERE pivot = p.id))
    ORDER BY p.number
"""  # noqa: S608 - constants of ours
_TABLES = {
    "pivot": ("id", ("id",), "number"),
    "pivot_disk": ("pivot", ("pivot", "disk_index"), "pivot, disk_index"),
    "pause": ("pivot", ("pivot", "number"), "pivot, number"),
    "record": ("pivot", ("seq",), "seq"),
}
"""The column that names the pivot, the key, the order: what a row refers to comes before it."""
_YEAR = re.compile(r"[0-9]{4}-")
_TRY_NEXT = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CONSTRAINT}
"""The archive is damaged, may not be written, or has something else under the same name."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A pivot that may leave the journal. ``archive``: the one that has it already, None: none does."""

    pivot: str
    year: str
    records: int
    archive: str | None


@dataclass(frozen=True, slots=True)
class Copied:
    """A pivot that is durable in an archive, as it was at ``revision`` and with the records up to ``last_seq``."""

    pivot: str
    revision: int
    last_seq: int


class _NotThisOneError(Exception):
    """An archive that cannot take the rows, while another one can."""


class Archiver:
    """Reads the journal on a connection of its own, and writes to archives. Any thread may use it, one at a time."""

    def __init__(self, journal: Path) -> None:
        """Open the journal of this process. Raises: JournalError."""
        self._journal = journal
        self._directory = archives.directory(journal)
        try:
            self._connection = schema.connect_read_only(journal)
        except sqlite3.Error as error:
            raise on_read(error, journal) from error

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def names(self) -> list[str]:
        """Return the names of the archives that the journal knows. Raises: JournalError."""
        try:
            return archives.names(self._connection)
        except READ_ERRORS as error:
            raise on_read(error, self._journal) from error

    def candidates(self, after: int, before_at: str) -> tuple[list[Candidate], int | None]:
        """Return pivots closed before a time that may leave the journal, and the number to go on from; None: the end.

        Looks at limits.ARCHIVE_SCAN pivots with a larger number than ``after``. Raises: JournalError.
        """
        try:
            query = "SELECT min(number) FROM pivot WHERE number > ?"
            first = self._connection.execute(query, (after,)).fetchone()[0]
            if first is None:
                return [], None
            until = first - 1 + limits.ARCHIVE_SCAN
            rows = self._connection.execute(_CANDIDATES, (first - 1, until, before_at)).fetchall()
        except READ_ERRORS as error:
            raise on_read(error, self._journal) from error
        return [
            Candidate(row["id"], row["closed_at"][:4], row["records"], row["archive"])
            for row in rows
            if _YEAR.match(row["closed_at"])
        ], until

    def copy(self, batch: Sequence[Candidate]) -> tuple[str, list[Copied]]:
        """Make pivots of one year durable in an archive of that year; return its name, and what it has now.

        A pivot that is in an archive stays in that one: all of a batch are in the same one, or in none.

        Raises: ArchiveError, JournalFullError, JournalError.
        """
        year, known = batch[0].year, batch[0].archive
        obstacles: list[str] = []
        for name in [known] if known is not None else _names(year):
            try:
                return name, self._copy_to(name, [one.pivot for one in batch])
            except _NotThisOneError as obstacle:
                obstacles.append(str(obstacle))
        raise ArchiveError(f"nothing was archived: {obstacles[0]}", archive=str(self._directory / (known or year)))

    def _copy_to(self, name: str, pivots: list[str]) -> list[Copied]:
        path = self._directory / name
        try:
            rows = self._rows(pivots)
            known = name in archives.names(self._connection)
        except READ_ERRORS as error:
            raise on_read(error, self._journal) from error
        if not archives.NAME.fullmatch(name):
            raise _NotThisOneError(f"{name} is no name of an archive")
        try:
            if not path.exists():
                if known:
                    raise _NotThisOneError(f"{path} is missing: restore it from a backup")
                schema.build(path, archives.leave_wal_mode)
            self._write(path, rows)
        except READ_ERRORS as error:
            raise _failed(error, path) from error
        last = {head["id"]: 0 for head in rows["pivot"]} | {row["pivot"]: row["seq"] for row in rows["record"]}
        return [Copied(head["id"], head["revision"], last[head["id"]]) for head in rows["pivot"]]

    def _rows(self, pivots: list[str]) -> dict[str, list[sqlite3.Row]]:
        """Return every row of some pivots, as it is at one moment."""
        self._connection.execute("BEGIN")
        try:
            return {table: _select(self._connection, table, pivots) for table in _TABLES}
        finally:
            self._connection.execute("ROLLBACK")

    def _write(self, path: Path, rows: dict[str, list[sqlite3.Row]]) -> None:
        """Add what is not there yet, in one transaction; it is durable when this returns."""
        with closing(schema.connect_archive(path)) as connection:
            connection.execute(f"PRAGMA busy_timeout = {limits.ARCHIVE_BUSY_TIMEOUT_MS}").fetchall()
            try:
                schema.check_version(connection, path)
                schema.check_objects(connection, path)
                connection.execute("BEGIN IMMEDIATE")
                for table, wanted in rows.items():
                    _add(connection, table, wanted, [head["id"] for head in rows["pivot"]])
                connection.execute("COMMIT")
            except JournalError as error:
                raise _NotThisOneError(error.message) from error
            finally:
                with suppress(sqlite3.Error):
                    if connection.in_transaction:
                        connection.execute("ROLLBACK")


def _names(year: str) -> Iterable[str]:
    return (f"archive-{year}.db", *(f"archive-{year}-{number}.db" for number in range(2, limits.ARCHIVES_OF_YEAR + 1)))


def _select(connection: sqlite3.Connection, table: str, pivots: list[str]) -> list[sqlite3.Row]:
    column, _, order = _TABLES[table]
    query = f"SELECT * FROM {table} WHERE {column} IN (SELECT value FROM json_each(?)) ORDER BY {order}"  # noqa: S608
    return connection.execute(query, (json.dumps(pivots),)).fetchall()


def _add(connection: sqlite3.Connection, table: str, rows: list[sqlite3.Row], pivots: list[str]) -> None:
    """Raises: _NotThisOneError: the archive has another row in the place of one; sqlite3.IntegrityError: the same."""
    if not rows:
        return
    key, columns = _TABLES[table][1], rows[0].keys()
    there = {_key(row, key): dict(row) for row in _select(connection, table, pivots)}
    for row in rows:
        found = there.get(_key(row, key))
        if found is None:
            marks = ", ".join("?" * len(columns))
            statement = f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({marks})"  # noqa: S608 - our own names
            connection.execute(statement, tuple(row))
        elif found != dict(row):
            raise _NotThisOneError(f"the archive has another row of {table} for {_key(row, key)}")


def _key(row: sqlite3.Row, columns: tuple[str, ...]) -> tuple[Any, ...]:
    return tuple(row[column] for column in columns)


def _failed(error: Exception, path: Path) -> Exception:
    if isinstance(error, sqlite3.Error) and primary_code(error) in _TRY_NEXT:
        return _NotThisOneError(f"{path} cannot be written ({archives.why(error)})")
    found = on_read(error, path)
    if isinstance(found, JournalFullError):
        return JournalFullError(
            f"{path}: no space left: what is not archived yet stays in the journal; free space and try again"
        )
    return ArchiveError(f"{path} cannot be written ({archives.why(error)}); nothing was lost", archive=str(path))
