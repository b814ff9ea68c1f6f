"""A real pivot whose journal loses power: at every change of the disk in the log, and for real at chosen fsyncs."""

from __future__ import annotations

import itertools
import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.process import call
from tests.journal_disk.disk import Disk
from tests.journal_disk.fixture import COMPLETE, RESUMES, WAIT_S, Ground, variants
from tests.journal_disk.server import Fault
from tests.journal_disk.store import Mark, replay
from tests.support.seeds import seed
from tests.support.waiting import until

pytestmark = [pytest.mark.qemu, pytest.mark.chaos, pytest.mark.timeout(400)]

STRIDE = int(os.environ.get("PIVOTD_DISK_STRIDE", "5"))
FSYNCS_MAX = 100


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    with Disk(tmp_path / "state") as mounted:
        yield mounted


@pytest.mark.parametrize("disks", [1, 2])
def test_verdict_is_right_wherever_the_power_is_cut(disk: Disk, tmp_path: Path, disks: int) -> None:
    """Before the destinations are complete it is the source, once the guest runs again the destination, never split."""
    chance = random.Random(seed())
    with Ground(tmp_path, disk, disks=disks) as ground:
        ground.daemon.start()
        pivot = ground.copy()["id"]
        assert ground.rest(pivot)["outcome"] == "switched"
        ground.daemon.kill()
        log = disk.log()
        sources, destinations = [str(path) for path in ground.images], [str(path) for path in ground.targets]
        allowed = [sources]
        number = 0
        for position, store in replay(log):
            change = log[position - 1]
            if change == Mark(RESUMES):
                allowed = [destinations]
            elif change == Mark(COMPLETE):
                allowed = [sources, destinations]
            for name, left in variants(store, chance):
                number += 1
                verdict = ground.verdicts(left)
                assert verdict in allowed, f"after change {position} of {len(log)}, {name}: {verdict}, not {allowed}"
        assert allowed == [destinations]
        print(f"{number} verdicts, {len(log)} changes")  # noqa: T201


def test_power_cut_at_an_fsync_with_everything_killed(tmp_path: Path) -> None:
    """The next daemon starts, finds QEMU gone, and closes the pivot with an image that holds every acknowledged block."""
    number = seed()
    chance = random.Random(number)
    for nth in itertools.count(1 + chance.randrange(STRIDE), STRIDE):
        assert nth < FSYNCS_MAX
        directory = tmp_path / str(nth)
        directory.mkdir()
        with Disk(directory / "state") as disk, Ground(directory, disk) as ground:
            ground.daemon.start()
            disk.fail(Fault("fsync", nth, "hang"))
            asking = ground.copy_in_background()
            while not disk.await_strike(timeout_s=0.05):
                if not asking.is_alive() and ground.closed():
                    assert nth > STRIDE, "no fsync was reached"
                    return
            ground.qemu.kill()
            # Killed, and dead once its request is answered.
            os.kill(ground.daemon.pid, signal.SIGKILL)
            disk.cut(chance.choice((None, chance.randrange(1 << 32))))
            ground.daemon.kill()
            asking.join(WAIT_S)
            ground.daemon.start()
            found = call(ground.daemon, "GET", "/v1/pivots")
            assert not found or until(ground.closed), f"fsync {nth}: {found}"
            verdicts = ground.daemon.ctl("verdict", offline=True).json if found else []
            assert len(verdicts) == (len(found[0]["disks"]) if found else 0)
            for verdict in verdicts:
                missing = ground.world.missing(verdict["disk"], verdict["image"])
                assert missing == [], f"fsync {nth}: {verdict} lacks acknowledged blocks {missing}; see {directory}"
