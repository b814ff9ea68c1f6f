"""Archiving on a forgetful disk: power cuts and kills at every change, and every write and fsync that fails."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from pivotd.core.pivot import Record
from pivotd.errors import JournalError
from pivotd.journal.journal import Journal
from pivotd.journal.reader import Reader
from tests.journal.old_pivots import archive, back_and_forth
from tests.journal_disk.disk import Disk, put
from tests.journal_disk.server import Fault
from tests.journal_disk.store import Change, Contents, Mark, Name, Store, SyncNames, replay
from tests.support.seeds import seed

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(400)]

CHANCES = int(os.environ.get("PIVOTD_DISK_CHANCES", "1"))
STRIDE = int(os.environ.get("PIVOTD_DISK_STRIDE", "64"))
FAULTS_MAX = 2000
CUT_STRIDE = int(os.environ.get("PIVOTD_DISK_STRIDE", "200"))
FINISHED_EVERY = 5
PIVOTS = 3
CUTS_MIN = 100
FAULTS_MIN = 3
Everything = tuple[list[tuple[int, str]], list[str], list[list[int]]]
"""Number and event of each record, the pivots in order, and the numbers of the records of each."""


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    with Disk(tmp_path / "disk") as mounted:
        yield mounted


def everything(reader: Reader) -> Everything:
    """Return what a reader shows, but the records that only archiving has written."""
    listed = reader.pivots()
    events = [(record.seq, record.event) for record in reader.events(0) if record.event != "archived"]
    return events, [pivot.id for pivot in listed], [[one.seq for one in reader.records(pivot.id)] for pivot in listed]


def judge(contents: Contents, place: Path) -> tuple[Everything, list[str]]:
    """Return what is shown of files as they were left, offline first and then by a daemon, and what is wrong there."""
    put(contents, place)
    reader = Reader.offline(place)
    before, wrong = everything(reader), reader.check()
    reader.close()
    journal = Journal.open(place)
    inside = Reader.attach(place)
    if (now := everything(inside)) != before:
        wrong.append(f"offline {before}, in the daemon {now}")
    inside.close()
    asyncio.run(journal.close())
    return before, wrong


def finish(place: Path) -> tuple[Everything, int]:
    """Let the next daemon archive the rest; return what is shown then, and how many pivots are left in the journal."""

    async def work() -> None:
        journal = Journal.open(place)
        await archive(journal)
        await journal.close()

    asyncio.run(work())
    reader = Reader.offline(place)
    try:
        return everything(reader), reader.sizes().pivots
    finally:
        reader.close()


async def work(disk: Disk) -> Everything:
    """Make pivots and archive them in two runs, the second into a file that is there; return all there is to show."""
    journal = Journal.open(disk.where)

    def hear(records: list[Record]) -> None:
        disk.mark(str(records[-1].seq))

    journal.subscribe(hear)
    for first in (1, PIVOTS + 1):
        await back_and_forth(journal, PIVOTS, first=first, records=1)
        disk.mark("archive")
        done = await archive(journal)
        assert (bool(done.pivots), done.obstacles) == (True, [])
    reader = Reader.attach(disk.where)
    found = everything(reader)
    reader.close()
    await journal.close()
    return found


def cuts(log: list[Change], chance: random.Random) -> Iterator[tuple[int, str, Contents, int]]:
    """Yield what a kill or a power cut leaves at changes since archiving began, and the last known record.

    At each change of a name, right before and after it, and at every CUT_STRIDE-th of the others.
    """
    told, begun = 0, False
    first = chance.randrange(CUT_STRIDE)
    for position, store in replay(log):
        if isinstance(mark := log[position - 1], Mark):
            begun = begun or mark.text == "archive"
            told = int(mark.text) if mark.text.isdigit() else told
        names = any(isinstance(one, (Name, SyncNames)) for one in log[position - 1 : position + 1])
        if not begun or not (names or position % CUT_STRIDE == first):
            continue
        yield position, "all lost", store.after_cut(), told
        yield position, "only processes died", store.everything(), told
        for _ in range(CHANCES):
            own = chance.randrange(1 << 32)
            yield position, f"some left, seed {own}", store.after_cut(random.Random(own)), told


def test_every_power_cut_leaves_each_row_in_one_file_or_in_both(disk: Disk, ram: Path) -> None:
    """Every record that was told is shown exactly once, whole pivots too, and the next run archives the rest."""
    whole = asyncio.run(work(disk))
    log = disk.log()
    number = 0
    place = ram / "left"
    for position, name, left, told in cuts(log, random.Random(seed())):
        number += 1
        where = f"after change {position} of {len(log)}, {name}; see {place}"
        (events, pivots, records), wrong = judge(left, place)
        assert wrong == [], where
        numbers = [seq for seq, _ in events]
        assert [one for one in whole[0] if one[0] <= told] == events[: sum(one[0] <= told for one in whole[0])], where
        assert events == whole[0][: len(events)], where
        assert sorted(itertools.chain(*records)) == numbers, where
        assert pivots == [pivot for pivot in whole[1] if pivot in set(pivots)], where
        if number % FINISHED_EVERY == 0:
            again, pivots_left = finish(place)
            assert again[0] == events, where
            assert pivots_left <= 2, where
        shutil.rmtree(place)
    print(f"{number} cuts, {len(log)} changes")  # noqa: T201
    assert number > CUTS_MIN


CASES = [
    pytest.param(what, how, lasting, marks=[pytest.mark.long] * (lasting or what == "write"))
    for what, how in (("fsync", "eio"), ("write", "eio"), ("write", "enospc"))
    for lasting in (False, True)
]


@pytest.mark.parametrize(("what", "how", "lasting"), CASES, ids=str)
def test_every_failing_request_of_archiving(disk: Disk, ram: Path, what: str, how: str, lasting: bool) -> None:
    """Whichever write or fsync fails: nothing is lost or shown twice, and a later run archives it."""
    chance = random.Random(seed())
    stride = STRIDE if what == "write" else max(1, STRIDE // 16)
    struck = 0
    for nth in itertools.count(1 + chance.randrange(stride), stride):
        assert nth < FAULTS_MAX
        where = f"{what} {nth}: {how}{' from then on' if lasting else ''}"
        disk.load({})
        before, has_struck, now = asyncio.run(broken(disk, Fault(what, nth, how, lasting=lasting)))
        assert now == before, where
        store = Store()
        for change in disk.log():
            store.apply(change)
        for name, left in (("killed", store.everything()), ("power cut", store.after_cut())):
            place = ram / name
            found, wrong = judge(left, place)
            assert wrong == [], f"{where}, {name}; see {place}"
            assert found == before, f"{where}, {name}; see {place}"
            again, pivots_left = finish(place)
            assert again == before, f"{where}, {name}; see {place}"
            assert pivots_left <= 2, f"{where}, {name}; see {place}"
            shutil.rmtree(place)
        if not has_struck:
            break
        struck += 1
    print(f"{struck} faults")  # noqa: T201
    assert struck >= FAULTS_MIN


async def broken(disk: Disk, fault: Fault) -> tuple[Everything, bool, Everything]:
    """Archive on a disk with a fault; return what there was to show, whether it has struck, and what there is then."""
    journal = Journal.open(disk.where)
    await back_and_forth(journal, PIVOTS)
    reader = Reader.attach(disk.where)
    before = everything(reader)
    disk.fail(fault)
    with contextlib.suppress(JournalError):
        await archive(journal)
    has_struck = disk.await_strike(timeout_s=0)
    disk.fail()
    assert await journal.settle()
    now = everything(reader)
    reader.close()
    # Not closed in order: what the disk holds is judged as after a kill.
    await journal.close()
    return before, has_struck, now
