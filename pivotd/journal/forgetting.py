"""Deleting from the journal what an archive has: the only statements that delete history, on the writer's thread.

The triggers of the journal refuse every deletion but that of a pivot with a row in ``archiving``, which is there only
inside these transactions, and which they refuse for a pivot that no archive has or that a verdict rests on.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass

from pivotd import limits
from pivotd.core.pivot import Record
from pivotd.journal.archiving import ARCHIVABLE, IMAGE_NAMES_IT, Copied
from pivotd.journal.changes import Change

_HEAD = f"""
    SELECT p.number, p.closed_at, archived.archive, {IMAGE_NAMES_IT} AS image_names_it,
        (SELECT min(seq) FROM record WHERE pivot = p.id) AS first_seq,
        (SELECT max(seq) FROM record WHERE pivot = p.id) AS last_seq
    FROM pivot AS p LEFT JOIN archived ON archived.number = p.number
    WHERE p.id = ? AND p.revision = ? AND {ARCHIVABLE}
"""  # noqa: S608 - constants of ours
_MOVED = """
    INSERT INTO archived (number, pivot, request_id, undo_of, domain, archive, whole)
    SELECT number, id, request_id, undo_of, domain, ?, 0 FROM pivot WHERE id = ?
"""
_GROWN = """
    INSERT INTO archive VALUES (:name, 1, 0, :first_seq, :last_seq, :closed_at, :closed_at)
    ON CONFLICT DO UPDATE SET pivots = pivots + 1,
        first_seq = min(first_seq, excluded.first_seq), last_seq = max(last_seq, excluded.last_seq),
        first_closed_at = min(first_closed_at, excluded.first_closed_at),
        last_closed_at = max(last_closed_at, excluded.last_closed_at)
"""
_FORGET_RECORDS = "DELETE FROM record WHERE seq IN (SELECT seq FROM record WHERE pivot = ? ORDER BY seq LIMIT ?)"
_FORGET_HEAD = (
    "DELETE FROM pause WHERE pivot = ?",
    "DELETE FROM pivot_disk WHERE pivot = ?",
    "DELETE FROM pivot WHERE id = ?",
    "UPDATE archived SET whole = 1 WHERE pivot = ?",
)


@dataclass(frozen=True, slots=True)
class Forgotten:
    """What one transaction has deleted. ``left``: pivots of the batch that it did not come to, or not to their end."""

    pivots: int
    records: int
    left: tuple[Copied, ...]


def forget(name: str, copied: Sequence[Copied]) -> Change[Forgotten]:
    """Delete up to limits.ARCHIVE_ROWS records of pivots that are durable in an archive, and what goes with the last.

    A pivot that has changed since it was copied stays, as does one on which something rests by now.
    """

    def change(connection: sqlite3.Connection) -> tuple[Forgotten, Sequence[Record]]:
        pivots = records = 0
        for place, one in enumerate(copied):
            allowed = limits.ARCHIVE_ROWS - records
            if allowed <= 0:
                return Forgotten(pivots, records, tuple(copied[place:])), ()
            head = connection.execute(_HEAD, (one.pivot, one.revision)).fetchone()
            if head is None or (head["last_seq"] or 0) > one.last_seq or head["archive"] not in {None, name}:
                continue
            if head["archive"] is None:
                seqs = {"first_seq": head["first_seq"] or one.last_seq, "last_seq": head["last_seq"] or one.last_seq}
                connection.execute(_GROWN, {"name": name, "closed_at": head["closed_at"], **seqs})
                connection.execute(_MOVED, (name, one.pivot))
                pivots += 1
            connection.execute("INSERT INTO archiving (pivot) VALUES (?)", (one.pivot,))
            gone = connection.execute(_FORGET_RECORDS, (one.pivot, allowed)).rowcount
            records += gone
            rest = connection.execute("SELECT 1 FROM record WHERE pivot = ? LIMIT 1", (one.pivot,)).fetchone()
            if rest is None and not head["image_names_it"]:
                for statement in _FORGET_HEAD:
                    connection.execute(statement, (one.pivot,))
            connection.execute("DELETE FROM archiving")
            connection.execute("UPDATE archive SET records = records + ? WHERE name = ?", (gone, name))
            if rest is not None:
                return Forgotten(pivots, records, tuple(copied[place:])), ()
        return Forgotten(pivots, records, ()), ()

    return change


def give_back() -> Change[int]:
    """Make the file smaller by up to limits.ARCHIVE_PAGES free pages; return how many could still be given back.

    None of a journal that an older pivotd has made: its free pages are used again.
    """

    def change(connection: sqlite3.Connection) -> tuple[int, Sequence[Record]]:
        if connection.execute("PRAGMA auto_vacuum").fetchone()[0] != 2:
            return 0, ()
        for _ in range(limits.ARCHIVE_PAGES):  # one by one: Python's sqlite3 takes one step of it, which is one page
            connection.execute("PRAGMA incremental_vacuum(1)")
        left: int = connection.execute("PRAGMA freelist_count").fetchone()[0]
        return left, ()

    return change
