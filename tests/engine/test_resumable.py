"""Copies whose destination fails and comes back: real QEMU, and storage whose faults the test sets."""

from __future__ import annotations

import asyncio
import errno
import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pivotd import limits
from pivotd.core.pivot import Outcome, Phase
from pivotd.core.request import Kind, Requester, Target
from pivotd.engine.driver import Driver
from pivotd.engine.inbox import Cancel
from pivotd.errors import BadRequestError
from pivotd.host.flush import Flusher
from pivotd.journal.reader import Reader
from tests.conftest import QemuFactory
from tests.journal_disk.disk import Disk as Storage
from tests.journal_disk.server import Fault
from tests.journal_disk.store import Write
from tests.support.proxy import Direction, Message, When
from tests.support.qemu import Disk, Qemu, create_image

from .conftest import Engine
from .test_copy import assert_clean, content, write

WHO = Requester(0, 0, 1)
pytestmark = pytest.mark.qemu

FULL_BYTES = 48 << 20
FAILS_AT_WRITE = 300
"""Of 128 KiB each."""
TWICE_BYTES_MAX = 18 << 20
"""What was on its way when the storage failed, at most the 16 MiB of a mirror, and the tables of qcow2."""
TIMEOUT_S = 90.0
LASTING = {how: Fault("any", 1, how, lasting=True) for how in ("eio", "enospc")}


@pytest.fixture
def storage(tmp_path: Path) -> Iterator[Storage]:
    with Storage(tmp_path / "new") as storage:
        yield storage


def filled(directory: Path, name: str = "old.qcow2") -> Path:
    """Return an image that holds FULL_BYTES."""
    image = create_image(directory / name)
    subprocess.run(["qemu-io", "-c", f"write -q -P 17 0 {FULL_BYTES}", str(image)], check=True)
    return image


async def until(driver: Driver, words: str) -> None:
    """Wait until the pivot waits for what these words say."""
    async with asyncio.timeout(TIMEOUT_S):
        while words not in driver.waits_for:
            driver.wake()
            await asyncio.sleep(0.01)


async def job_is(qemu: Qemu, driver: Driver, disk: int, status: str) -> None:
    """Wait until a job has this status."""
    async with asyncio.timeout(TIMEOUT_S):
        while qemu.jobs()[driver.pivot.disks[disk].job]["status"] != status:
            await asyncio.sleep(0.01)


def facts(engine: Engine, driver: Driver, event: str) -> list[dict[str, Any]]:
    """Return the facts of every record of this event."""
    reader = Reader.attach(engine.state_dir)
    try:
        return [record.facts for record in reader.records(driver.pivot.id) if record.event == event]
    finally:
        reader.close()


def written_bytes(storage: Storage) -> int:
    """Return how much was written to the storage in all."""
    return sum(len(change.data) for change in storage.log() if isinstance(change, Write))


@pytest.mark.parametrize("image_format", ["qcow2", "raw"])
@pytest.mark.parametrize(("how", "words"), [("enospc", "is full"), ("eio", "fails")])
@pytest.mark.thinned(2)
async def test_copy_goes_on_where_it_was(
    engine: Engine, qemu_factory: QemuFactory, storage: Storage, tmp_path: Path, image_format: str, how: str, words: str
):
    """It fails half-way, the guest writes on undisturbed, nothing is copied twice, and all data arrives."""
    source, destination = filled(tmp_path), storage.where / "new"
    qemu = qemu_factory([Disk(source)])
    await engine.connect(qemu)
    storage.fail(Fault("write", FAILS_AT_WRITE, how, lasting=True))
    driver = await engine.copy("web1", {"disk0": destination}, image_format, resumable=True)
    await until(driver, words)
    write(qemu, "disk0", 7)
    assert qemu.run_state() == "running"
    storage.fail()
    pivot = await engine.closed(driver)
    assert pivot.outcome == Outcome.SWITCHED, pivot.error
    (interrupted,), (went_on,) = facts(engine, driver, "interrupted"), facts(engine, driver, "went-on")
    assert 0 < went_on["saved_bytes"] == interrupted["copied_bytes"]
    if how == "eio":  # a disk that fills up takes some of each try
        assert written_bytes(storage) < FULL_BYTES + TWICE_BYTES_MAX
    assert_clean(qemu)
    assert content(destination, image_format) == content(source, "qcow2")


async def test_a_destination_that_fails_while_ready_is_waited_for(
    engine: Engine, qemu_factory: QemuFactory, storage: Storage, tmp_path: Path
):
    """Also a pivot that waits to be completed: it keeps following the guest, and can be completed afterwards."""
    source, destination = filled(tmp_path), storage.where / "new"
    qemu = qemu_factory([Disk(source)])
    await engine.connect(qemu)
    driver = await engine.copy("web1", {"disk0": destination}, resumable=True, pivot=False)
    await engine.resting(driver)
    storage.fail(LASTING["eio"])
    write(qemu, "disk0", 7)
    await until(driver, "fails")
    storage.fail()
    await until(driver, "ready")
    await driver.complete(driver.pivot.requested_by)
    pivot = await engine.closed(driver)
    assert pivot.outcome == Outcome.SWITCHED, pivot.error
    assert content(destination, "qcow2") == content(source, "qcow2")


async def test_writes_that_follow_at_once_are_not_disturbed(
    engine: Engine, qemu_factory: QemuFactory, storage: Storage, tmp_path: Path
):
    """With write-blocking the guest waits for the destination, but does not fail with it."""
    source, destination = filled(tmp_path), storage.where / "new"
    qemu = qemu_factory([Disk(source)])
    await engine.connect(qemu)
    options = {"resumable": True, "pivot": False, "copy_mode": "write-blocking"}
    driver = await engine.copy("web1", {"disk0": destination}, **options)
    await engine.resting(driver)
    storage.fail(LASTING["enospc"])
    write(qemu, "disk0", 7)
    assert "write failed" not in qemu.errors_path.read_text()
    await until(driver, "is full")
    storage.fail()
    await until(driver, "ready")
    await driver.complete(driver.pivot.requested_by)
    pivot = await engine.closed(driver)
    assert pivot.outcome == Outcome.SWITCHED, pivot.error
    assert content(destination, "qcow2") == content(source, "qcow2")


@pytest.mark.parametrize("at", ["command:stop", "return:stop", "command:job-complete", "return:job-complete"])
async def test_a_destination_that_fails_in_the_pause_leaves_the_guest_running(
    engine: Engine, qemu_factory: QemuFactory, storage: Storage, tmp_path: Path, at: str
):
    """A mirror that was told to complete never goes back to copying: the copy is lost, and never an image wrong."""
    source, destination = filled(tmp_path), storage.where / "new"
    struck = asyncio.Event()
    loop = asyncio.get_running_loop()
    test: dict[str, Any] = {}

    def strike(direction: Direction, index: int, message: Message, when: When) -> None:
        if message.label == "command:stop" and when is When.BEFORE and not struck.is_set():
            write(test["qemu"], "disk0", 9)
        if message.label == at and when is When.BEFORE and not test.get("struck"):
            test["struck"] = True
            storage.fail(LASTING["eio"])
            loop.call_soon_threadsafe(struck.set)

    qemu = test["qemu"] = qemu_factory([Disk(source)], proxy=Qemu.proxy_for(tmp_path, on_message=strike))
    await engine.connect(qemu)
    driver = await engine.copy("web1", {"disk0": destination}, resumable=True, max_pause_ms=500)
    async with asyncio.timeout(TIMEOUT_S):
        await struck.wait()
    await engine.until(driver, lambda pivot: not pivot.owes_resume and pivot.phase is not Phase.PAUSING)
    assert qemu.run_state() == "running"
    storage.fail()
    pivot = await engine.closed(driver)
    assert pivot.outcome in {Outcome.SWITCHED, Outcome.KEPT}
    if pivot.outcome == Outcome.KEPT:
        assert "before every job was pending: the copy had to be given up" in str(pivot.error)
    assert_clean(qemu)
    root = Path(qemu.root("disk0").filename)
    assert root == (destination if pivot.outcome == Outcome.SWITCHED else source)
    if pivot.outcome == Outcome.SWITCHED:
        assert content(destination, "qcow2") == content(source, "qcow2")


async def test_a_failed_flush_ends_the_copy(
    engine: Engine, qemu_factory: QemuFactory, storage: Storage, tmp_path: Path
):
    """After a flush that failed nobody can tell what the storage still has: kept, and the reason says so."""
    source, destination = filled(tmp_path), storage.where / "new"
    qemu = qemu_factory([Disk(source)])
    await engine.connect(qemu)
    # After its first piece of 16 MiB it waits: its flush comes after the fault.
    driver = await engine.copy("web1", {"disk0": destination}, "raw", resumable=True, bandwidth_bytes_per_s=1)
    await engine.until(driver, lambda pivot: pivot.phase is Phase.COPYING)
    storage.fail(Fault("fsync", 1, "eio"))
    await driver.set_bandwidth(0, WHO)
    pivot = await engine.closed(driver)
    assert pivot.outcome == Outcome.KEPT
    assert "failed to make durable" in str(pivot.error)
    assert_clean(qemu)


@pytest.mark.parametrize(
    ("how", "late"), [("eio", False), ("enospc", False), ("eio", True)], ids=["failed", "full", "after it was given up"]
)
async def test_a_flush_of_pivotd_s_own_that_failed_ends_the_copy(
    engine: Engine, qemu_factory: QemuFactory, storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    how: Any, *, late: bool,
):  # fmt: skip
    """The next flush would say that all is well, and QEMU has another descriptor: kept, and the reason says so."""
    source, destination = filled(tmp_path), storage.where / "new"
    qemu = qemu_factory([Disk(source)])
    await engine.connect(qemu)
    driver = await engine.copy("web1", {"disk0": destination}, "raw", pivot=False)
    await engine.resting(driver)
    if late:
        monkeypatch.setattr(limits, "RETRY_MAX_S", 0.2)
        monkeypatch.setattr(Flusher.flush, "__defaults__", (0.2,))
        fdatasync, go_on = os.fdatasync, threading.Event()

        def slow(descriptor: int) -> None:
            if Path(f"/proc/self/fd/{descriptor}").readlink() == destination:
                go_on.wait(TIMEOUT_S)
            fdatasync(descriptor)

        monkeypatch.setattr(os, "fdatasync", slow)
    storage.fail(Fault("fsync", 1, how))
    await driver.complete(WHO)
    if late:
        await until(driver, "does not answer a flush")
        go_on.set()
    pivot = await engine.closed(driver)
    assert pivot.outcome == Outcome.KEPT
    why = os.strerror({"eio": errno.EIO, "enospc": errno.ENOSPC}[how])
    assert f"{destination} failed to make durable what it had taken ({why})" in str(pivot.error)
    assert qemu.root("disk0").filename == str(source)
    assert_clean(qemu)


async def test_a_flush_of_the_source_that_failed_holds_up_the_pause(
    engine: Engine, qemu_factory: QemuFactory, storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The new image has what was read; it is told what failed, and where."""
    monkeypatch.setattr(limits, "RETRY_MAX_S", 1.0)
    source = filled(storage.where)
    qemu = qemu_factory([Disk(source)])
    await engine.connect(qemu)
    driver = await engine.copy("web1", {"disk0": tmp_path / "copy"}, "raw", pivot=False)
    await engine.resting(driver)
    storage.fail(Fault("fsync", 1, "eio"))
    await driver.complete(WHO)
    async with asyncio.timeout(TIMEOUT_S):
        while f"a flush of {source} failed: Input/output error" not in driver.waits_for:
            await asyncio.sleep(0.01)
    pivot = await engine.closed(driver)
    assert pivot.outcome == Outcome.SWITCHED, pivot.error


@pytest.mark.parametrize("sound", [True, False], ids=["sound again", "still failing"])
async def test_an_interrupted_copy_can_be_cancelled(
    engine: Engine, qemu_factory: QemuFactory, storage: Storage, tmp_path: Path, sound: bool
):
    """Kept, no job and no node is left, whether the destination is back or not."""
    qemu = qemu_factory([Disk(filled(tmp_path))])
    await engine.connect(qemu)
    storage.fail(Fault("write", FAILS_AT_WRITE, "eio", lasting=True))
    driver = await engine.copy("web1", {"disk0": storage.where / "new"}, resumable=True)
    await until(driver, "fails")
    if sound:
        storage.fail()
    driver.state.inbox.post(Cancel(WHO))
    pivot = await engine.closed(driver)
    assert pivot.outcome == Outcome.KEPT
    assert_clean(qemu)
    assert qemu.run_state() == "running"


async def test_a_qemu_that_dies_while_a_copy_is_interrupted_keeps_the_source(
    engine: Engine, qemu_factory: QemuFactory, storage: Storage, tmp_path: Path
):
    """What is left to copy is known to that process alone."""
    qemu = qemu_factory([Disk(filled(tmp_path))])
    await engine.connect(qemu)
    storage.fail(Fault("write", FAILS_AT_WRITE, "eio", lasting=True))
    driver = await engine.copy("web1", {"disk0": storage.where / "new"}, resumable=True)
    await until(driver, "fails")
    qemu.kill()
    assert (await engine.closed(driver)).outcome == Outcome.KEPT


async def test_one_disk_of_two_waits(engine: Engine, qemu_factory: QemuFactory, storage: Storage, tmp_path: Path):
    """The other one is copied meanwhile, and both are switched in one pause."""
    sources = [filled(tmp_path, f"old{number}.qcow2") for number in range(2)]
    qemu = qemu_factory([Disk(source) for source in sources])
    await engine.connect(qemu)
    storage.fail(Fault("write", 100, "enospc", lasting=True, suffix="b"))
    targets = {"disk0": tmp_path / "a", "disk1": storage.where / "b"}
    driver = await engine.copy("web1", targets, resumable=True)
    await until(driver, "b is full")
    await job_is(qemu, driver, 0, "ready")
    storage.fail()
    pivot = await engine.closed(driver)
    assert pivot.outcome == Outcome.SWITCHED, pivot.error
    assert len(pivot.pauses) == 1
    for source, image in zip(sources, targets.values(), strict=True):
        assert content(image, "qcow2") == content(source, "qcow2")


async def test_a_destination_that_fails_all_the_time_does_not_fill_the_journal(
    engine: Engine, qemu_factory: QemuFactory, storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Failures in short order are one interruption, and tries become rarer."""
    monkeypatch.setattr(limits, "GO_ON_SOUND_S", TIMEOUT_S)  # what a busy machine does is in short order
    qemu = qemu_factory([Disk(filled(tmp_path))])
    await engine.connect(qemu)
    # What is left after the first piece of 16 MiB is written when the limit is lifted, so after the fault.
    driver = await engine.copy("web1", {"disk0": storage.where / "new"}, "raw", resumable=True, bandwidth_bytes_per_s=1)
    await engine.until(driver, lambda pivot: pivot.phase is Phase.COPYING)
    storage.fail(LASTING["eio"])
    await driver.set_bandwidth(0, WHO)
    await job_is(qemu, driver, 0, "paused")
    storage.fail(Fault("write", 50, "enospc", lasting=True))
    assert await asyncio.to_thread(storage.await_strike), "it does not go on"
    await job_is(qemu, driver, 0, "paused")
    storage.fail()
    pivot = await engine.closed(driver)
    assert pivot.outcome == Outcome.SWITCHED, pivot.error
    assert len(facts(engine, driver, "interrupted")) == 1
    (went_on,) = facts(engine, driver, "went-on")
    assert went_on["interrupted_s"] > limits.GO_ON_FIRST_S * 3, "the second try came after twice the time"


async def test_an_nbd_export_is_refused(engine: Engine, qemu_factory: QemuFactory, tmp_path: Path):
    """A server that was away may have lost what it had acknowledged, and QEMU goes on without noticing."""
    await engine.connect(qemu_factory([Disk(create_image(tmp_path / "old.qcow2"))]))
    target = Target("disk0", "nbd://127.0.0.1:1/x", "raw")
    with pytest.raises(BadRequestError, match="not resumable"):
        await engine.start(Kind.COPY, "web1", target, resumable=True, reuse=True)
