"""Filters and names: what a list holds is what a look at every row would find, and no look is longer than told."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from pivotd import limits
from pivotd.core.list_filters import OUTCOMES, EventFilter, PivotFilter
from pivotd.core.pivot import Outcome, Phase, Pivot, Record
from pivotd.core.request import Kind
from pivotd.errors import NotFoundError
from pivotd.journal import schema, upgrade_copy
from pivotd.journal.journal import Journal
from pivotd.journal.reader import Reader
from pivotd.journal.rows import disk_row, pivot_row
from pivotd.journal.search import Place
from tests.journal.old_pivots import archive, back_and_forth, run
from tests.journal.samples import make_pivot
from tests.journal.test_changes import steps
from tests.support import seeds

PIVOTS, RECORDS, ROUNDS = 120, 300, 40
START = datetime(2026, 11, 1, tzinfo=UTC)
EVENTS = ("accepted", "switched", "closed")


def text(at: datetime) -> str:
    return at.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def times(rng: random.Random, number: int) -> list[str]:
    """Return times of a clock that is now and then found to be 20 hours ahead, and set back."""
    at, ahead, found = START, False, []
    for _ in range(number):
        at += timedelta(hours=rng.choice([0, 0, 1, 2, 20]))
        ahead = ahead is not (rng.random() < 0.2)
        found.append(text(at + timedelta(hours=20 * ahead)))
    return found


def insert(connection: sqlite3.Connection, table: str, row: dict[str, Any]) -> None:
    connection.execute(
        f"INSERT INTO {table} ({', '.join(row)}) VALUES ({', '.join('?' * len(row))})", tuple(row.values())
    )


def a_pivot(rng: random.Random, number: int, at: str) -> Pivot:
    sample = make_pivot(number, domain=rng.choice(["web1", "db1"]))
    outcomes = [rng.choice([*Outcome, Outcome.SWITCHED, None]) for _ in range(rng.choice([1, 1, 2, 3]))]
    disks = tuple(
        replace(sample.disks[0], disk=f"disk{index}", index=index, outcome=one) for index, one in enumerate(outcomes)
    )
    phase = Phase.COPYING if None in outcomes else Phase.CLOSED
    return replace(sample, kind=rng.choice(list(Kind)), disks=disks, phase=phase, created_at=at)


class History:
    """A journal with rows of every kind, and what is in it, oldest first."""

    def __init__(self, directory: Path, rng: random.Random) -> None:
        schema.prepare(directory / schema.FILE_NAME, upgrade_copy.keep)
        self.pivots = [a_pivot(rng, number, at) for number, at in enumerate(times(rng, PIVOTS))]
        self.records = [
            Record(seq, at, rng.choice(["web1", "db1", None]), None, rng.choice(EVENTS), None, {"n": seq})
            for seq, at in enumerate(times(rng, RECORDS), 1)
        ]
        with closing(sqlite3.connect(directory / schema.FILE_NAME)) as connection, connection:
            for pivot in self.pivots:
                insert(connection, "pivot", pivot_row(pivot))
                for disk in pivot.disks:
                    insert(connection, "pivot_disk", disk_row(pivot.id, disk))
            for record in self.records:
                row = {"seq": record.seq, "at": record.at, "domain": record.domain, "event": record.event}
                insert(connection, "record", {**row, "facts": f'{{"n":{record.seq}}}'})
        self.reader = Reader.attach(directory)


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> random.Random:
    return seeds.rng("search", request.node.name)


@pytest.fixture
def history(tmp_path: Path, rng: random.Random) -> Iterator[History]:
    made = History(tmp_path, rng)
    yield made
    made.reader.close()


def wanted(chosen: PivotFilter, pivot: Pivot) -> bool:
    return (
        chosen.domain in {None, pivot.domain}
        and chosen.kind in {None, pivot.kind.value}
        and chosen.outcome in {None, pivot.outcome}
        and (chosen.since is None or pivot.created_at >= chosen.since)
        and not (chosen.open_only and pivot.phase is Phase.CLOSED)
    )


def some(rng: random.Random, *values: Any) -> Any:
    return rng.choice([None, None, *values])


def paged(look: Callable[..., Any], chosen: Any, limit: int, examined: int, at: Any) -> Any:
    """Return one page."""
    return look(chosen, Place(limit, at, examined))


def pages(look: Callable[[Any], Any], place: Any) -> Iterator[list[Any]]:
    """Yield the rows of one page after the other."""
    for _ in range(1000):
        page = look(place)
        yield page.found
        if page.next is None:
            return
        place = page.next
    raise AssertionError("it does not end")


def test_a_filter_finds_what_a_look_at_every_pivot_finds(history: History, rng: random.Random) -> None:
    """Each pivot once, newest first, whatever the filter, the size of a page, and how many are examined for one."""
    for _ in range(ROUNDS):
        since = rng.choice([None, text(START + timedelta(hours=rng.uniform(-10, 700)))])
        kind, outcome = some(rng, *(kind.value for kind in Kind)), some(rng, *OUTCOMES)
        chosen = PivotFilter(some(rng, "web1", "db9"), rng.random() < 0.2, kind, outcome, since)
        limit, examined = rng.choice([1, 2, 7, 500]), rng.choice([1, 3, 50, 500])
        look = partial(paged, history.reader.pivots_page, chosen, limit, examined)
        found = [one for page in pages(look, None) for one in page]
        assert found == [one for one in reversed(history.pivots) if wanted(chosen, one)], (chosen, limit, examined)


def test_a_filter_finds_what_a_look_at_every_record_finds(history: History, rng: random.Random) -> None:
    """Each record once: upwards from any place, and downwards from any."""
    for _ in range(ROUNDS):
        since = some(rng, text(START + timedelta(hours=rng.uniform(-10, 1500))))
        chosen = EventFilter(some(rng, "web1", "db9"), some(rng, *EVENTS), since)
        limit, examined, place = rng.choice([1, 7, 500]), rng.choice([1, 3, 50, 500]), rng.randint(0, RECORDS + 2)
        reader, told = history.reader, (chosen, limit, examined, place)
        look = partial(paged, reader.events_page, chosen, limit, examined)
        up = [one for page in pages(look, place) for one in page]
        assert up == [one for one in history.records if one.seq > place and chosen.takes(one)], told
        look = partial(paged, reader.last_events, chosen, limit, examined)
        down = [one for page in pages(look, place) for one in page]
        assert down == [one for one in reversed(history.records) if one.seq < place and chosen.takes(one)], told


def test_what_is_counted_is_there(history: History) -> None:
    """For each filter that has an index."""
    for chosen in (PivotFilter(), PivotFilter("web1"), PivotFilter(open_only=True), PivotFilter("db1", open_only=True)):
        assert history.reader.count(chosen) == sum(wanted(chosen, one) for one in history.pivots)


def test_a_name(history: History) -> None:
    """An id, a request id, or the beginning of ids, in any case; a request id counts before the ids that begin so."""
    named = history.reader.named

    def ids(name: str, limit: int = 20) -> list[str]:
        return [pivot.id for pivot in named(name, limit)]

    assert ids("P0007") == ids("request-7") == ids("p0007") == ["P0007"]
    assert ids("P001") == [f"P001{digit}" for digit in range(10)]
    assert ids("P00", limit=3) == ["P0000", "P0001", "P0002"]
    assert ids("request-") == ids("X") == ids("%") == ids("P00_") == []
    with closing(sqlite3.connect(history.reader.path)) as connection, connection:
        insert(connection, "pivot", pivot_row(replace(make_pivot(9000), request_id="P01")))
    assert ids("P01") == ["P9000"]


def test_no_pivot_to_go_on_from(history: History) -> None:
    """It is told instead of beginning anew."""
    with pytest.raises(NotFoundError, match="P9999"):
        history.reader.pivots_page(PivotFilter(kind="copy"), Place(5, "P9999", 10))


def test_a_look_examines_no_more_than_told(tmp_path: Path, rng: random.Random) -> None:
    """What nothing matches costs the rows that were to be examined, and the halving, whatever the length of history."""
    made = History(tmp_path, rng)
    attached = made.reader
    assert attached._opened is not None
    looks: list[Callable[[], Any]] = [
        lambda: attached.pivots_page(PivotFilter(outcome="split", kind="adopt"), Place(5, None, 10)),
        lambda: attached.pivots_page(PivotFilter(since=text(START + timedelta(days=4000))), Place(5, None, 10)),
        lambda: attached.events_page(EventFilter(event="none"), Place(5, 0, 10)),
        lambda: attached.last_events(EventFilter(event="none"), Place(5, None, 10)),
        lambda: attached.events_page(EventFilter(since=text(START + timedelta(days=4000))), Place(5, 0, 10)),
    ]
    before = [steps(attached._opened.connection, look) for look in looks]
    with closing(sqlite3.connect(tmp_path / schema.FILE_NAME)) as connection, connection:
        for number in range(PIVOTS, 10 * PIVOTS):
            insert(
                connection, "pivot", pivot_row(replace(made.pivots[-1], id=f"P{number:04}", request_id=f"r{number}"))
            )
        for seq in range(RECORDS + 1, 10 * RECORDS):
            insert(connection, "record", {"seq": seq, "at": made.records[-1].at, "event": "closed", "facts": "{}"})
    for look, few in zip(looks, before, strict=True):
        assert steps(attached._opened.connection, look) <= few + HALVING_STEPS, look
    attached.close()


async def test_archived_pivots_are_found_as_before(tmp_path: Path, rng: random.Random) -> None:
    """Whatever the archiver has moved: by each filter, in each page, upwards and downwards, by name and in the count."""
    journal = Journal.open(tmp_path)
    await back_and_forth(journal, 9, records=2)
    await run(journal, 20, disk="disk7", closed_at=None)
    reader = Reader.attach(tmp_path)
    before, records = reader.pivots(), reader.events(0)
    assert (await archive(journal)).pivots == 8
    after_archiving = reader.events(len(records))
    since = text(datetime.fromisoformat(before[3].created_at))
    for chosen in (
        PivotFilter(kind="copy"),
        PivotFilter("web1", outcome="switched"),
        PivotFilter(since=since),
        PivotFilter(),
    ):
        for limit, examined in ((1, 1), (2, 3), (50, 50)):
            look = partial(paged, reader.pivots_page, chosen, limit, examined)
            found = [one for page in pages(look, None) for one in page]
            assert found == [one for one in before if wanted(chosen, one)], (chosen, limit, examined)
    every = [*records, *after_archiving]
    for events in (
        EventFilter(event="ready"),
        EventFilter("web1"),
        EventFilter(event="archived"),
        EventFilter(since=every[5].at),
    ):
        for limit, examined in ((1, 1), (2, 3), (50, 50)):
            up = partial(paged, reader.events_page, events, limit, examined)
            kept = [one for one in every if events.takes(one)]
            assert [one for page in pages(up, 0) for one in page] == kept, (events, limit, examined)
            down = partial(paged, reader.last_events, events, limit, examined)
            assert [one for page in pages(down, None) for one in page] == kept[::-1], (events, limit, examined)
    assert [pivot.id for pivot in reader.named("P000", 20)] == sorted(
        pivot.id for pivot in before if pivot.id != "P0020"
    )
    assert [pivot.id for pivot in reader.named("request-3", 20)] == ["P0003"]
    assert (
        reader.count(PivotFilter()),
        reader.count(PivotFilter("web1")),
        reader.count(PivotFilter(open_only=True)),
    ) == (10, 10, 1)
    reader.close()
    await journal.close()


HALVING_STEPS = 4 * 25
"""Four times as often halved, with about 20 steps of SQLite's machine each."""


def test_the_bounds_fit_together() -> None:
    """A request makes whole steps, and at least one."""
    assert limits.PIVOTS_EXAMINED_MAX % limits.PIVOTS_EXAMINED_AT_ONCE == 0
    assert limits.RECORDS_EXAMINED_MAX % limits.RECORDS_EXAMINED_AT_ONCE == 0
