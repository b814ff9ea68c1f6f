"""Readers wait for their turn and for the end of a pause, and nobody waits for a reader."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pivotd import limits
from pivotd.app import reads as reads_module
from pivotd.app.in_chains import in_chains
from pivotd.app.live_verdicts import LiveVerdicts
from pivotd.app.metrics import Metrics
from pivotd.app.reads import Reads
from pivotd.app.registry import Host
from pivotd.cli.journal_answers import OfflineJournal
from pivotd.core.list_filters import EventFilter, PivotFilter
from pivotd.core.pivot import Phase, Pivot, PivotDisk, Record
from pivotd.core.verdict import Verdict, without_pivot
from pivotd.errors import TooBusyError
from pivotd.host.places import Place
from pivotd.journal import history
from pivotd.journal.journal import Journal
from pivotd.journal.reader import Reader
from pivotd.planning import lower_images
from tests.journal.samples import make_pivot

LONG_S = 30.0


@pytest.fixture
async def journal(tmp_path: Path) -> AsyncIterator[Journal]:
    opened = Journal.open(tmp_path)
    yield opened
    await opened.close()


@pytest.fixture
async def reads(journal: Journal, tmp_path: Path) -> AsyncIterator[Reads]:
    def no_driver(*_: Any) -> Any:
        raise AssertionError("no pivot is driven here")

    opened = await Reads.attach(tmp_path, Host(no_driver), journal)
    yield opened
    opened.end()
    await opened.close()


def listed(reads: Reads, limit: int = limits.PIVOTS_LISTED_MAX) -> Any:
    return reads.pivots(PivotFilter(), limit=limit, before=None, encode=lambda pivot: pivot.id)


async def turns(number: int = 50) -> None:
    """Let everything run that can run without a thread."""
    for _ in range(number):
        await asyncio.sleep(0)


async def test_a_list_comes_whole_and_in_order(journal: Journal, reads: Reads) -> None:
    """A list of several pieces has every pivot once, newest first, and goes on where it is told to."""
    many = 3 * limits.READ_AT_ONCE + 1
    await asyncio.gather(*(journal.accept(make_pivot(number), {}) for number in range(many)))
    newest_first = [make_pivot(number).id for number in reversed(range(many))]
    assert await listed(reads) == (newest_first, None)
    two = 2 * limits.READ_AT_ONCE
    assert await listed(reads, two) == (newest_first[:two], newest_first[two - 1])
    opened = PivotFilter(open_only=True)
    rest, _ = await reads.pivots(opened, limit=30, before=newest_first[9], encode=lambda pivot: pivot.id)
    assert rest == newest_first[10:40]
    assert [pivot.id for pivot, _ in await reads.latest("web1")] == sorted(newest_first, key=_disk_of)


@pytest.mark.parametrize("beside", [False, True], ids=["the daemon", "the journal alone"])
async def test_a_pivot_and_its_records_are_of_one_moment(
    journal: Journal, reads: Reads, tmp_path: Path, beside: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pivot that changes while it is read is shown with the records up to its phase, not with later ones."""
    pivot, _ = await journal.accept(make_pivot(1), {})
    loop, read = asyncio.get_running_loop(), history.records

    def after_a_change(*facts: Any) -> list[Record]:
        change = journal.advance(pivot, "copying", {}, phase=Phase.COPYING)
        asyncio.run_coroutine_threadsafe(change, loop).result()
        return read(*facts)

    monkeypatch.setattr(history, "records", after_a_change)
    offline = OfflineJournal(str(tmp_path))
    if beside:
        shown = await asyncio.to_thread(offline.pivot, pivot.id)
        found = shown.phase, [record.phase for record in shown.records]
    else:
        found = await reads.shown(pivot.id, lambda pivot, records: (pivot.phase, [one.phase for one in records]))
    offline.close()
    assert found == (Phase.PREPARING, [Phase.PREPARING])


def _disk_of(pivot: str) -> str:
    return f"disk{int(pivot[1:])}"


async def test_a_single_look_does_not_wait_for_lists(journal: Journal, reads: Reads) -> None:
    """While a list is being encoded, and others stand behind it, one pivot is shown."""
    await journal.accept(make_pivot(1), {})
    encoding, let_go = threading.Event(), threading.Event()

    def encode(pivot: Pivot) -> str:
        encoding.set()
        let_go.wait(LONG_S)
        return pivot.id

    lists = [asyncio.create_task(reads.pivots(PivotFilter(), limit=1, before=None, encode=encode)) for _ in range(3)]
    await asyncio.to_thread(encoding.wait, LONG_S)
    assert (await reads.pivot("P0001")).id == "P0001"
    assert await reads.shown("request-1", lambda pivot, records: (pivot.id, len(records))) == ("P0001", 1)
    assert not any(task.done() for task in lists)
    let_go.set()
    assert await asyncio.gather(*lists) == [(["P0001"], "P0001")] * 3


async def test_nothing_is_read_in_a_pause(journal: Journal, reads: Reads, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reads of every kind begin once the guest has left its pause."""
    monkeypatch.setattr(limits, "READ_HELD_BACK_S", LONG_S)
    await journal.accept(make_pivot(1), {})
    journal.hold_checkpoints()
    begun: list[str] = []

    async def through_the_door() -> None:
        async with reads.door:
            begun.append("door")

    tasks = [
        asyncio.create_task(coroutine)
        for coroutine in (
            reads.pivots(PivotFilter(), limit=1, before=None, encode=lambda _: begun.append("list")),
            reads.shown("P0001", lambda pivot, records: begun.append("shown")),
            reads.events_page(EventFilter(), 0, 10, lambda _: begun.append("events")),
            reads.verdicts(None, None, lambda _: begun.append("verdicts")),
            through_the_door(),
        )
    ]
    await turns()
    assert not any(task.done() for task in tasks)
    assert begun == []
    journal.release_checkpoints()
    await asyncio.gather(*tasks)
    assert sorted(begun) == ["door", "events", "list", "shown", "verdicts"]


async def test_no_header_is_read_in_a_pause(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pause may begin while the images of a question about one are looked at, a piece at a time."""
    monkeypatch.setattr(limits, "READ_HELD_BACK_S", LONG_S)
    monkeypatch.setattr(limits, "FILES_AT_ONCE", 1)
    loop, looked = asyncio.get_running_loop(), list[str]()

    def then_a_pause_begins(_place: Place, right: Verdict, _known: object) -> None:
        looked.append(right.domain)
        if len(looked) == 1:
            loop.call_soon_threadsafe(journal.hold_checkpoints)

    async def had(_image: str) -> list[tuple[Pivot, PivotDisk]]:
        return []

    monkeypatch.setattr(lower_images, "by_headers", then_a_pause_begins)
    verdicts = {(name, "disk0"): replace(without_pivot(name, "disk0"), image="/none") for name in ("web1", "web2")}
    host, live = Host(lambda pivot, domain: NotImplemented), LiveVerdicts([])
    asked = asyncio.ensure_future(in_chains("/none", host, had, live, verdicts, journal.calm))
    async with asyncio.timeout(LONG_S):
        while not journal.guest_paused:
            await asyncio.sleep(0.001)
    await asyncio.sleep(0.1)
    assert (looked, asked.done()) == (["web1"], False)
    journal.release_checkpoints()
    await asked
    assert looked == ["web1", "web2"]


async def test_a_guest_that_stays_paused_keeps_nobody_away(
    journal: Journal, reads: Reads, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reads go on once the pause is longer than they wait, and later ones do not wait at all."""
    monkeypatch.setattr(limits, "READ_HELD_BACK_S", 0.001)
    await journal.accept(make_pivot(1), {})
    journal.hold_checkpoints()
    for _ in range(3):
        assert await listed(reads) == (["P0001"], None)
    journal.release_checkpoints()


async def test_who_comes_on_top_is_told_at_once(
    journal: Journal, reads: Reads, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With as many in line as may wait, the next one gets TooBusyError, and those in line their answers."""
    monkeypatch.setattr(limits, "READ_HELD_BACK_S", LONG_S)
    monkeypatch.setattr(limits, "READS_WAITING_MAX", 2)
    journal.hold_checkpoints()
    waiting = [asyncio.create_task(listed(reads)) for _ in range(3)]  # one at the head of the line
    await turns()
    with pytest.raises(TooBusyError, match="ask again"):
        await listed(reads)
    journal.release_checkpoints()
    assert await asyncio.gather(*waiting) == [([], None)] * 3


async def test_a_wait_reads_again_for_its_own_pivot_only(
    journal: Journal, reads: Reads, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Records of others wake nobody; the one that closes the pivot ends the wait."""
    looks: list[str] = []
    look = reads_module._pivot

    def counted(reader: Reader, pivot: str) -> Pivot:
        found = look(reader, pivot)
        looks.append(pivot)
        return found

    monkeypatch.setattr(reads_module, "_pivot", counted)
    pivot, _ = await journal.accept(make_pivot(1), {})
    waiting = asyncio.create_task(reads.wait("P0001", LONG_S))
    while not looks:
        await asyncio.sleep(0)
    for number in range(2, 12):
        await journal.accept(make_pivot(number), {})
    assert looks == ["P0001"]
    await journal.advance(pivot, "closed", {}, phase=Phase.CLOSED)
    assert (await waiting).phase is Phase.CLOSED
    assert looks == ["P0001", "P0001"]


@pytest.mark.parametrize("after", [0, 5])
async def test_a_stream_has_every_record_once_and_in_order(journal: Journal, reads: Reads, after: int) -> None:
    """From the past into the present, also past a pause in which nothing is told, and with several lists at once."""
    told: list[int] = []
    enough = asyncio.Event()
    last = 3 * limits.RECORDS_AT_ONCE

    async def follow() -> None:
        async for page in reads.events(after, lambda record: record.seq):
            told.extend(page)
            if told[-1] == last:
                enough.set()

    await asyncio.gather(*(journal.note("n", {}) for _ in range(limits.RECORDS_AT_ONCE + 7)))
    following = asyncio.create_task(follow())
    while journal.last_seq < last:
        journal.hold_checkpoints()
        await asyncio.gather(*(journal.note("n", {}) for _ in range(min(9, last - journal.last_seq))))
        journal.release_checkpoints()
    await asyncio.wait_for(enough.wait(), LONG_S)
    assert told == list(range(after + 1, last + 1))
    reads.end()
    await following


async def test_news_wait_for_the_end_of_a_pause(
    journal: Journal, reads: Reads, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A record made in a pause is told after it."""
    monkeypatch.setattr(limits, "NEWS_DELAY_S", LONG_S)
    pages: list[list[Record]] = []

    async def follow() -> None:
        async for page in reads.events(0, lambda record: record):
            pages.append(page)  # noqa: PERF401 - looked at while it goes on

    following = asyncio.create_task(follow())
    await turns()
    journal.hold_checkpoints()
    await journal.note("in the pause", {})
    await turns()
    assert pages == []
    journal.release_checkpoints()
    await journal.note("after it", {})
    await turns()
    assert [[record.event for record in page] for page in pages] == [["in the pause", "after it"]]
    reads.end()
    await following


async def test_a_scrape_that_finds_no_turn_tells_no_number(
    journal: Journal, reads: Reads, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No disk in doubt is an answer, and nobody has looked; the next scrape looks again, without new records."""

    def health() -> None:
        """Return nothing: it is not asked."""

    await journal.accept(make_pivot(1), {})
    metrics = Metrics(Host(lambda *_: None), journal, reads, health, in_fleet=False)  # type: ignore[arg-type, return-value]
    with monkeypatch.context() as patched:
        patched.setattr(limits, "READS_WAITING_MAX", 0)
        assert (await metrics.look()).uncertain is None
    assert (await metrics.look()).uncertain == 1
