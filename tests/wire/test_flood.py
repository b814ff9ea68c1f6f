"""Too much of everything: events, job names, answers too late, and a QEMU that does not read."""

from __future__ import annotations

import asyncio
import tracemalloc

import pytest

from pivotd import limits
from pivotd.errors import QmpUnknownError, QmpUnsentError
from pivotd.qmp.monitor import JOBS_REMEMBERED_MAX, Monitor, command
from tests.support.cancel import Leftovers, replies_due
from tests.wire.server import FakeQemu, event

EVENTS = 60_000
"""What a job that ignores errors sends in a second."""
MEMORY_BYTES_MAX = 8 << 20
BURST_EVENTS = 500
CLOSE_S = 60.0


async def _flood(fake: FakeQemu, monitor: Monitor, texts: list[bytes]) -> None:
    """Send all, as fast as they are read."""
    for at in range(0, len(texts), BURST_EVENTS):
        fake.push(b"".join(texts[at : at + BURST_EVENTS]))
        assert fake._writer is not None
        await fake._writer.drain()
    assert await monitor.execute(command("query-status"), 60) == {}


async def test_a_second_of_job_errors_wakes_nobody_and_costs_no_memory(fake: FakeQemu):
    """60,000 BLOCK_JOB_ERROR: the connection stays usable, nobody is woken."""
    monitor = await Monitor.connect(fake.path)
    woken = 0

    def wake() -> None:
        nonlocal woken
        woken += 1

    monitor.subscribe(wake)
    text = event("BLOCK_JOB_ERROR", device="j", operation="write", action="ignore")
    await _flood(fake, monitor, [text] * BURST_EVENTS)
    tracemalloc.start()
    await _flood(fake, monitor, [text] * EVENTS)
    grown_bytes = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert grown_bytes < MEMORY_BYTES_MAX
    assert woken == 0
    await monitor.close()


async def test_endless_new_jobs_are_remembered_up_to_a_bound(fake: FakeQemu):
    """And a job that was known before keeps its place."""
    monitor = await Monitor.connect(fake.path)
    await _flood(fake, monitor, [event("JOB_STATUS_CHANGE", id="ours", status="running")])
    tracemalloc.start()
    await _flood(fake, monitor, [event("JOB_STATUS_CHANGE", id=f"j{n}", status="running") for n in range(EVENTS)])
    grown_bytes = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    await _flood(fake, monitor, [event("JOB_STATUS_CHANGE", id="ours", status="ready")])
    assert len(monitor.job_status) == JOBS_REMEMBERED_MAX
    assert monitor.job_status["ours"] == "ready"
    assert grown_bytes < MEMORY_BYTES_MAX
    await monitor.close()


async def test_long_names_of_jobs_are_not_kept(fake: FakeQemu):
    """A bound on their number alone would be none."""
    monitor = await Monitor.connect(fake.path)
    await _flood(fake, monitor, [event("JOB_STATUS_CHANGE", id="x" * 100_000 + str(n), status="s") for n in range(50)])
    assert not monitor.job_status
    await monitor.close()


async def test_a_job_that_is_gone_makes_room(fake: FakeQemu):
    """A daemon of months sees more jobs than it remembers."""
    monitor = await Monitor.connect(fake.path)
    for n in range(2 * JOBS_REMEMBERED_MAX // BURST_EVENTS):
        names = [f"j{n}-{m}" for m in range(BURST_EVENTS)]
        await _flood(fake, monitor, [event("JOB_STATUS_CHANGE", id=name, status="running") for name in names])
        await _flood(fake, monitor, [event("JOB_STATUS_CHANGE", id=name, status="null") for name in names])
    assert not monitor.job_status
    await monitor.close()


async def test_commands_that_were_given_up_are_forgotten(fake: FakeQemu):
    """Ten thousand without an answer leave nothing; their late answers disturb nobody."""
    monitor = await Monitor.connect(fake.path)
    fake.gate.clear()
    for _ in range(100):
        with pytest.raises(QmpUnknownError):
            await monitor.burst([command("query-status")] * 100, 0.001)
    assert replies_due(monitor) == 0
    fake.gate.set()
    assert await monitor.execute(command("query-jobs"), 60) == {}
    assert fake.executed.count("query-status") == 10_000
    await monitor.close()


async def test_a_qemu_that_does_not_read_holds_up_neither_memory_nor_the_end(fake: FakeQemu):
    """Commands are unknown, then unsent; close() ends, and nothing is left."""
    left = Leftovers()
    monitor = await Monitor.connect(fake.path)
    fake.hearing.clear()
    fake.gate.clear()
    huge = command("x", text="x" * (64 << 10))

    async def use() -> None:
        for _ in range(1000):
            with pytest.raises(QmpUnknownError):
                await monitor.execute(huge, 0.001)

    with pytest.raises(QmpUnsentError, match="does not read"):
        await use()
    assert monitor._client._writer is not None
    assert monitor._client._writer.transport.get_write_buffer_size() < 2 * limits.UNSENT_BYTES_MAX
    async with asyncio.timeout(CLOSE_S):
        await monitor.close()
    fake.hearing.set()
    fake.gate.set()
    await left.nothing()
