"""What open checks, and that a refused file is left as it is."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import sqlite_utils

from pivotd import limits
from pivotd.core.pivot import FleetStage, Phase, Pivot
from pivotd.core.request import Manager
from pivotd.errors import JournalCorruptError, JournalError, JournalLockedError, JournalNewerError
from pivotd.journal import schema
from pivotd.journal.journal import Journal
from pivotd.journal.reader import Reader
from pivotd.journal.rows import disk_row, pivot_row
from tests.journal.process import REPOSITORY, look, wait_for, working
from tests.journal.samples import make_pivot


def make_journal(state_dir: Path) -> Path:
    async def run() -> Path:
        journal = Journal.open(state_dir)
        await journal.accept(make_pivot(1), {"text": "x" * 20000})
        await journal.close()
        return journal.path

    return asyncio.run(run())


def sql(path: Path, *statements: str) -> None:
    connection = sqlite3.connect(path, isolation_level=None)
    for statement in statements:
        connection.execute(statement).fetchall()
    connection.close()


def without_lock_file(listing: str) -> list[str]:
    """Listing without the lock file and the directory's own times, which the lock file changes."""
    return [line for line in listing.splitlines() if line.split()[0] not in {".", "journal.lock"}]


def empty(path: Path) -> None:
    path.write_bytes(b"")


def text(path: Path) -> None:
    path.write_text("this is no database\n" * 1000)


def foreign(path: Path) -> None:
    path.unlink()
    sql(path, "CREATE TABLE cookies (name TEXT)")


def foreign_wal(path: Path) -> None:
    path.unlink()
    sql(path, "PRAGMA journal_mode = WAL", "CREATE TABLE cookies (name TEXT)", "PRAGMA user_version = 1")


def truncated(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 4096)


def only_a_header(path: Path) -> None:
    os.truncate(path, 50)


def scrambled(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[100:4096] = b"\xa5" * 3996
    path.write_bytes(data)


def without_a_trigger(path: Path) -> None:
    sql(path, "DROP TRIGGER record_no_update")


def unknown_word(path: Path) -> None:
    sql(path, "UPDATE pivot SET phase = 'levitating'")


def without_file_but_wal(path: Path) -> None:
    path.with_name("journal.db-wal").write_bytes(path.read_bytes())
    path.unlink()


@pytest.mark.parametrize(
    "damage",
    [
        empty,
        text,
        foreign,
        foreign_wal,
        truncated,
        only_a_header,
        scrambled,
        without_a_trigger,
        unknown_word,
        without_file_but_wal,
    ],
)
def test_what_is_not_a_sound_journal_is_refused_and_left_alone(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    """A file that is damaged, cut, empty or somebody else's is a JournalCorruptError and keeps every byte."""
    damage(make_journal(tmp_path))
    before = without_lock_file(look(tmp_path))
    with pytest.raises(JournalCorruptError) as caught:
        Journal.open(tmp_path)
    assert "\n" not in caught.value.message
    assert without_lock_file(look(tmp_path)) == before


def test_newer_journal_is_refused_and_left_alone(tmp_path: Path) -> None:
    """A schema number above ours is a JournalNewerError, for the daemon and for the offline reader."""
    sql(make_journal(tmp_path), f"PRAGMA user_version = {schema.SCHEMA_VERSION + 1}")
    before = without_lock_file(look(tmp_path))
    with pytest.raises(JournalNewerError, match="newer pivotd"):
        Journal.open(tmp_path)
    with pytest.raises(JournalNewerError, match="newer pivotd"):
        Reader.offline(tmp_path)
    assert without_lock_file(look(tmp_path)) == before


def test_newer_number_that_is_still_in_the_wal_is_refused(tmp_path: Path) -> None:
    """The number counts where it is newest: in the WAL of a killed newer daemon; file and WAL keep every byte."""
    inner = tmp_path / "copy"
    inner.mkdir()
    path = make_journal(tmp_path)
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA user_version = 99")
    for name in ("journal.db", "journal.db-wal"):
        shutil.copy(tmp_path / name, inner / name)
    connection.close()
    before = without_lock_file(look(inner))
    with pytest.raises(JournalNewerError):
        Journal.open(inner)
    assert without_lock_file(look(inner)) == before


def test_second_daemon_is_refused_with_the_pid_of_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While one process owns the journal another gets JournalLockedError that names it."""
    monkeypatch.setattr(limits, "JOURNAL_LOCK_TIMEOUT_S", 0.05)
    with working(tmp_path, "hold") as process:
        wait_for(process, "held")
        with pytest.raises(JournalLockedError, match=f"process {process.pid},"):
            Journal.open(tmp_path)
    asyncio.run(Journal.open(tmp_path).close())


def test_missing_directory_is_an_error(tmp_path: Path) -> None:
    """A state directory that is not there is not made: a typing error must not begin an empty journal."""
    with pytest.raises(JournalError, match="No such file or directory"):
        Journal.open(tmp_path / "nowhere")


@pytest.mark.parametrize("umask", [0o000, 0o077])
async def test_file_mode(tmp_path: Path, umask: int) -> None:
    """The journal's files are 0640 under any umask."""
    old = os.umask(umask)
    try:
        journal = Journal.open(tmp_path)
    finally:
        os.umask(old)
    await journal.note("n", {})
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    await journal.close()
    assert modes == dict.fromkeys(["journal.db", "journal.db-wal", "journal.db-shm", "journal.lock"], 0o640)


def make_older_journal(path: Path, last_step_before: str, pivots: list[tuple[Pivot, dict[str, object]]]) -> None:
    """Build a journal as the steps before one left it; beside each pivot, options that its columns held then."""
    connection = sqlite3.connect(path)
    database = sqlite_utils.Database(connection, execute_plugins=False)
    schema._load_migrations().migrations.apply(database, stop_before=last_step_before)
    for pivot, options in pivots:
        rows = [("pivot", pivot_row(pivot)), *(("pivot_disk", disk_row(pivot.id, disk)) for disk in pivot.disks)]
        for table, row in rows:
            columns = database[table].columns_dict
            stored = {name: value for name, value in row.items() if name in columns}
            if table == "pivot":
                stored["options"] = json.dumps({**json.loads(row["options"]), **options})
            database[table].insert(stored)
    connection.close()


def test_a_journal_of_schema_2_is_upgraded_with_its_pivots(tmp_path: Path) -> None:
    """Every pivot is what it was, offline too, once a daemon has opened it."""
    path = tmp_path / "journal.db"
    make_older_journal(path, "m003_layers_between", [(make_pivot(1), {})])
    assert schema.inspect(path) == 2
    make_journal(tmp_path)
    assert schema.inspect(path) == schema.SCHEMA_VERSION
    reader = Reader.attach(tmp_path)
    assert reader.pivot("P0001") == make_pivot(1)
    reader.close()


def test_a_journal_of_schema_3_is_upgraded_with_its_history(tmp_path: Path) -> None:
    """An undo has its column, and the last pivot of each disk is the one accepted last, whatever its id and its clock."""
    path = tmp_path / "journal.db"
    closed = {"phase": Phase.CLOSED, "closed_at": "2026-11-23T09:00:03.000000Z"}
    both = replace(make_pivot(7, disk="disk0"), **closed)
    both = replace(both, disks=(*both.disks, replace(both.disks[0], disk="disk1", index=1, job="job71")))
    undo = replace(make_pivot(3, disk="disk0"), **closed, request_id="undo-P0007", created_at="1999-01-01T00:00:00Z")
    other = replace(make_pivot(5, disk="disk0", domain="db1"), **closed)
    make_older_journal(path, "m004_revisions", [(both, {}), (undo, {"undo_of": "P0007"}), (other, {})])
    assert schema.inspect(path) == 3
    offline = Reader.offline(tmp_path)
    asyncio.run(Journal.open(tmp_path).close())
    for reader in (offline, Reader.attach(tmp_path)):
        assert reader.pivot("P0003") == reader.undo("P0007") == replace(undo, undo_of="P0007")
        reader.close()
    connection = sqlite3.connect(path)
    latest = connection.execute("SELECT domain, disk, pivot FROM disk_latest ORDER BY domain, disk").fetchall()
    connection.close()
    assert latest == [("db1", "disk0", "P0005"), ("web1", "disk0", "P0003"), ("web1", "disk1", "P0007")]


def test_the_pivots_of_a_journal_of_schema_7_are_of_pivotd_itself(tmp_path: Path) -> None:
    """Before schema 8 nobody else carried out the steps of a pivot."""
    path = tmp_path / "journal.db"
    make_older_journal(path, "m008_libvirt", [(make_pivot(1), {})])
    assert schema.inspect(path) == 7
    make_journal(tmp_path)
    reader = Reader.attach(tmp_path)
    found = reader.pivot("P0001")
    reader.close()
    assert (found.manager, found.asking) == (Manager.PIVOTD, False)


def test_the_pivots_of_a_journal_of_schema_8_were_never_announced(tmp_path: Path) -> None:
    """Before schema 9 there was no fleet, and no pause waited for one."""
    path = tmp_path / "journal.db"
    make_older_journal(path, "m009_fleet", [(make_pivot(1), {})])
    sql(path, "INSERT INTO pause (pivot, number, attempt, pause_ms, ended) VALUES ('P0001', 0, 1, 2.5, 'decided')")
    assert schema.inspect(path) == 8
    make_journal(tmp_path)
    reader = Reader.attach(tmp_path)
    found = reader.pivot("P0001")
    reader.close()
    assert (found.fleet, found.fleet_epoch) == (FleetStage.NONE, None)
    assert found.pauses[0].fleet_ms is None


async def test_a_journal_of_schema_9_owes_no_release(tmp_path: Path) -> None:
    """Before schema 10, what was owed ended with pivotd."""
    path = tmp_path / "journal.db"
    make_older_journal(path, "m010_guest_to_release", [(make_pivot(1), {})])
    assert schema.inspect(path) == 9
    journal = Journal.open(tmp_path)
    assert await journal.owed_releases() == {}
    await journal.owe_release("web1", 1)
    await journal.close()
    journal = Journal.open(tmp_path)
    assert await journal.owed_releases() == {"web1": 1}
    await journal.close()


def test_a_journal_that_cannot_be_upgraded_is_left_as_it_was(tmp_path: Path) -> None:
    """Its number says that steps are pending, its list of steps that there are none."""
    path = make_journal(tmp_path)
    sql(path, "PRAGMA journal_mode = DELETE", "PRAGMA user_version = 1")
    before = path.read_bytes()
    for opened in (Journal.open, Reader.offline):
        with pytest.raises(JournalCorruptError, match="cannot be upgraded") as refused:
            opened(tmp_path)
        assert refused.value.message.startswith(str(path))
        assert path.read_bytes() == before


def test_a_column_of_another_name_is_damage(tmp_path: Path) -> None:
    """A bit may have turned over in the schema itself: one typed error, for a reader and for a daemon."""
    sql(make_journal(tmp_path), "ALTER TABLE pivot RENAME COLUMN run_state_before TO run_state_bef0re")
    reader = Reader.attach(tmp_path)
    with pytest.raises(JournalCorruptError):
        reader.pivot("P0001")
    reader.close()
    with pytest.raises(JournalCorruptError):
        Journal.open(tmp_path)


def test_creation_that_was_killed_starts_again(tmp_path: Path) -> None:
    """Whatever a kill left of a journal in the making is thrown away; it never had the journal's name."""
    (tmp_path / "journal.db.new").write_bytes(b"half")
    (tmp_path / "journal.db.new-journal").write_bytes(b"half")
    make_journal(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["journal.db", "journal.lock"]


def test_command_line_gives_the_same_schema(tmp_path: Path) -> None:
    """``sqlite-utils migrate`` and Journal.open make the same schema, and the daemon takes either file."""
    by_hand = tmp_path / "by-hand"
    by_hand.mkdir()
    subprocess.run(
        [sys.executable, "-m", "sqlite_utils", "migrate", str(by_hand / "journal.db"), str(REPOSITORY / "migrations")],
        check=True,
        capture_output=True,
    )

    def shape(path: Path) -> list[tuple[object, ...]]:
        connection = sqlite3.connect(path)
        rows = connection.execute("SELECT type, name, tbl_name, sql FROM sqlite_master ORDER BY type, name").fetchall()
        for pragma in ("user_version", "application_id"):
            rows.append(connection.execute(f"PRAGMA {pragma}").fetchone())
        connection.close()
        return rows

    assert shape(make_journal(tmp_path)) == shape(by_hand / "journal.db")
    make_journal(by_hand)


def test_start_imports_no_sqlite_utils(tmp_path: Path) -> None:
    """Opening a journal of the present version does not pay for the migration library."""
    make_journal(tmp_path)
    code = (
        "import sys, pathlib; from pivotd.journal.journal import Journal; "
        f"Journal.open(pathlib.Path({str(tmp_path)!r})).open_pivots(); assert 'sqlite_utils' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=REPOSITORY)
