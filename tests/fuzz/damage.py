"""Journals to damage, and ways to damage them: bits, pages, the WAL, and values that are wrong in a sound file."""

from __future__ import annotations

import asyncio
import json
import random
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from pivotd.core.pivot import Outcome, Pause, Phase, Pivot
from pivotd.journal.journal import Journal
from tests.journal.samples import make_pivot

AT = "2026-11-23T09:00:01.000000Z"
PAGE_BYTES = 4096
WAL_HEADER_BYTES, FRAME_BYTES = 32, 24 + PAGE_BYTES
TABLES = ("domain", "pivot", "pivot_disk", "disk_latest", "pause", "record")
FILES = ("journal.db", "journal.db-wal")
JSON_COLUMNS = {("pivot", "options"), ("pivot", "identity"), ("record", "facts")}
WORDS = ["", "x", "copy", "closed", "pausing", "unknown", "\x00", "ü" * 300, "/dev/null", "null", "P0001", "1:1", "-1"]
NUMBERS = [0, 1, 2, -1, 2**31, 2**32, 2**63 - 1, -(2**63)]
DOCUMENTS = [None, [], {}, 0, "x", [1], {"x": 1}, {"pid": "x"}]


async def _fill(state_dir: Path, at_work: Path) -> None:
    """Make a journal with pivots in every phase; copy it to ``at_work`` while it is open, so with a WAL."""
    journal = Journal.open(state_dir)
    await journal.add_domain("web9", "/run/web9.qmp", 0)
    pivots = [(await journal.accept(make_pivot(number), {"n": number}))[0] for number in range(1, 8)]
    for pivot, outcome in zip(pivots[:4], (Outcome.SWITCHED, Outcome.KEPT, Outcome.UNKNOWN, None), strict=True):
        await _advance(journal, pivot, outcome)
    await journal.note("filler", {"text": "x" * 60_000})
    shutil.copytree(state_dir, at_work)
    await journal.close()


async def _advance(journal: Journal, pivot: Pivot, outcome: Outcome | None) -> None:
    for phase in (Phase.COPYING, Phase.READY):
        pivot = await journal.advance(pivot, phase.value, {}, phase=phase)
    intent: dict[str, Any] = {"run_state_before": "running", "owes_resume": True, "pausing_since": AT, "attempt": 1}
    pivot = await journal.advance(pivot, "pausing", {}, phase=Phase.PAUSING, **intent)
    if outcome is None:
        return
    disks = tuple(replace(disk, outcome=outcome) for disk in pivot.disks)
    pivot = await journal.advance(pivot, outcome.value, {}, phase=Phase.DECIDED, disks=disks, decided_at=AT)
    pauses = (Pause(1, 3.5, outcome.value),)
    pivot = await journal.advance(pivot, "resumed", {}, owes_resume=False, pauses=pauses)
    if outcome is not Outcome.UNKNOWN:
        await journal.advance(pivot, "closed", {}, phase=Phase.CLOSED, closed_at=AT)


def originals(directory: Path) -> tuple[Path, Path]:
    """Return the directories of a journal that was closed and of one that was at work."""
    closed, at_work = directory / "closed", directory / "at-work"
    closed.mkdir()
    asyncio.run(_fill(closed, at_work))
    return closed, at_work


# -- bytes ----------------------------------------------------------------------------------------------------------


def _file(rng: random.Random, state_dir: Path) -> Path:
    return state_dir / rng.choice([name for name in FILES if (state_dir / name).exists()])


def bits(rng: random.Random, state_dir: Path) -> str:
    path = _file(rng, state_dir)
    data = bytearray(path.read_bytes())
    places = [rng.randrange(len(data)) for _ in range(rng.choice([1, 1, 5, 50]))]
    if rng.random() < 0.3:
        places = [place % 100 for place in places]
    for place in places:
        data[place] ^= 1 << rng.randrange(8)
    path.write_bytes(data)
    return f"{path.name}: bits flipped in bytes {places}"


def truncated(rng: random.Random, state_dir: Path) -> str:
    path = _file(rng, state_dir)
    size = path.stat().st_size
    keep = rng.choice([0, 1, 99, 100, PAGE_BYTES, size - 1, size - PAGE_BYTES, rng.randrange(size)])
    path.write_bytes(path.read_bytes()[:keep])
    return f"{path.name}: cut to {keep} of {size} bytes"


def swapped(rng: random.Random, state_dir: Path) -> str:
    path = _file(rng, state_dir)
    data = bytearray(path.read_bytes())
    head, size = (0, PAGE_BYTES) if path.name == FILES[0] else (WAL_HEADER_BYTES, FRAME_BYTES)
    count = (len(data) - head) // size
    one, other = rng.randrange(count), rng.randrange(count)
    first, second = (slice(head + n * size, head + (n + 1) * size) for n in (one, other))
    data[first], data[second] = data[second], data[first]
    path.write_bytes(data)
    return f"{path.name}: pages or frames {one} and {other} swapped"


def overwritten(rng: random.Random, state_dir: Path) -> str:
    path = _file(rng, state_dir)
    data = bytearray(path.read_bytes())
    at, size = rng.randrange(len(data)), rng.choice([4, 64, PAGE_BYTES])
    fill = rng.choice([bytes(size), b"\xff" * size, rng.randbytes(size)])
    data[at : at + size] = fill
    path.write_bytes(data)
    return f"{path.name}: {size} bytes at {at} overwritten with {fill[:4]!r}…"


def mixed(rng: random.Random, state_dir: Path) -> str:
    """One of the two files is gone, or there twice, or nobody's."""
    database, wal = (state_dir / name for name in FILES)
    how = rng.choice(["no database", "no WAL", "WAL in place of the database", "WAL twice", "database in place of it"])
    match how:
        case "no database":
            database.unlink()
        case "no WAL":
            wal.unlink(missing_ok=True)
        case "WAL in place of the database" if wal.exists():
            shutil.copy(wal, database)
        case "WAL twice" if wal.exists():
            wal.write_bytes(wal.read_bytes() * 2)
        case _:
            shutil.copy(database, wal)
    return how


def foreign(rng: random.Random, state_dir: Path) -> str:
    """Another program's SQLite file, perhaps marked as ours."""
    for name in FILES:
        (state_dir / name).unlink(missing_ok=True)
    version, owner = rng.choice([0, 1, 2, 2**31 - 1, -1]), rng.choice([0, 0x70767464])
    with closing(sqlite3.connect(state_dir / FILES[0])) as connection:
        connection.executescript(
            f"CREATE TABLE {rng.choice(TABLES)} (id, phase); CREATE VIEW pivots AS SELECT 1;"
            f"PRAGMA user_version = {version}; PRAGMA application_id = {owner}"
        )
    return f"another schema, version {version}, application id {owner}"


# -- values ---------------------------------------------------------------------------------------------------------


def values(rng: random.Random, state_dir: Path) -> str:
    """Wrong values in a sound file, past every constraint that can be switched off."""
    with closing(sqlite3.connect(state_dir / FILES[0], isolation_level=None)) as connection:
        connection.execute("PRAGMA ignore_check_constraints = ON")
        triggers = connection.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'").fetchall()
        for name, _ in triggers:
            connection.execute(f"DROP TRIGGER {name}")
        said = [_value(rng, connection) for _ in range(rng.choice([1, 1, 2, 5]))]
        for _, statement in triggers:
            connection.execute(statement)
    return "; ".join(said)


def _value(rng: random.Random, connection: sqlite3.Connection) -> str:
    table = rng.choice(TABLES)
    column, kind = rng.choice([(row[1], row[2]) for row in connection.execute(f"PRAGMA table_info({table})")])
    key = "domain || ' ' || disk" if table == "disk_latest" else "rowid"
    (row,) = rng.choice(connection.execute(f"SELECT {key} FROM {table}").fetchall())
    (old,) = connection.execute(f"SELECT {column} FROM {table} WHERE {key} = ?", (row,)).fetchone()
    if (table, column) in JSON_COLUMNS:
        new: Any = _document(rng, json.loads(old))
    elif kind == "TEXT":
        new = rng.choice([*WORDS, None, (old or "")[:-1]])
    else:
        new = rng.choice([*NUMBERS, None])
    try:
        connection.execute(f"UPDATE {table} SET {column} = ? WHERE {key} = ?", (new, row))
    except sqlite3.Error as error:
        return f"{table}.{column} of row {row} does not take {new!r} ({error})"
    return f"{table}.{column} of row {row} = {str(new)[:100]!r}"


def _document(rng: random.Random, old: Any) -> str:
    """Return JSON with one member wrong, other JSON, or none."""
    how = rng.random()
    if how < 0.15:
        return rng.choice(["", "{", "nul", "[" * 2000, '{"a":1}x', "\x00", "NaN"])
    if how < 0.3 or not isinstance(old, dict) or not old:
        return json.dumps(rng.choice(DOCUMENTS))
    key = rng.choice(list(old))
    if how < 0.4:
        return json.dumps({name: value for name, value in old.items() if name != key})
    return json.dumps({**old, key: rng.choice([None, "x", -1, 2**80, 1.5, [], {}, True, *NUMBERS, *WORDS])})


DAMAGES: tuple[Callable[[random.Random, Path], str], ...] = (
    bits, truncated, swapped, overwritten, mixed, foreign, values, values, values, values,
)  # fmt: skip
