"""The journal after a power cut at every single change of its disk; without PIVOTD_LONG=1 every fourth one is judged."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pivotd.journal.journal import Journal
from pivotd.journal.reader import Reader
from tests.conftest import LONG
from tests.journal_disk.disk import Disk
from tests.journal_disk.store import Change, Contents, Mark, Name, Store, Sync, replay
from tests.journal_disk.workload import Promises, Told, Work, judge
from tests.support.seeds import seed

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(400)]

CHANCES = int(os.environ.get("PIVOTD_DISK_CHANCES", "1"))
"""Random power cuts at each point, beside the one that loses all that it may."""

RESTARTS = 20
TIMES = 2 if LONG else 1
STRIDE = 1 if LONG else 4
CUTS_MIN = 750 * TIMES // STRIDE


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    with Disk(tmp_path / "disk") as mounted:
        yield mounted


def cuts(log: list[Change], chance: random.Random) -> Iterator[tuple[int, str, Contents, set[Told]]]:
    """Yield every power cut: where, which one, what is left, and what had been told by then. Each content once."""
    told: set[Told] = set()
    seen: set[bytes] = set()
    for position, store in replay(log):
        if isinstance(mark := log[position - 1], Mark):
            pivot, _, phase = mark.text.partition(" ")
            told.add((pivot, phase))
        for name, left in _variants(store, chance):
            digest = hashlib.sha256(repr((sorted(left.items()), len(told))).encode()).digest()
            if digest not in seen:
                seen.add(digest)
                yield position, name, left, set(told)


def _variants(store: Store, chance: random.Random) -> Iterator[tuple[str, Contents]]:
    yield "all lost", store.after_cut()
    yield "only processes died", store.everything()
    for _ in range(CHANCES):
        own = chance.randrange(1 << 32)
        yield f"some left, seed {own}", store.after_cut(random.Random(own))


def test_every_power_cut_leaves_what_was_acknowledged(disk: Disk, ram: Path) -> None:
    """Wherever the power is cut and whatever of the unsynced survives: it starts again, whole, with every record."""
    chance = random.Random(seed())
    promises = Promises()
    asyncio.run(Work(disk, promises).run(times=TIMES))
    assert promises.errors == []
    log = disk.log()
    number = 0
    place = ram / "left"
    for position, name, left, told in itertools.islice(cuts(log, chance), chance.randrange(STRIDE), None, STRIDE):
        number += 1
        problems = judge(left, place, told, set())
        assert problems == [], f"power cut after change {position} of {len(log)}, {name}: {problems}; see {place}"
        shutil.rmtree(place)
    print(f"{number} power cuts, {len(log)} changes")  # noqa: T201
    assert number > CUTS_MIN


def unsynced(log: list[Change]) -> Iterator[int]:
    """Yield the positions right before each fsync of a WAL: a record is written, and nobody knows whether it stays."""
    names: dict[int, str] = {}
    for position, change in enumerate(log):
        if isinstance(change, Name):
            names[change.file] = change.name
        if isinstance(change, Sync) and names[change.file] == "journal.db-wal":
            yield position


Look = Callable[[Disk], tuple[set[Told], list[Change]]]


def daemon(disk: Disk) -> tuple[set[Told], list[Change]]:
    """Start a journal; return what a daemon reads from it, and the log of the disk by then: closing would fsync."""
    journal = Journal.open(disk.where)
    reader = Reader.attach(disk.where)
    read, log = everything(reader), disk.log()
    reader.close()
    asyncio.run(journal.close())
    return read, log


def offline(disk: Disk) -> tuple[set[Told], list[Change]]:
    """Return what ``pivotctl --offline`` reads, and the log of the disk by then."""
    reader = Reader.offline(disk.where)
    read, log = everything(reader), disk.log()
    reader.close()
    return read, log


def everything(reader: Reader) -> set[Told]:
    return {(record.pivot or "", str(record.phase)) for record in reader.events(0)}


@pytest.mark.parametrize("look", [daemon, offline])
def test_what_is_read_after_a_kill_is_durable(disk: Disk, ram: Path, look: Look) -> None:
    """After a kill right before an fsync the record can be read, is acted on or told, and no power cut takes it back.

    Otherwise a guest could run on its destination while the only record of that was still in the page cache.
    """
    promises = Promises()
    asyncio.run(Work(disk, promises).run())
    log = disk.log()
    positions = list(unsynced(log))
    assert len(positions) > 40
    for position in positions[:: max(1, len(positions) // RESTARTS)]:
        disk.replay(log[:position])
        read, since = look(disk)
        seen = Store()
        for change in since:
            seen.apply(change)
        place = ram / f"cut{position}"
        problems = judge(seen.after_cut(), place, read, set())
        assert problems == [], f"killed after change {position} of {len(log)}, read, power cut: {problems}; see {place}"
        shutil.rmtree(place)
