"""Guests that write faster than the destination takes it: switched all the same, or told why not; never slowed for good."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from pivotd import limits
from pivotd.core.pivot import Outcome, Phase, Pivot, Record
from pivotd.core.request import Requester
from pivotd.engine.driver import Driver
from pivotd.engine.inbox import Cancel
from tests.ported_cases.fixture import Bed
from tests.support.proxy import Cut, Direction, Message, When
from tests.support.qemu import Disk, Qemu
from tests.support.qemus import number, qemus
from tests.support.throttle import LIMITS, limits_of, slow_down

WHO = Requester(0, 0, 1)
pytestmark = pytest.mark.qemu

WRITE_BLOCKING_FROM = (8, 2)
SLOW_BYTES_PER_S = 2 << 20
BACKLOG_BYTES = 4 << 20
MAX_PAUSE_MS = 500
"""Half a MiB may be left for the pause."""
QDEV = "disk0"

old = pytest.mark.parametrize("version", [v for v in qemus() if number(v) < WRITE_BLOCKING_FROM])
new = pytest.mark.parametrize("version", [v for v in qemus() if number(v) >= WRITE_BLOCKING_FROM])


async def too_fast(bed: Bed, version: str, **options: Any) -> Driver:
    """Start a guest and a copy that waits at ready, and make its destination too slow for the guest."""
    disk = Disk(bed.image("old.raw"), format="raw", bus="ide")
    await bed.guest(disk, binary=qemus()[version])
    driver = await bed.to_ready(bed.target("new.raw"), **{"max_pause_ms": MAX_PAUSE_MS, **options})
    slow_down(bed.qemu, driver.pivot.disks[0].destination.node, SLOW_BYTES_PER_S)
    if options.get("copy_mode") != "write-blocking":
        await backlog(bed)
    return driver


async def backlog(bed: Bed) -> None:
    """Wait until there is a large one."""
    async with asyncio.timeout(60):
        while left(bed.qemu) < BACKLOG_BYTES:
            await asyncio.sleep(0.05)


def left(qemu: Qemu) -> int:
    """Return the bytes that a mirror has still to copy."""
    (job,) = qemu.spy("query-block-jobs")
    return int(job["len"]) - int(job["offset"])


async def until_said(driver: Driver, words: str) -> None:
    """Wait until the driver says that it waits for this."""
    async with asyncio.timeout(60):
        while words not in driver.waits_for:
            await asyncio.sleep(0.05)


def facts(bed: Bed, pivot: Pivot, event: str) -> list[dict[str, Any]]:
    """Return the facts of each record of this event."""
    return [record.facts for record in bed.engine.records(pivot) if record.event == event]


@old
@pytest.mark.parametrize(
    "before", [pytest.param({}, marks=pytest.mark.long, id="unlimited"), pytest.param(LIMITS, id="limited")]
)
async def test_an_old_qemu_slows_the_guest_and_gives_its_limits_back(bed: Bed, version: str, before: dict[str, int]):
    """Switched, and the limits of the disk are exactly those from before."""
    driver = await too_fast(bed, version)
    if before:
        bed.qemu.spy("block_set_io_throttle", {"id": QDEV, **before})
    had = limits_of(bed.qemu)
    await driver.complete(driver.pivot.requested_by)
    await until_said(driver, "slowed")
    assert limits_of(bed.qemu) != had
    pivot = await bed.engine.closed(driver)
    assert pivot.outcome == Outcome.SWITCHED, pivot.error
    assert limits_of(bed.qemu) == had
    assert facts(bed, pivot, "limits-restored") == [{"left_alone": []}]
    bed.assert_holds_all(pivot)


@old
async def test_a_guest_is_slowed_though_the_command_was_lost(bed: Bed, version: str):
    """The limits are recorded, and the connection breaks before QEMU hears of them: it is told again."""
    lost = []

    def lose(_direction: Direction, _index: int, message: Message, _when: When) -> None:
        if message.label == "command:block_set_io_throttle" and not lost:
            lost.append(message)
            raise Cut

    proxy = Qemu.proxy_for(bed.directory, on_message=lose)
    await bed.domain(Disk(bed.image("old.raw"), format="raw"), binary=qemus()[version], proxy=proxy)
    had = limits_of(bed.qemu)
    driver = await bed.to_ready(bed.target("new.raw"), max_pause_ms=MAX_PAUSE_MS)
    # A guest that has written once gets the least there is: no further step would have other limits.
    slow_down(bed.qemu, driver.pivot.disks[0].destination.node, BACKLOG_BYTES // 8)
    write = f'qemu-io -d {driver.pivot.disks[0].qdev} "write -q -P 7 0 {2 * BACKLOG_BYTES}"'
    bed.qemu.spy("human-monitor-command", {"command-line": write})
    await backlog(bed)
    await driver.complete(driver.pivot.requested_by)
    async with asyncio.timeout(60):
        while limits_of(bed.qemu) == had:
            await asyncio.sleep(0.05)
    assert lost
    slow_down(bed.qemu, driver.pivot.disks[0].destination.node, 64 << 20)
    pivot = await bed.engine.closed(driver)
    assert pivot.outcome == Outcome.SWITCHED, pivot.error
    assert limits_of(bed.qemu) == had


@old
async def test_limits_that_somebody_sets_meanwhile_stay(bed: Bed, version: str):
    """The last word on the limits is the person's."""
    driver = await too_fast(bed, version)
    await driver.complete(driver.pivot.requested_by)
    await until_said(driver, "slowed")
    driver.state.inbox.post(Cancel(WHO))
    bed.qemu.spy("block_set_io_throttle", {"id": QDEV, **LIMITS})
    theirs = limits_of(bed.qemu)
    pivot = await bed.engine.closed(driver)
    assert pivot.outcome == Outcome.KEPT
    assert limits_of(bed.qemu) == theirs
    assert facts(bed, pivot, "limits-restored")[0]["left_alone"] == [QDEV]


@old
async def test_no_throttle_says_what_to_do(bed: Bed, version: str, monkeypatch: pytest.MonkeyPatch):
    """--no-throttle: never slowed, the figures and the way out are told, the stall is recorded, no pause was tried."""
    monkeypatch.setattr(limits, "STALL_S", 3.0)
    driver = await too_fast(bed, version, throttle=False)
    await driver.complete(driver.pivot.requested_by)
    await until_said(driver, "no progress")
    assert "--copy-mode write-blocking" in driver.waits_for
    async with asyncio.timeout(60):
        while not (driver.pace.dirty_bytes_per_s and driver.pace.copy_bytes_per_s):
            await asyncio.sleep(0.05)  # a guest that got no processor has written nothing just now
    assert driver.pace.copy_bytes_per_s < 2 * SLOW_BYTES_PER_S
    (stalled,) = facts(bed, driver.pivot, "stalled")
    assert stalled["backlog_bytes"] > limits.BACKLOG_BYTES_MIN
    pivot = await bed.cancel(driver)
    assert (pivot.outcome, pivot.pauses, pivot.options.write_limits) == (Outcome.KEPT, (), ())


@new
async def test_a_new_qemu_turns_to_write_blocking(bed: Bed, version: str):
    """Switched, and nobody's limits were touched."""
    driver = await too_fast(bed, version)
    had = limits_of(bed.qemu)
    await driver.complete(driver.pivot.requested_by)
    await until_said(driver, "write-blocking")
    pivot = await bed.engine.closed(driver)
    assert pivot.outcome == Outcome.SWITCHED, pivot.error
    assert limits_of(bed.qemu) == had
    assert facts(bed, pivot, "slowing") == []
    bed.assert_holds_all(pivot)


async def test_write_blocking_from_the_start_needs_no_help(bed: Bed):
    """The way out that is told works on every QEMU."""
    driver = await too_fast(bed, next(iter(qemus())), copy_mode="write-blocking", max_pause_ms=5000)
    await driver.complete(driver.pivot.requested_by)
    pivot = await bed.engine.closed(driver)
    assert pivot.outcome == Outcome.SWITCHED, pivot.error
    assert facts(bed, pivot, "slowing") == []


# -- bandwidth ----------------------------------------------------------------------------------------------------


def speed(qemu: Qemu, pivot: Pivot) -> int:
    """Return the bandwidth that QEMU keeps to."""
    return next(int(job["speed"]) for job in qemu.spy("query-block-jobs") if job["device"] == pivot.disks[0].job)


async def test_the_bandwidth_is_changed_while_it_copies(bed: Bed):
    """Journalled, heard by QEMU, and the copy goes on at the new rate."""
    await bed.guest(bed.image(fill="16M"))
    driver = await bed.to_copying(bed.target(), bandwidth_bytes_per_s=1)
    await driver.set_bandwidth(2, driver.pivot.requested_by)
    await bed.until(driver, lambda pivot: not pivot.options.bandwidth_due)
    assert speed(bed.qemu, driver.pivot) == driver.pivot.options.bandwidth_bytes_per_s == 2
    await driver.set_bandwidth(0, driver.pivot.requested_by)
    pivot = await bed.engine.closed(driver)
    bed.assert_switched(pivot)
    bed.assert_holds_all(pivot)


async def test_a_copy_that_somebody_pauses_is_said_to_stall(bed: Bed, monkeypatch: pytest.MonkeyPatch):
    """A record, a reason, and another record when it goes on."""
    monkeypatch.setattr(limits, "STALL_S", 2.0)
    await bed.guest(bed.image(fill="16M"))
    driver = await bed.to_copying(bed.target())
    job = driver.pivot.disks[0].job
    bed.qemu.spy("job-pause", id=job)
    await driver.set_bandwidth(0, driver.pivot.requested_by)  # a limited copy has longer steps
    await until_said(driver, "no progress")
    assert "paused" in driver.waits_for
    bed.qemu.spy("job-resume", id=job)
    pivot = await bed.engine.closed(driver)
    bed.assert_switched(pivot)
    said = [event for event in bed.engine.events(pivot) if event in {"stalled", "moving-again"}]
    # A busy machine may let it stand still once more.
    assert said == ["stalled", "moving-again"] * (len(said) // 2)
    assert said


async def test_a_new_bandwidth_is_on_disk_when_it_is_answered(bed: Bed):
    """Asked right as another record becomes durable: that one is not taken for the answer."""
    await bed.domain(bed.image(fill="28M"))
    asked: list[asyncio.Task[int]] = []

    async def ask(driver: Driver) -> int:
        await driver.set_bandwidth(2, driver.pivot.requested_by)
        return driver.pivot.options.bandwidth_bytes_per_s

    def on_records(records: list[Record]) -> None:
        if any(record.event == "copying" for record in records):
            asked.append(asyncio.ensure_future(ask(driver)))

    bed.engine.journal.subscribe(on_records)
    driver = await bed.engine.copy("web1", {"disk0": bed.target()}, bandwidth_bytes_per_s=1)
    await bed.until(driver, lambda pivot: pivot.phase is Phase.COPYING and bool(asked))
    assert await asked[0] == 2
    driver.state.inbox.post(Cancel(WHO))
    await bed.engine.closed(driver)
