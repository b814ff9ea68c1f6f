"""Disks that are pulled out and guests that move to another QEMU while a pivot is under way."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path

import pytest

from pivotd.core.pivot import Outcome, Pivot
from pivotd.engine.driver import Driver
from pivotd.errors import PhaseConflictError
from tests.conftest import QemuFactory
from tests.interference.conftest import Moment
from tests.interference.test_events import to_the_end
from tests.ported_cases.fixture import Bed
from tests.support.qemu import Disk, Qemu
from tests.support.tiny_guest import TinyGuest
from tests.support.waiting import until

pytestmark = pytest.mark.qemu

POINTS = ("copying", "ready", "intent", "stopped", "pending", "switched")


def unplug(qemu: Qemu) -> None:
    """Take disk0 out; a SCSI disk goes without the guest's help."""
    qemu.spy("device_del", id="disk0")
    qemu.await_event("DEVICE_DELETED", device="disk0")


def migrate_to(path: Path) -> Callable[[Qemu], None]:
    """Return how to move a guest to the QEMU that listens at this path; a migration that QEMU refuses is none."""

    def migrate(qemu: Qemu) -> None:
        qemu.spy("migrate", uri=f"unix:{path}")

    return migrate


async def run(bed: Bed, point: str, event: Callable[[Qemu], None], moment: Moment) -> Pivot:
    """Copy disk0, do the event at the point, and return the pivot closed."""
    moment.what = lambda: event(bed.qemu)
    driver: Driver
    if point == "copying":
        driver = await bed.to_copying(bed.target(), bandwidth_bytes_per_s=1)
        await asyncio.to_thread(event, bed.qemu)
        return await bed.engine.closed(driver)
    driver = await bed.copy(bed.target(), pivot=point != "ready", attempts=2)
    if point == "ready":
        await bed.engine.resting(driver)
        await asyncio.to_thread(event, bed.qemu)
        with contextlib.suppress(PhaseConflictError):  # it may have seen the event first
            await driver.complete(driver.pivot.requested_by)
    pivot = await to_the_end(bed, driver)
    assert moment.done or point == "ready", "the event was to come in a pause"
    return pivot


@pytest.mark.parametrize("point", POINTS)
async def test_a_disk_is_pulled_out(bed: Bed, moment: Callable[[str], Moment], point: str):
    """Closed, never switched by a guess, no job left, and the guest runs with what it has."""
    await bed.domain(Disk(bed.image(fill="28M"), bus="virtio-scsi"))
    pivot = await run(bed, point, unplug, moment(point))
    assert pivot.outcome in {Outcome.KEPT, Outcome.UNKNOWN, Outcome.SWITCHED}, pivot.error
    # A copy can be through before the disk is gone, however slow it was asked to be: QEMU limits what comes later.
    assert (pivot.outcome == Outcome.SWITCHED) <= (point in {"copying", "switched"})
    assert bed.qemu.run_state() == "running", pivot.error
    assert bed.qemu.jobs() == {}, (pivot.outcome, pivot.error, bed.engine.events(pivot))


async def test_a_disk_that_was_written_on_its_destination_is_pulled_out(bed: Bed, moment: Callable[[str], Moment]):
    """Somebody lets the guest run before the switch is recorded, takes the disk, and stops it again: nobody knows."""

    def let_run_and_unplug(qemu: Qemu) -> None:
        qemu.spy("cont")
        unplug(qemu)
        qemu.spy("stop")

    await bed.domain(Disk(bed.image(fill="28M"), bus="virtio-scsi"))
    pivot = await run(bed, "switched", let_run_and_unplug, moment("switched"))
    assert pivot.outcome == Outcome.UNKNOWN, pivot.error


@pytest.mark.parametrize("point", ["copying", "ready", "stopped", "pending", "switched"])
async def test_a_guest_moves_to_another_qemu(
    bed: Bed, qemu_factory: QemuFactory, moment: Callable[[str], Moment], point: str
):
    """The one that has the guest's data is named, pivotd never starts the guest that has left, nothing hangs."""
    source = bed.image("old.raw", fill="28M")
    await bed.guest(Disk(source, format="raw", bus="ide"))
    incoming = bed.directory / "m.sock"
    heir = qemu_factory(
        [Disk(source, format="raw", bus="ide")], guest=TinyGuest(), name="heir", extra=["-incoming", f"unix:{incoming}"]
    )
    bed.target = lambda name="new.raw": bed.directory / name  # type: ignore[method-assign]
    pivot = await run(bed, point, migrate_to(incoming), moment(point))
    if bed.qemu.returncode is not None:
        # QEMU aborts where a mirror writes to an image that a migration has given away; the guest runs in its heir.
        assert pivot.outcome == Outcome.KEPT
        return
    async with asyncio.timeout(60):
        while (bed.qemu.spy("query-migrate").get("status")) not in {"completed", "failed"}:
            await asyncio.sleep(0.05)
    moved = bed.qemu.spy("query-migrate")["status"] == "completed"
    assert pivot.outcome in {"kept", "switched"}, pivot.error
    if moved:
        # Either QEMU may have a last step to make when the migration counts as completed.
        assert until(lambda: bed.qemu.run_state() == "postmigrate"), bed.qemu.run_state()
        assert until(lambda: heir.run_state() in {"running", "paused"}), heir.run_state()
    else:
        assert until(lambda: bed.qemu.run_state() == "running"), bed.qemu.run_state()


@pytest.mark.parametrize(("point", "ending"), [("stopped", "cancel"), ("switched", "cancel"), ("switched", "continue")])
async def test_a_migration_that_was_begun_in_the_pause_ends(
    bed: Bed, moment: Callable[[str], Moment], point: str, ending: str
):
    """Cancelled, it leaves a guest that had stood still in ``postmigrate``: it runs on. Completed, it does not."""
    await bed.domain(Disk(bed.image(fill="28M"), bus="ide"))

    def migrate(qemu: Qemu) -> None:
        qemu.spy("migrate-set-capabilities", capabilities=[{"capability": "pause-before-switchover", "state": True}])
        qemu.spy("migrate", uri="exec:cat >/dev/null")
        assert until(lambda: qemu.spy("query-migrate").get("status") == "pre-switchover", 60)

    moment(point).what = lambda: migrate(bed.qemu)
    driver = await bed.copy(bed.target(), attempts=1, max_pause_ms=500)
    async with asyncio.timeout(60):
        while "QEMU: finish-migrate" not in driver.waits_for:
            await asyncio.sleep(0.02)
    assert driver.pivot.owes_resume
    assert await asyncio.to_thread(until, lambda: driver.failing is not None, 60), "the long pause was not told"
    if ending == "cancel":
        bed.qemu.spy("migrate_cancel")
    else:
        bed.qemu.spy("migrate-continue", state="pre-switchover")
    pivot = await bed.engine.closed(driver)
    assert pivot.outcome in {"kept", "switched"}, pivot.error
    assert bed.qemu.run_state() == {"cancel": "running", "continue": "postmigrate"}[ending]
    assert bed.engine.events(pivot).count("guest-waits") == 1
