"""A QEMU on a wrong image is noticed, however its first look goes, and nothing is washed away meanwhile."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import time
import weakref
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from pivotd import limits
from pivotd.app.alarms import Alarms
from pivotd.app.leftovers import Leftovers
from pivotd.app.live_verdicts import LiveVerdicts
from pivotd.app.reads import Reads
from pivotd.app.start import Starter
from pivotd.core.request import Kind, PivotRequest, Target
from pivotd.errors import DomainUnreachableError, QmpUnknownError
from pivotd.journal.journal import Journal
from pivotd.qmp.session import Session
from tests.app.conftest import WHO, Host
from tests.conftest import QemuFactory
from tests.engine.conftest import Engine
from tests.support.qemu import Disk, Qemu, create_image

pytestmark = pytest.mark.qemu
TIMEOUT_S = 90.0


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(TIMEOUT_S):
        while not holds():
            await asyncio.sleep(0.02)


@pytest.fixture
async def reads(engine: Engine) -> AsyncIterator[Reads]:
    await engine.journal.check_file()
    opened = await Reads.attach(engine.state_dir, engine.host, engine.journal)
    yield opened
    opened.end()
    await opened.close()


async def on_the_old_image(engine: Engine, qemu_factory: QemuFactory, directory: Path) -> Path:
    """Move a disk, then have a person start the guest on the old image, and pivotd connect to it; return that image."""
    old = create_image(directory / "old.qcow2")
    first = qemu_factory([Disk(old)])
    supervisor = await engine.connect(first)
    await engine.closed(await engine.copy("web1", {"disk0": directory / "new.qcow2"}))
    first.stop()
    await until(lambda: supervisor.session is None)
    qemu_factory([Disk(old)])
    await until(lambda: supervisor.session is not None)
    return old


def refuse(monkeypatch: pytest.MonkeyPatch, times: int) -> list[int]:
    """Let so many looks at disks go without an answer; return the list in which they are counted."""
    looks: list[int] = []
    disks = Session.disks

    async def silent(session: Session) -> Any:
        looks.append(len(looks))
        if len(looks) <= times:
            raise QmpUnknownError("no answer in time")
        return await disks(session)

    monkeypatch.setattr(Session, "disks", silent)
    return looks


async def test_a_look_that_failed_is_made_again(
    engine: Engine, reads: Reads, qemu_factory: QemuFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A QEMU that is busy when pivotd connects is not taken for one on the right image."""
    old = await on_the_old_image(engine, qemu_factory, tmp_path)
    monkeypatch.setattr(limits, "ALARM_AGAIN_S", 0.05)
    looks = refuse(monkeypatch, 2)
    running = asyncio.ensure_future(Alarms(engine.host, engine.journal, reads).run())
    supervisor = engine.host.get("web1")
    await until(lambda: bool(supervisor.alarms))
    assert len(looks) > 2
    assert f"runs on {old}, which is stale since" in supervisor.alarms["disk0"]
    running.cancel()


async def test_a_guest_on_two_old_images_of_a_disk_is_recorded_once(
    engine: Engine, reads: Reads, qemu_factory: QemuFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The disk's own device says where it runs; with the other image they would take turns in the journal."""
    events: list[str] = []
    images = [create_image(tmp_path / "a.qcow2"), tmp_path / "b.qcow2", tmp_path / "c.qcow2"]
    first = qemu_factory([Disk(images[0])])
    supervisor = await engine.connect(first)
    for image in images[1:]:
        await engine.closed(await engine.copy("web1", {"disk0": image}))
    first.stop()
    await until(lambda: supervisor.session is None)
    engine.journal.subscribe(lambda records: events.extend(record.event for record in records))
    second = qemu_factory([Disk(image) for image in images[:2]])
    await until(lambda: supervisor.session is not None)
    running = asyncio.ensure_future(Alarms(engine.host, engine.journal, reads).run())
    await until(lambda: bool(supervisor.alarms))
    looks = refuse(monkeypatch, 0)
    while len(looks) < 4:
        seen = len(looks)
        second.spy("stop")
        second.spy("cont")
        await until(lambda: len(looks) > seen)  # noqa: B023 - it is awaited here
    assert events.count("ran-on-other-image") == 1, events
    assert events.count("old-image-used") == 1, events
    running.cancel()


async def test_no_pivot_begins_while_nobody_knows(
    engine: Engine, reads: Reads, qemu_factory: QemuFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A look that fails says nothing: the journal's own word would let the doubt be washed away."""
    await on_the_old_image(engine, qemu_factory, tmp_path)
    refuse(monkeypatch, 99)
    request = PivotRequest("web1", Kind.COPY, (Target("disk0", str(tmp_path / "next.qcow2")),))
    with pytest.raises(DomainUnreachableError, match="could not be looked at"):
        await Starter(engine.host, engine.journal, reads).start(request, WHO)
    assert engine.journal.open_pivots() == []


async def test_a_journal_that_was_not_checked_is_certain_of_nothing(
    engine: Engine, reads: Reads, qemu_factory: QemuFactory, tmp_path: Path
):
    """Its disk is full or hangs at the start: it may be a restored one."""
    qemu = qemu_factory([Disk(create_image(tmp_path / "old.qcow2"))])
    supervisor = await engine.connect(qemu)
    await engine.closed(await engine.copy("web1", {"disk0": tmp_path / "new.qcow2"}))
    qemu.stop()
    await until(lambda: supervisor.session is None)
    for checked in (False, True):
        engine.journal.file_checked = checked
        (found,) = await reads.verdicts("web1", "disk0", lambda one: one)
        assert found.certain is checked


@pytest.mark.parametrize("state", ["running", "gone"])
async def test_a_guest_that_has_left_makes_the_journal_doubtful(
    engine: Engine, reads: Reads, qemu_factory: QemuFactory, tmp_path: Path, state: str
):
    """Another host may move its disks, until it is seen here again: with its old QEMU there, and after that."""
    events: list[str] = []
    engine.journal.subscribe(lambda records: events.extend(record.event for record in records))
    alarms = asyncio.ensure_future(Alarms(engine.host, engine.journal, reads).run())
    qemu = qemu_factory([Disk(create_image(tmp_path / "old.qcow2"))])
    supervisor = await engine.connect(qemu)
    new = tmp_path / "new.qcow2"
    await engine.closed(await engine.copy("web1", {"disk0": new}))

    async def certain() -> bool:
        (found,) = await reads.verdicts("web1", "disk0", lambda one: one)
        if not found.certain:
            assert "left by a migration" in found.reason
        return found.certain

    assert await certain()
    saved = tmp_path / "guest"
    qemu.spy("migrate", uri=f"exec:cat > {saved}")
    await until(lambda: qemu.run_state() == "postmigrate")
    assert not await certain()
    await until(lambda: "guest-left" in events)
    qemu.stop()
    await until(lambda: supervisor.session is None)
    assert not await certain()
    if state == "running":
        qemu_factory([Disk(new)], extra=["-incoming", f"exec:cat {saved}"])
        async with asyncio.timeout(TIMEOUT_S):
            while not await certain():
                await asyncio.sleep(0.05)
    alarms.cancel()


async def test_a_guest_that_leaves_is_seen_beside_a_qemu_that_hangs(
    engine: Engine, reads: Reads, qemu_factory: QemuFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Its own QEMU may end right after that: a look that waits for the other one would come too late."""
    monkeypatch.setattr(limits, "QUERY_TIMEOUT_S", 10 * TIMEOUT_S)
    events: list[str] = []
    engine.journal.subscribe(lambda records: events.extend(record.event for record in records))
    alarms = asyncio.ensure_future(Alarms(engine.host, engine.journal, reads).run())
    qemu = qemu_factory([Disk(create_image(tmp_path / "old.qcow2"))])
    await engine.connect(qemu)
    silent = qemu_factory([Disk(create_image(tmp_path / "silent.qcow2"))], name="silent")
    await engine.connect(silent, "silent")
    await engine.closed(await engine.copy("web1", {"disk0": tmp_path / "new.qcow2"}))
    silent.spy("stop")
    silent.kill(signal.SIGSTOP)
    try:
        qemu.spy("migrate", uri=f"exec:cat > {tmp_path / 'guest'}")
        await until(lambda: "guest-left" in events)
    finally:
        silent.kill(signal.SIGCONT)
    alarms.cancel()


async def test_an_older_look_does_not_end_the_doubt_about_a_guest_that_leaves(
    engine: Engine, reads: Reads, qemu_factory: QemuFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """It has seen the guest on the right image, before the guest has left."""
    events: list[str] = []
    engine.journal.subscribe(lambda records: events.extend(record.event for record in records))
    qemu = qemu_factory([Disk(create_image(tmp_path / "old.qcow2"))])
    await engine.connect(qemu)
    await engine.closed(await engine.copy("web1", {"disk0": tmp_path / "new.qcow2"}))
    await engine.journal.left("web1")  # it was elsewhere before
    looked, go_on = asyncio.Event(), asyncio.Event()
    checked = reads.checked

    async def slow(domain: str) -> Any:
        found = await checked(domain)
        looked.set()
        await go_on.wait()
        return found

    monkeypatch.setattr(reads, "checked", slow)
    alarms = Alarms(engine.host, engine.journal, reads)
    running = asyncio.ensure_future(alarms.run())
    await looked.wait()
    qemu.spy("migrate", uri=f"exec:cat > {tmp_path / 'guest'}")
    await until(lambda: "web1" in alarms._leaving)
    go_on.set()
    await until(lambda: not alarms._images._running)
    assert "image-seen" not in events
    (found,) = await reads.verdicts("web1", "disk0", lambda one: one)
    assert not found.certain
    running.cancel()


async def test_the_file_that_qemu_has_is_noted_outside_pauses(
    engine: Engine, reads: Reads, qemu_factory: QemuFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A pause that begins while a guest is looked at does not share the journal with what the look has seen."""
    held: list[bool] = []
    files_of, saw_file = LiveVerdicts.files_of, Journal.saw_file

    def then_a_pause_begins(live: LiveVerdicts, domain: str) -> Any:
        if (found := files_of(live, domain)) and not held:
            engine.journal.hold_checkpoints()
            asyncio.get_running_loop().call_later(0.3, engine.journal.release_checkpoints)
        return found

    async def seen(journal: Journal, *facts: Any) -> None:
        held.append(journal.guest_paused)
        await saw_file(journal, *facts)

    monkeypatch.setattr(LiveVerdicts, "files_of", then_a_pause_begins)
    monkeypatch.setattr(Journal, "saw_file", seen)
    await engine.connect(qemu_factory([Disk(create_image(tmp_path / "old.qcow2"))]))
    await engine.closed(await engine.copy("web1", {"disk0": tmp_path / "new.qcow2"}))
    running = asyncio.ensure_future(Alarms(engine.host, engine.journal, reads).run())
    await until(lambda: bool(held))
    assert held == [False]
    running.cancel()


async def test_a_domain_that_was_removed_leaves_nothing_behind(
    engine: Engine, reads: Reads, qemu_factory: QemuFactory, tmp_path: Path
):
    """Also one that was connected: domains come and go for years, each with its connection and what it has shown."""
    watching = [
        asyncio.ensure_future(one.run())
        for one in (Alarms(engine.host, engine.journal, reads), Leftovers(engine.host, reads))
    ]
    await engine.connect(qemu_factory([Disk(create_image(tmp_path / "old.qcow2"))]))
    await until(lambda: known(engine.host.get("web1").session) > 0)
    connection = weakref.ref(engine.host.get("web1").session)
    engine.host.remove("web1")

    def gone() -> bool:
        gc.collect()
        return connection() is None

    await until(gone)
    for task in watching:
        task.cancel()


def known(session: Session | None) -> int:
    """Return how many callbacks a connection has besides its supervisor's."""
    return len(session._monitor._callbacks) - 1 if session is not None else 0


def test_a_guest_on_a_stale_image_below_a_directory_that_is_not_utf8(host: Host):
    """The journal cannot have that name as it is; without a record, the old verdict was certain again afterwards."""
    directory = host.directory / os.fsdecode(b"od\xff")
    directory.mkdir()
    stale = Disk(create_image(directory / "old.qcow2"), relative=True)
    with Qemu(host.directory, [Disk(create_image(host.directory / "first.qcow2"))], name="web1") as qemu:
        host.start({"web1": qemu.qmp})
        assert host.closed(host.copy("web1", host.image()).json["id"])["outcome"] == "switched"
    deadline_s = time.monotonic() + 60
    with Qemu(host.directory, [stale], name="web1"):
        while not host.domains()["web1"]["alarms"]:
            assert time.monotonic() < deadline_s, host.domains()
    while (verdict := host.call("GET", "/v1/verdicts").json[0])["pending"]:
        assert time.monotonic() < deadline_s, verdict
    assert not verdict["certain"], verdict
    assert r"od\udcff/old.qcow2" in verdict["reason"], verdict
