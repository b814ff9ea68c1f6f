"""What archiving moves and what it leaves, and that every answer is what it was before."""

from __future__ import annotations

import asyncio
import os
import shutil
import sqlite3
import tempfile
import threading
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from migrations.migrations import M006_STATEMENTS
from pivotd import limits
from pivotd.app.retention import Retention
from pivotd.core.list_filters import EventFilter, PivotFilter
from pivotd.core.overwritten import Overwritten
from pivotd.core.pivot import Accepted, FleetStage, Outcome, Phase
from pivotd.core.standing import Asked
from pivotd.errors import ArchiveError, JournalError, JournalFullError
from pivotd.journal import archives, archiving, changes, forgetting, history, schema
from pivotd.journal.archiving import Archiver
from pivotd.journal.images import obsolete, standings
from pivotd.journal.journal import Journal
from pivotd.journal.reader import Reader
from pivotd.journal.search import Found, Place
from tests.conftest import LONG
from tests.journal.old_pivots import DAY_S, OLD_AT, archive, back_and_forth, run
from tests.journal.samples import make_pivot
from tests.journal.test_changes import steps
from tests.journal.test_open import make_older_journal

FILE = "archive-2021.db"


def answers(reader: Reader) -> dict[str, Any]:
    """Return everything that can be read, but what only archiving has written."""
    listed = reader.pivots()
    images = reader.images("", 1000)[0]
    domains = sorted({pivot.domain for pivot in listed})
    records = [record for record in reader.events(0, 10**6) if record.event != "archived"]
    return {
        "pivots": listed,
        "by domain": {domain: reader.pivots(domain) for domain in domains},
        "open": reader.pivots(open_only=True),
        "pages": [reader.pivots(limit=2, before=pivot.id) for pivot in listed],
        "pages by domain": [reader.pivots(pivot.domain, limit=2, before=pivot.id) for pivot in listed],
        "by id": [reader.pivot(pivot.id) for pivot in listed],
        "by request": [reader.pivot(pivot.request_id) for pivot in listed],
        "undone by": [reader.undo(pivot.id) for pivot in listed],
        "filtered": {
            outcome: pages(reader.pivots_page, PivotFilter(outcome=outcome)) for outcome in (*Outcome, "split")
        },
        "of a kind since": pages(reader.pivots_page, PivotFilter(kind="copy", since="2026-01-01T00:00:00.000000Z")),
        "named": [reader.named("P", 100), reader.named("p00", 100)],
        "counted": [reader.count(PivotFilter()), *(reader.count(PivotFilter(domain)) for domain in domains)],
        "ends": pages(reader.events_page, EventFilter(event="closed")),
        "backwards": [one for one in pages(reader.last_events, EventFilter()) if one.event != "archived"],
        "records": [reader.records(pivot.id) for pivot in listed],
        "events": records,
        "cursors": [reader.events(record.seq, 1) for record in records[:-1]],
        "latest": list(reader.every_latest()),
        "of images": {name: reader.image([name]) for name in images},
        "stale": obsolete(reader, "", 1000),
        "standings": {name: standings(reader, name, Asked(frozenset({name}))) for name in images},
        "overwritten": reader.overwritten(),
        "faults": reader.check(),
    }


def pages(read_page: Callable[[Any, Place[Any]], Found[Any, Any]], chosen: Any) -> list[Any]:
    """Return everything that a search finds, a few rows at a time."""
    found: list[Any] = []
    at = None
    for _ in range(10_000):
        page, at = read_page(chosen, Place(2, at, 3))
        found += page
        if at is None:
            return found
    raise AssertionError("it does not end")


def look(path: Path) -> dict[str, Any]:
    """Return the answers as ``pivotctl --offline`` reads them."""
    reader = Reader.offline(path)
    try:
        return answers(reader)
    finally:
        reader.close()


def inside(path: Path) -> dict[str, Any]:
    """Return the answers as the daemon reads them."""
    reader = Reader.attach(path)
    try:
        return answers(reader)
    finally:
        reader.close()


def rows(path: Path, table: str) -> int:
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        return int(connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0])


async def test_every_answer_stays_what_it_was(journal: Journal) -> None:
    """Lists, pages, records, events, verdicts, stale images: in the daemon, offline beside it, and when it is dead."""
    await back_and_forth(journal, 7)
    before = inside(journal.path)
    assert before["faults"] == []
    done = await archive(journal)
    assert (done.pivots, done.records, done.obstacles) == (6, 18, [])
    assert inside(journal.path) == before
    assert look(journal.path) == before
    await journal.close()
    assert look(journal.path.parent) == before
    assert rows(journal.path, "pivot") == 1
    assert rows(journal.path.with_name(FILE), "record") == 18


async def test_an_archive_can_be_read_alone_and_is_certain_of_nothing(journal: Journal) -> None:
    """It is a whole journal of its pivots, and not the file that any pivotd has used."""
    await back_and_forth(journal, 5)
    await archive(journal)
    reader = Reader.offline(journal.path.with_name(FILE))
    assert [pivot.id for pivot in reader.pivots()] == ["P0004", "P0003", "P0002", "P0001"]
    assert [record.seq for record in reader.records("P0002")] == [4, 5, 6]
    assert reader.is_copy()
    reader.close()


async def test_an_image_keeps_the_pivot_that_knew_it_last_but_not_its_records(journal: Journal) -> None:
    """The list of stale images needs no archive: even with its file gone every image stands as it did."""
    for number, move in enumerate([("/a", "/b"), ("/b", "/c"), ("/c", "/d")], 1):
        await run(journal, number, move=move)
    before = inside(journal.path)
    done = await archive(journal)
    assert (done.pivots, done.records) == (2, 6)
    assert inside(journal.path) == before
    assert rows(journal.path, "pivot") == 3
    journal.path.with_name(FILE).unlink()
    reader = Reader.attach(journal.path)
    for name in ("/a", "/b", "/c", "/d"):
        assert standings(reader, name, Asked(frozenset({name}))) == before["standings"][name]
    assert obsolete(reader, "", 1000) == before["stale"]
    assert reader.pivots() == before["pivots"]
    with pytest.raises(ArchiveError, match=r"archive-2021\.db is missing: restore it"):
        reader.records("P0001")
    reader.close()


async def test_its_row_follows_once_the_image_is_known_to_a_later_pivot(journal: Journal) -> None:
    """An image that is used again makes the pivot before dispensable: the next archiving takes the rest of it."""
    await run(journal, 1, move=("/a", "/b"))
    await run(journal, 2, move=("/b", "/c"))
    await archive(journal)
    assert rows(journal.path, "pivot") == 2
    await run(journal, 3, move=("/c", "/a"))
    await run(journal, 4, move=("/a", "/b"))
    before = inside(journal.path)
    done = await archive(journal)
    assert (done.pivots, done.obstacles) == (2, [])
    assert inside(journal.path) == before
    assert [row["whole"] for row in table(journal.path, "archived")] == [1, 1, 0]


def table(path: Path, name: str) -> list[sqlite3.Row]:
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        connection.row_factory = sqlite3.Row
        return connection.execute(f"SELECT * FROM {name}").fetchall()


async def covered(journal: Journal, number: int) -> None:
    """Let later pivots know every image and disk of a pivot, so that only what is tested keeps it."""
    await run(journal, number + 100, move=(f"/images/source{number}.qcow2", f"/images/destination{number}.qcow2"))
    await journal.note("last", {})


async def closed_lately(journal: Journal) -> None:
    await run(journal, 1, closed_at="2090-01-01T00:00:00.000000Z")


async def is_open(journal: Journal) -> None:
    await run(journal, 1, closed_at=None)


async def last_of_a_disk(journal: Journal) -> None:
    await run(journal, 1, disk="other")


async def its_undo_is_open(journal: Journal) -> None:
    await run(journal, 1)
    await journal.accept(replace(make_pivot(2, disk="other"), undo_of="P0001"), {})


async def the_fleet_was_not_told(journal: Journal) -> None:
    pivot = await run(journal, 1, closed_at=None)
    announced = {"fleet": FleetStage.ANNOUNCED, "fleet_epoch": 1}
    await journal.advance(pivot, "closed", {}, phase=Phase.CLOSED, closed_at=OLD_AT, **announced)


async def a_guest_is_owed_its_resume(journal: Journal) -> None:
    pivot = await run(journal, 1, closed_at=None)
    await journal.advance(pivot, "closed", {}, phase=Phase.CLOSED, closed_at=OLD_AT, owes_resume=True)


async def it_has_overwritten_anothers(journal: Journal) -> None:
    mark = Overwritten("web2", "disk0", "/x", "P0001", "web1")
    pivot, _ = await journal.accept(make_pivot(1, disk="disk0"), {}, [mark])
    await journal.advance(pivot, "closed", {}, phase=Phase.CLOSED, closed_at=OLD_AT)


KEPT = [
    closed_lately, is_open, last_of_a_disk, its_undo_is_open, the_fleet_was_not_told, a_guest_is_owed_its_resume,
    it_has_overwritten_anothers,
]  # fmt: skip


@pytest.mark.parametrize("make", KEPT)
async def test_what_something_rests_on_stays(journal: Journal, make: Callable[[Journal], Any]) -> None:
    """Not a record of it moves, and the transaction that deletes refuses it as well."""
    await make(journal)
    if make is not is_open:
        await covered(journal, 1)
    before = inside(journal.path)
    assert (await archive(journal)).pivots == 0
    copied = [archiving.Copied("P0001", revision, 10**6) for revision in range(5)]
    if make is not closed_lately:
        assert await journal.forget(FILE, copied) == forgetting.Forgotten(0, 0, ())
    assert inside(journal.path) == before


async def test_the_same_pivot_goes_when_nothing_rests_on_it(journal: Journal) -> None:
    """What the test above keeps is kept for its reason alone."""
    await run(journal, 1)
    await covered(journal, 1)
    assert (await archive(journal)).pivots == 1


async def test_the_last_record_stays(journal: Journal) -> None:
    """Its number is where the next daemon goes on, and what cursors are compared with, whichever pivot has it."""
    first = await run(journal, 1, move=("/a", "/b"))
    await run(journal, 2, move=("/a", "/b"))
    await journal.advance(first, "late", {}, error="late")
    last = journal.last_seq
    assert (await archive(journal)).pivots == 0
    await journal.close()
    again = Journal.open(journal.path.parent)
    assert again.last_seq == last
    await again.note("n", {})
    assert (await archive(again)).pivots == 1
    await again.close()


async def test_a_persons_word_keeps_its_pivot(journal: Journal) -> None:
    """What was accepted is what the verdict on the disk rests on."""
    await run(journal, 1, disk="disk0")
    pivot = await run(journal, 2, disk="disk0")
    word = Accepted("/images/source1.qcow2", "qcow2", OLD_AT, 0, "why")
    await journal.advance(pivot, "image-accepted", {}, disks=(replace(pivot.disks[0], accepted=word),))
    await journal.note("last", {})
    before = inside(journal.path)
    await archive(journal)
    assert inside(journal.path) == before
    assert before["latest"][0][1].accepted == word


async def test_a_request_is_answered_from_its_archive(journal: Journal) -> None:
    """A retry after years returns the same pivot and writes nothing; without the archive it starts nothing either."""
    await back_and_forth(journal, 5)
    reader = Reader.attach(journal.path)
    first = reader.pivot("P0001")
    await archive(journal)
    assert first is not None
    last = journal.last_seq
    assert await journal.accept(replace(make_pivot(77), request_id="request-1"), {}) == (first, False)
    journal.path.with_name(FILE).unlink()
    with pytest.raises(ArchiveError, match="is missing"):
        await journal.accept(replace(make_pivot(77), request_id="request-1"), {})
    assert journal.last_seq == last
    reader.close()


async def test_notes_on_an_archived_pivot_are_written_without_its_name(journal: Journal) -> None:
    """Somebody may have read the verdict before: the record must not be lost."""
    await back_and_forth(journal, 5)
    await archive(journal)
    record = await journal.note("wrong-image", {"disk": "disk0"}, domain="web1", pivot="P0001")
    assert (record.domain, record.pivot) == ("web1", None)


# -- who may delete -------------------------------------------------------------------------------------------------

STRAY = [
    "DELETE FROM record",
    "DELETE FROM record WHERE pivot = 'P0007'",
    "DELETE FROM pause",
    "DELETE FROM pivot_disk WHERE pivot = 'P0007'",
    "DELETE FROM pivot WHERE id = 'P0007'",
    "UPDATE record SET facts = '{}'",
    "INSERT INTO archiving (pivot) VALUES ('P0007')",
    "INSERT INTO archiving (pivot) VALUES ('P0009')",
    "INSERT INTO archiving (pivot) VALUES ('nobody')",
    "DELETE FROM archived",
    "UPDATE archived SET archive = 'archive-1999.db'",
    "UPDATE archived SET whole = 0 WHERE pivot = 'P0001'",
    "DELETE FROM archive",
    "DELETE FROM image_latest",
    "DELETE FROM disk_latest",
    "INSERT INTO pivot SELECT * FROM a.pivot",
]


async def test_nobody_else_deletes_history(tmp_path: Path, journal: Journal) -> None:
    """A stray statement is refused by the file itself, whichever program sends it, before and after archiving."""
    await back_and_forth(journal, 7)
    await run(journal, 9, disk="other", move=("/p", "/q"))
    await archive(journal)
    await run(journal, 10, disk="third", move=("/a", "/q"), closed_at=None)
    await journal.close()
    before = look(journal.path)
    with closing(sqlite3.connect(journal.path, isolation_level=None)) as connection:
        connection.execute("PRAGMA foreign_keys = OFF")
        connection.execute("ATTACH ? AS a", (str(journal.path.with_name(FILE)),))
        for statement in STRAY:
            with pytest.raises(sqlite3.IntegrityError):
                connection.execute(statement)
    assert look(journal.path) == before


async def test_leave_to_delete_cannot_be_committed(journal: Journal) -> None:
    """The row that allows a deletion is gone by the end of its transaction, or all of that is undone."""
    for number, move in enumerate([("/a", "/b"), ("/b", "/c")], 1):
        await run(journal, number, move=move)
    await archive(journal)
    await journal.close()
    with closing(schema.connect(journal.path)) as connection:
        connection.execute("BEGIN")
        connection.execute("INSERT INTO archiving (pivot) VALUES ('P0001')")
        with pytest.raises(sqlite3.IntegrityError, match="FOREIGN KEY"):
            connection.execute("COMMIT")


async def test_a_pivot_that_has_changed_since_it_was_copied_stays(journal: Journal) -> None:
    """Whatever is newer in the journal than in the archive is not deleted; the next run copies it again."""
    await back_and_forth(journal, 3)
    archiver = Archiver(journal.path)
    found, _ = archiver.candidates(0, "2026")
    name, copied = archiver.copy(found)
    archiver.close()
    stale = [replace(copied[0], revision=copied[0].revision - 1), replace(copied[1], last_seq=copied[1].last_seq - 1)]
    assert (await journal.forget(name, stale)).pivots == 0
    assert (await journal.forget(name, copied)).pivots == 2


# -- bounds -----------------------------------------------------------------------------------------------------------


@pytest.mark.long
async def test_a_pivot_with_many_records_goes_in_pieces(journal: Journal) -> None:
    """One transaction deletes a bounded number of records; in between every record is still shown once."""
    await run(journal, 1, move=("/a", "/b"), records=2 * limits.ARCHIVE_ROWS)
    await run(journal, 2, move=("/a", "/b"))
    before = inside(journal.path)
    archiver = Archiver(journal.path)
    found, _ = archiver.candidates(0, "2026")
    name, copied = archiver.copy(found)
    archiver.close()
    steps = 0
    left = copied
    while left:
        done = await journal.forget(name, left)
        assert done.records <= limits.ARCHIVE_ROWS
        left = list(done.left)
        steps += 1
        assert inside(journal.path) == before
    assert steps == 3
    assert rows(journal.path, "pivot") == 1


async def test_a_run_that_was_interrupted_in_a_pivot_goes_on(journal: Journal) -> None:
    """A half deleted pivot is in its archive whole: the next run deletes the rest."""
    await run(journal, 1, move=("/a", "/b"), records=2 * limits.ARCHIVE_ROWS)
    await run(journal, 2, move=("/a", "/b"))
    before = inside(journal.path)
    archiver = Archiver(journal.path)
    name, copied = archiver.copy(archiver.candidates(0, "2026")[0])
    archiver.close()
    assert (await journal.forget(name, copied)).left
    done = await archive(journal)
    assert (done.pivots, done.obstacles) == (0, [])
    assert inside(journal.path) == before
    assert rows(journal.path, "pivot") == 1


async def test_the_file_becomes_small_again(journal: Journal) -> None:
    """Free pages go back to the file system, a few at a time."""
    empty = journal.path.stat().st_size
    await back_and_forth(journal, 30, records=40)
    await journal.close()
    large = journal.path.stat().st_size
    again = Journal.open(journal.path.parent)
    await archive(again)
    await again.close()
    assert again.path.stat().st_size <= empty + (large - empty) / 10


async def test_nothing_moves_while_a_guest_is_paused(journal: Journal) -> None:
    """Neither a copy nor a deletion begins before the pause is over."""
    await back_and_forth(journal, 5)
    journal.hold_checkpoints()
    working = asyncio.ensure_future(archive(journal))
    await asyncio.sleep(0.05)
    assert not journal.path.with_name(FILE).exists()
    assert not working.done()
    journal.release_checkpoints()
    assert (await working).pivots == 4


async def test_a_pause_that_begins_in_the_middle_is_waited_for(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the copy and the deletion a guest is paused: the deletion waits, and nothing is lost by that."""
    await back_and_forth(journal, 5)
    before = inside(journal.path)
    copy = Archiver.copy
    loop = asyncio.get_running_loop()

    def then_pause(self: Archiver, batch: Any) -> Any:
        done = copy(self, batch)
        asyncio.run_coroutine_threadsafe(pause(), loop).result()
        return done

    async def pause() -> None:
        journal.hold_checkpoints()

    monkeypatch.setattr(Archiver, "copy", then_pause)
    working = asyncio.ensure_future(archive(journal))
    while not journal.guest_paused:
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.05)
    assert rows(journal.path.with_name(FILE), "pivot") == 4
    assert inside(journal.path) == before
    assert table_count(journal) == 5
    monkeypatch.undo()
    journal.release_checkpoints()
    assert (await working).pivots == 4
    assert inside(journal.path) == before


def table_count(journal: Journal) -> int:
    reader = Reader.attach(journal.path)
    try:
        return reader.sizes().pivots
    finally:
        reader.close()


async def test_no_answer_takes_longer_with_more_archived(journal: Journal) -> None:
    """A page, a look-up, a new pivot and a look for candidates read as much with 10 archived pivots as with 5,000."""
    await back_and_forth(journal, 3)
    await archive(journal)
    await back_and_forth(journal, 30, first=4)
    await journal.close()
    assert read(journal.path, 1010, 6000) == pytest.approx(read(journal.path, 1000, 1010), rel=0.2, abs=5)


def read(path: Path, first: int, last: int) -> list[int]:
    """Add further archived pivots, and return how many steps SQLite takes for each kind of answer."""
    nothing, page = archives.Archives(path, {}, owner=False), history.Page(None, False, 20, None)
    with closing(schema.connect(path)) as connection:
        connection.executemany(
            "INSERT INTO archived VALUES (?, ?, ?, NULL, 'web1', 'archive-2021.db', 1)",
            [(-number, f"A{number}", f"r{number}") for number in range(first, last)],
        )
        connection.execute("BEGIN")
        looks: list[Callable[[], Any]] = [
            lambda: history.pivots(connection, nothing, page),
            lambda: history.pivots(connection, nothing, replace(page, domain="web1")),
            lambda: history.pivot(connection, nothing, "P0030"),
            lambda: history.events(connection, nothing, 60, 10),
            lambda: connection.execute(archiving._CANDIDATES, (20, 25, "2026")).fetchall(),
            lambda: changes.accept(make_pivot(7000, disk="new"), {})(connection),
        ]
        taken = [steps(connection, one) for one in looks]
        connection.execute("ROLLBACK")
    return taken


async def test_years_have_archives_of_their_own(journal: Journal) -> None:
    """By the time at which a pivot was closed; a pivot that was never archived can be too old for nothing."""
    for number, year in enumerate((2019, 2021, 2019, 2022), 1):
        move = ("/a", "/b") if number % 2 else ("/b", "/a")
        await run(journal, number, move=move, closed_at=f"{year}-06-01T00:00:00.000000Z")
    before = inside(journal.path)
    done = await archive(journal)
    assert sorted(done.names) == ["archive-2019.db", "archive-2021.db"]
    assert inside(journal.path) == before
    reader = Reader.attach(journal.path)
    assert [(one.name, one.pivots, one.fault) for one in reader.archives()] == [
        ("archive-2019.db", 2, None),
        ("archive-2021.db", 1, None),
    ]
    reader.close()


# -- archives that cannot be used ---------------------------------------------------------------------------------


def gone(path: Path) -> None:
    path.unlink()


def damaged(path: Path) -> None:
    path.write_bytes(b"no database" * 1000)


def truncated(path: Path) -> None:
    os.truncate(path, 8192)


def newer(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA user_version = {schema.SCHEMA_VERSION + 1}")


def another_one(path: Path) -> None:
    """Put the archive of another journal in its place."""
    path.unlink()
    schema.build(path, archives.leave_wal_mode)


UNUSABLE = [
    (gone, "is missing: restore it"),
    (damaged, "file is not a database"),
    (truncated, "archive-2021.db"),
    (newer, "was written by a newer pivotd"),
    (another_one, "lacks the pivot P000"),
]


@pytest.mark.parametrize(("spoil", "said"), UNUSABLE)
async def test_an_unusable_archive_is_told_and_does_not_stop_the_rest(
    journal: Journal, spoil: Callable[[Path], None], said: str
) -> None:
    """What is in it is refused with its name; all else is answered, and further pivots get an archive beside it."""
    await back_and_forth(journal, 5)
    before = inside(journal.path)
    await archive(journal)
    spoil(journal.path.with_name(FILE))
    reader = Reader.attach(journal.path)
    for ask in (lambda: reader.pivot("P0001"), lambda: reader.pivot("request-1"), lambda: reader.pivots(limit=50)):
        with pytest.raises(ArchiveError, match=said) as raised:
            ask()
        assert FILE in raised.value.message
    with pytest.raises(ArchiveError):
        reader.events(0)
    assert reader.pivots(limit=1) == before["pivots"][:1]
    assert list(reader.every_latest()) == before["latest"]
    last = before["events"][-1].seq
    assert [record.event for record in reader.events(last)] == ["archived"]
    reader.close()
    await back_and_forth(journal, 3, first=6)
    done = await archive(journal)
    assert (done.pivots, done.names, done.obstacles) == (
        3,
        {"archive-2021-2.db" if spoil is not another_one else FILE},
        [],
    )
    reader = Reader.attach(journal.path)
    assert reader.pivot("P0006") is not None
    assert any(FILE in fault for fault in reader.check())
    reader.close()


async def test_what_belongs_into_an_unusable_archive_stays(journal: Journal) -> None:
    """A pivot whose records are there already can go nowhere else: it waits, and the run says why."""
    await run(journal, 1, move=("/a", "/b"))
    await run(journal, 2, move=("/b", "/c"))
    await archive(journal)
    gone(journal.path.with_name(FILE))
    await run(journal, 3, move=("/c", "/a"))
    await run(journal, 4, move=("/a", "/b"))
    done = await archive(journal)
    assert done.names == {"archive-2021-2.db"}
    assert [FILE in line for line in done.obstacles] == [True]
    assert rows(journal.path, "pivot") == 3


async def test_an_archive_of_an_older_schema_is_read_and_upgraded(journal: Journal, tmp_path: Path) -> None:
    """Offline through a private copy, and by the daemon once it has upgraded it."""
    await back_and_forth(journal, 5)
    before = inside(journal.path)
    await archive(journal)
    path = journal.path.with_name(FILE)
    with closing(sqlite3.connect(path)) as connection:
        for statement in (
            "ALTER TABLE disk_latest DROP COLUMN ran_on_by_fleet",
            *(f"ALTER TABLE pivot_disk DROP COLUMN {side}_born" for side in ("source", "destination", "top", "base")),
            "DROP TRIGGER disk_latest_file", "DROP TRIGGER disk_latest_file_accepted",
            *(f"ALTER TABLE disk_latest DROP COLUMN file_{column}" for column in ("name", "id", "boot_id", "born")),
            "DROP TRIGGER image_latest_accepted", "DROP TRIGGER image_latest_switched",
            "DROP INDEX image_latest_ran_on", "ALTER TABLE image_latest DROP COLUMN ran_on_at",
            "DROP TRIGGER pivot_disk_latest", "DROP TRIGGER disk_latest_accepted",
            *(f"ALTER TABLE disk_latest DROP COLUMN {column}" for column in ("ran_on_at", "ran_on_format", "ran_on")),
            *(one for one in M006_STATEMENTS if "CREATE" in one),
            "DROP TABLE archiving", "DROP TABLE archived", "DROP TABLE archive",
            "DROP INDEX image_latest_by_pivot", "DROP INDEX disk_latest_by_pivot", "DROP TRIGGER pivot_not_archived",
            "DELETE FROM _sqlite_migrations WHERE name >= 'm011'",
            "PRAGMA user_version = 10",
        ):  # fmt: skip
            connection.execute(statement)
        connection.commit()
    await journal.close()
    assert look(journal.path) == before
    assert {entry.name for entry in journal.path.parent.iterdir()} == {FILE, "journal.db", "journal.lock"}
    again = Journal.open(journal.path.parent)
    with pytest.raises(JournalError, match="older pivotd"):
        inside(again.path)
    running = asyncio.ensure_future(Retention(again, None).run())
    while rows(path, "sqlite_schema WHERE name = 'archived'") == 0:
        await asyncio.sleep(0.01)
    running.cancel()
    assert inside(again.path) == before
    await again.close()


async def test_a_restored_journal_shows_each_pivot_once(journal: Journal, tmp_path: Path) -> None:
    """Its archive is newer than it is: that holds pivots that it still has, and numbers that it gives out again."""
    await back_and_forth(journal, 4)
    await archive(journal)
    await journal.close()
    before = look(journal.path)
    shutil.copyfile(journal.path, tmp_path / "restore")
    later = Journal.open(journal.path.parent)
    await back_and_forth(later, 4, first=5)
    await archive(later)
    await later.close()
    shutil.copyfile(tmp_path / "restore", journal.path)
    assert look(journal.path) == before
    again = Journal.open(journal.path.parent)
    await run(again, 50, move=("/old/a", "/new/a"))
    await run(again, 51, move=("/old/a", "/new/a"))
    before = inside(again.path)
    assert [pivot.id for pivot in before["pivots"]] == ["P0051", "P0050", "P0004", "P0003", "P0002", "P0001"]
    done = await archive(again)
    assert (done.obstacles, sorted(done.names)) == ([], ["archive-2021-2.db"])
    assert inside(again.path) == before
    await again.close()


async def test_records_that_are_in_no_file_are_told(journal: Journal, tmp_path: Path) -> None:
    """An archive that was replaced by an older copy of it must not make the event stream shorter."""
    await back_and_forth(journal, 3)
    await archive(journal)
    path = journal.path.with_name(FILE)
    shutil.copyfile(path, tmp_path / "older")
    await back_and_forth(journal, 4, first=4)
    await archive(journal)
    shutil.copyfile(tmp_path / "older", path)
    reader = Reader.attach(journal.path)
    with pytest.raises(ArchiveError, match=r"the records 7 to 9 are in no file: archive-2021\.db is not the archive"):
        reader.events(0)
    reader.close()


async def test_a_full_disk_stops_the_run(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing leaves the journal for an archive that has no room for it."""
    await back_and_forth(journal, 5)
    before = inside(journal.path)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Archiver, "_write", full)
    with pytest.raises(JournalFullError, match="stays in the journal; free space"):
        await archive(journal)
    monkeypatch.undo()
    assert inside(journal.path) == before


async def test_what_was_moved_before_a_failure_is_recorded(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first batch has moved; the second one has no room, and stays."""
    await back_and_forth(journal, limits.ARCHIVE_PIVOTS + 10)
    write, calls = Archiver._write, 0

    def second_is_full(self: Archiver, *arguments: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise OSError(28, "No space left on device")
        write(self, *arguments)

    monkeypatch.setattr(Archiver, "_write", second_is_full)
    with pytest.raises(JournalFullError):
        await archive(journal)
    reader = Reader.attach(journal.path)
    told = [record.facts for record in reader.events(0, 10_000) if record.event == "archived"]
    reader.close()
    assert [one["pivots"] for one in told] == [limits.ARCHIVE_PIVOTS]


async def test_a_journal_of_schema_10_is_upgraded_and_archived(tmp_path: Path) -> None:
    """Its pivots answer as before, and only then may the old ones be deleted."""
    path = tmp_path / "journal.db"
    make_older_journal(path, "m011_archives", [(make_pivot(1, disk="d"), {}), (make_pivot(2, disk="d"), {})])
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("UPDATE pivot SET phase = 'closed', closed_at = ?", (OLD_AT,))
        connection.execute("UPDATE pivot_disk SET source_filename = '/a', destination_filename = '/b'")
        connection.execute("UPDATE image_latest SET pivot = 'P0002'")
        connection.commit()
    assert schema.inspect(path) == 10
    journal = Journal.open(tmp_path)
    await journal.note("last", {})
    before = inside(path)
    assert (await archive(journal)).pivots == 1
    assert inside(path) == before
    await journal.close()
    with closing(sqlite3.connect(path)) as connection, pytest.raises(sqlite3.IntegrityError, match="append-only"):
        connection.execute("DELETE FROM record")


# -- any history -------------------------------------------------------------------------------------------------

IMAGES = [f"/i/{name}" for name in "abcd"]
STEP = st.one_of(
    st.tuples(
        st.just("pivot"), st.sampled_from(["d0", "d1"]), st.sampled_from(IMAGES), st.sampled_from(IMAGES),
        st.sampled_from([2019, 2021, 2090]), st.integers(0, 3),
    ),
    st.tuples(st.just("open"), st.sampled_from(["d2", "d3"])),
    st.tuples(st.just("note"), st.none()),
    st.tuples(st.just("accept"), st.sampled_from(["d0", "d1"])),
    st.tuples(st.just("archive"), st.none()),
    st.tuples(st.just("half"), st.integers(0, 3)),
)  # fmt: skip


@settings(max_examples=100 if LONG else 12, deadline=None)
@given(story=st.lists(STEP, max_size=14))
def test_any_history_archived_at_any_time_gives_the_same_answers(story: list[Any]) -> None:
    """Archiving, whole or broken off between copying and deleting, changes no answer of any history."""
    place = Path(tempfile.mkdtemp(prefix="pivotd-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
    try:
        asyncio.run(tell(story, place))
    finally:
        shutil.rmtree(place)


async def tell(story: list[Any], place: Path) -> None:
    (place / "plain").mkdir()
    (place / "archived").mkdir()
    plain, journal = Journal.open(place / "plain"), Journal.open(place / "archived")
    for number, (what, *facts) in enumerate(story, 1):
        if what == "archive":
            assert (await archive(journal)).obstacles == []
        elif what == "half":
            await broken_off(journal, facts[0])
        else:
            for one in (plain, journal):
                await happen(one, number, what, *facts)
    want, got = inside(plain.path), inside(journal.path)
    assert want["faults"] == got["faults"] == []
    assert comparable(got) == comparable(want)
    await plain.close()
    await journal.close()
    assert comparable(look(journal.path)) == comparable(want)


async def happen(journal: Journal, number: int, what: str, *facts: Any) -> None:
    if what == "pivot":
        disk, source, destination, year, records = facts
        closed_at = f"{year}-06-01T00:00:00.000000Z"
        await run(journal, number, disk=disk, move=(source, destination), closed_at=closed_at, records=records)
    elif what == "open":
        reader = Reader.attach(journal.path)
        busy = any(disk.disk == facts[0] for pivot in reader.pivots(open_only=True) for disk in pivot.disks)
        reader.close()
        if not busy:
            await run(journal, number, disk=facts[0], closed_at=None)
    elif what == "accept":
        reader = Reader.attach(journal.path)
        last = reader.latest("web1", facts[0])
        reader.close()
        if last:
            pivot = last[0][0]
            word = Accepted(IMAGES[0], "qcow2", OLD_AT, 0, "why")
            disks = tuple(replace(disk, accepted=word) for disk in pivot.disks)
            await journal.advance(pivot, "image-accepted", {}, disks=disks)
    else:
        await journal.note("n", {"number": number})


async def broken_off(journal: Journal, steps: int) -> None:
    """Copy what may be archived, delete a part of that, and stop."""
    archiver = Archiver(journal.path)
    found, _ = archiver.candidates(0, "2026")
    found = [one for one in found if one.year == "2021" and one.archive in {None, FILE}]
    if found:
        name, copied = archiver.copy(found)
        await journal.forget(name, copied[:steps])
    archiver.close()


def comparable(found: dict[str, Any]) -> dict[str, Any]:
    """Return answers without numbers and times: the archived journal has further records of its own."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(one) for key, one in value.items() if key != "cursors"}
        if isinstance(value, (list, tuple)):
            return [plain(one) for one in value]
        return replace(value, seq=0, at="") if hasattr(value, "seq") else value

    return plain(found)


@pytest.mark.parametrize("when", ["in-a-deletion", "between-two"])
async def test_an_archiving_that_is_ended_says_what_it_has_moved(
    journal: Journal, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """The daemon ends in the middle of a step."""
    monkeypatch.setattr(limits, "ARCHIVE_PIVOTS", 2)
    await back_and_forth(journal, 8)
    began = asyncio.Event()
    forget = journal.forget

    async def seen(*batch: Any) -> Any:
        if when == "in-a-deletion":
            began.set()
        gone = await forget(*batch)
        began.set()
        return gone

    monkeypatch.setattr(journal, "forget", seen)
    step = asyncio.ensure_future(Retention(journal, None).step(DAY_S, deadline_s=float("inf")))
    await began.wait()
    step.cancel()
    with pytest.raises(asyncio.CancelledError):
        await step
    moved = rows(journal.path, "archived")
    assert 0 < moved < 6
    reader = Reader.attach(journal.path.parent)
    told = [record.facts["pivots"] for record in reader.events(0, 10_000) if record.event == "archived"]
    reader.close()
    assert told == [moved]


async def test_a_daemon_that_ends_leaves_no_connection(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends while the connection for archiving is being opened, in a thread that cannot be cancelled."""
    opened: list[sqlite3.Connection] = []
    opening, go_on = threading.Event(), threading.Event()
    connect = schema.connect_read_only

    def slow(path: Path) -> sqlite3.Connection:
        opening.set()
        assert go_on.wait(60)
        opened.append(connect(path))
        return opened[0]

    monkeypatch.setattr(schema, "connect_read_only", slow)
    running = asyncio.ensure_future(Retention(journal, None).run())
    assert await asyncio.to_thread(opening.wait, 60)
    running.cancel()
    await asyncio.sleep(0)
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await running
    with pytest.raises(sqlite3.ProgrammingError, match="closed database"):
        opened[0].execute("SELECT 1")
