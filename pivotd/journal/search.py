"""Finds pivots and records by what they are, a bounded number of rows at a time: there is no index for each question.

A look examines at most ``examined`` rows, in the journal and its archives, and says from where the next one goes on.
Times are found by halving, because rows are in the order in which they were written. The host's clock may have been set
back meanwhile: the look begins limits.CLOCK_SET_BACK_S earlier, and compares each row.
"""

from __future__ import annotations

import json
import sqlite3
from datetime import datetime, timedelta
from typing import Any, Generic, NamedTuple, TypeVar

from pivotd import limits
from pivotd.core.list_filters import EVERY_EVENT, EventFilter, PivotFilter
from pivotd.core.pivot import Outcome, Pivot, Record
from pivotd.errors import NotFoundError
from pivotd.journal import history
from pivotd.journal.archives import Archives
from pivotd.journal.rows import load_pivots, record

T = TypeVar("T")
N = TypeVar("N")
_OF = "SELECT 1 FROM pivot_disk AS d WHERE d.pivot = pivot.id AND d.outcome"
_OUTCOMES = {
    Outcome.UNKNOWN.value: f"EXISTS ({_OF} = 'unknown')",
    "split": f"NOT EXISTS ({_OF} IS NULL) AND NOT EXISTS ({_OF} = 'unknown') AND "  # noqa: S608 - constants of ours
    "(SELECT count(DISTINCT outcome) FROM pivot_disk AS d WHERE d.pivot = pivot.id) > 1",
}
"""The conditions of core.pivot.outcome_of; any other outcome has to be that of every disk."""
_ARCHIVED = "SELECT number, pivot AS id, archive FROM archived WHERE whole = 1"
Terms = tuple[str, object | None]


class Found(NamedTuple, Generic[T, N]):
    """What was found, and the place from which to go on, None at the end."""

    found: list[T]
    next: N | None


class Place(NamedTuple, Generic[N]):
    """How many rows are wanted, from where on (None: the first), and how many may be examined for them."""

    limit: int
    at: N | None
    examined: int


def pivots(
    connection: sqlite3.Connection, archives: Archives, chosen: PivotFilter, place: Place[str]
) -> Found[Pivot, str]:
    """Return pivots, newest first; ``place.at``: the id from which to go on.

    Raises: NotFoundError: there is no such pivot; ArchiveError.
    """
    limit, before, examined = place
    if chosen.indexed:
        page = history.Page(chosen.domain, chosen.open_only, limit, before)
        found = history.pivots(connection, archives, page)
        return Found(found, found[-1].id if found and len(found) == limit else None)
    below = None if before is None else _number(connection, before)
    first = None if chosen.since is None else _first(connection, "pivot", "number", "created_at", chosen.since)
    conditions: list[Terms] = [("domain = ?", chosen.domain), ("number < ?", below)]
    # Literally: SQLite takes the index of open pivots for no other words.
    table = "(SELECT * FROM pivot INDEXED BY pivot_open WHERE phase <> 'closed')" if chosen.open_only else "pivot"
    moved: list[sqlite3.Row] = []
    if not chosen.open_only:
        terms, values = where(*conditions, ("number >= ?", first))
        query = f"{_ARCHIVED} {terms.replace('WHERE', 'AND')} ORDER BY number DESC LIMIT ?"
        moved = connection.execute(query, (*values, examined)).fetchall()
    if not moved:
        return _here(connection, chosen, table, (conditions, first), place)
    numbers = f"SELECT number, id, NULL AS archive FROM {table} {terms} ORDER BY number DESC LIMIT ?"  # noqa: S608 - ours
    rows = [*connection.execute(numbers, (*values, examined)).fetchall(), *moved]
    rows = sorted(rows, key=lambda row: -int(row["number"]))[:examined]
    found = _matching(connection, archives, chosen, rows)[:limit]
    if len(found) == limit:
        return Found(found, found[-1].id if found else before)
    return Found(found, rows[-1]["id"] if len(rows) == examined else None)


def _here(
    connection: sqlite3.Connection,
    chosen: PivotFilter,
    table: str,
    among: tuple[list[Terms], int | None],
    place: Place[str],
) -> Found[Pivot, str]:
    """Return pivots where no archive has any: SQLite reads no more rows than it needs for them.

    ``among``: conditions, and the first number. It stands once in each query: of two, SQLite might take the lower one.
    """
    conditions, first = among
    terms, values = where(*conditions, ("number >= ?", first))
    query = f"SELECT number, id FROM {table} {terms} ORDER BY number DESC LIMIT 1 OFFSET ?"  # noqa: S608 - ours
    last = connection.execute(query, (*values, place.examined - 1)).fetchone()
    terms, values = where(
        *conditions,
        ("number >= ?", first if last is None else last["number"]),
        ("kind = ?", chosen.kind),
        ("created_at >= ?", chosen.since),
        *_outcome(chosen.outcome),
    )
    query = f"SELECT * FROM {table} AS pivot {terms} ORDER BY number DESC LIMIT ?"  # noqa: S608 - constants of ours
    found = load_pivots(connection, query, (*values, place.limit))
    if len(found) == place.limit:
        return Found(found, found[-1].id if found else place.at)
    return Found(found, None if last is None else last["id"])


def _matching(
    connection: sqlite3.Connection, archives: Archives, chosen: PivotFilter, rows: list[sqlite3.Row]
) -> list[Pivot]:
    """Return those of the rows that a filter wants, in their order."""
    terms, values = where(
        ("id IN (SELECT value FROM json_each(?))", ""),
        ("kind = ?", chosen.kind),
        ("created_at >= ?", chosen.since),
        *_outcome(chosen.outcome),
    )
    query = f"SELECT * FROM pivot {terms}"  # noqa: S608 - constants of ours
    found: dict[str, Pivot] = {}
    for name in dict.fromkeys(row["archive"] for row in rows):
        ids = json.dumps([row["id"] for row in rows if row["archive"] == name])

        def look(one: sqlite3.Connection, ids: str = ids) -> list[Pivot]:
            return load_pivots(one, query, (ids, *values[1:]))

        matching = look(connection) if name is None else archives.read(name, look)
        found |= {pivot.id: pivot for pivot in matching}
    return [found[row["id"]] for row in rows if row["id"] in found]


def named(connection: sqlite3.Connection, archives: Archives, name: str, limit: int) -> list[Pivot]:
    """Return the pivot with this id or request id; else those whose ids begin so, in order. Raises: ArchiveError."""
    exact = history.pivot(connection, archives, name)
    if exact is not None:
        return [exact]
    begins = name.upper()
    values = (begins, f"{begins}\U0010ffff", limit)
    query = "SELECT * FROM pivot WHERE id >= ? AND id < ? ORDER BY id LIMIT ?"
    here = load_pivots(connection, query, values)
    query = f"{_ARCHIVED} AND pivot >= ? AND pivot < ? ORDER BY pivot LIMIT ?"
    moved = archives.pivots((row["id"], row["archive"]) for row in connection.execute(query, values).fetchall())
    return sorted((*here, *moved.values()), key=lambda pivot: pivot.id)[:limit]


def count(connection: sqlite3.Connection, chosen: PivotFilter) -> int:
    """Return the number of pivots of a filter that is indexed."""
    assert chosen.indexed
    terms, values = where(("domain = ?", chosen.domain))
    table = "(SELECT * FROM pivot INDEXED BY pivot_open WHERE phase <> 'closed')" if chosen.open_only else "pivot"
    here = connection.execute(f"SELECT count(*) FROM {table} {terms}", values).fetchone()[0]  # noqa: S608 - ours
    if chosen.open_only:
        return int(here)
    moved = f"SELECT count(*) FROM ({_ARCHIVED} {terms.replace('WHERE', 'AND')})"  # noqa: S608 - constants of ours
    return int(here + connection.execute(moved, values).fetchone()[0])


def records(
    connection: sqlite3.Connection, archives: Archives, chosen: EventFilter, place: Place[int]
) -> Found[Record, int]:
    """Return records with larger sequence numbers than ``place.at``, oldest first. Raises: ArchiveError."""
    after = place.at or 0
    if chosen.since is not None:
        after = max(after, _first(connection, "record", "seq", "at", chosen.since) - 1)
    if after >= _last_moved(connection) and chosen != EVERY_EVENT:
        return _records(connection, chosen, "", (after + 1, None), place)
    size = place.limit if chosen == EVERY_EVENT else min(place.examined, limits.EVENTS_PAGE_MAX)
    rows = history.events(connection, archives, after, size)
    found = [one for one in rows if chosen.takes(one)][: place.limit]
    if len(found) == place.limit:
        return Found(found, found[-1].seq if found else after)
    return Found(found, rows[-1].seq if len(rows) == size else None)


def last_records(
    connection: sqlite3.Connection, archives: Archives, chosen: EventFilter, place: Place[int]
) -> Found[Record, int]:
    """Return the last records with smaller sequence numbers than ``place.at``, newest first. Raises: ArchiveError."""
    limit, before, examined = place
    moved = _last_moved(connection)
    first = 0 if chosen.since is None else _first(connection, "record", "seq", "at", chosen.since)
    if before is not None and before <= 1:
        return Found([], None)
    if before is None or before > moved + 1:
        found, following = _records(connection, chosen, "DESC", (moved + 1, before), place)
        following = moved + 1 if following is None and moved else following
    else:
        # Numbers have no gaps: these are the next ones below.
        after = max(before - 1 - min(examined, limits.EVENTS_PAGE_MAX), 0)
        rows = history.events(connection, archives, after, before - 1 - after)
        found = [one for one in reversed(rows) if chosen.takes(one)][:limit]
        following = after + 1 if after else None
        if found and len(found) == limit:
            following = found[-1].seq
    return Found(found, None if following is None or following <= first else following)


def where(*terms: Terms) -> tuple[str, list[object]]:
    """Return a WHERE clause of the terms that have a value, and the values; a term without a place takes none."""
    used = [(term, value) for term, value in terms if value is not None]
    if not used:
        return "", []
    return "WHERE " + " AND ".join(term for term, _ in used), [value for term, value in used if "?" in term]


def _outcome(outcome: str | None) -> list[Terms]:
    return [] if outcome is None else [(_OUTCOMES.get(outcome, f"NOT EXISTS ({_OF} IS NOT ?)"), outcome)]


def _number(connection: sqlite3.Connection, pivot: str) -> int:
    """Return the number of a pivot, wherever it is. Raises: NotFoundError."""
    query = (
        "SELECT number FROM pivot WHERE id = ?1 UNION ALL SELECT number FROM archived WHERE pivot = ?1 AND whole = 1"
    )
    row = connection.execute(query, (pivot,)).fetchone()
    if row is None:
        raise NotFoundError(f"there is no pivot {pivot} to go on from; begin without one", pivot=pivot)
    return int(row[0])


def _last_moved(connection: sqlite3.Connection) -> int:
    """Return the last record that is in an archive, 0 if there is none."""
    return int(connection.execute("SELECT coalesce(max(last_seq), 0) FROM archive WHERE records > 0").fetchone()[0])


def _records(
    connection: sqlite3.Connection,
    chosen: EventFilter,
    order: str,
    among: tuple[int, int | None],
    place: Place[int],
) -> Found[Record, int]:
    """Return records of the journal itself, among numbers from one to below another; ``order``: DESC: newest first."""
    low, high = among
    terms, values = where(("seq >= ?", low), ("seq < ?", high))
    query = f"SELECT seq FROM record {terms} ORDER BY seq {order} LIMIT 1 OFFSET ?"  # noqa: S608 - constants of ours
    row = connection.execute(query, (*values, place.examined - 1)).fetchone()
    last = None if row is None else int(row[0])
    if last is not None:
        low, high = (last, high) if order else (low, last + 1)
    terms, values = where(
        ("seq >= ?", low),
        ("seq < ?", high),
        ("domain = ?", chosen.domain),
        ("event = ?", chosen.event),
        ("at >= ?", chosen.since),
    )
    query = f"SELECT * FROM record {terms} ORDER BY seq {order} LIMIT ?"  # noqa: S608 - constants of ours
    found = [record(row) for row in connection.execute(query, (*values, place.limit))]
    return Found(found, found[-1].seq if found and len(found) == place.limit else last)


def _first(connection: sqlite3.Connection, table: str, key: str, column: str, since: str) -> int:
    """Return a key so that no row below it was written at this time or later."""
    earlier = datetime.fromisoformat(since) - timedelta(seconds=limits.CLOCK_SET_BACK_S)
    time = earlier.strftime("%Y-%m-%dT%H:%M:%S")
    # Two questions: SQLite answers both at once only by reading the whole table.
    ends = f"SELECT (SELECT min({key}) FROM {table}), (SELECT max({key}) FROM {table})"  # noqa: S608 - constants of ours
    low, high = (key or 0 for key in connection.execute(ends).fetchone())
    low, high = (0, high + 1) if low else (0, 0)
    step = f"SELECT {key}, {column} FROM {table} WHERE {key} >= ? ORDER BY {key} LIMIT 1"  # noqa: S608 - the same
    while low < high:
        middle = (low + high) // 2
        row: Any = connection.execute(step, (middle,)).fetchone()
        if row is not None and row[1] < time:
            low = int(row[0]) + 1
        else:
            high = middle
    return int(low)
