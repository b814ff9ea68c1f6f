"""The changes to the tables; every function runs on the writer's thread inside its transaction."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, TypeVar

from pivotd.core.overwritten import Overwritten
from pivotd.core.pivot import Accepted, FileSeen, JsonObject, Phase, Pivot, PivotDisk, RanOn, Record
from pivotd.core.request import Requester
from pivotd.core.standing import Asked
from pivotd.errors import ConflictError, DiskBusyError, NotFoundError, RevisionConflictError
from pivotd.journal import place
from pivotd.journal.rows import SELECT_OPEN, DomainRow, disk_row, load_moved, load_pivots, pause_row, pivot_row, to_json

T = TypeVar("T")
_Whose = tuple[str | None, str | None, Phase | None]
"""Domain, pivot and phase of a record."""
Change = Callable[[sqlite3.Connection], tuple[T, Sequence[Record]]]
"""Returns the answer for the caller and the records appended."""


class ArchivedRequestError(ConflictError):
    """A request id of an archived pivot. Fields: ``pivot``, its id; ``archive``, the name of its archive."""


FIXED = frozenset({
    "id", "request_id", "undo_of", "domain", "qmp", "kind", "manager", "requested_by", "created_at", "revision"
})  # fmt: skip
"""Fields that identify a pivot, and its revision: no caller may change them."""

_INSERT_RECORD = "INSERT INTO record (at, domain, pivot, event, phase, facts) VALUES (?, ?, ?, ?, ?, ?)"
_SELECT_ASKED = (
    "SELECT record.pivot, record.event, record.facts"
    " FROM pivot INDEXED BY pivot_open CROSS JOIN record INDEXED BY record_by_pivot ON record.pivot = pivot.id"
    " WHERE pivot.phase <> 'closed' AND record.event IN ('cancel-requested', 'release-requested') ORDER BY record.seq"
)
"""With the hints SQLite reads the records of open pivots alone."""


def utc_now() -> str:
    """Return the time in the format of every column of the journal: RFC 3339, UTC, microseconds."""
    return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def _insert(table: str, columns: Sequence[str]) -> str:
    marks = ", ".join(f":{column}" for column in columns)
    return f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({marks})"  # noqa: S608 - our own column names


@dataclass(frozen=True, slots=True)
class _Update:
    """An UPDATE of the columns that differ between two rows."""

    sql: str
    values: tuple[Any, ...]

    @classmethod
    def between(
        cls, table: str, before: dict[str, Any], after: dict[str, Any], where: dict[str, Any]
    ) -> _Update | None:
        """Return the update, None if nothing differs."""
        changed = {name: value for name, value in after.items() if value != before[name]}
        if not changed:
            return None
        assignments = ", ".join(f"{name} = ?" for name in changed)
        conditions = " AND ".join(f"{name} = ?" for name in where)
        sql = f"UPDATE {table} SET {assignments} WHERE {conditions}"  # noqa: S608 - our own column names
        return cls(sql, (*changed.values(), *where.values()))


def accept(pivot: Pivot, facts: JsonObject, overwritten: Sequence[Overwritten] = ()) -> Change[tuple[Pivot, bool]]:
    """Insert a pivot unless its request id is known or one of its disks is taken."""
    head = pivot_row(pivot)
    insert_head = _insert("pivot", tuple(head))
    disks = [disk_row(pivot.id, disk) for disk in pivot.disks]
    pauses = [pause_row(pivot.id, number, pause) for number, pause in enumerate(pivot.pauses)]
    text = to_json(facts)

    def change(connection: sqlite3.Connection) -> tuple[tuple[Pivot, bool], Sequence[Record]]:
        known = load_pivots(connection, "SELECT * FROM pivot WHERE request_id = ?", (pivot.request_id,))
        if known:
            return (known[0], False), ()
        query = "SELECT pivot, archive FROM archived WHERE request_id = ?"
        if row := connection.execute(query, (pivot.request_id,)).fetchone():
            raise ArchivedRequestError(f"{row['archive']} has request {pivot.request_id}", **dict(row))
        _refuse_busy_disks(connection, pivot)
        connection.execute(insert_head, head)
        for row in disks:
            connection.execute(_insert("pivot_disk", tuple(row)), row)
        for row in pauses:
            connection.execute(_insert("pause", tuple(row)), row)
        for one in overwritten:
            values = (one.domain, one.disk, one.image, one.pivot, int(one.moved_on))
            connection.execute("INSERT OR REPLACE INTO overwritten VALUES (?, ?, ?, ?, ?)", values)
        return (pivot, True), (_append(connection, (pivot.domain, pivot.id, pivot.phase), "accepted", text),)

    return change


def advance(before: Pivot, event: str, facts: JsonObject, changes: dict[str, Any]) -> Change[Pivot]:
    """Change a pivot that still equals ``before``; write only the columns that differ."""
    if fixed := FIXED & changes.keys():
        raise TypeError(f"these fields of a pivot never change: {', '.join(sorted(fixed))}")
    after = replace(before, **changes, revision=before.revision + 1)
    assert after.pauses[: len(before.pauses)] == before.pauses, "pauses only grow"
    where = {"id": before.id, "revision": before.revision}
    head = _Update.between("pivot", pivot_row(before), pivot_row(after), where)
    assert head is not None
    updates = _disk_updates(before, after)
    pauses = [pause_row(after.id, number, pause) for number, pause in enumerate(after.pauses)][len(before.pauses) :]
    text = to_json(facts)

    def change(connection: sqlite3.Connection) -> tuple[Pivot, Sequence[Record]]:
        if connection.execute(head.sql, head.values).rowcount != 1:
            raise _conflict(connection, before, event)
        for update in updates:
            assert connection.execute(update.sql, update.values).rowcount == 1, update
        for row in pauses:
            connection.execute(_insert("pause", tuple(row)), row)
        return after, (_append(connection, (after.domain, after.id, after.phase), event, text),)

    return change


def hand_over(before: Pivot, successor: Pivot, facts: JsonObject, closed_at: str) -> Change[Pivot]:
    """Close a pivot and insert the one that continues with its jobs and nodes, in one transaction.

    That the guest has left by a migration stays known: nothing has seen it return.
    """
    left = "SELECT disk, left_at FROM disk_latest WHERE pivot = ? AND left_at IS NOT NULL"
    again = "UPDATE disk_latest SET left_at = ? WHERE disk = ? AND pivot = ?"
    close = advance(before, "undo-requested", facts, {"phase": Phase.CLOSED, "closed_at": closed_at, "hold": False})
    begin = accept(successor, {"undo_of": before.id})

    def change(connection: sqlite3.Connection) -> tuple[Pivot, Sequence[Record]]:
        gone = connection.execute(left, (before.id,)).fetchall()
        closed, last = close(connection)
        (_, new), first = begin(connection)
        if not new:
            raise ConflictError(f"request id {successor.request_id} belongs to another pivot", pivot=before.id)
        for row in gone:
            connection.execute(again, (row["left_at"], row["disk"], successor.id))
        return closed, (*last, *first)

    return change


def note(event: str, facts: JsonObject, domain: str | None, pivot: str | None) -> Change[Record]:
    """Append a record that changes no state; it names no pivot that an archive has."""
    text = to_json(facts)

    def change(connection: sqlite3.Connection) -> tuple[Record, Sequence[Record]]:
        query = "SELECT 1 FROM archived WHERE pivot = ?"
        moved = pivot is not None and connection.execute(query, (pivot,)).fetchone() is not None
        record = _append(connection, (domain, None if moved else pivot, None), event, text)
        return record, (record,)

    return change


def check_file(identity: str) -> Change[bool]:
    """Put every disk in doubt if the journal is another file than the one that the last daemon left."""

    def change(connection: sqlite3.Connection) -> tuple[bool, Sequence[Record]]:
        known = connection.execute("SELECT identity FROM journal_file").fetchone()
        if known is not None and place.is_same(known["identity"], identity):
            return False, ()
        connection.execute("DELETE FROM journal_file")
        connection.execute("INSERT INTO journal_file VALUES (?)", (identity,))
        doubtful = connection.execute("UPDATE disk_latest SET doubtful = 1").rowcount
        text = to_json({"disks_in_doubt": doubtful, "before": None if known is None else known["identity"]})
        return True, (_append(connection, (None, None, None), "journal-moved", text),)

    return change


def seen(pivot: str, domain: str, disk: str) -> Change[None]:
    """End the doubts about a disk whose last pivot is still this one: QEMU was seen on the right image."""
    text = to_json({"disk": disk})

    def change(connection: sqlite3.Connection) -> tuple[None, Sequence[Record]]:
        sql = (
            "UPDATE disk_latest"
            " SET doubtful = 0, left_at = NULL, ran_on = NULL, ran_on_format = NULL, ran_on_at = NULL"
            " WHERE domain = ? AND disk = ? AND pivot = ?"
            " AND (doubtful = 1 OR left_at IS NOT NULL OR ran_on IS NOT NULL)"
        )
        if connection.execute(sql, (domain, disk, pivot)).rowcount != 1:
            return None, ()
        return None, (_append(connection, (domain, pivot, None), "image-seen", text),)

    return change


def ran_on(
    domain: str, disk: str, last: tuple[str, Accepted | None], other: RanOn, asked: Asked | None = None
) -> Change[bool]:
    """Put a disk in doubt whose guest was seen to run on another image; return whether that is new.

    ``last``: its last pivot, and a person's word on it: if one of them has changed since, nothing is recorded.
    ``asked``: the image by all its names, and by its file.
    """
    names = json.dumps(sorted({other.filename} if asked is None else {other.filename, *asked.names}))
    file_ids = json.dumps([] if asked is None else sorted(asked.file_ids))
    pivot, accepted = last
    text = to_json({"disk": disk, "image": other.filename, "format": other.format})

    def change(connection: sqlite3.Connection) -> tuple[bool, Sequence[Record]]:
        sql = (
            "UPDATE disk_latest SET ran_on = ?, ran_on_format = ?, ran_on_at = ?, ran_on_by_fleet = ?"
            " WHERE domain = ? AND disk = ? AND pivot = ? AND (ran_on IS NOT ? OR ran_on_format <> ?)"
            " AND EXISTS (SELECT 1 FROM pivot_disk d"
            " WHERE d.pivot = disk_latest.pivot AND d.disk = disk_latest.disk AND d.accepted_at IS ?)"
        )
        at = None if accepted is None else accepted.at
        seen = (other.filename, other.format)
        row = (*seen, other.at, other.by_fleet, domain, disk, pivot, *seen, at)
        if connection.execute(sql, row).rowcount != 1:
            return False, ()
        sql = (
            "UPDATE image_latest SET ran_on_at = ? WHERE domain = ? AND disk = ?"
            " AND (filename IN (SELECT value FROM json_each(?)) OR file_id IN (SELECT value FROM json_each(?)))"
        )
        connection.execute(sql, (other.at, domain, disk, names, file_ids))
        return True, (_append(connection, (domain, pivot, None), "ran-on-other-image", text),)

    return change


def is_used(key: tuple[str, str], pivot: str, image: RanOn, asked: Asked, by: tuple[str, str]) -> Change[None]:
    """Note that another guest, or another disk, ``by``, runs on an old image of a disk: it is not to be deleted.

    ``key`` and ``by``: domain and disk; ``pivot``: the last one of the disk; ``asked``: the image by all its names.
    """
    domain, disk = key
    names, file_ids = json.dumps(sorted({image.filename, *asked.names})), json.dumps(sorted(asked.file_ids))
    text = to_json({"disk": disk, "image": image.filename, "format": image.format, "by": " ".join(by)})

    def change(connection: sqlite3.Connection) -> tuple[None, Sequence[Record]]:
        sql = (
            "UPDATE image_latest SET ran_on_at = ? WHERE domain = ? AND disk = ? AND ran_on_at IS NULL"
            " AND (filename IN (SELECT value FROM json_each(?)) OR file_id IN (SELECT value FROM json_each(?)))"
        )
        if not connection.execute(sql, (image.at, domain, disk, names, file_ids)).rowcount:
            return None, ()
        return None, (_append(connection, (domain, pivot, None), "old-image-used", text),)

    return change


def other_images(connection: sqlite3.Connection, domain: str | None) -> list[tuple[Pivot, PivotDisk]]:
    """Return the disks, of all domains or one, whose guest has run on another image, each with its last pivot."""
    query = "SELECT * FROM disk_latest WHERE ran_on IS NOT NULL AND domain = ifnull(?, domain) ORDER BY domain, disk"
    return load_moved(connection, query, (domain,))


def saw_file(pivot: str, domain: str, disk: str, seen: FileSeen) -> Change[None]:
    """Keep the file that QEMU has as the right image of a disk, if its last pivot is still this one."""

    def change(connection: sqlite3.Connection) -> tuple[None, Sequence[Record]]:
        sql = (
            "UPDATE disk_latest SET file_name = ?, file_id = ?, file_boot_id = ?, file_born = ?"
            " WHERE domain = ? AND disk = ? AND pivot = ?"
        )
        connection.execute(sql, (seen.filename, seen.file_id, seen.boot_id, seen.born, domain, disk, pivot))
        return None, ()

    return change


def left(domain: str, at: str) -> Change[None]:
    """Put every disk of a domain in doubt: its guest has left this host by a migration, or is about to."""

    def change(connection: sqlite3.Connection) -> tuple[None, Sequence[Record]]:
        sql = "UPDATE disk_latest SET left_at = ? WHERE domain = ? AND left_at IS NULL"
        doubtful = connection.execute(sql, (at, domain)).rowcount
        if not doubtful:
            return None, ()
        text = to_json({"disks_in_doubt": doubtful})
        return None, (_append(connection, (domain, None, None), "guest-left", text),)

    return change


def owe_release(domain: str, epoch: int) -> Change[None]:
    """Note that a guest leaves this host, which owns it under this epoch in the fleet; again writes nothing."""
    text = to_json({"epoch": epoch})

    def change(connection: sqlite3.Connection) -> tuple[None, Sequence[Record]]:
        sql = (
            "INSERT INTO guest_to_release VALUES (?, ?, ?) "
            "ON CONFLICT DO UPDATE SET epoch = excluded.epoch, seen_at = excluded.seen_at WHERE epoch <> excluded.epoch"
        )
        if not connection.execute(sql, (domain, epoch, utc_now())).rowcount:
            return None, ()
        return None, (_append(connection, (domain, None, None), "release-owed", text),)

    return change


def settle_release(domain: str, why: str) -> Change[None]:
    """Forget that a guest is to be released, if it is."""
    text = to_json({"reason": why})

    def change(connection: sqlite3.Connection) -> tuple[None, Sequence[Record]]:
        if not connection.execute("DELETE FROM guest_to_release WHERE domain = ?", (domain,)).rowcount:
            return None, ()
        return None, (_append(connection, (domain, None, None), "release-settled", text),)

    return change


def owed_releases(connection: sqlite3.Connection) -> dict[str, int]:
    """Return the epochs under which guests have left that are still to be released, by domain."""
    return {row["domain"]: row["epoch"] for row in connection.execute("SELECT domain, epoch FROM guest_to_release")}


def add_domain(name: str, qmp_path: str, uid: int) -> Change[None]:
    """Insert a domain; the same name and path again writes nothing."""
    text = to_json({"qmp_path": qmp_path, "uid": uid})

    def change(connection: sqlite3.Connection) -> tuple[None, Sequence[Record]]:
        known = connection.execute("SELECT qmp_path FROM domain WHERE name = ?", (name,)).fetchone()
        if known is not None and known["qmp_path"] == qmp_path:
            return None, ()
        if known is not None:
            raise ConflictError(
                f"domain {name} is already there with the monitor {known['qmp_path']}; remove it first",
                domain=name,
                qmp_path=known["qmp_path"],
            )
        connection.execute("INSERT INTO domain VALUES (?, ?, ?, ?)", (name, qmp_path, utc_now(), uid))
        return None, (_append(connection, (name, None, None), "domain-added", text),)

    return change


def remove_domain(name: str, uid: int) -> Change[None]:
    """Delete a domain that has no open pivot; its pivots and records stay."""

    def change(connection: sqlite3.Connection) -> tuple[None, Sequence[Record]]:
        known = connection.execute("SELECT qmp_path FROM domain WHERE name = ?", (name,)).fetchone()
        if known is None:
            raise NotFoundError(f"there is no domain {name} that was added at run time", domain=name)
        query = "SELECT id FROM pivot WHERE domain = ? AND phase <> 'closed' LIMIT 1"
        if pivot := connection.execute(query, (name,)).fetchone():
            raise ConflictError(
                f"domain {name} has the open pivot {pivot['id']}; cancel it or wait for it first",
                domain=name,
                pivot=pivot["id"],
            )
        connection.execute("DELETE FROM domain WHERE name = ?", (name,))
        text = to_json({"qmp_path": known["qmp_path"], "uid": uid})
        return None, (_append(connection, (name, None, None), "domain-removed", text),)

    return change


def open_pivots(connection: sqlite3.Connection) -> list[Pivot]:
    """Return every pivot that is not closed, oldest first."""
    return load_pivots(connection, SELECT_OPEN)


def asked(connection: sqlite3.Connection) -> dict[str, dict[str, Requester]]:
    """Return, by open pivot and event, who has last asked for what no change of the pivot shows yet."""
    found: dict[str, dict[str, Requester]] = {}
    for row in connection.execute(_SELECT_ASKED):
        # The records have no more: -1 is nobody's, as in chown(2).
        found.setdefault(row["pivot"], {})[row["event"]] = Requester(json.loads(row["facts"])["uid"], -1, -1)
    return found


def pivot(connection: sqlite3.Connection, pivot_id: str) -> Pivot:
    """Return one pivot. Raises: LookupError."""
    return load_pivots(connection, "SELECT * FROM pivot WHERE id = ?", (pivot_id,))[0]


def domains(connection: sqlite3.Connection) -> list[DomainRow]:
    """Return the domains that were added at run time, by name."""
    rows = connection.execute("SELECT name, qmp_path FROM domain ORDER BY name")
    return [DomainRow(row["name"], row["qmp_path"]) for row in rows]


def last_seq(connection: sqlite3.Connection) -> int:
    """Return the sequence number of the last record, 0 if there is none."""
    seq: int = connection.execute("SELECT coalesce(max(seq), 0) FROM record").fetchone()[0]
    return seq


def _append(connection: sqlite3.Connection, whose: _Whose, event: str, facts: str) -> Record:
    at = utc_now()
    domain, pivot, phase = whose
    values = (at, domain, pivot, event, None if phase is None else phase.value, facts)
    seq = connection.execute(_INSERT_RECORD, values).lastrowid
    assert seq is not None
    # Parsed again, so that what is announced is what is stored, whatever the caller does to its facts later.
    return Record(seq, at, domain, pivot, event, phase, json.loads(facts))


def _refuse_busy_disks(connection: sqlite3.Connection, pivot: Pivot) -> None:
    names = json.dumps([disk.disk for disk in pivot.disks])
    taken = connection.execute(
        "SELECT pivot.id, pivot_disk.disk FROM pivot JOIN pivot_disk ON pivot_disk.pivot = pivot.id "
        "WHERE pivot.domain = ? AND pivot.phase <> 'closed' "
        "AND pivot_disk.disk IN (SELECT value FROM json_each(?)) ORDER BY pivot.number, disk_index LIMIT 1",
        (pivot.domain, names),
    ).fetchone()
    if taken is not None:
        raise DiskBusyError(
            f"disk {taken['disk']} of {pivot.domain} belongs to the open pivot {taken['id']}; "
            f"wait for that one or cancel it",
            pivot=taken["id"],
            disk=taken["disk"],
        )


def _disk_updates(before: Pivot, after: Pivot) -> list[_Update]:
    if before.disks == after.disks:
        return []
    assert [_key(disk) for disk in before.disks] == [_key(disk) for disk in after.disks], "disks never change"
    updates = []
    for old, new in zip(before.disks, after.disks, strict=True):
        where = {"pivot": after.id, "disk_index": new.index}
        update = _Update.between("pivot_disk", disk_row(before.id, old), disk_row(after.id, new), where)
        if update is not None:
            updates.append(update)
    return updates


def _key(disk: PivotDisk) -> tuple[int, str]:
    return disk.index, disk.disk


def _conflict(connection: sqlite3.Connection, before: Pivot, event: str) -> RevisionConflictError:
    row = connection.execute("SELECT phase, revision FROM pivot WHERE id = ?", (before.id,)).fetchone()
    phase, revision = (None, None) if row is None else tuple(row)
    now = "not in the journal" if row is None else f"{phase} at revision {revision}"
    return RevisionConflictError(
        f"pivot {before.id} is {now}, not {before.phase.value} at revision {before.revision}: {event} was not "
        f"recorded; look at the pivot again",
        pivot=before.id,
        phase=phase,
        revision=revision,
    )
