"""A long history for the benches: closed pivots written straight into a journal, as fast as SQLite takes them."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from pivotd.core.pivot import Identity, Image, Outcome, Pause, Phase, Pivot, PivotDisk
from pivotd.core.request import CopyOptions, Kind, Requester
from pivotd.journal import schema, upgrade_copy
from pivotd.journal.rows import disk_row, pause_row, pivot_row

AT = "2026-11-23T09:00:00.123456Z"
AT_OF_EACH = "strftime('%Y-%m-%dT%H:%M:%S.123456Z', 1795424400 - (:pivots - n.value) * 60, 'unixepoch')"
"""One pivot in each minute, and the last one a minute before AT."""
EVENTS = ("accepted", "switched", "closed")
FACTS = '{"backlog_bytes":0,"jobs":{"m01K9ABCDEFGHJKMNPQRSTVWXYZ":"concluded"},"roots":{"disk0":"destination"}}'
# Of the numbers 0, 1, …: the pivot's id, and the disk that it moves.
ID = "printf('01H%023d', n.value)"
DOMAIN = "printf('d%d', n.value % :disks / 2)"
DISK = "printf('disk%d', n.value % 2)"


def _sample() -> Pivot:
    images = [Image(f"/srv/images/{side}-of-a-guest.qcow2", "qcow2", f"{side}-node", "8:1") for side in ("old", "new")]
    disk = PivotDisk("", 0, "/machine/peripheral/disk0/virtio-backend", 1 << 36, images[0], images[1], "mirror-job")
    return Pivot(
        id="",
        request_id="",
        domain="",
        qmp="/run/qemu/guest.qmp",
        kind=Kind.COPY,
        phase=Phase.CLOSED,
        requested_by=Requester(0, 0, 4711),
        options=CopyOptions(),
        disks=(disk,),
        created_at=AT,
        identity=Identity("0b9e4f6c-6f39-4c2a-9d0a-8f7b6a5c4d3e", 4711, 99, "nonce"),
        pauses=(Pause(1, 3.5, "decided"),),
        decided_at=AT,
        closed_at=AT,
    )


def fill(state_dir: Path, pivots: int, disks: int) -> None:
    """Make a journal in which so many closed pivots have moved so many disks, two of each domain."""
    path = state_dir / schema.FILE_NAME
    schema.prepare(path, upgrade_copy.keep)
    sample = _sample()
    tables = {
        "pivot": pivot_row(sample) | {"id": ID, "request_id": ID, "domain": DOMAIN, "created_at": AT_OF_EACH},
        "pivot_disk": disk_row("", sample.disks[0]) | {"pivot": ID, "disk": DISK, "outcome": Outcome.SWITCHED.value},
        "pause": pause_row("", 0, sample.pauses[0]) | {"pivot": ID},
    }
    numbers = "WITH RECURSIVE n (value) AS (SELECT 0 UNION ALL SELECT value + 1 FROM n WHERE value + 1 < :pivots)"
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        for pragma in ("journal_mode = WAL", "synchronous = OFF", "cache_size = -200000"):
            connection.execute(f"PRAGMA {pragma}").fetchall()
        connection.execute("BEGIN")
        for table, row in tables.items():
            made = {name: value for name, value in row.items() if value in (ID, DOMAIN, DISK, AT_OF_EACH)}
            values = [made.get(name, f":{name}") for name in row]
            statement = f"{numbers} INSERT INTO {table} ({', '.join(row)}) SELECT {', '.join(values)} FROM n"
            connection.execute(statement, row | {"pivots": pivots, "disks": disks})
        connection.execute("CREATE TEMP TABLE event (number INTEGER PRIMARY KEY, name TEXT)")
        connection.executemany("INSERT INTO event VALUES (?, ?)", enumerate(EVENTS))
        connection.execute(
            f"{numbers} INSERT INTO record (at, domain, pivot, event, phase, facts) "
            f"SELECT {AT_OF_EACH}, {DOMAIN}, {ID}, event.name, 'closed', :facts "
            "FROM n CROSS JOIN event ORDER BY n.value",
            {"pivots": pivots, "disks": disks, "facts": FACTS},
        )
        connection.execute("COMMIT")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
