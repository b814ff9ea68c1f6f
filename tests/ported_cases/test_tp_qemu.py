"""tp-qemu's tests of block mirrors (autotest): what people and guests do while a disk is being moved."""

from __future__ import annotations

import os
import subprocess
import time

import pytest

from pivotd.core.pivot import Outcome, Phase
from pivotd.errors import PhaseConflictError
from tests.ported_cases.fixture import Bed, small_file_system
from tests.support.qmp_spy import SpyError

pytestmark = pytest.mark.qemu


async def test_complete_before_ready(bed: Bed):
    """tp-qemu, complete before steady: refused with the phase, and the copy goes on."""
    await bed.guest(bed.image(fill="16M"))
    driver = await bed.to_copying(bed.target())
    with pytest.raises(PhaseConflictError, match="copying"):
        await driver.complete(driver.pivot.requested_by)
    bed.qemu.spy("block-job-set-speed", device=driver.pivot.disks[0].job, speed=0)
    pivot = await bed.engine.closed(driver)
    bed.assert_switched(pivot)
    bed.assert_holds_all(pivot)


FORBIDDEN = {
    "snapshot": ("blockdev-snapshot", {"node": "src0", "overlay": "spare"}),
    "stream": ("block-stream", {"job-id": "theirs", "device": "src0"}),
    "mirror": ("blockdev-mirror", {"job-id": "theirs", "device": "src0", "target": "spare", "sync": "full"}),
    "backup": ("blockdev-backup", {"job-id": "theirs", "device": "src0", "target": "spare", "sync": "full"}),
    "commit": ("block-commit", {"job-id": "theirs", "device": "src0"}),
    "resize": ("block_resize", {"node-name": "src0", "size": 128 << 20}),
}


@pytest.mark.parametrize("phase", [Phase.COPYING, Phase.READY])
async def test_forbidden_actions_while_busy(bed: Bed, phase: Phase):
    """tp-qemu, forbidden actions: each of another tool's is refused by QEMU while the disk moves; the pivot switches."""
    await bed.guest(bed.image(fill="16M"))
    bed.image("spare.qcow2")
    spare = {"driver": "file", "filename": str(bed.directory / "spare.qcow2")}
    bed.qemu.spy("blockdev-add", {"driver": "qcow2", "node-name": "spare", "file": spare, "backing": None})
    driver = await (bed.to_copying(bed.target()) if phase is Phase.COPYING else bed.to_ready(bed.target()))
    refused = {}
    for name, (command, arguments) in FORBIDDEN.items():
        try:
            bed.qemu.spy(command, arguments)
        except SpyError as error:
            refused[name] = str(error)
    assert sorted(refused) == sorted(FORBIDDEN), refused
    bed.qemu.spy("block-job-set-speed", device=driver.pivot.disks[0].job, speed=0)
    pivot = await (bed.engine.closed(driver) if phase is Phase.COPYING else bed.complete(driver))
    assert pivot.outcome == Outcome.SWITCHED, pivot.error
    await bed.acks()
    bed.assert_holds_all(pivot)


# -- destinations that cannot be written --------------------------------------------------------------------------


async def test_a_read_only_destination(bed: Bed):
    """tp-qemu, target on a read-only file system: kept, and the reason says so."""
    await bed.guest(bed.image())
    with small_file_system(bed.directory, "8m") as place:
        subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)
        pivot = await bed.engine.closed(await bed.copy(place / "new.qcow2"))
    bed.assert_kept(pivot)
    assert "Read-only file system" in (pivot.error or ""), pivot.error
    await bed.acks()
    bed.assert_holds_all(pivot)


async def test_no_space_for_the_copy(bed: Bed):
    """tp-qemu, no space on the target while it copies: it waits; given up, the disk is free for another try."""
    await bed.guest(bed.image(fill="8M"))
    with small_file_system(bed.directory, "4m") as place:
        driver = await bed.copy(place / "new.qcow2", force=True)
        await bed.waits_for_room(driver)
        bed.assert_kept(await bed.cancel(driver))
    pivot = await bed.engine.closed(await bed.copy(bed.target()))
    bed.assert_switched(pivot)
    await bed.acks()
    bed.assert_holds_all(pivot)


async def test_one_of_several_destinations_is_damaged(bed: Bed):
    """tp-qemu, several disks: one that cannot be copied keeps all on their sources."""
    await bed.guest(bed.image("old0.qcow2"), bed.image("old1.qcow2"))
    targets = [bed.image("new0.qcow2"), bed.image("new1.qcow2")]
    os.truncate(targets[1], 64)
    pivot = await bed.engine.closed(await bed.copy(*targets, reuse=True))
    bed.assert_kept(pivot)
    assert pivot.error
    await bed.acks()
    bed.assert_holds_all(pivot)


# -- cancelling ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("phase", [Phase.COPYING, Phase.READY])
@pytest.mark.parametrize("disks", [1, 2])
async def test_cancel_under_io(bed: Bed, phase: Phase, disks: int):
    """tp-qemu, cancel of a running and of a ready job under I/O: kept, every write is in the sources."""
    await bed.guest(*(bed.image(f"old{index}.qcow2", fill="8M") for index in range(disks)))
    targets = [bed.target(f"new{index}.qcow2") for index in range(disks)]
    driver = await (bed.to_copying(*targets) if phase is Phase.COPYING else bed.to_ready(*targets))
    pivot = await bed.cancel(driver)
    bed.assert_kept(pivot)
    await bed.acks()
    bed.assert_holds_all(pivot)


# -- what happens to the guest meanwhile --------------------------------------------------------------------------


@pytest.mark.parametrize("phase", [Phase.COPYING, Phase.READY])
async def test_guest_reboot_during_the_copy(bed: Bed, phase: Phase):
    """tp-qemu, reboot: a reset while it copies or is ready costs no write and no switch."""
    await bed.guest(bed.image(fill="16M"))
    driver = await (bed.to_copying(bed.target()) if phase is Phase.COPYING else bed.to_ready(bed.target()))
    bed.qemu.spy("system_reset")
    await bed.acks(40)
    bed.qemu.spy("block-job-set-speed", device=driver.pivot.disks[0].job, speed=0)
    pivot = await (bed.engine.closed(driver) if phase is Phase.COPYING else bed.complete(driver))
    bed.assert_switched(pivot)
    await bed.acks()
    assert bed.judge.boots() == 2
    bed.assert_holds_all(pivot)


@pytest.mark.parametrize("phase", [Phase.COPYING, Phase.READY])
async def test_a_person_stops_the_guest_during_the_copy(bed: Bed, phase: Phase):
    """tp-qemu, stop and cont by a person: the switch is made in their pause, which stays until they end it."""
    await bed.guest(bed.image(fill="16M"))
    driver = await (bed.to_copying(bed.target()) if phase is Phase.COPYING else bed.to_ready(bed.target()))
    bed.qemu.spy("stop")
    bed.qemu.spy("block-job-set-speed", device=driver.pivot.disks[0].job, speed=0)
    pivot = await (bed.engine.closed(driver) if phase is Phase.COPYING else bed.complete(driver))
    bed.assert_switched(pivot, run_state="paused")
    assert pivot.pause_ms is None, "it was not our pause"
    bed.qemu.spy("cont")
    await bed.acks()
    bed.assert_holds_all(pivot)


async def test_a_person_stops_and_resumes_again_and_again(bed: Bed):
    """tp-qemu, stop and cont in a loop around the switch: no write is lost, and the last word is the person's."""
    await bed.guest(bed.image())
    driver = await bed.to_ready(bed.target(), attempts=100)
    await driver.complete(driver.pivot.requested_by)
    for _ in range(15):
        bed.qemu.spy("stop")
        bed.qemu.spy("cont")
        await bed.acks(3)
    pivot = await bed.engine.closed(driver)
    assert bed.qemu.run_state() == "running"
    assert bed.qemu.root().filename == str(
        {"switched": bed.target(), "kept": bed.directory / "old.qcow2"}[pivot.outcome or ""]
    )
    await bed.acks()
    bed.assert_holds_all(pivot)


@pytest.mark.parametrize("phase", [Phase.COPYING, Phase.READY])
async def test_guest_powerdown_during_the_copy(bed: Bed, phase: Phase):
    """tp-qemu, powerdown with QEMU kept alive: the disks of a guest that has shut down are moved, it is not started."""
    # A reset that ends as a shutdown: without an operating system nobody presses the power button.
    await bed.guest(bed.image(fill="16M"), no_shutdown=True, extra=["-no-reboot"])
    driver = await (bed.to_copying(bed.target()) if phase is Phase.COPYING else bed.to_ready(bed.target()))
    bed.qemu.spy("system_reset")
    bed.qemu.await_event("STOP")
    bed.qemu.spy("block-job-set-speed", device=driver.pivot.disks[0].job, speed=0)
    pivot = await (bed.engine.closed(driver) if phase is Phase.COPYING else bed.complete(driver))
    bed.assert_switched(pivot, run_state="shutdown")
    bed.assert_holds_all(pivot)


# -- options ------------------------------------------------------------------------------------------------------


async def test_speed_limit(bed: Bed):
    """tp-qemu, set speed: the copy takes as long as the limit says."""
    await bed.domain(bed.image(fill="24M"))
    started_s = time.monotonic()
    pivot = await bed.engine.closed(await bed.copy(bed.target(), bandwidth_bytes_per_s=12 << 20))
    bed.assert_switched(pivot)
    # QEMU counts in slices of 100 ms, and lets the first requests pass.
    assert time.monotonic() - started_s > 0.8


async def test_speed_raised_by_somebody_else(bed: Bed):
    """tp-qemu, set speed while it runs: somebody's new limit counts, and the pivot goes on."""
    await bed.guest(bed.image(fill="24M"))
    driver = await bed.to_copying(bed.target(), bandwidth_bytes_per_s=1)
    bed.qemu.spy("block-job-set-speed", device=driver.pivot.disks[0].job, speed=0)
    pivot = await bed.engine.closed(driver)
    bed.assert_switched(pivot)
    bed.assert_holds_all(pivot)


async def test_several_disks_under_io(bed: Bed):
    """tp-qemu, several disks with I/O on each: one pause, all switched, no write lost on any."""
    await bed.guest(bed.image("old0.qcow2"), bed.image("old1.raw"))
    pivot = await bed.engine.closed(await bed.copy(bed.target("new0.qcow2"), bed.target("new1.qcow2")))
    bed.assert_switched(pivot)
    assert len([pause for pause in pivot.pauses if pause.ended == "switched"]) == 1
    await bed.acks()
    bed.assert_holds_all(pivot)
