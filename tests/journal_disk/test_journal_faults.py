"""The journal on a disk whose nth write or fsync fails: once, or from then on.

PIVOTD_DISK_STRIDE=1 tries every write, PIVOTD_LONG=1 every fsync; otherwise a share of both, chosen by the seed.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import shutil
import threading
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

from pivotd.core.pivot import Phase
from pivotd.errors import JournalFullError, JournalWriteError
from pivotd.journal.journal import Journal
from tests.conftest import LONG
from tests.journal.samples import make_pivot
from tests.journal_disk.disk import Disk, put
from tests.journal_disk.server import Fault
from tests.journal_disk.store import Contents, Store, replay
from tests.journal_disk.workload import Promises, Work, judge, stored
from tests.support.seeds import seed

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(400)]

STRIDE = int(os.environ.get("PIVOTD_DISK_STRIDE", "16" if LONG else "32"))
FSYNC_STRIDE = 1 if LONG else min(3, STRIDE)
FAULTS_MAX = 2000
GENERATIONS = 12
"""Of the WAL: records of one size fill the second half of a page, then the first."""
SALTS = slice(16, 24)
"""Of a WAL's header: each generation has its own. Source: https://www.sqlite.org/fileformat2.html#walformat"""
CASES = [
    pytest.param(what, how, lasting, marks=[pytest.mark.long] * ((what, how) == ("write", "eio")))
    for what, how in (("fsync", "eio"), ("write", "eio"), ("write", "enospc"))
    for lasting in (False, True)
]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    with Disk(tmp_path / "disk") as mounted:
        yield mounted


def leftovers(disk: Disk, chance: random.Random) -> Iterator[tuple[str, Contents]]:
    """Yield what a kill and what power cuts leave of the disk as it is now."""
    store = Store()
    for change in disk.log():
        store.apply(change)
    yield "killed", store.everything()
    yield "power cut", store.after_cut()
    own = chance.randrange(1 << 32)
    yield f"power cut, seed {own}", store.after_cut(random.Random(own))


@pytest.mark.parametrize(("what", "how", "lasting"), CASES, ids=str)
@pytest.mark.thinned(2)
def test_every_failing_request(disk: Disk, ram: Path, what: str, how: str, lasting: bool) -> None:
    """Whichever write or fsync fails: what was acknowledged stays, what was refused stays away, and work goes on."""
    chance = random.Random(seed())
    stride = FSYNC_STRIDE if what == "fsync" else STRIDE
    first = 1 + chance.randrange(stride)
    struck = 0
    for nth in itertools.count(first, stride):
        assert nth < FAULTS_MAX
        where = f"{what} {nth}: {how}{' from then on' if lasting else ''}"
        promises = Promises()
        work = Work(disk, promises)
        disk.load({})
        disk.fail(Fault(what, nth, how, lasting=lasting))
        asyncio.run(work.run(times=1))
        if not disk.await_strike(timeout_s=0):
            break
        struck += 1
        for index, (name, left) in enumerate(leftovers(disk, chance)):
            place = ram / f"{nth}-{index}"
            problems = judge(left, place, promises.kept, promises.refused)
            assert problems == [], f"{where}; {name}: {problems}; see {place}; errors were {promises.errors}"
            shutil.rmtree(place)
        disk.fail()
        before = len(promises.errors)
        asyncio.run(work.run(times=1))
        assert promises.errors[before:] == [], f"{where}; with the disk sound again: {promises.errors[before:]}"
    print(f"{struck} faults")  # noqa: T201
    assert struck >= (20 // stride if what == "fsync" else 50 // stride)


async def together(journal: Journal, changes: list[Coroutine[Any, Any, Any]]) -> list[Any]:
    """Let changes reach the writer as one batch; return the answers."""
    release = threading.Event()
    journal._writer.call(lambda _: release.wait(60))
    tasks = [asyncio.ensure_future(change) for change in changes]
    await asyncio.sleep(0)
    release.set()
    return await asyncio.gather(*tasks, return_exceptions=True)


async def test_nothing_is_certain_while_a_failed_batch_may_be_on_disk(disk: Disk, tmp_path: Path) -> None:
    """An fsync fails and the disk stays broken: the batch may be whole in the WAL, so nobody is told otherwise."""
    journal = Journal.open(disk.where)
    before = [(await journal.accept(make_pivot(number), {}))[0] for number in (1, 2)]
    disk.fail(Fault("fsync", 1, "eio", lasting=True))
    switch = [journal.advance(pivot, "switched", {}, phase=Phase.DECIDED) for pivot in before]
    answers = await together(journal, switch)
    assert disk.await_strike()
    written = []
    for _, store in replay(disk.log()):
        if "journal.db-wal" in store.names:
            put(store.everything(), tmp_path / str(len(written)))
            written.append(("P0001", "decided") in stored(tmp_path / str(len(written)) / journal.path.name))
    assert any(written), "the batch was never whole"
    assert [type(answer) for answer in answers] == [JournalWriteError, JournalWriteError]
    assert not await journal.settle()
    disk.fail()
    assert await journal.settle()
    assert ("P0001", "decided") not in stored(journal.path)
    await journal.close()


async def test_a_full_disk_under_an_old_generation_of_the_wal_records_nothing(disk: Disk, tmp_path: Path) -> None:
    """Half of the commit frame is new, and half is left of a page that said the same: together a whole one."""
    journal = Journal.open(disk.where)
    generations = set()
    for number in range(GENERATIONS):
        journal.hold_checkpoints()
        journal._writer.call(lambda _: None).result()  # the checkpoint comes before the fault
        for nth in itertools.count(1):
            disk.fail(Fault("write", nth, "enospc", lasting=True))
            try:
                await journal.note("n", {"text": "x" * 150})
            except JournalFullError:
                left = Store()
                for change in disk.log():
                    left.apply(change)
                place = tmp_path / f"{number}-{nth}"
                put(left.everything(), place)
                records = [one for one in stored(place / journal.path.name) if isinstance(one, tuple)]
                assert len(records) == journal.last_seq, place
            else:
                break
        disk.fail()
        assert nth > 1
        generations.add((disk.where / "journal.db-wal").read_bytes()[SALTS])
        journal.release_checkpoints()
    await journal.close()
    assert len(generations) == GENERATIONS
