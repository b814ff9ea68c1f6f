"""Pivots and records, wherever they are: what the journal holds, and what it has moved to its archives.

Each function reads one snapshot of the journal first, which says what is where: whatever an archive holds beside that,
as after a kill between copying and deleting, is shown once.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass

from pivotd.core.pivot import Pivot, Record
from pivotd.errors import ArchiveError, NotFoundError
from pivotd.journal.archives import Archives
from pivotd.journal.rows import SELECT_NAMED, load_pivots, record

_NUMBER = """
    SELECT number FROM pivot WHERE id = ?1 UNION ALL SELECT number FROM archived WHERE pivot = ?1 AND whole = 1
"""


@dataclass(frozen=True, slots=True)
class Page:
    """Which pivots: of one domain or all, and the next ``limit`` after the one with the id ``before``."""

    domain: str | None
    open_only: bool
    limit: int
    before: str | None


@dataclass(frozen=True, slots=True)
class ArchiveState:
    """One archive, by the journal: ``records`` are in it alone. ``fault``: why it cannot be read, None if it can."""

    name: str
    pivots: int
    records: int
    first_seq: int
    last_seq: int
    first_closed_at: str
    last_closed_at: str
    fault: str | None


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is in a journal without its archives. Pages of ``page_bytes``; free ones are used again."""

    pivots: int
    open_pivots: int
    records: int
    last_seq: int
    oldest_at: str | None
    page_bytes: int
    pages: int
    free_pages: int


def pivots(connection: sqlite3.Connection, archives: Archives, page: Page) -> list[Pivot]:
    """Return a page of pivots, newest first. Raises: NotFoundError, ArchiveError."""
    domain, before, limit = page.domain, page.before, page.limit
    below = 1 << 62
    if before is not None:
        row = connection.execute(_NUMBER, (before,)).fetchone()
        if row is None:
            raise NotFoundError(f"there is no pivot {before} to go on from; begin without one", pivot=before)
        below = row[0]
    terms, values = ("number < ?", [below]) if domain is None else ("domain = ? AND number < ?", [domain, below])
    # Literally: SQLite takes the index of open pivots for no other words.
    table = "(SELECT * FROM pivot INDEXED BY pivot_open WHERE phase <> 'closed')" if page.open_only else "pivot"
    query = f"SELECT id, number FROM {table} WHERE {terms} ORDER BY number DESC LIMIT ?"  # noqa: S608 - ours
    here = connection.execute(query, (*values, limit)).fetchall()
    moved: list[sqlite3.Row] = []
    if not page.open_only:
        query = (
            f"SELECT pivot AS id, number, archive FROM archived WHERE whole = 1 AND {terms} "  # noqa: S608 - ours
            "ORDER BY number DESC LIMIT ?"
        )
        moved = connection.execute(query, (*values, limit)).fetchall()
    shown = sorted((*here, *moved), key=lambda row: -int(row["number"]))[:limit]
    wanted = {row["id"] for row in shown}
    found = _here(connection, [row["id"] for row in here if row["id"] in wanted])
    found |= archives.pivots((row["id"], row["archive"]) for row in moved if row["id"] in wanted)
    return [found[row["id"]] for row in shown]


def pivot(connection: sqlite3.Connection, archives: Archives, name: str) -> Pivot | None:
    """Return one pivot by its id, else by its request id. Raises: ArchiveError."""
    query = "SELECT * FROM pivot WHERE id = ?1 OR request_id = ?1 ORDER BY id <> ?1 LIMIT 1"
    found = load_pivots(connection, query, (name,))
    if found and found[0].id == name:
        return found[0]
    query = """
        SELECT pivot, archive FROM archived WHERE (pivot = ?1 OR request_id = ?1) AND whole = 1
        ORDER BY pivot <> ?1 LIMIT 1
    """
    row = connection.execute(query, (name,)).fetchone()
    if row is not None and (not found or row["pivot"] == name):
        return archives.pivots([(row["pivot"], row["archive"])])[row["pivot"]]
    return found[0] if found else None


def undo(connection: sqlite3.Connection, archives: Archives, pivot_id: str) -> Pivot | None:
    """Return the pivot that undoes this one, None if there is none. Raises: ArchiveError."""
    found = load_pivots(connection, "SELECT * FROM pivot WHERE undo_of = ?", (pivot_id,))
    query = "SELECT pivot, archive FROM archived WHERE undo_of = ?"
    if found or (row := connection.execute(query, (pivot_id,)).fetchone()) is None:
        return found[0] if found else None
    return archives.pivots([(row["pivot"], row["archive"])])[row["pivot"]]


def records(connection: sqlite3.Connection, archives: Archives, pivot_id: str) -> list[Record]:
    """Return every record of one pivot, oldest first. Raises: ArchiveError."""
    found = _records(connection, "SELECT * FROM record WHERE pivot = ? ORDER BY seq", (pivot_id,))
    row = connection.execute("SELECT archive FROM archived WHERE pivot = ?", (pivot_id,)).fetchone()
    return found if row is None else _together(archives.records(row["archive"], pivot_id), found)


def events(connection: sqlite3.Connection, archives: Archives, after: int, limit: int) -> list[Record]:
    """Return up to ``limit`` records with seq > after, oldest first. Raises: ArchiveError."""
    found = _records(connection, "SELECT * FROM record WHERE seq > ? ORDER BY seq LIMIT ?", (after, limit))
    until = found[-1].seq if len(found) == limit else 1 << 62

    def moved(name: str, named: set[str]) -> set[str]:
        query = "SELECT pivot FROM archived WHERE archive = ? AND pivot IN (SELECT value FROM json_each(?))"
        return {row[0] for row in connection.execute(query, (name, json.dumps(list(named))))}

    ranges = connection.execute(
        "SELECT name, first_seq, last_seq FROM archive WHERE last_seq > ? AND first_seq < ? AND records > 0",
        (after, until),
    ).fetchall()
    for row in ranges:
        found = _together(archives.events(row["name"], after, limit, moved), found)[:limit]
    _refuse_gaps(found, after, ranges)
    return found


def _refuse_gaps(found: list[Record], after: int, ranges: list[sqlite3.Row]) -> None:
    """Numbers have no gaps: what is missing is in an archive that somebody has replaced. Raises: ArchiveError."""
    last = after
    for one in found if ranges else ():
        if one.seq != last + 1:
            names = ", ".join(row["name"] for row in ranges if row["first_seq"] < one.seq and row["last_seq"] > last)
            if names:
                raise ArchiveError(
                    f"the records {last + 1} to {one.seq - 1} are in no file: {names} is not the archive that pivotd "
                    "has written: restore it from a backup",
                    archive=names,
                )
        last = one.seq


def faults(connection: sqlite3.Connection, archives: Archives) -> list[str]:
    """Return what is wrong with the archives and with what the journal says of them; reads them whole."""
    found: list[str] = []
    for row in connection.execute("SELECT name, records FROM archive ORDER BY name").fetchall():
        name = row["name"]
        try:
            found += archives.faults(name)
            heads = set(archives.read(name, lambda one: [head[0] for head in one.execute("SELECT id FROM pivot")]))
            query = "SELECT pivot, count(*) FROM record GROUP BY pivot"
            held = archives.read(name, lambda one, query=query: one.execute(query).fetchall())  # type: ignore[misc]
        except ArchiveError as error:
            found.append(error.message)
            continue
        moved = {one[0] for one in connection.execute("SELECT pivot FROM archived WHERE archive = ?", (name,))}
        found += [f"{name} lacks the pivot {pivot_id}" for pivot_id in sorted(moved - heads)]
        number = sum(count for pivot_id, count in held if pivot_id in moved)
        if number < row["records"]:
            found.append(f"{name} holds {number} of the {row['records']} records that were moved to it")
    return found


def archive_states(connection: sqlite3.Connection, archives: Archives) -> list[ArchiveState]:
    """Return what the journal has moved to each archive, and whether that can be opened."""
    states = []
    for row in connection.execute("SELECT * FROM archive ORDER BY name").fetchall():
        try:
            archives.read(row["name"], lambda one: one.execute("SELECT 1 FROM pivot LIMIT 1").fetchone())
            fault = None
        except ArchiveError as error:
            fault = error.message
        states.append(ArchiveState(**dict(row), fault=fault))
    return states


def sizes(connection: sqlite3.Connection) -> Sizes:
    """Return how much is in the journal: both kinds of numbers have no gaps, so nothing has to be counted."""
    last = {row["name"]: row["seq"] for row in connection.execute("SELECT name, seq FROM sqlite_sequence")}
    query = "SELECT coalesce(sum(records), 0) FROM archive"
    records_moved = connection.execute(query).fetchone()[0]
    pivots_moved = connection.execute("SELECT count(*) FROM archived WHERE whole = 1").fetchone()[0]
    oldest = connection.execute("SELECT at FROM record ORDER BY seq LIMIT 1").fetchone()
    page_bytes, pages, free = (
        connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_size", "page_count", "freelist_count")
    )
    seq = last.get("record", 0)
    moved = last.get("pivot", 0) - pivots_moved
    query = "SELECT count(*) FROM pivot INDEXED BY pivot_open WHERE phase <> 'closed'"
    open_pivots = connection.execute(query).fetchone()[0]
    return Sizes(
        moved, open_pivots, seq - records_moved, seq, None if oldest is None else oldest[0], page_bytes, pages, free
    )


def _here(connection: sqlite3.Connection, ids: list[str]) -> dict[str, Pivot]:
    return {one.id: one for one in load_pivots(connection, SELECT_NAMED, (json.dumps(ids),))}


def _records(connection: sqlite3.Connection, query: str, parameters: Iterable[object]) -> list[Record]:
    return [record(row) for row in connection.execute(query, tuple(parameters))]


def _together(some: list[Record], others: list[Record]) -> list[Record]:
    """Return records of both, each once, oldest first."""
    found = {one.seq: one for one in (*some, *others)}
    return [found[seq] for seq in sorted(found)]
