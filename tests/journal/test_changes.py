"""What each change writes, and what it refuses."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings

from pivotd.core.pivot import FleetStage, Identity, Outcome, Pause, Phase, Pivot
from pivotd.errors import (
    ConflictError,
    DiskBusyError,
    JournalCorruptError,
    JournalError,
    NotFoundError,
    RevisionConflictError,
)
from pivotd.journal import changes, schema, upgrade_copy
from pivotd.journal.changes import FIXED
from pivotd.journal.journal import Journal
from pivotd.journal.reader import Reader
from pivotd.journal.rows import SELECT_OPEN, DomainRow, load_pivots
from tests.journal.samples import PIVOTS, make_pivot


def steps(connection: sqlite3.Connection, look: Callable[[], object]) -> int:
    """Return how many steps of its virtual machine SQLite takes for what ``look`` asks, in tens."""
    taken: list[None] = []
    connection.set_progress_handler(lambda: taken.append(None), 10)
    look()
    connection.set_progress_handler(None, 10)
    return len(taken)


@pytest.fixture(scope="module")
def connection(tmp_path_factory: pytest.TempPathFactory) -> Iterator[sqlite3.Connection]:
    """Yield a connection to an empty journal; each example is rolled back."""
    path = tmp_path_factory.mktemp("rows") / "journal.db"
    schema.prepare(path, upgrade_copy.keep)
    opened = schema.connect(path)
    yield opened
    opened.close()


@settings(max_examples=200, deadline=None)
@given(pivot=PIVOTS)
def test_every_field_comes_back(connection: sqlite3.Connection, pivot: Pivot) -> None:
    """A pivot read from the journal equals the one that was accepted, whatever its fields hold."""
    connection.execute("BEGIN")
    try:
        changes.accept(pivot, {})(connection)
        assert load_pivots(connection, "SELECT * FROM pivot") == [pivot]
    finally:
        connection.execute("ROLLBACK")


async def test_advance_writes_every_field_that_may_change(journal: Journal) -> None:
    """After advance the journal holds each changed field, and the answer equals what is stored."""
    before, _ = await journal.accept(make_pivot(1), {})
    disk = before.disks[0]
    new: dict[str, Any] = {
        "phase": Phase.DECIDED,
        "options": replace(before.options, max_pause_ms=7),
        "disks": (replace(disk, outcome=Outcome.SWITCHED, source=replace(disk.source, node="other")),),
        "hold": True,
        "attempt": 3,
        "identity": Identity("boot2", 1, None, "nonce2"),
        "run_state_before": "running",
        "owes_resume": True,
        "asking": True,
        "fleet": FleetStage.ANNOUNCED,
        "fleet_epoch": 7,
        "pausing_since": "2026-11-23T09:00:01.000000Z",
        "error": "why",
        "pauses": (Pause(1, 1.5, "pausing"), Pause(2, 2.5, "decided", 1.25)),
        "decided_at": "2026-11-23T09:00:02.000000Z",
        "closed_at": "2026-11-23T09:00:03.000000Z",
    }
    assert new.keys() | FIXED == {field.name for field in fields(Pivot)}
    after = await journal.advance(before, "switched", {"seen": 1}, **new)
    assert after == replace(before, **new, revision=1)
    assert journal.open_pivots() == [after]


async def test_advance_appends_one_record_with_the_new_phase(journal: Journal) -> None:
    """Each advance is one record of the phase it leads to, with its facts."""
    before, _ = await journal.accept(make_pivot(1), {"who": "me"})
    await journal.advance(before, "copying", {"b": [1], "a": None}, phase=Phase.COPYING)
    reader = Reader.attach(journal.path)
    records = [(record.seq, record.event, record.phase, record.facts) for record in reader.records(before.id)]
    reader.close()
    assert records == [
        (1, "accepted", Phase.PREPARING, {"who": "me"}),
        (2, "copying", Phase.COPYING, {"a": None, "b": [1]}),
    ]


async def test_lost_race_is_a_revision_conflict_and_writes_nothing(journal: Journal) -> None:
    """A change from a phase that has passed raises RevisionConflictError and leaves rows and records alone."""
    before, _ = await journal.accept(make_pivot(1), {})
    now = await journal.advance(before, "copying", {}, phase=Phase.COPYING)
    with pytest.raises(RevisionConflictError, match="is copying at revision 1, not preparing at revision 0"):
        await journal.advance(before, "ready", {}, phase=Phase.READY, error="x")
    assert (journal.open_pivots(), journal.last_seq) == ([now], 2)


async def test_two_writers_of_one_pivot_never_overwrite_each_other(journal: Journal) -> None:
    """Of two changes from one ``before`` in one phase the second is refused, and neither row nor record is written."""
    before, _ = await journal.accept(make_pivot(1), {})
    pauses = (Pause(1, 1.0, "kept"),)
    first, second = await asyncio.gather(
        journal.advance(before, "gave-up", {}, attempt=1, pauses=pauses),
        journal.advance(before, "complete-requested", {}, attempt=0, pauses=pauses),
        return_exceptions=True,
    )
    assert isinstance(first, Pivot)
    assert isinstance(second, RevisionConflictError)
    assert "is preparing at revision 1, not preparing at revision 0" in second.message
    assert (journal.open_pivots(), journal.last_seq) == ([first], 2)
    with pytest.raises(RevisionConflictError):
        await journal.hand_over(before, make_pivot(2, disk="disk1"), {})
    assert (journal.open_pivots(), journal.last_seq) == ([first], 2)


async def test_a_pivot_that_is_not_there_cannot_advance(journal: Journal) -> None:
    """Advancing a pivot that was never accepted is a RevisionConflictError, not a silent nothing."""
    with pytest.raises(RevisionConflictError, match="not in the journal"):
        await journal.advance(make_pivot(9), "ready", {}, phase=Phase.READY)


async def test_what_a_pivot_is_never_changes(journal: Journal) -> None:
    """Identity fields of a pivot are refused by advance."""
    before, _ = await journal.accept(make_pivot(1), {})
    with pytest.raises(TypeError, match="request_id"):
        await journal.advance(before, "x", {}, request_id="other")


async def test_known_request_returns_its_pivot_as_it_is_now(journal: Journal) -> None:
    """Accepting a request id again gives the stored pivot in its present phase and writes nothing."""
    before, new = await journal.accept(make_pivot(1), {})
    now = await journal.advance(before, "copying", {}, phase=Phase.COPYING)
    again = replace(make_pivot(2), request_id=before.request_id)
    assert new
    assert await journal.accept(again, {}) == (now, False)
    assert journal.last_seq == 2


async def test_two_concurrent_accepts_of_one_request_make_one_pivot(journal: Journal) -> None:
    """Of two accepts with one request id in one batch exactly one inserts; both get the same pivot."""
    one, two = make_pivot(1), replace(make_pivot(2), request_id="request-1")
    answers = tuple(await asyncio.gather(journal.accept(one, {}), journal.accept(two, {})))
    assert answers == ((one, True), (one, False))
    assert journal.last_seq == 1


async def test_busy_disk_is_refused_with_its_pivot(journal: Journal) -> None:
    """A disk of an open pivot of the same domain cannot be accepted again."""
    await journal.accept(make_pivot(1, disk="disk0"), {})
    with pytest.raises(DiskBusyError, match="disk0 of web1 belongs to the open pivot P0001") as caught:
        await journal.accept(make_pivot(2, disk="disk0"), {})
    assert caught.value.fields == {"pivot": "P0001", "disk": "disk0"}
    assert journal.last_seq == 1


async def test_two_concurrent_accepts_of_one_disk_make_one_pivot(journal: Journal) -> None:
    """The check for busy disks sees changes of its own batch."""
    answers = await asyncio.gather(
        journal.accept(make_pivot(1, disk="disk0"), {}),
        journal.accept(make_pivot(2, disk="disk0"), {}),
        return_exceptions=True,
    )
    assert answers[0] == (make_pivot(1, disk="disk0"), True)
    assert isinstance(answers[1], DiskBusyError)


async def test_disk_is_free_after_close_and_in_another_domain(journal: Journal) -> None:
    """Only open pivots of the same domain keep a disk."""
    first, _ = await journal.accept(make_pivot(1, disk="disk0"), {})
    assert (await journal.accept(make_pivot(2, disk="disk0", domain="db1"), {}))[1]
    await journal.advance(first, "closed", {}, phase=Phase.CLOSED)
    assert (await journal.accept(make_pivot(3, disk="disk0"), {}))[1]


async def test_domains_survive_and_are_recorded(journal: Journal) -> None:
    """Adding and removing a domain is durable, has a record each, and a repeated add writes nothing."""
    await journal.add_domain("web1", "/run/web1", 0)
    await journal.add_domain("web1", "/run/web1", 0)
    await journal.add_domain("db1", "/run/db1", 0)
    assert journal.domains() == [DomainRow("db1", "/run/db1"), DomainRow("web1", "/run/web1")]
    await journal.remove_domain("db1", 0)
    reader = Reader.attach(journal.path)
    assert [(record.event, record.domain) for record in reader.events(0)] == [
        ("domain-added", "web1"),
        ("domain-added", "db1"),
        ("domain-removed", "db1"),
    ]
    assert reader.domains() == [DomainRow("web1", "/run/web1")]
    reader.close()


async def test_domain_conflicts(journal: Journal) -> None:
    """Another path for a known name, an unknown name, and a domain with an open pivot are refused."""
    await journal.add_domain("web1", "/run/web1", 0)
    with pytest.raises(ConflictError, match="/run/web1"):
        await journal.add_domain("web1", "/run/other", 0)
    with pytest.raises(NotFoundError):
        await journal.remove_domain("db1", 0)
    await journal.accept(make_pivot(1), {})
    with pytest.raises(ConflictError, match="P0001"):
        await journal.remove_domain("web1", 0)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE record SET event = 'forged'",
        "DELETE FROM record",
        "INSERT OR REPLACE INTO record (seq, at, event, facts) VALUES (1, '', 'forged', '{}')",
        "UPDATE pause SET pause_ms = 0",
        "DELETE FROM pause",
        "DELETE FROM pivot_disk",
        "DELETE FROM pivot",
        "DELETE FROM disk_latest",
    ],
)
async def test_history_cannot_be_changed(tmp_path: Path, statement: str) -> None:
    """Any SQL client that tries to change or delete history gets an error."""
    journal = Journal.open(tmp_path)
    await journal.accept(replace(make_pivot(1), pauses=(Pause(1, 1.0, "kept"),)), {})
    await journal.close()
    connection = sqlite3.connect(journal.path)
    with pytest.raises(sqlite3.IntegrityError, match=r"append-only|never deleted"):
        connection.execute(statement)
    connection.close()


async def test_the_last_pivot_of_a_disk_is_kept_at_hand(journal: Journal) -> None:
    """Each accepted pivot becomes the last one of its disks, in its own transaction, and of no other disk."""

    def latest() -> dict[tuple[str, str], str]:
        connection = sqlite3.connect(f"file:{journal.path}?mode=ro", uri=True)
        rows = connection.execute("SELECT domain, disk, pivot FROM disk_latest").fetchall()
        connection.close()
        return {(domain, disk): pivot for domain, disk, pivot in rows}

    first, _ = await journal.accept(make_pivot(2, disk="disk0"), {})
    await journal.accept(make_pivot(3, disk="disk0", domain="db1"), {})
    await journal.advance(first, "closed", {}, phase=Phase.CLOSED)
    with pytest.raises(DiskBusyError):
        await journal.accept(make_pivot(4, disk="disk0", domain="db1"), {})
    await journal.accept(make_pivot(1, disk="disk0"), {})
    assert latest() == {("web1", "disk0"): "P0001", ("db1", "disk0"): "P0003"}


async def test_a_wrong_last_pivot_is_noticed(tmp_path: Path) -> None:
    """By the check of the whole file, and by the verdict itself where that pivot does not have the disk."""
    journal = Journal.open(tmp_path)
    first, _ = await journal.accept(make_pivot(1, disk="disk0"), {})
    await journal.advance(first, "closed", {}, phase=Phase.CLOSED)
    await journal.accept(make_pivot(2, disk="disk0"), {})
    await journal.accept(make_pivot(3, disk="disk1"), {})
    await journal.close()
    reader = Reader.attach(tmp_path)
    assert reader.check() == []
    connection = sqlite3.connect(journal.path, isolation_level=None)
    connection.execute("UPDATE disk_latest SET pivot = 'P0001' WHERE disk = 'disk0'")
    assert reader.check() == ["disk_latest does not name the last pivot of web1 disk0"]
    connection.execute("UPDATE disk_latest SET pivot = 'P0003' WHERE disk = 'disk0'")
    with pytest.raises(JournalCorruptError):
        reader.latest("web1", "disk0")
    connection.close()
    reader.close()


async def test_the_last_pivot_of_a_disk_is_by_acceptance_not_by_the_clock(journal: Journal) -> None:
    """The newest pivot of a disk is the one accepted last, also after the clock went back."""
    first, _ = await journal.accept(make_pivot(2, disk="disk0"), {})
    await journal.advance(first, "closed", {}, phase=Phase.CLOSED)
    await journal.accept(replace(make_pivot(1, disk="disk0"), created_at="1999-01-01T00:00:00.000000Z"), {})
    await journal.accept(make_pivot(3, disk="disk1"), {})
    await journal.accept(make_pivot(4, disk="disk0", domain="db1"), {})
    reader = Reader.attach(journal.path)

    def latest(*of: str | None) -> list[tuple[str, str]]:
        return [(disk.disk, pivot.id) for pivot, disk in reader.every_latest(*of)]

    assert latest("web1", "disk0") == [("disk0", "P0001")]
    assert latest("web1") == [("disk0", "P0001"), ("disk1", "P0003")]
    assert latest(None, "disk0") == [("disk0", "P0004"), ("disk0", "P0001")]
    assert latest("db2") == []
    reader.close()


async def test_pivots_come_in_pages(journal: Journal) -> None:
    """Newest first, each page from the last one seen on; only open ones, or of one domain, where asked for."""
    for number in range(1, 8):
        pivot, _ = await journal.accept(make_pivot(number, domain="web1" if number % 2 else "db1"), {})
        if number in {3, 4}:
            await journal.advance(pivot, "closed", {}, phase=Phase.CLOSED)
    reader = Reader.attach(journal.path)

    def page(**of: Any) -> list[str]:
        return [pivot.id for pivot in reader.pivots(**of)]

    assert page(limit=3) == ["P0007", "P0006", "P0005"]
    assert page(limit=3, before="P0005") == ["P0004", "P0003", "P0002"]
    assert page(limit=3, before="P0001") == []
    assert page(open_only=True, limit=3, before="P0006") == ["P0005", "P0002", "P0001"]
    assert page(open_only=True, domain="web1", before="P0007") == ["P0005", "P0001"]
    assert page(domain="db1") == ["P0006", "P0004", "P0002"]
    with pytest.raises(NotFoundError, match="P0009"):
        page(before="P0009")
    reader.close()


async def test_no_look_reads_more_of_a_longer_history(journal: Journal) -> None:
    """With ten times as many closed pivots SQLite takes as many steps for a verdict, a page, and a start."""
    reader = Reader.attach(journal.path)

    def looks() -> list[tuple[Callable[[], object], int]]:
        assert reader._opened is not None
        connection = reader._opened.connection
        asked = [
            lambda: list(reader.every_latest("web1", "disk0")),
            lambda: list(reader.every_latest()),
            lambda: reader.pivots(limit=5),
            lambda: reader.pivots(open_only=True),
            lambda: reader.pivots("web1", limit=5, before="P0006"),
            lambda: reader.undo("P0003"),
            lambda: load_pivots(connection, SELECT_OPEN),
            lambda: schema._check_numbers(connection, journal.path),
            lambda: schema.check_objects(connection, journal.path),
        ]
        return [(look, steps(connection, look)) for look in asked]

    async def moved(first: int, last: int) -> None:
        closed = (replace(make_pivot(n, disk=f"disk{n % 3}"), phase=Phase.CLOSED) for n in range(first, last))
        await asyncio.gather(*(journal.accept(pivot, {}) for pivot in closed))

    await moved(1, 20)
    few = looks()
    await moved(20, 200)
    for (_, before), (look, after) in zip(few, looks(), strict=True):
        assert after <= before + 5, look
    reader.close()


async def test_note_of_an_unknown_pivot_is_refused(journal: Journal) -> None:
    """A record always names a pivot of the journal or none."""
    with pytest.raises(JournalError, match="FOREIGN KEY"):
        await journal.note("odd", {}, pivot="nobody")
    assert journal.healthy


async def test_the_disks_in_doubt_are_found_by_domain(journal: Journal) -> None:
    """With their last pivots; a word of a person ends it."""
    pivots = [replace(make_pivot(n, domain=name), phase=Phase.CLOSED) for n, name in enumerate(("db1", "web1", "web2"))]
    for pivot in pivots:
        await journal.accept(pivot, {})
    for pivot in pivots[:2]:
        assert await journal.ran_on(pivot, pivot.disks[0], ("/images/other.qcow2", "qcow2"))
    assert [pivot.domain for pivot, _ in await journal.other_images()] == ["db1", "web1"]
    assert await journal.other_images("web2") == []
    ((pivot, disk),) = await journal.other_images("web1")
    assert disk.ran_on is not None
    assert (pivot.id, disk.ran_on.filename) == (pivots[1].id, "/images/other.qcow2")
    await journal.seen(pivot.id, "web1", disk.disk)
    assert await journal.other_images("web1") == []


async def test_an_owed_release_is_kept_until_it_is_settled(journal: Journal) -> None:
    """With the last epoch; what is known already writes nothing."""
    await journal.owe_release("web1", 3)
    await journal.owe_release("web1", 3)
    await journal.owe_release("web1", 5)
    await journal.owe_release("db1", 1)
    assert await journal.owed_releases() == {"db1": 1, "web1": 5}
    await journal.settle_release("web1", "released")
    await journal.settle_release("web1", "released")
    assert await journal.owed_releases() == {"db1": 1}
    assert journal.last_seq == 4
