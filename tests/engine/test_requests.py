"""Requests that come while a pivot is under way: only its own task records, so that none can overwrite another."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
from pathlib import Path

import pytest

from pivotd import limits
from pivotd.app.registry import RUNTIME
from pivotd.core.phases import is_resting
from pivotd.core.pivot import Outcome, Phase, Pivot
from pivotd.core.request import Requester
from pivotd.errors import (
    BusyError,
    JournalCorruptError,
    JournalFullError,
    PhaseConflictError,
    QmpRefusedError,
    UnansweredError,
)
from tests.conftest import QemuFactory
from tests.engine.conftest import Engine
from tests.support.qemu import Disk, create_image

pytestmark = pytest.mark.qemu

WHO = Requester(0, 0, 1)
CLIENTS = 8
ROUNDS = 150


async def test_completes_at_any_moment_of_a_pause_leave_journal_and_driver_agreed(
    engine: Engine, tmp_path: Path, qemu_factory: QemuFactory, monkeypatch: pytest.MonkeyPatch
):
    """One request at a time is taken, the others are conflicts; afterwards an operator's pause is not ended."""
    qemu = qemu_factory([Disk(create_image(tmp_path / "old", size="64M"))])
    await engine.connect(qemu)
    driver = await engine.copy("web1", {"disk0": tmp_path / "new"}, pivot=False, max_pause_ms=0, attempts=1)
    await engine.until(driver, lambda pivot: pivot.phase is Phase.READY and pivot.hold)
    taken = 0
    advance, writers = engine.journal.advance, set[str]()

    async def advance_as(*args: object, **changes: object) -> Pivot:
        task = asyncio.current_task()
        assert task is not None
        writers.add(task.get_name())
        return await advance(*args, **changes)  # type: ignore[arg-type]

    monkeypatch.setattr(engine.journal, "advance", advance_as)

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
    assert writers == {f"pivot {driver.pivot.id}"}, "only the driver's own task records"
    (stored,) = engine.journal.open_pivots()
    assert stored == driver.pivot
    qemu.spy("stop")
    for _ in range(3):
        driver.wake()
        await asyncio.sleep(0.1)
    assert qemu.run_state() == "paused"


@pytest.mark.parametrize("request_", ["bandwidth", "complete"])
async def test_a_request_that_the_journal_refuses_gets_its_error_at_once(
    engine: Engine, tmp_path: Path, qemu_factory: QemuFactory, monkeypatch: pytest.MonkeyPatch, request_: str
):
    """Nobody waits for a record that cannot be made, and nobody takes another record for it."""
    qemu = qemu_factory([Disk(create_image(tmp_path / "old", size="64M"))])
    await engine.connect(qemu)
    driver = await engine.copy("web1", {"disk0": tmp_path / "new"}, pivot=False)
    before = await engine.until(driver, lambda pivot: pivot.phase is Phase.READY and pivot.hold)
    advance = engine.journal.advance

    async def refuse(*_args: object, **_changes: object) -> None:
        raise JournalFullError("no space left")

    monkeypatch.setattr(engine.journal, "advance", refuse)
    async with asyncio.timeout(60):
        with pytest.raises(JournalFullError):
            await (driver.set_bandwidth(7, WHO) if request_ == "bandwidth" else driver.complete(WHO))
    assert driver.pivot == before
    assert driver.failing == "no space left"
    monkeypatch.setattr(engine.journal, "advance", advance)
    await driver.set_bandwidth(7, WHO)
    assert driver.pivot.options.bandwidth_bytes_per_s == 7
    while driver.failing is not None:
        await asyncio.sleep(0.01)


async def test_a_request_that_was_taken_may_still_be_carried_out_and_one_that_was_not_never_is(
    engine: Engine, tmp_path: Path, qemu_factory: QemuFactory, monkeypatch: pytest.MonkeyPatch
):
    """While the journal hangs in the record of one, the next one waits: each requester learns which it is."""
    qemu = qemu_factory([Disk(create_image(tmp_path / "old", size="64M"))])
    await engine.connect(qemu)
    driver = await engine.copy("web1", {"disk0": tmp_path / "new"}, pivot=False)
    await engine.until(driver, lambda pivot: pivot.phase is Phase.READY and pivot.hold)
    advance, begun, hangs = engine.journal.advance, asyncio.Event(), asyncio.Event()

    async def hang(*args: object, **changes: object) -> Pivot:
        begun.set()
        await hangs.wait()
        return await advance(*args, **changes)  # type: ignore[arg-type]

    monkeypatch.setattr(engine.journal, "advance", hang)
    monkeypatch.setattr(limits, "COMMAND_TIMEOUT_S", 1.0)
    first = asyncio.create_task(driver.set_bandwidth(7, WHO))
    await begun.wait()
    with pytest.raises(BusyError, match="nothing was changed"):
        await driver.complete(WHO)
    with pytest.raises(UnansweredError, match="look at it before"):
        await first
    hangs.set()
    await engine.until(driver, lambda pivot: pivot.options.bandwidth_bytes_per_s == 7)
    await driver.set_bandwidth(8, WHO)
    assert driver.pivot.hold, "the other one was withdrawn"


async def test_a_driver_that_cannot_record_backs_off_and_does_not_hold_up_the_end(
    engine: Engine, tmp_path: Path, qemu_factory: QemuFactory, monkeypatch: pytest.MonkeyPatch
):
    """The guest goes on with its source, the pivot stays open, and the supervisor ends within seconds."""
    qemu = qemu_factory([Disk(create_image(tmp_path / "old", size="64M"))])
    supervisor = await engine.connect(qemu)
    advance = engine.journal.advance
    tries = 0

    async def refuse_outcomes(before: Pivot, event: str, *args: object, **changes: object) -> Pivot:
        nonlocal tries
        if before.phase is Phase.PAUSING:
            tries += 1
            raise JournalCorruptError("the journal is damaged")
        return await advance(before, event, *args, **changes)

    monkeypatch.setattr(engine.journal, "advance", refuse_outcomes)
    driver = await engine.copy("web1", {"disk0": tmp_path / "new"})
    while driver.failing is None:
        await asyncio.sleep(0.01)
    assert "damaged" in driver.failing
    supervisor.end()
    async with asyncio.timeout(60):
        while supervisor.drivers:
            await asyncio.sleep(0.05)
    assert driver.pivot.phase is Phase.PAUSING
    assert tries < 10
    assert qemu.run_state() == "running"
    assert qemu.root("disk0").filename == str(tmp_path / "old")


async def test_a_job_that_fails_right_before_the_intent_is_no_pause(
    engine: Engine, tmp_path: Path, qemu_factory: QemuFactory, monkeypatch: pytest.MonkeyPatch
):
    """What the last look before the intent shows is decided upon: no intent, no stop, and the job's own error."""
    qemu = qemu_factory([Disk(create_image(tmp_path / "old", size="64M"))])
    supervisor = await engine.connect(qemu)
    session = supervisor.session
    assert session is not None
    chardevs = session.chardevs

    async def fail_first() -> list[str]:
        for job in qemu.jobs():
            if job.endswith("m"):
                qemu.spy("job-cancel", id=job)
        return await chardevs()

    monkeypatch.setattr(session, "chardevs", fail_first)
    driver = await engine.copy("web1", {"disk0": tmp_path / "new"})
    pivot = await engine.closed(driver)
    assert pivot.error is not None
    assert pivot.error.startswith("the copy of disk0 ended"), pivot.error
    assert "pausing" not in engine.events(pivot)
    assert pivot.pauses == ()


async def test_a_stop_of_an_operator_stands_while_the_journal_takes_no_record(
    engine: Engine, tmp_path: Path, qemu_factory: QemuFactory, monkeypatch: pytest.MonkeyPatch
):
    """A guest that pivotd has let run is in no pause of its own any more, whether that could be recorded or not."""
    qemu = qemu_factory([Disk(create_image(tmp_path / "old", size="64M"))])
    await engine.connect(qemu)
    advance, full = engine.journal.advance, asyncio.Event()

    async def full_after_the_switch(before: Pivot, event: str, *args: object, **changes: object) -> Pivot:
        if full.is_set() or event == "resumed":
            full.set()
            raise JournalFullError("no space left")
        return await advance(before, event, *args, **changes)

    monkeypatch.setattr(engine.journal, "advance", full_after_the_switch)
    driver = await engine.copy("web1", {"disk0": tmp_path / "new"})
    await full.wait()
    assert qemu.run_state() == "running"
    qemu.spy("stop")
    for _ in range(3):
        driver.state.inbox.posted += 1  # as a request does: the driver tries again at once
        driver.wake()
        await asyncio.sleep(0.2)
    assert qemu.run_state() == "paused"
    monkeypatch.setattr(engine.journal, "advance", advance)
    pivot = await engine.closed(driver)
    assert (pivot.outcome, qemu.run_state()) == ("switched", "paused")


async def test_a_cancel_that_fails_while_a_record_hangs_is_tried_again(
    engine: Engine, tmp_path: Path, qemu_factory: QemuFactory, monkeypatch: pytest.MonkeyPatch
):
    """The guest goes on with its source as soon as QEMU lets it, although the journal's storage still hangs."""
    qemu = qemu_factory([Disk(create_image(tmp_path / "old", size="64M"))])
    supervisor = await engine.connect(qemu)
    session = supervisor.session
    assert session is not None
    advance, cancel, hangs = engine.journal.advance, session.cancel, asyncio.Event()
    refusals = 2

    async def hang(before: Pivot, event: str, *args: object, **changes: object) -> Pivot:
        if before.phase is Phase.PAUSING:
            await hangs.wait()
        return await advance(before, event, *args, **changes)

    async def refuse(jobs: list[str], *, resume: bool) -> None:
        nonlocal refusals
        if refusals:
            refusals -= 1
            raise QmpRefusedError("the guest is being migrated")
        await cancel(jobs, resume=resume)

    monkeypatch.setattr(engine.journal, "advance", hang)
    monkeypatch.setattr(session, "cancel", refuse)
    driver = await engine.copy("web1", {"disk0": tmp_path / "new"}, max_pause_ms=0)
    await engine.until(driver, lambda pivot: pivot.phase is Phase.PAUSING)
    async with asyncio.timeout(60):
        while refusals or qemu.run_state() != "running":
            await asyncio.sleep(0.05)
    assert driver.pivot.phase is Phase.PAUSING
    hangs.set()
    await engine.resting(driver)
    assert qemu.root("disk0").filename == str(tmp_path / "old")


@pytest.mark.parametrize("asked", ["cancel", "release"])
@pytest.mark.thinned(2)
async def test_what_was_asked_while_qemu_hung_is_done_by_the_next_process(
    engine: Engine, tmp_path: Path, qemu_factory: QemuFactory, asked: str
):
    """The answer was that it would be done as soon as QEMU answers; pivotd is killed before that."""
    qemu = qemu_factory([Disk(create_image(tmp_path / "old", size="64M"))])
    supervisor = await engine.connect(qemu)
    options = {"cancel": {"pivot": False}, "release": {"keep_synced": True, "keep_synced_s": 3600}}[asked]
    driver = await engine.copy("web1", {"disk0": tmp_path / "new"}, **options)
    await engine.resting(driver)
    os.kill(qemu.pid, signal.SIGSTOP)
    asking = asyncio.create_task(getattr(driver, asked)(WHO))
    async with asyncio.timeout(60):
        while f"{asked}-requested" not in engine.events(driver.pivot):
            await asyncio.sleep(0.02)
    left = tmp_path / "left"
    engine.journal.hold_checkpoints()  # none may move records from one file to the other between the copies of both
    await engine.journal.settle()
    shutil.copytree(engine.state_dir, left, ignore=shutil.ignore_patterns("*.lock"))
    engine.journal.release_checkpoints()
    engine.host.remove("web1")
    with contextlib.suppress(PhaseConflictError):
        await asking
    async with asyncio.timeout(60):
        while supervisor.session is not None:
            await asyncio.sleep(0.02)
    os.kill(qemu.pid, signal.SIGCONT)
    later = Engine(left)
    async with asyncio.TaskGroup() as group:
        running = group.create_task(later.host.run())
        await later.host.started()
        later.host.add("web1", str(qemu.qmp), RUNTIME, later.journal.open_pivots())
        async with asyncio.timeout(60):
            while (pivot := await later.journal.read(driver.pivot.id)).phase is not Phase.CLOSED:
                await asyncio.sleep(0.02)
        assert pivot.outcome == {"cancel": "kept", "release": "switched"}[asked]
        assert later.events(pivot).count(f"{asked}-requested") == 1
        later.host.end()
        await running
    await later.journal.close()


@pytest.mark.parametrize("how", ["removed", "moved and back"])
async def test_no_pause_begins_while_the_journal_has_lost_its_name(
    engine: Engine, qemu_factory: QemuFactory, tmp_path: Path, how: str
):
    """An open pivot waits, says why, and goes on where the file has come back."""
    qemu = qemu_factory([Disk(create_image(tmp_path / "old.qcow2"))])
    await engine.connect(qemu)
    driver = await engine.copy("web1", {"disk0": tmp_path / "new.qcow2"}, pivot=False)
    await engine.resting(driver)
    qemu.spy_events()
    away = tmp_path / "away.db"
    engine.journal.path.rename(away)
    await driver.complete(WHO)
    async with asyncio.timeout(60):
        while driver.failing is None:
            await asyncio.sleep(0.01)
    assert "journal.db is gone" in driver.failing
    assert (driver.pivot.phase, driver.pivot.attempt) == (Phase.READY, 0)
    assert "STOP" not in {event["event"] for event in qemu.spy_events()}
    if how == "removed":
        away.unlink()
        assert (await driver.cancel(WHO)).outcome in {None, Outcome.KEPT}
    else:
        away.rename(engine.journal.path)
    pivot = await engine.closed(driver)
    assert pivot.outcome == (Outcome.KEPT if how == "removed" else Outcome.SWITCHED)
