"""Converts rows to types and back: the only place that knows which column holds which field."""

from __future__ import annotations

import json
import sqlite3
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Any

from pivotd.core.creation import ImageOptions
from pivotd.core.pivot import (
    Accepted,
    FileSeen,
    FleetStage,
    Identity,
    Image,
    JsonObject,
    Outcome,
    Pause,
    Phase,
    Pivot,
    PivotDisk,
    RanOn,
    Record,
)
from pivotd.core.request import (
    Aio,
    Cache,
    CopyMode,
    CopyOptions,
    Discard,
    Kind,
    Limits,
    Manager,
    Requester,
    Sync,
    WriteLimit,
)

Row = Mapping[str, Any]

SELECT_OPEN = "SELECT * FROM pivot INDEXED BY pivot_open WHERE phase <> 'closed' ORDER BY number"
"""Without the hint SQLite reads all of history in the order of numbers."""
SELECT_NAMED = "SELECT * FROM pivot WHERE id IN (SELECT value FROM json_each(?))"
_SELECT_DISKS = "SELECT * FROM pivot_disk WHERE pivot IN (SELECT value FROM json_each(?)) ORDER BY pivot, disk_index"
_SELECT_PAUSES = "SELECT * FROM pause WHERE pivot IN (SELECT value FROM json_each(?)) ORDER BY pivot, number"


@dataclass(frozen=True, slots=True)
class DomainRow:
    """One domain that was added at run time."""

    name: str
    qmp_path: str


def to_json(value: JsonObject) -> str:
    """Return compact JSON with sorted keys.

    ASCII only: a file name that is not UTF-8 (a lone surrogate in Python) survives as an escape. A value that JSON
    does not know is written as text: a record must not be lost because of the type of one fact.
    """
    return json.dumps(value, separators=(",", ":"), sort_keys=True, default=str)


@lru_cache(maxsize=256)
def _text(value: CopyOptions | Identity) -> str:
    """Return the parts of a pivot that never change; the record inside a pause must not wait for encoding them."""
    return to_json(asdict(value))


@lru_cache(maxsize=256)
def _names(filenames: tuple[str, ...]) -> str:
    return json.dumps(filenames, separators=(",", ":"))


def pivot_row(pivot: Pivot) -> dict[str, Any]:
    """Return the columns of table ``pivot``."""
    return {
        "id": pivot.id,
        "request_id": pivot.request_id,
        "undo_of": pivot.undo_of,
        "domain": pivot.domain,
        "qmp_path": pivot.qmp,
        "kind": pivot.kind.value,
        "manager": pivot.manager.value,
        "phase": pivot.phase.value,
        "revision": pivot.revision,
        "requested_by_uid": pivot.requested_by.uid,
        "requested_by_gid": pivot.requested_by.gid,
        "requested_by_pid": pivot.requested_by.pid,
        "options": _text(pivot.options),
        "created_at": pivot.created_at,
        "hold": int(pivot.hold),
        "attempt": pivot.attempt,
        "identity": _text(pivot.identity),
        "run_state_before": pivot.run_state_before,
        "owes_resume": int(pivot.owes_resume),
        "asking": int(pivot.asking),
        "fleet": pivot.fleet.value,
        "fleet_epoch": pivot.fleet_epoch,
        "pausing_since": pivot.pausing_since,
        "error": pivot.error,
        "decided_at": pivot.decided_at,
        "closed_at": pivot.closed_at,
    }


def disk_row(pivot: str, disk: PivotDisk) -> dict[str, Any]:
    """Return the columns of table ``pivot_disk``."""
    return {
        "pivot": pivot,
        "disk_index": disk.index,
        "disk": disk.disk,
        "qdev": disk.qdev,
        "size_bytes": disk.size_bytes,
        "source_filename": disk.source.filename,
        "source_format": disk.source.format,
        "source_node": disk.source.node,
        "source_file_id": disk.source.file_id,
        "source_born": disk.source.born,
        "destination_filename": disk.destination.filename,
        "destination_format": disk.destination.format,
        "destination_node": disk.destination.node,
        "destination_file_id": disk.destination.file_id,
        "destination_born": disk.destination.born,
        "job": disk.job,
        **_layer("top", disk.top),
        **_layer("base", disk.base),
        "between_filenames": _names(disk.between),
        "backing_file": disk.backing_file,
        "cache_direct": int(disk.cache_direct),
        "outcome": None if disk.outcome is None else disk.outcome.value,
        "accepted_filename": None if disk.accepted is None else disk.accepted.filename,
        "accepted_format": None if disk.accepted is None else disk.accepted.format,
        "accepted_at": None if disk.accepted is None else disk.accepted.at,
        "accepted_by_uid": None if disk.accepted is None else disk.accepted.uid,
        "accepted_reason": None if disk.accepted is None else disk.accepted.reason,
    }


def _layer(side: str, image: Image | None) -> dict[str, Any]:
    return {
        f"{side}_filename": None if image is None else image.filename,
        f"{side}_format": None if image is None else image.format,
        f"{side}_node": None if image is None else image.node,
        f"{side}_file_id": None if image is None else image.file_id,
        f"{side}_born": None if image is None else image.born,
    }


def pause_row(pivot: str, number: int, pause: Pause) -> dict[str, Any]:
    """Return the columns of table ``pause``; ``number`` is the place in ``Pivot.pauses``, from 0."""
    return {
        "pivot": pivot,
        "number": number,
        "attempt": pause.attempt,
        "pause_ms": pause.pause_ms,
        "ended": pause.ended,
        "fleet_ms": pause.fleet_ms,
    }


def load_pivots(connection: sqlite3.Connection, query: str, parameters: Iterable[object] = ()) -> list[Pivot]:
    """Return whole pivots for a query that selects rows of ``pivot``, in its order.

    Three statements: the caller holds a transaction where others may write in between.
    """
    heads = connection.execute(query, tuple(parameters)).fetchall()
    ids = json.dumps([head["id"] for head in heads])
    disks: defaultdict[str, list[PivotDisk]] = defaultdict(list)
    for row in connection.execute(_SELECT_DISKS, (ids,)):
        disks[row["pivot"]].append(_disk(row))
    pauses: defaultdict[str, list[Pause]] = defaultdict(list)
    for row in connection.execute(_SELECT_PAUSES, (ids,)):
        pauses[row["pivot"]].append(Pause(row["attempt"], row["pause_ms"], row["ended"], row["fleet_ms"]))
    return [_pivot(head, disks[head["id"]], pauses[head["id"]]) for head in heads]


Moved = tuple[Pivot, PivotDisk]
"""A pivot, and one of its disks."""


def load_moved(connection: sqlite3.Connection, query: str, parameters: Iterable[object]) -> list[Moved]:
    """Return a pivot and its disk for each row with ``domain``, ``disk`` and ``pivot`` that a query selects, in order.

    Raises: LookupError: a row names a pivot that has no such disk.
    """
    rows = connection.execute(query, tuple(parameters)).fetchall()
    ids = json.dumps(sorted({row["pivot"] for row in rows}))
    pivots = {pivot.id: pivot for pivot in load_pivots(connection, SELECT_NAMED, (ids,))}
    disks = {(pivot.domain, disk.disk, pivot.id): disk for pivot in pivots.values() for disk in pivot.disks}
    moved = [(pivots[row["pivot"]], disks[row["domain"], row["disk"], row["pivot"]]) for row in rows]
    if not rows or "doubtful" not in rows[0].keys():  # noqa: SIM118 - a row is no dict
        return moved
    return [
        (
            pivot,
            replace(
                disk,
                doubtful=bool(row["doubtful"]),
                left_at=row["left_at"],
                ran_on=_ran_on(row),
                file_seen=_file_seen(row),
            ),
        )
        for row, (pivot, disk) in zip(rows, moved, strict=True)
    ]


def _ran_on(row: Row) -> RanOn | None:
    if row["ran_on"] is None:
        return None
    return RanOn(row["ran_on"], row["ran_on_format"], row["ran_on_at"], bool(row["ran_on_by_fleet"]))


def _file_seen(row: Row) -> FileSeen | None:
    if row["file_name"] is None:
        return None
    return FileSeen(row["file_name"], row["file_id"], row["file_boot_id"], row["file_born"])


def record(row: Row) -> Record:
    """Return the record of one row of table ``record``."""
    return Record(
        seq=row["seq"],
        at=row["at"],
        domain=row["domain"],
        pivot=row["pivot"],
        event=row["event"],
        phase=None if row["phase"] is None else Phase(row["phase"]),
        facts=_object(row["facts"]),
    )


def _pivot(row: Row, disks: list[PivotDisk], pauses: list[Pause]) -> Pivot:
    return Pivot(
        id=row["id"],
        request_id=row["request_id"],
        undo_of=row["undo_of"],
        domain=row["domain"],
        qmp=row["qmp_path"],
        kind=Kind(row["kind"]),
        manager=Manager(row["manager"]),
        phase=Phase(row["phase"]),
        revision=row["revision"],
        requested_by=Requester(row["requested_by_uid"], row["requested_by_gid"], row["requested_by_pid"]),
        options=_options(row["options"]),
        disks=tuple(disks),
        created_at=row["created_at"],
        hold=bool(row["hold"]),
        attempt=row["attempt"],
        identity=_identity(row["identity"]),
        run_state_before=row["run_state_before"],
        owes_resume=bool(row["owes_resume"]),
        asking=bool(row["asking"]),
        fleet=FleetStage(row["fleet"]),
        fleet_epoch=row["fleet_epoch"],
        pausing_since=row["pausing_since"],
        error=row["error"],
        pauses=tuple(pauses),
        decided_at=row["decided_at"],
        closed_at=row["closed_at"],
    )


def _from_json(text: str) -> Any:
    """Return the value that to_json wrote. Raises: ValueError, also for JSON nested too deep to be pivotd's."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("JSON nested too deep") from None


def _object(text: str) -> JsonObject:
    """Return a JSON object that to_json wrote. Raises: ValueError, TypeError: it is none."""
    found = _from_json(text)
    if not isinstance(found, dict):
        raise TypeError("JSON that is no object")
    return found


@lru_cache(maxsize=256)
def _identity(text: str) -> Identity:
    """Return one object for all rows with the same text: parsing is most of the cost of a row."""
    return Identity(**_from_json(text))


@lru_cache(maxsize=256)
def _options(text: str) -> CopyOptions:
    """Return options; an option that did not exist when the row was written has its default."""
    stored = _from_json(text)
    typed = {
        "sync": Sync(stored["sync"]),
        "copy_mode": CopyMode(stored["copy_mode"]),
        "image_options": ImageOptions(**stored.get("image_options", {})),
        "discard": Discard(stored.get("discard", Discard.UNMAP)),
        "aio": None if stored.get("aio") is None else Aio(stored["aio"]),
        "cache": None if stored.get("cache") is None else Cache(stored["cache"]),
        "write_limits": tuple(map(_write_limit, stored.get("write_limits", ()))),
        "nodes_below": tuple(stored.get("nodes_below", ())),
        "write_thresholds": tuple((disk, size_bytes) for disk, size_bytes in stored.get("write_thresholds", ())),
        "made_before": tuple((path, changed) for path, changed in stored.get("made_before", ())),
        "guest_writes": tuple((disk, count) for disk, count in stored.get("guest_writes", ())),
        "snapshots_left": tuple((image, tuple(names)) for image, names in stored.get("snapshots_left", ())),
    }
    stored.pop("undo_of", None)  # it has a column since schema 4
    return CopyOptions(**stored | typed)


def _write_limit(stored: JsonObject) -> WriteLimit:
    return WriteLimit(
        qdev=stored["qdev"], before=_limits(stored["before"]), placed=tuple(map(_limits, stored["placed"]))
    )


def _limits(stored: Iterable[tuple[str, int | str]]) -> Limits:
    return tuple((str(name), value) for name, value in stored)


def _disk(row: Row) -> PivotDisk:
    return PivotDisk(
        disk=row["disk"],
        index=row["disk_index"],
        qdev=row["qdev"],
        size_bytes=row["size_bytes"],
        source=_image(row, "source"),
        destination=_image(row, "destination"),
        job=row["job"],
        top=_image(row, "top") if row["top_node"] is not None else None,
        base=_image(row, "base") if row["base_node"] is not None else None,
        between=tuple(map(str, _from_json(row["between_filenames"]))),
        backing_file=row["backing_file"],
        cache_direct=bool(row["cache_direct"]),
        outcome=None if row["outcome"] is None else Outcome(row["outcome"]),
        accepted=_accepted(row) if row["accepted_at"] is not None else None,
    )


def _accepted(row: Row) -> Accepted:
    names = ("filename", "format", "at", "by_uid", "reason")
    return Accepted(*(row[f"accepted_{name}"] for name in names))


def _image(row: Row, side: str) -> Image:
    return Image(*(row[f"{side}_{column}"] for column in ("filename", "format", "node", "file_id", "born")))
