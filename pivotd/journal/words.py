"""A word on which image holds a disk's data: it ends the doubts that were known when it was given, and no later ones.

The function runs on the writer's thread inside its transaction.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import replace

from pivotd.core.pivot import Accepted, FileSeen, JsonObject, Pivot, PivotDisk, Record
from pivotd.errors import RevisionConflictError
from pivotd.journal.changes import Change, advance, saw_file

_DOUBTS = (
    "SELECT doubtful, left_at, ran_on, ran_on_format,"
    " (SELECT o.pivot FROM overwritten o WHERE o.domain = l.domain AND o.disk = l.disk) AS mark"
    " FROM disk_latest l WHERE domain = ? AND disk = ? AND pivot = ?"
)


def accept_image(  # noqa: PLR0913, PLR0917 - the word, and what was known when it was given
    before: Pivot,
    known: PivotDisk,
    mark: str | None,
    word: Accepted,
    facts: JsonObject,
    fleet_epoch: int | None,
    file: FileSeen | None = None,
) -> Change[Pivot]:
    """Keep a word with the last pivot of a disk, unless something that puts the disk in doubt is new since.

    ``known``: the disk as it was read; ``mark``: the pivot that then wrote to an image of it, or had moved on from it.
    That the guest was seen on the accepted image itself says the same as the word. ``file``: what the name of the
    accepted image leads to, if somebody has seen that.
    """
    disks = tuple(replace(one, accepted=word) if one.disk == known.disk else one for one in before.disks)
    record = advance(before, "image-accepted", facts, {"disks": disks, "fleet_epoch": fleet_epoch})
    ran_on = (None, None) if known.ran_on is None else (known.ran_on.filename, known.ran_on.format)
    doubts = {(int(known.doubtful), known.left_at, *ran, mark) for ran in (ran_on, (word.filename, word.format))}

    def change(connection: sqlite3.Connection) -> tuple[Pivot, Sequence[Record]]:
        row = connection.execute(_DOUBTS, (before.domain, known.disk, before.id)).fetchone()
        if row is None or tuple(row) not in doubts:
            raise RevisionConflictError(
                f"what is known of {before.domain} {known.disk} has changed: the word was not recorded; look again",
                pivot=before.id,
            )
        recorded = record(connection)
        if file is not None:
            saw_file(before.id, before.domain, known.disk, file)(connection)
        return recorded

    return change
