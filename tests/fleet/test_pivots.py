"""Whole pivots on a real QEMU, on a host whose fleet is a real etcd that goes away, answers late, or has another owner."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from pivotd.app.owned_guests import OwnedGuests
from pivotd.core.fleet import FleetImage, FleetView, OnSilence
from pivotd.core.pivot import FleetStage, Phase, Pivot
from pivotd.core.request import CopyOptions, Kind, PivotRequest, Requester, Target
from pivotd.core.rules.fleet_changes import accepted
from pivotd.core.rules.fleet_owners import meeting, take_over
from pivotd.core.rules.fleet_pivots import Here
from pivotd.core.rules.fleet_words import fleet_verdict
from pivotd.daemon import SystemClock
from pivotd.engine.converge import Converger
from pivotd.engine.driver import Driver
from pivotd.errors import FleetSilentError
from pivotd.fleet.store import EtcdFleet
from pivotd.host.flush import Flusher
from pivotd.planning.plan import plan
from tests.conftest import QemuFactory
from tests.engine.conftest import Engine
from tests.fleet.conftest import Settings
from tests.fleet.etcd import Cluster
from tests.support.qemu import Disk, Qemu

pytestmark = pytest.mark.qemu
LONG_S = 30.0
NOW = "2026-11-23T09:00:00.000000Z"

Before = Callable[[FleetView, FleetView], Awaitable[None]]


class Watched:
    """The fleet of a driver; ``before`` is called right before each write."""

    def __init__(self, fleet: EtcdFleet, on_silence: OnSilence) -> None:
        self.fleet = fleet
        self.host, self.boot_id, self.timeout_s = fleet.host, "boot", LONG_S
        self.on_silence = on_silence
        self.silent = False
        self.before: Before | None = None

    async def read(self, domain: str, timeout_s: float) -> FleetView:
        await self._reach(timeout_s)
        return await self.fleet.read(domain, timeout_s)

    async def write(self, before: FleetView, after: FleetView, timeout_s: float) -> FleetView:
        if self.before is not None:
            await self.before(before, after)
        await self._reach(timeout_s)
        return await self.fleet.write(before, after, timeout_s)

    async def _reach(self, timeout_s: float) -> None:
        """Cut off from every node: nothing leaves, and nothing answers."""
        if self.silent:
            await asyncio.sleep(min(timeout_s, 0.2))
            raise FleetSilentError("etcd does not answer")


class FleetEngine(Engine):
    """An engine on a host of a fleet."""

    fleet: Watched

    def _driver(self, pivot: Pivot, domain: Any) -> Driver:
        clock = SystemClock()
        return Driver(pivot, domain, self.journal, clock, Converger(Flusher(), clock), self.fleet)


Make = Callable[[OnSilence], Awaitable[FleetEngine]]


@pytest_asyncio.fixture
async def member(tmp_path: Path, cluster: Cluster, fleet_of: Settings) -> AsyncIterator[Make]:
    """Return what makes an engine with a fleet."""
    (tmp_path / "state").mkdir()
    engine = FleetEngine(tmp_path / "state")
    async with asyncio.TaskGroup() as group:
        running = group.create_task(engine.host.run())
        await engine.host.started()

        async def make(on_silence: OnSilence) -> FleetEngine:
            engine.fleet = Watched(fleet_of(*cluster.urls, prefix=f"/{tmp_path.name}/"), on_silence)
            return engine

        yield make
        engine.host.end()
        await running
    await engine.journal.close()


def when_told(act: Callable[[], Awaitable[None]]) -> Before:
    """Return what does something right before an outcome is written for the first time."""
    done = False

    async def before(_before: FleetView, after: FleetView) -> None:
        nonlocal done
        if after.intent is None and after.disks and not done:
            done = True
            await act()

    return before


async def begun(engine: FleetEngine, qemu: Qemu, tmp_path: Path, **options: Any) -> Driver:
    await engine.connect(qemu)
    return await engine.copy("web1", {"disk0": tmp_path / "new.qcow2"}, **options)


async def view(engine: FleetEngine) -> FleetView:
    return await engine.fleet.fleet.read("web1", LONG_S)


async def run_state(qemu: Qemu) -> str:
    return await asyncio.to_thread(qemu.run_state)


async def told(engine: FleetEngine, driver: Driver) -> Pivot:
    pivot = await engine.closed(driver)
    assert pivot.outcome == "switched"
    assert pivot.fleet is FleetStage.TOLD
    found = await view(engine)
    assert found.intent is None
    assert found.owner is not None
    assert found.owner.host == "h1"
    assert fleet_verdict(found, "disk0").image == FleetImage(pivot.disks[0].destination.filename, "qcow2")
    return pivot


@pytest.mark.parametrize("mode", OnSilence)
async def test_the_fleet_hears_of_a_pivot_before_and_after_its_pause(
    mode: OnSilence, member: Make, qemu: Qemu, tmp_path: Path
) -> None:
    """The guest is claimed with the first intent; the guest's wait has a figure of its own."""
    engine, seen = await member(mode), []

    async def before(_before: FleetView, after: FleetView) -> None:
        seen.append((after.intent is not None, await run_state(qemu)))

    engine.fleet.before = before
    driver = await begun(engine, qemu, tmp_path)
    pivot = await told(engine, driver)
    assert seen == [(True, "running"), (False, "paused")]
    assert await run_state(qemu) == "running"
    assert pivot.pauses[-1].fleet_ms is not None
    assert 0 < pivot.pauses[-1].fleet_ms < pivot.pauses[-1].pause_ms
    events = [event for event in engine.events(pivot) if event in {"announcing", "pausing", "switched", "resumed"}]
    assert events == ["announcing", "pausing", "switched", "resumed"]


async def test_no_pause_begins_while_the_fleet_is_silent(member: Make, qemu: Qemu, tmp_path: Path) -> None:
    """The pivot waits at ready and says why."""
    engine = await member(OnSilence.RESUME)
    engine.fleet.silent = True
    driver = await begun(engine, qemu, tmp_path)
    await engine.until(driver, lambda pivot: pivot.phase is Phase.READY)
    async with asyncio.timeout(LONG_S):
        while "before the guest is paused: etcd does not answer" not in driver.waits_for:
            await asyncio.sleep(0.05)
    assert "pausing" not in engine.events(driver.pivot)
    engine.fleet.silent = False
    await told(engine, driver)


async def test_with_resume_the_guest_runs_after_the_longest_pause_and_the_fleet_is_told_later(
    member: Make, qemu: Qemu, tmp_path: Path
) -> None:
    """Meanwhile the fleet names both images and whose journal decides, and the pivot stays open."""
    engine = await member(OnSilence.RESUME)

    async def cut() -> None:
        engine.fleet.silent = True

    engine.fleet.before = when_told(cut)
    driver = await begun(engine, qemu, tmp_path, max_pause_ms=800)
    # A busy machine may need more than one pause to come as far as the switch.
    pivot = await engine.until(driver, lambda pivot: bool(pivot.pauses) and pivot.phase is Phase.DECIDED)
    assert await run_state(qemu) == "running"
    assert pivot.pauses[-1].pause_ms >= 800
    word = fleet_verdict(await view(engine), "disk0")
    assert (word.certain, word.decides, len(word.candidates)) == (False, "h1", 2)
    assert (pivot.phase, pivot.fleet) == (Phase.DECIDED, FleetStage.ANNOUNCED)
    engine.fleet.silent = False
    await told(engine, driver)


async def test_with_wait_the_guest_stays_paused_until_the_fleet_answers(
    member: Make, qemu: Qemu, tmp_path: Path
) -> None:
    """The fleet is certain of the source all the time, and both images have every write."""
    engine = await member(OnSilence.WAIT)

    async def cut() -> None:
        engine.fleet.silent = True

    engine.fleet.before = when_told(cut)
    driver = await begun(engine, qemu, tmp_path, max_pause_ms=300)
    pivot = await engine.until(driver, lambda pivot: pivot.phase is Phase.DECIDED)
    async with asyncio.timeout(LONG_S):
        while driver.failing is None:  # which also health shows
            await asyncio.sleep(0.05)
    for _ in range(50):  # while the fleet is asked again and again, too
        assert "the guest stays paused until the fleet knows" in (driver.failing or "")
        await asyncio.sleep(0.01)
    assert await run_state(qemu) == "paused"
    word = fleet_verdict(await view(engine), "disk0")
    assert (word.certain, word.image) == (True, FleetImage(pivot.disks[0].source.filename, "qcow2"))
    engine.fleet.silent = False
    await told(engine, driver)
    assert await run_state(qemu) == "running"


async def taken_from(engine: FleetEngine) -> None:
    """Another host takes the guest from its pause, with the source."""
    found = await view(engine)
    assert found.intent is not None
    chosen = {} if found.intent.on_silence is OnSilence.WAIT else {"disk0": found.intent.moves[0].source}
    after = take_over(found, Here("h2", "boot2", NOW), chosen)
    assert isinstance(after, FleetView)
    await engine.fleet.fleet.write(found, after, LONG_S)


@pytest.mark.parametrize("mode", OnSilence)
async def test_a_guest_that_another_host_has_taken_is_never_resumed(
    mode: OnSilence, member: Make, qemu: Qemu, tmp_path: Path
) -> None:
    """A host that was taken for dead wakes up in its pause."""
    engine = await member(mode)
    engine.fleet.before = when_told(lambda: taken_from(engine))
    driver = await begun(engine, qemu, tmp_path)
    pivot = await engine.closed(driver)
    assert (pivot.fleet, pivot.owes_resume) == (FleetStage.SUPERSEDED, False)
    assert pivot.error is not None
    assert "belongs to host h2" in pivot.error
    assert "its QEMU here is left paused: end it" in pivot.error
    assert await run_state(qemu) == "paused"
    assert fleet_verdict(await view(engine), "disk0").image == FleetImage(pivot.disks[0].source.filename, "qcow2")


async def test_a_host_that_was_frozen_in_its_try_asks_again_before_its_guest_runs_on(
    member: Make, qemu: Qemu, tmp_path: Path
) -> None:
    """Its time for an answer has passed while it stood still, which says nothing: it was taken for lost meanwhile."""
    engine = await member(OnSilence.RESUME)

    async def stand_still() -> None:
        await taken_from(engine)
        time.sleep(1.0)  # the whole process, as by SIGSTOP
        raise FleetSilentError("etcd did not answer in time")

    engine.fleet.before = when_told(stand_still)
    driver = await begun(engine, qemu, tmp_path, max_pause_ms=400)
    pivot = await engine.closed(driver)
    assert (pivot.fleet, pivot.owes_resume) == (FleetStage.SUPERSEDED, False)
    assert await run_state(qemu) == "paused"


async def test_the_guest_of_another_host_is_not_paused(member: Make, qemu: Qemu, tmp_path: Path) -> None:
    """The pivot says whose it is, and can be cancelled; the fleet never hears of it."""
    engine = await member(OnSilence.RESUME)
    empty = await view(engine)
    theirs = await engine.fleet.fleet.write(empty, meeting(empty, Here("h2", "boot2", NOW)), LONG_S)
    driver = await begun(engine, qemu, tmp_path)
    async with asyncio.timeout(LONG_S):
        while "belongs to host h2" not in driver.waits_for:
            await asyncio.sleep(0.05)
    await driver.cancel(Requester(0, 0, 1))
    pivot = await engine.closed(driver)
    assert (pivot.outcome, pivot.fleet) == ("kept", FleetStage.NONE)
    assert await view(engine) == theirs


async def moved_elsewhere(engine: FleetEngine, image: FleetImage) -> None:
    """Another host takes the guest for lost, moves its disk, and is lost itself: this host takes the guest back."""
    for host in ("h2", "h1"):
        found = await view(engine)
        after = take_over(found, Here(host, "boot2", NOW), {})
        assert isinstance(after, FleetView)
        if host == "h2":
            after = accepted(after, "", "disk0", image, NOW)
        await engine.fleet.fleet.write(found, after, LONG_S)


async def test_a_guest_that_was_elsewhere_since_its_pivot_was_asked_for_is_not_paused(
    member: Make, qemu: Qemu, tmp_path: Path
) -> None:
    """The source was compared with the fleet's word when the pivot began; its host stood still after that."""
    engine = await member(OnSilence.RESUME)
    empty = await view(engine)
    owned = await engine.fleet.fleet.write(empty, meeting(empty, Here("h1", "boot1", NOW)), LONG_S)
    supervisor = await engine.connect(qemu)
    assert supervisor.session is not None
    copy = PivotRequest("web1", Kind.COPY, (Target("disk0", str(tmp_path / "new.qcow2")),), CopyOptions(pivot=False))
    planned = await plan(copy, supervisor.session, [], pivot="01K9ABCDEFGHJKMNPQRSTV0001", who=Requester(0, 0, 1))
    pivot, _ = await engine.journal.accept(replace(planned, fleet_epoch=owned.epoch), {})
    driver = supervisor.start(pivot)
    await engine.resting(driver)
    elsewhere = FleetImage("/elsewhere.qcow2", "qcow2")
    await moved_elsewhere(engine, elsewhere)
    await driver.complete(Requester(0, 0, 1))
    async with asyncio.timeout(LONG_S):
        while "the fleet has disk0 on /elsewhere.qcow2" not in driver.waits_for:
            assert driver.pivot.phase is not Phase.CLOSED
            await asyncio.sleep(0.05)
    await driver.cancel(Requester(0, 0, 1))
    await engine.closed(driver)
    assert fleet_verdict(await view(engine), "disk0").image == elsewhere


async def test_a_cancelled_pivot_leaves_no_intent(member: Make, qemu: Qemu, tmp_path: Path) -> None:
    """It was announced, and then the fleet fell silent: the guest runs on, and the intent goes as soon as it can."""
    engine = await member(OnSilence.RESUME)

    async def before(_before: FleetView, after: FleetView) -> None:
        if after.intent is not None:
            await engine.fleet.fleet.write(_before, after, LONG_S)
            engine.fleet.silent = True  # it is there, and the answer is lost

    engine.fleet.before = before
    driver = await begun(engine, qemu, tmp_path)
    await engine.until(driver, lambda pivot: pivot.fleet is FleetStage.ANNOUNCED)
    await driver.cancel(Requester(0, 0, 1))
    engine.fleet.before, engine.fleet.silent = None, False
    pivot = await engine.closed(driver)
    assert (pivot.outcome, pivot.fleet) == ("kept", FleetStage.TOLD)
    assert (await view(engine)).intent is None


@asynccontextmanager
async def owners_of(engine: FleetEngine) -> AsyncIterator[None]:
    """Let guests be claimed and released."""

    async def nothing(domain: str) -> None:
        """No fleet forgets anything here."""

    owners = OwnedGuests(engine.host, engine.fleet, SystemClock(), engine.journal, nothing, lambda _: None)
    running = asyncio.create_task(owners.run())
    try:
        yield
    finally:
        running.cancel()
        (ended,) = await asyncio.gather(running, return_exceptions=True)
        assert isinstance(ended, asyncio.CancelledError), ended


async def owned_by(engine: FleetEngine, host: str | None) -> FleetView:
    async with asyncio.timeout(LONG_S):
        while (found := await view(engine)).owner is None or found.owner.host != host:
            await asyncio.sleep(0.05)
    return found


async def leave(qemu: Qemu) -> None:
    """Let the guest leave its QEMU by a migration."""
    await asyncio.to_thread(qemu.spy, "migrate", {"uri": "exec:cat >/dev/null"})
    async with asyncio.timeout(LONG_S):
        while await run_state(qemu) != "postmigrate":
            await asyncio.sleep(0.02)


async def test_a_guest_that_leaves_before_its_new_owner_was_read_is_released(
    member: Make, qemu: Qemu, qemu_factory: QemuFactory, tmp_path: Path
) -> None:
    """It was lost, taken elsewhere and taken back: what this host knew of its owner was about the time before."""
    engine = await member(OnSilence.RESUME)
    async with owners_of(engine):
        supervisor = await engine.connect(qemu)
        before = await owned_by(engine, "h1")
        await asyncio.to_thread(qemu.kill)
        for host in ("h2", "h1"):
            after = take_over(before, Here(host, "boot2", NOW), {})
            assert isinstance(after, FleetView)
            before = await engine.fleet.fleet.write(before, after, LONG_S)
        async with asyncio.timeout(LONG_S):
            while supervisor.session is not None:
                await asyncio.sleep(0.02)
        engine.fleet.silent = True
        again = qemu_factory([Disk(tmp_path / "a.qcow2")])
        async with asyncio.timeout(LONG_S):
            while supervisor.session is None:
                await asyncio.sleep(0.02)
        await leave(again)
        engine.fleet.silent = False
        found = await owned_by(engine, None)
        assert found.owner is not None
        assert found.owner.epoch == 4


async def test_a_guest_that_leaves_in_the_moment_of_a_pause_is_released(member: Make, qemu: Qemu) -> None:
    """Its last stop is taken for one of pivotd's own at first."""
    engine = await member(OnSilence.RESUME)
    async with owners_of(engine):
        supervisor = await engine.connect(qemu)
        await owned_by(engine, "h1")
        async with supervisor.window:
            await leave(qemu)
            async with asyncio.timeout(LONG_S):
                while supervisor.session is None or not supervisor.session.stops:
                    await asyncio.sleep(0.02)
        await owned_by(engine, None)


async def test_a_pivot_that_ends_while_its_guest_is_released_does_not_claim_it_again(
    member: Make, qemu: Qemu, tmp_path: Path
) -> None:
    """Its QEMU is still there, and the host that has the guest now would never own it."""
    engine = await member(OnSilence.RESUME)
    owners: list[str | None] = []

    async def before(_before: FleetView, after: FleetView) -> None:
        owners.append(None if after.owner is None else after.owner.host)
        if owners[-1] is None:
            await engine.closed(driver)
            await asyncio.sleep(0.3)  # etcd is slow: the look for which the end of the pivot has asked comes first

    async with owners_of(engine):
        driver = await begun(engine, qemu, tmp_path, pivot=False)
        await owned_by(engine, "h1")
        await engine.until(driver, lambda pivot: pivot.phase is Phase.READY)
        engine.fleet.before = before
        await leave(qemu)
        await engine.closed(driver)
        async with asyncio.timeout(LONG_S):
            while None not in owners:
                await asyncio.sleep(0.05)
        await asyncio.sleep(1.0)
        assert await run_state(qemu) == "postmigrate"
        found = await view(engine)
    assert found.owner is not None
    assert (found.owner.host, owners) == (None, [None])


async def test_a_guest_that_ends_while_the_fleet_is_read_is_neither_claimed_nor_released(
    member: Make, qemu: Qemu, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the last look has seen is not so any more once etcd has answered."""
    engine = await member(OnSilence.RESUME)
    ended = asyncio.Event()
    read = engine.fleet.read

    async def slow(domain: str, timeout_s: float) -> FleetView:
        found = await read(domain, timeout_s)
        if not ended.is_set():
            qemu.stop()
            async with asyncio.timeout(LONG_S):
                while engine.host.get("web1").session is not None:
                    await asyncio.sleep(0.01)
            ended.set()
        return found

    released: list[FleetView] = []

    async def leaving(_owners: OwnedGuests, view: FleetView, _here: Here) -> FleetView:
        released.append(view)
        return view

    monkeypatch.setattr(engine.fleet, "read", slow)
    monkeypatch.setattr(OwnedGuests, "_leaving", leaving)
    async with owners_of(engine):
        await engine.connect(qemu)
        async with asyncio.timeout(LONG_S):
            await ended.wait()
        await asyncio.sleep(0.3)
        assert (await view(engine)).owner is None
    assert released == []


async def test_a_fault_in_a_look_at_one_guest_ends_nothing(
    member: Make, qemu: Qemu, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would end pivotd, in the middle of other guests' pauses; the look is made again."""
    engine = await member(OnSilence.RESUME)
    read, failed = engine.fleet.read, False

    async def broken(domain: str, timeout_s: float) -> FleetView:
        nonlocal failed
        if not failed:
            failed = True
            raise ValueError("a fault of pivotd's own")
        return await read(domain, timeout_s)

    monkeypatch.setattr(engine.fleet, "read", broken)
    async with owners_of(engine):
        await engine.connect(qemu)
        await owned_by(engine, "h1")
    assert failed
