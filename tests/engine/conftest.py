"""An engine in the test's own event loop: real journal, real supervisors, real QEMU."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from pivotd.app.registry import RUNTIME, Host
from pivotd.core.phases import is_resting
from pivotd.core.pivot import Phase, Pivot, Record
from pivotd.core.request import CopyOptions, Kind, PivotRequest, Requester, Target
from pivotd.daemon import SystemClock
from pivotd.engine.converge import Converger
from pivotd.engine.driver import Driver
from pivotd.engine.supervisor import Supervisor
from pivotd.host.flush import Flusher
from pivotd.journal.journal import Journal
from pivotd.journal.reader import Reader
from pivotd.planning.plan import plan
from tests.support.encrypted import encrypted_image
from tests.support.qemu import Qemu

TIMEOUT_S = 90.0
MAX_PAUSE_MS = 10_000
"""Of pivots for which a test names none: the usual 500 ms can pass on a busy machine, and then a try counts for nothing."""
ULID = "01K9ABCDEFGHJKMNPQRSTV{:04d}"


class Engine:
    """Copies disks without a daemon around it."""

    def __init__(self, state_dir: Path) -> None:
        self.state_dir = state_dir
        self.journal = Journal.open(state_dir)
        self.host = Host(self._driver)
        self._numbers = itertools.count(1)
        self._ran: dict[str, Driver] = {}

    def _driver(self, pivot: Pivot, domain: Any) -> Driver:
        clock = SystemClock()
        return Driver(pivot, domain, self.journal, clock, Converger(Flusher(), clock))

    async def connect(self, qemu: Qemu, name: str = "web1") -> Supervisor:
        return await self.add(name, qemu.qmp)

    async def add(self, name: str, qmp: Path) -> Supervisor:
        """Add a domain, and wait until it is connected; a try on a busy machine may fail."""
        supervisor = self.host.add(name, str(qmp), RUNTIME)
        deadline_s = time.monotonic() + TIMEOUT_S
        while supervisor.session is None:
            await supervisor.tried()
            assert supervisor.session is not None or time.monotonic() < deadline_s, supervisor.detail
        return supervisor

    async def copy(
        self, name: str, targets: dict[str, Path], image_format: str | None = None, **options: Any
    ) -> Driver:
        """Record and start a copy; return its driver."""
        wanted = (Target(disk, str(path), image_format) for disk, path in targets.items())
        return await self.start(Kind.COPY, name, *wanted, **options)

    async def start(self, kind: Kind, name: str, *targets: Target, **options: Any) -> Driver:
        """Record and start a pivot; return its driver."""
        supervisor = self.host.get(name)
        assert supervisor.session is not None
        number = ULID.format(next(self._numbers))
        request = PivotRequest(name, kind, targets, CopyOptions(**{"max_pause_ms": MAX_PAUSE_MS, **options}))
        others = [driver.pivot for driver in supervisor.drivers.values()]
        planned = await plan(request, supervisor.session, others, pivot=number, who=Requester(0, 0, 1))
        pivot, _ = await self.journal.accept(planned, {})
        return supervisor.start(pivot)

    async def until(self, driver: Driver, done: Callable[[Pivot], bool]) -> Pivot:
        """Wait until the pivot is as wanted; bounded."""
        async with asyncio.timeout(TIMEOUT_S):
            while not done(driver.pivot):
                await driver.advanced.wait()
        return driver.pivot

    async def closed(self, driver: Driver) -> Pivot:
        return await self.until(driver, lambda pivot: pivot.phase is Phase.CLOSED)

    async def resting(self, driver: Driver) -> Pivot:
        return await self.until(driver, is_resting)

    def records(self, pivot: Pivot) -> list[Record]:
        reader = Reader.attach(self.state_dir)
        try:
            return reader.records(pivot.id)
        finally:
            reader.close()

    def events(self, pivot: Pivot) -> list[str]:
        return [record.event for record in self.records(pivot)]

    def facts(self, pivot: Pivot, event: str) -> dict[str, Any]:
        """Return the facts of the one record of this event."""
        (found,) = (record.facts for record in self.records(pivot) if record.event == event)
        return found


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[Engine]:
    state_dir = tmp_path / "state"
    state_dir.mkdir()
    engine = Engine(state_dir)
    async with asyncio.TaskGroup() as group:
        running = group.create_task(engine.host.run())
        await engine.host.started()
        yield engine
        engine.host.end()
        await running
    await engine.journal.close()


@pytest.fixture(scope="session")
def encrypted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the file ``key`` and the image ``qcow2``, made once: that takes seconds on a busy machine."""
    directory = tmp_path_factory.mktemp("luks")
    (directory / "key").write_text("correct horse")
    encrypted_image(directory / "qcow2", f"file={directory / 'key'}")
    return directory
