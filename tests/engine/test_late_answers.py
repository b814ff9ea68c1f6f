"""A guest that stands still for too long while libvirt does not answer: that is told, whenever its pause has begun."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from pivotd.core.pivot import Phase
from pivotd.core.request import Manager
from pivotd.daemon import SystemClock
from pivotd.engine import watchdog
from pivotd.engine.driver_state import DriverState
from pivotd.journal.journal import Journal
from pivotd.journal.reader import Reader
from tests.journal.samples import make_pivot

NONE = cast("Any", None)


async def test_a_pause_that_begins_late_in_a_step_is_told_too(tmp_path: Path):
    """Libvirt takes its time to say how the guest is before it is asked to suspend it, and never answers to that."""
    journal = Journal.open(tmp_path)
    pivot, _ = await journal.accept(make_pivot(1), {})
    options = replace(pivot.options, max_pause_ms=100)
    domain: Any = SimpleNamespace(name=pivot.domain)
    paused = replace(pivot, manager=Manager.LIBVIRT, phase=Phase.PAUSING, options=options)
    state = DriverState(paused, domain, journal, SystemClock(), NONE)

    async def suspend() -> None:
        await asyncio.sleep(0.12)
        state.attempt = state.attempt.paused(state.pivot, state.clock.monotonic())
        async with asyncio.timeout(60):
            while not waits():
                await asyncio.sleep(0.05)

    def waits() -> list[float]:
        reader = Reader.attach(tmp_path / "journal.db")
        found = [record.facts["pause_ms"] for record in reader.events(0) if record.event == "guest-waits"]
        reader.close()
        return found

    await watchdog.telling(state, suspend())
    (pause_ms,) = waits()
    assert pause_ms >= options.max_pause_ms
    await journal.close()


async def test_what_a_pivot_waits_for_ends_with_its_phase(tmp_path: Path):
    """A pivot that is decided does not wait for its destination to be created."""
    journal = Journal.open(tmp_path)
    pivot, _ = await journal.accept(make_pivot(1), {})
    domain: Any = SimpleNamespace(name=pivot.domain)
    state = DriverState(pivot, domain, journal, SystemClock(), NONE)
    state.waits_for = "the destination is being created"
    await state.record("noted", {})
    assert state.waits_for == "the destination is being created"
    await state.record("copying", {}, phase=Phase.COPYING)
    assert state.waits_for == "its next look at QEMU"
    await journal.close()
