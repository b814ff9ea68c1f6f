"""A backup holds one state of the journal and all of its archives, whatever happens meanwhile."""

from __future__ import annotations

import asyncio
import os
import shutil
import sqlite3
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import pytest

from pivotd.errors import ConflictError, JournalError
from pivotd.journal import backup, lock
from pivotd.journal.backup import back_up
from pivotd.journal.journal import Journal
from pivotd.journal.reader import Reader
from tests.journal.old_pivots import archive, back_and_forth, run
from tests.journal.process import wait_for, working
from tests.journal.test_archives import FILE, answers, inside, look
from tests.support.waiting import until


async def test_a_backup_answers_like_the_journal(journal: Journal, tmp_path: Path) -> None:
    """Beside the journal's owner and without one; it is a journal with its archives, and nothing else is there."""
    await back_and_forth(journal, 5)
    await archive(journal)
    before = inside(journal.path)
    done = back_up(journal.path.parent, tmp_path / "one")
    assert (done.archives, done.obstacles) == ((FILE,), ())
    await journal.close()
    back_up(journal.path, tmp_path / "two")
    for name in ("one", "two"):
        assert sorted(os.listdir(tmp_path / name)) == [FILE, "journal.db"]  # noqa: PTH208
        assert look(tmp_path / name) == before
    assert not [entry for entry in tmp_path.iterdir() if "part" in entry.name or "old" in entry.name]


def test_a_backup_while_another_process_writes_is_one_state(tmp_path: Path) -> None:
    """Every record up to some number, and the pivots as they were then."""
    state = tmp_path / "state"
    state.mkdir()
    with working(state) as process:
        wait_for(process, "open")
        assert process.stdout is not None
        for _ in range(40):
            process.stdout.readline()
        done = back_up(state, tmp_path / "copy")
    reader = Reader.offline(tmp_path / "copy")
    records = reader.events(0, 10**6)
    phases = {record.pivot: record.phase for record in records}
    assert [record.seq for record in records] == list(range(1, len(records) + 1))
    assert {pivot.id: pivot.phase for pivot in reader.pivots()} == phases
    assert len(records) >= 40
    assert reader.check() == []
    reader.close()
    assert done.size_bytes == (tmp_path / "copy" / "journal.db").stat().st_size


async def test_a_restored_backup_is_certain_of_nothing(journal: Journal, tmp_path: Path) -> None:
    """Also where it was renamed into its place: it does not say that it is the file that pivotd has used."""
    await run(journal, 1)
    back_up(journal.path, tmp_path / "copy")
    await journal.close()
    (tmp_path / "copy" / "journal.db").rename(journal.path)
    reader = Reader.offline(journal.path)
    assert reader.is_copy()
    reader.close()
    again = Journal.open(journal.path.parent)
    assert await again.check_file()
    reader = Reader.attach(again.path)
    assert [disk.doubtful for _, disk in reader.latest()] == [True]
    reader.close()
    await again.close()


async def test_an_archive_that_is_missing_is_told_and_the_rest_is_copied(journal: Journal, tmp_path: Path) -> None:
    """The journal itself is worth more than the refusal."""
    await back_and_forth(journal, 5)
    await archive(journal)
    journal.path.with_name(FILE).unlink()
    done = back_up(journal.path, tmp_path / "copy")
    assert (done.archives, len(done.obstacles)) == ((), 1)
    assert "is missing" in done.obstacles[0]
    reader = Reader.offline(tmp_path / "copy")
    assert [pivot.id for pivot in reader.pivots(limit=1)] == ["P0005"]
    reader.close()


async def test_a_backup_replaces_nothing_unless_it_was_asked(journal: Journal, tmp_path: Path) -> None:
    """And then only a backup: never other files, and never the journal itself or what it lies in."""
    await run(journal, 1)
    target = tmp_path / "copy"
    back_up(journal.path, target)
    first = (target / "journal.db").read_bytes()
    with pytest.raises(ConflictError, match="holds a backup already"):
        back_up(journal.path, target)
    assert (target / "journal.db").read_bytes() == first
    await run(journal, 2)
    back_up(journal.path, target, replace=True)
    reader = Reader.offline(target)
    assert len(reader.pivots()) == 2
    reader.close()
    (target / "photo.jpg").touch()
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(target)
    for other, why in (
        (target, "other files, such as photo.jpg"),
        (journal.path.parent, "the place of the journal itself"),
        (journal.path.parent.parent, "the place of the journal itself"),
        (tmp_path / "file", "not a directory"),
        (tmp_path / "link", "not a directory"),
    ):
        with pytest.raises(ConflictError, match=why):
            back_up(journal.path, other, replace=True)
    assert (target / "photo.jpg").exists()


async def test_a_backup_that_fails_leaves_what_was_there(
    journal: Journal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No room for the second one: the first is whole, and nothing is left beside it."""
    await run(journal, 1)
    target = tmp_path / "copy"
    back_up(journal.path, target)
    first = (target / "journal.db").read_bytes()

    def full(_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(backup, "fsync_file", full)
    with pytest.raises(JournalError, match="no space left for the backup"):
        back_up(journal.path, target, replace=True)
    assert (target / "journal.db").read_bytes() == first
    assert [entry.name for entry in tmp_path.iterdir() if entry.name.startswith("copy")] == ["copy"]


async def test_the_journal_of_a_pivotd_is_no_backup(journal: Journal, tmp_path: Path) -> None:
    """Whoever copies a backup back with --force, while a pivotd runs or not, does not replace what that has recorded."""
    (tmp_path / "state").mkdir()
    other = Journal.open(tmp_path / "state")
    await run(other, 1)
    before = inside(other.path)
    for running in (True, False):
        if not running:
            await other.close()
        with pytest.raises(ConflictError, match="the journal of a pivotd, and no backup"):
            back_up(journal.path, other.path.parent, replace=True)
        assert look(other.path.parent) == before


async def test_a_backup_with_an_archive_is_not_replaced_by_one_without(journal: Journal, tmp_path: Path) -> None:
    """It may be the only place where that archive still is: whoever makes one each night must not lose it so."""
    await back_and_forth(journal, 5)
    await archive(journal)
    target = tmp_path / "copy"
    back_up(journal.path, target)
    before = look(target)
    journal.path.with_name(FILE).unlink()
    with pytest.raises(ConflictError, match=f"is missing.* the backup in {target} has it"):
        back_up(journal.path, target, replace=True)
    assert look(target) == before
    assert [entry.name for entry in tmp_path.iterdir() if entry.name.startswith("copy")] == ["copy"]


async def test_no_room_for_an_archive_is_no_fault_of_the_archive(
    journal: Journal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The backup fails as a whole, as where there is no room for the journal."""
    await back_and_forth(journal, 5)
    await archive(journal)

    def full(path: Path) -> None:
        if path.name == FILE:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(backup, "fsync_file", full)
    with pytest.raises(JournalError, match="no space left for the backup"):
        back_up(journal.path, tmp_path / "copy")
    assert not [entry for entry in tmp_path.iterdir() if entry.name.startswith("copy")]


async def test_a_daemon_that_starts_does_not_wait_for_a_backup(
    journal: Journal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may have a paused guest: the backup lets it in, and begins again beside it."""
    await back_and_forth(journal, 3)
    await journal.close()
    state = journal.path.parent
    with ThreadPoolExecutor(1) as starting:
        opening: list[Future[Journal]] = []

        def look_for_a_daemon(path: Path) -> bool:
            if not opening:
                opening.append(starting.submit(Journal.open, state))
                assert until(lambda: lock.is_waited_for(path))
            return lock.is_waited_for(path)

        monkeypatch.setattr(backup, "lock", SimpleNamespace(is_waited_for=look_for_a_daemon))
        done = await asyncio.to_thread(back_up, state, tmp_path / "copy")
        started = await asyncio.wrap_future(opening[0])
    assert look(Path(done.path)) == inside(state)
    await started.close()


async def test_a_file_of_an_older_pivotd_is_made_small_by_the_documented_command(tmp_path: Path) -> None:
    """VACUUM in place keeps the file that the journal is: no disk is in doubt, and from then on pages are given back."""
    journal = Journal.open(tmp_path)
    await back_and_forth(journal, 20, records=20)
    await journal.check_file()
    await journal.close()
    with closing(sqlite3.connect(journal.path)) as connection:
        connection.execute("PRAGMA auto_vacuum = NONE")
        connection.execute("VACUUM")
    again = Journal.open(tmp_path)
    large = again.path.stat().st_size
    await archive(again)
    await again.close()
    assert again.path.stat().st_size >= large - 4096 * 4
    with closing(sqlite3.connect(again.path)) as connection:
        connection.executescript("PRAGMA auto_vacuum = INCREMENTAL; VACUUM")
    assert again.path.stat().st_size < large
    reader = Reader.offline(tmp_path)
    assert not reader.is_copy()
    assert answers(reader)["faults"] == []
    reader.close()
    shutil.rmtree(tmp_path)
