"""Requests that come while a pivot is under way: only its own task records, so that none can overwrite another."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from pivotd.core.phases import is_resting
from pivotd.core.pivot import Phase
from pivotd.core.request import Requester
from pivotd.errors import PhaseConflictError
from tests.conftest import QemuFactory
from tests.engine.conftest import Engine
from tests.support.qemu import Disk, create_image

pytestmark = pytest.mark.qemu

WHO = Requester(0, 0, 1)
CLIENTS = 8
ROUNDS = 150


async def test_completes_at_any_moment_of_a_pause_leave_journal_and_driver_agreed(
    engine: Engine, tmp_path: Path, qemu_factory: QemuFactory
):
    """One request at a time is taken, the others are conflicts; afterwards an operator's pause is not ended."""
    qemu = qemu_factory([Disk(create_image(tmp_path / "old", size="64M"))])
    await engine.connect(qemu)
    driver = await engine.copy("web1", {"disk0": tmp_path / "new"}, pivot=False, max_pause_ms=0, attempts=1)
    await engine.until(driver, lambda pivot: pivot.phase is Phase.READY and pivot.hold)
    taken = 0

    async def client() -> None:
        nonlocal taken
        for _ in range(ROUNDS):
            try:
                await driver.complete(WHO)
            except PhaseConflictError:
                await asyncio.sleep(0.001)
            else:
                taken += 1

    await asyncio.gather(*(client() for _ in range(CLIENTS)))
    await engine.until(driver, is_resting)
    assert taken
    events = engine.events(driver.pivot)
    assert events.count("complete-requested") == events.count("pausing") == taken
    (stored,) = engine.journal.open_pivots()
    assert stored == driver.pivot
    qemu.spy("stop")
    for _ in range(3):
        driver.wake()
        await asyncio.sleep(0.1)
    assert qemu.run_state() == "paused"
