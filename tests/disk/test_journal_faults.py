"""The journal on a disk whose nth write or fsync fails: once, or from then on.

PIVOTD_DISK_STRIDE=1 tries every write; the default tries every fsync and a share of the writes, chosen by the seed.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.disk.disk import Disk, seed
from tests.disk.server import Fault
from tests.disk.store import Contents, Store
from tests.disk.workload import Promises, Work, judge

pytestmark = [pytest.mark.chaos]

STRIDE = int(os.environ.get("PIVOTD_DISK_STRIDE", "8"))
FAULTS_MAX = 2000
CASES = [
    (what, how, lasting)
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
def test_every_failing_request(disk: Disk, tmp_path: Path, what: str, how: str, lasting: bool) -> None:
    """Whichever write or fsync fails: what was acknowledged stays, what was refused stays away, and work goes on."""
    chance = random.Random(seed())
    stride = 1 if what == "fsync" else STRIDE
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
            place = tmp_path / f"{nth}-{index}"
            problems = judge(left, place, promises.kept, promises.refused)
            assert problems == [], f"{where}; {name}: {problems}; see {place}; errors were {promises.errors}"
        disk.fail()
        before = len(promises.errors)
        asyncio.run(work.run(times=1))
        assert promises.errors[before:] == [], f"{where}; with the disk sound again: {promises.errors[before:]}"
    print(f"{struck} faults")  # noqa: T201
    assert struck >= (20 if stride == 1 else 100 // stride)
