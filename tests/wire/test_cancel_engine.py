"""Supervisor and driver, cancelled at every place where any of their tasks waits, over a real QEMU and a real journal.

A cancellation is the end of a process that had time to clean up: everything it held is free, and the next supervisor
finds in the journal and in QEMU what it needs.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from pivotd.core.pivot import Outcome, Phase, Pivot
from pivotd.core.request import CopyOptions, Kind, PivotRequest, Requester, Target
from pivotd.daemon import SystemClock
from pivotd.engine.converge import Converger
from pivotd.engine.driver import Driver
from pivotd.engine.supervisor import MonitorConnector, Supervisor
from pivotd.host.flush import Flusher
from pivotd.journal.journal import Journal
from pivotd.journal.reader import Reader
from pivotd.planning.plan import plan
from tests.conftest import QemuFactory
from tests.support.cancel import Leftovers, Places, When
from tests.support.qemu import Disk, Qemu, create_image

pytestmark = [pytest.mark.qemu, pytest.mark.chaos]

PLACES_MIN = 25
ROUNDS_MAX = 200
ROUND_S = 60.0
ULID = "01K9ABCDEFGHJKMNPQRSTV{:04d}"


class Ground:
    """One QEMU whose disk moves from image to image, one journal, one supervisor after the other."""

    def __init__(self, directory: Path, qemu: Qemu) -> None:
        self.directory = directory
        self.qemu = qemu
        state_dir = directory / "state"
        state_dir.mkdir()
        self.journal = Journal.open(state_dir)
        # One for all rounds: SQLite keeps the descriptors of a reader that closes beside another connection.
        self.reader = Reader.attach(state_dir)
        self.reader.last_seq()
        self.numbers = itertools.count(1)
        self.clock = SystemClock()
        self.started = asyncio.Event()

    def supervisor(self) -> Supervisor:
        def make(pivot: Pivot, domain: Supervisor) -> Driver:
            return Driver(pivot, domain, self.journal, self.clock, Converger(Flusher(), self.clock))

        return Supervisor("web1", MonitorConnector(str(self.qemu.qmp)), "config", make)

    async def copy(self, supervisor: Supervisor) -> None:
        """Accept and drive one copy to its end, then let the supervisor end."""
        running = asyncio.ensure_future(supervisor.run([]))
        try:
            while supervisor.session is None:  # a try on a busy machine may fail; ROUND_S bounds all of them
                await supervisor.tried()
            number = next(self.numbers)
            name = ULID.format(number)
            target = Target("disk0", str(self.directory / f"new{number}"), "qcow2")
            request = PivotRequest("web1", Kind.COPY, (target,), CopyOptions(max_pause_ms=5000))
            planned = await plan(request, supervisor.session, (), pivot=name, who=Requester(0, 0, 1))
            pivot, _ = await self.journal.accept(planned, {})
            driver = supervisor.start(pivot)
            while driver.pivot.phase is not Phase.CLOSED:
                await driver.advanced.wait()
            supervisor.end()
            await asyncio.shield(running)
        finally:
            running.cancel()
            await asyncio.wait([running])

    async def recover(self) -> None:
        """Let another supervisor end what is open; journal and QEMU then say the same, and the guest runs."""
        await self.journal.note("a record behind whatever is still being written", {})
        pivots = self._pivots(open_only=True)
        supervisor = self.supervisor()
        running = asyncio.ensure_future(supervisor.run(pivots))
        await supervisor.settled(10)
        while supervisor.drivers:
            await asyncio.wait(list(supervisor._tasks))
        supervisor.end()
        await running
        assert not self._pivots(open_only=True)
        self._check()

    def _check(self) -> None:
        newest = self._pivots(open_only=False)[:1]
        for pivot in newest:
            (disk,) = pivot.disks
            right = disk.destination if disk.outcome is Outcome.SWITCHED else disk.source
            assert self.qemu.root().node == right.node, (pivot.outcome, self.qemu.root())
        assert self.qemu.run_state() == "running"
        assert not self.qemu.jobs()

    def _pivots(self, *, open_only: bool) -> list[Pivot]:
        return self.reader.pivots(open_only=open_only)


@pytest.fixture
async def ground(tmp_path: Path, qemu_factory: QemuFactory) -> AsyncIterator[Ground]:
    qemu = qemu_factory([Disk(create_image(tmp_path / "old", size="1M"))])
    ground = Ground(tmp_path, qemu)
    yield ground
    ground.reader.close()
    await ground.journal.close()


@pytest.mark.parametrize("when", [When.WAITING, pytest.param(When.ENDED, marks=pytest.mark.long)])
@pytest.mark.timeout(400)
async def test_a_cancelled_engine_lets_go_of_everything_and_the_next_one_goes_on(
    ground: Ground, when: When, caplog: pytest.LogCaptureFixture
):
    """No task, descriptor, window or hold of the journal stays; the verdict is true and the guest runs."""
    caplog.set_level(logging.ERROR, "asyncio")
    places = Places(when)
    for _ in range(ROUNDS_MAX):
        left = Leftovers()
        supervisor = ground.supervisor()
        async with asyncio.timeout(ROUND_S):
            place = await places.cancelled_at_a_new_one(ground.copy(supervisor))
            try:
                await left.nothing()
                assert not supervisor.window.locked()
                assert supervisor.session is None
                assert ground.journal._writer._holds == 0
                await ground.recover()
                await left.nothing()
            except BaseException as error:
                error.add_note(f"cancelled ({when}) at " + " > ".join(place or ("no place",)))
                raise
        if place is None:
            break
    else:
        raise AssertionError(f"new places without end: {sorted(places.seen)}")
    print(len(places.seen), "places:", *sorted(map(" > ".join, places.seen)), sep="\n")  # noqa: T201
    assert len(places.seen) >= PLACES_MIN
    assert "never retrieved" not in caplog.text
