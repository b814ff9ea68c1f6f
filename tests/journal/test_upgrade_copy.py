"""The copy that is kept before the schema is upgraded, and the way back to it."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pivotd import limits
from pivotd.errors import JournalError, JournalFullError, JournalNewerError
from pivotd.host.fsync import fsync_directory, fsync_file
from pivotd.journal import schema, upgrade_copy
from pivotd.journal.journal import Journal
from pivotd.journal.reader import Reader
from tests.conftest import LONG
from tests.journal.samples import make_pivot
from tests.journal.test_open import make_older_journal, sql
from tests.journal_disk.disk import Disk, put
from tests.journal_disk.server import Fault
from tests.journal_disk.store import Contents, replay

BEFORE = schema.SCHEMA_VERSION - 1
RECORD = "INSERT INTO record (at, event, facts) VALUES ('2026-11-30T04:00:00.000000Z', 'n', '{}')"
POINTS_MIN = 20


def last_step() -> str:
    """Return the name of the step that the journals here still need."""
    return list(schema._load_migrations().migrations._migrations)[-1].name


def make_previous(state_dir: Path, pivots: int = 1) -> Path:
    """Build a journal of the previous schema."""
    path = state_dir / "journal.db"
    make_older_journal(path, last_step(), [(make_pivot(number), {}) for number in range(1, pivots + 1)])
    sql(path, RECORD)
    assert schema.inspect(path) == BEFORE
    return path


def upgrade(state_dir: Path) -> None:
    """Do what a start of the daemon does."""
    asyncio.run(Journal.open(state_dir).close())


def contents(path: Path) -> list[str]:
    """Return every row of a journal, as statements; a name changes nothing of them."""
    connection = sqlite3.connect(f"file:{path}?mode=ro&immutable=1", uri=True)
    try:
        return [*connection.iterdump(), str(connection.execute("PRAGMA user_version").fetchone())]
    finally:
        connection.close()


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir() if ".schema-" in path.name)


def test_an_upgrade_keeps_a_copy_of_the_journal_as_it_was(tmp_path: Path) -> None:
    """With every row of the previous schema, in one file, for those who may read the journal."""
    path = make_previous(tmp_path)
    before = contents(path)
    upgrade(tmp_path)
    copy = upgrade_copy.path_of(path, BEFORE)
    assert contents(copy) == before
    assert schema.inspect(path) == schema.SCHEMA_VERSION
    assert names(tmp_path) == [copy.name]
    assert copy.stat().st_mode & 0o777 == 0o640


def test_what_is_in_the_wal_of_a_killed_daemon_is_in_the_copy(tmp_path: Path) -> None:
    """The latest records are there alone."""
    path = make_previous(tmp_path)
    pid = os.fork()
    if not pid:
        connection = sqlite3.connect(path, isolation_level=None)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute(RECORD.replace("'n'", "'late'"))
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    assert path.with_name("journal.db-wal").stat().st_size
    upgrade(tmp_path)
    assert any("'late'" in row for row in contents(upgrade_copy.path_of(path, BEFORE)))


def test_a_new_journal_and_one_of_this_schema_leave_no_copy(tmp_path: Path) -> None:
    """Nothing is upgraded."""
    upgrade(tmp_path)
    upgrade(tmp_path)
    assert names(tmp_path) == []


def test_the_newest_few_copies_stay(tmp_path: Path) -> None:
    """The one just made, and those of the newest other schemas; files of other names are not touched."""
    make_previous(tmp_path)
    others = [f"journal.db.schema-{number}" for number in range(1, BEFORE)]
    for name in [*others, "journal.db.schema-x", "other.db.schema-1"]:
        (tmp_path / name).write_text(name)
    upgrade(tmp_path)
    kept = [f"journal.db.schema-{number}" for number in range(BEFORE, BEFORE - limits.JOURNAL_COPIES_MAX, -1)]
    assert sorted([*kept, "journal.db.schema-x", "other.db.schema-1"]) == names(tmp_path)


def test_a_copy_of_the_same_schema_is_replaced(tmp_path: Path) -> None:
    """After a way back and another upgrade, the copy has what was recorded in between."""
    path = make_previous(tmp_path)
    upgrade(tmp_path)
    path.unlink()
    upgrade_copy.path_of(path, BEFORE).rename(path)
    sql(path, RECORD.replace("'n'", "'between'"))
    upgrade(tmp_path)
    assert any("'between'" in row for row in contents(upgrade_copy.path_of(path, BEFORE)))


def newer(path: Path) -> None:
    sql(path, f"PRAGMA user_version = {schema.SCHEMA_VERSION + 1}")


@pytest.mark.parametrize("opened", [Journal.open, Reader.offline])
def test_an_older_pivotd_names_the_copy_and_what_is_lost(tmp_path: Path, opened: Callable[[Path], object]) -> None:
    """One line: where the copy is, and up to when it goes; of several, the newest that this pivotd can read."""
    path = make_previous(tmp_path)
    upgrade(tmp_path)
    for number in (BEFORE - 1, schema.SCHEMA_VERSION + 1):
        (tmp_path / f"journal.db.schema-{number}").write_bytes(upgrade_copy.path_of(path, BEFORE).read_bytes())
    newer(path)
    copy = upgrade_copy.path_of(path, BEFORE)
    with pytest.raises(JournalNewerError) as refused:
        opened(tmp_path)
    assert refused.value.message == (
        f"{path} was written by a newer pivotd (schema {schema.SCHEMA_VERSION + 1}, this one knows "
        f"{schema.SCHEMA_VERSION}); it was left as it is; install the newer pivotd again, or go back to {copy} "
        "(docs/install.md): it ends at 2026-11-30T04:00:00.000000Z, and what was recorded later is lost then"
    )


@pytest.mark.parametrize("damage", ["nothing", "text", "cut"])
def test_a_copy_that_is_no_journal_is_not_named(tmp_path: Path, damage: str) -> None:
    """Nobody is sent to a file that cannot be used."""
    path = make_previous(tmp_path)
    upgrade(tmp_path)
    newer(path)
    copy = upgrade_copy.path_of(path, BEFORE)
    if damage == "nothing":
        copy.unlink()
    else:
        copy.write_bytes(b"text" if damage == "text" else copy.read_bytes()[:50])
    with pytest.raises(JournalNewerError, match=r"install the newer pivotd again$"):
        Journal.open(tmp_path)


def test_the_way_back_leaves_every_disk_in_doubt(tmp_path: Path) -> None:
    """A copy is another file than the journal: what it lacks may have moved a disk."""
    path = make_previous(tmp_path)
    upgrade(tmp_path)
    copy = upgrade_copy.path_of(path, BEFORE).read_bytes()
    path.rename(tmp_path / "newer.db")
    path.write_bytes(copy)

    async def restart() -> bool:
        journal = Journal.open(tmp_path)
        try:
            return await journal.check_file()
        finally:
            await journal.close()

    assert asyncio.run(restart())


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    with Disk(tmp_path / "disk") as mounted:
        yield mounted


def previous(tmp_path: Path) -> bytes:
    """Return a journal of the previous schema."""
    place = tmp_path / "previous"
    place.mkdir()
    return make_previous(place).read_bytes()


@pytest.mark.chaos
def test_a_power_cut_in_an_upgrade_leaves_the_copy_or_the_old_journal(disk: Disk, tmp_path: Path) -> None:
    """After each change of the disk: a journal that is upgraded has its copy, whole; and the next start goes on."""
    on_disk = disk.where / "journal.db"
    on_disk.write_bytes(previous(tmp_path))
    fsync_file(on_disk)
    fsync_directory(disk.where)
    before, first = contents(tmp_path / "previous/journal.db"), len(disk.log())
    upgrade(disk.where)
    upgraded = copied = 0
    seen: list[Contents] = []
    for point, store in replay(disk.log()):
        if point < first or (point % 2 and not LONG):
            continue
        for kind, left in (("cut", store.after_cut()), ("killed", store.everything())):
            if left in seen:
                continue
            seen.append(left)
            place = tmp_path / f"{point}-{kind}"
            put(left, place)
            path = place / "journal.db"
            copy = upgrade_copy.path_of(path, BEFORE)
            is_upgraded = schema.inspect(path) == schema.SCHEMA_VERSION
            if copy.exists():
                assert contents(copy) == before, place
            assert copy.exists() or not is_upgraded, place
            upgraded, copied = upgraded + is_upgraded, copied + copy.exists()
            upgrade(place)
            assert names(place) == [copy.name], place
            assert contents(copy) == before, place
    assert 0 < upgraded < copied < len(seen)
    assert len(seen) > (POINTS_MIN if LONG else POINTS_MIN // 2)


def failure(state_dir: Path) -> JournalError | None:
    """Start, and return why that was refused."""
    try:
        upgrade(state_dir)
    except JournalError as error:
        return error
    return None


@pytest.mark.chaos
@pytest.mark.parametrize(("what", "how"), [("fsync", "eio"), ("write", "enospc"), ("write", "eio")])
@pytest.mark.thinned(3)
def test_no_upgrade_without_a_copy(disk: Disk, tmp_path: Path, what: str, how: str) -> None:
    """Whichever of its writes fails, the start is refused in one line, or the copy is there; mended, it goes on."""
    journal = previous(tmp_path)
    before = contents(tmp_path / "previous/journal.db")
    refused = 0
    for nth in range(1, 1000):
        disk.load({"journal.db": journal})
        disk.fail(Fault(what, nth, how, lasting=True))
        error = failure(disk.where)
        said = "" if error is None else error.message
        assert "\n" not in said
        if "no copy of it can be kept" in said:
            refused += 1
            assert isinstance(error, JournalFullError) is (how == "enospc"), said
            assert ("no space left" in said) is (how == "enospc"), said
        struck = disk.await_strike(timeout_s=0)
        disk.fail()
        if not struck:
            break
        copy = upgrade_copy.path_of(disk.where / "journal.db", BEFORE)
        assert copy.exists() or schema.inspect(disk.where / "journal.db") == BEFORE
        upgrade(disk.where)
        assert contents(copy) == before
        if "no copy" not in said and refused:
            break  # later failures are those of the upgrade itself
    assert refused
