"""Copies of disks of a real QEMU without a guest kernel: every kind of disk, every way to end."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import subprocess
from pathlib import Path
from typing import Any

import pytest

from pivotd.core.pivot import Outcome, Phase
from pivotd.core.request import Requester
from pivotd.engine.inbox import Cancel
from pivotd.errors import BadRequestError, DiskBusyError, NotFoundError, PhaseConflictError
from tests.conftest import QemuFactory
from tests.support.qemu import Disk, Qemu, create_image, default_binary

from .conftest import Engine

WHO = Requester(0, 0, 1)
pytestmark = pytest.mark.qemu


def write(qemu: Qemu, disk: str, pattern: int, *, count: int = 8) -> None:
    """Write through the disk's device, as a guest would, and flush."""
    name = qemu_io_name(qemu, disk)
    for number in range(count):
        qemu.spy(
            "human-monitor-command", {"command-line": f'qemu-io {name} "write -q -P {pattern} {number * 65536} 4k"'}
        )
    qemu.spy("human-monitor-command", {"command-line": f'qemu-io {name} "flush"'})


def qemu_io_name(qemu: Qemu, disk: str) -> str:
    for entry in qemu.spy("query-block"):
        if disk in entry["qdev"]:
            return entry["device"] or f"-d {entry['qdev']}"
    raise AssertionError(disk)


def content(path: Path, image_format: str) -> str:
    """Return a digest of what a guest would read."""
    raw = path.with_suffix(".raw-view")
    subprocess.run(["qemu-img", "convert", "-U", "-f", image_format, "-O", "raw", str(path), str(raw)], check=True)
    digest = hashlib.sha256(raw.read_bytes()).hexdigest()
    raw.unlink()
    return digest


def assert_clean(qemu: Qemu, disks: int = 1) -> None:
    """No job of anybody, and for each disk its root and that root's file."""
    assert qemu.jobs() == {}
    assert len(qemu.nodes()) == 2 * disks
    assert [o["name"] for o in qemu.spy("qom-list", path="/objects") if o["name"].startswith("pivotd")] == []


# -- every kind of disk -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bus", ["virtio-blk", "virtio-scsi", "ide", "nvme"])
@pytest.mark.parametrize("legacy", [False, True], ids=["blockdev", "drive"])
async def test_a_disk_on_every_bus_is_switched(
    engine: Engine, qemu_factory: QemuFactory, tmp_path: Path, bus: str, legacy: bool
):
    """The root is the destination, the guest runs, nothing is left behind, both images are equal at the switch."""
    source = create_image(tmp_path / "old.qcow2")
    qemu = qemu_factory([Disk(source, bus=bus, legacy=legacy)])
    await engine.connect(qemu)
    write(qemu, "disk0", 7)
    pivot = await engine.closed(await engine.copy("web1", {"disk0": tmp_path / "new.qcow2"}))
    assert pivot.outcome == Outcome.SWITCHED, pivot.error
    assert qemu.root("disk0").filename == str(tmp_path / "new.qcow2")
    assert qemu.run_state() == "running"
    assert pivot.pause_ms is not None
    assert_clean(qemu)
    qemu.kill(15)
    qemu.wait()
    assert content(source, "qcow2") == content(tmp_path / "new.qcow2", "qcow2")


@pytest.mark.parametrize("iothread_bus", ["virtio-blk", "virtio-scsi"])
async def test_a_disk_in_an_iothread_is_switched(
    engine: Engine, qemu_factory: QemuFactory, tmp_path: Path, iothread_bus: str
):
    """Disks served by a thread of their own."""
    qemu = qemu_factory([Disk(create_image(tmp_path / "old.qcow2"), bus=iothread_bus, iothread=True)])
    await engine.connect(qemu)
    pivot = await engine.closed(await engine.copy("web1", {"disk0": tmp_path / "new.qcow2"}))
    assert pivot.outcome == Outcome.SWITCHED, pivot.error
    assert_clean(qemu)


@pytest.mark.parametrize(("old", "new"), [("raw", "qcow2"), ("qcow2", "raw"), ("raw", "raw")])
async def test_formats_both_ways(engine: Engine, qemu_factory: QemuFactory, tmp_path: Path, old: str, new: str):
    """Raw and qcow2, from and to."""
    source = create_image(tmp_path / f"old.{old}", image_format=old)
    qemu = qemu_factory([Disk(source, format=old)])
    await engine.connect(qemu)
    write(qemu, "disk0", 9)
    pivot = await engine.closed(await engine.copy("web1", {"disk0": tmp_path / f"new.{new}"}, new))
    assert pivot.outcome == Outcome.SWITCHED, pivot.error
    qemu.kill(15)
    qemu.wait()
    assert content(source, old) == content(tmp_path / f"new.{new}", new)


@pytest.mark.parametrize("disks", [2, 4])
async def test_several_disks_switch_as_one(engine: Engine, qemu_factory: QemuFactory, tmp_path: Path, disks: int):
    """All or none, in one pause."""
    qemu = qemu_factory([Disk(create_image(tmp_path / f"old{i}.qcow2")) for i in range(disks)])
    await engine.connect(qemu)
    pivot = await engine.closed(
        await engine.copy("web1", {f"disk{i}": tmp_path / f"new{i}.qcow2" for i in range(disks)})
    )
    assert pivot.outcome == Outcome.SWITCHED, pivot.error
    assert len(pivot.pauses) == 1
    assert [qemu.root(f"disk{i}").filename for i in range(disks)] == [
        str(tmp_path / f"new{i}.qcow2") for i in range(disks)
    ]
    assert_clean(qemu, disks)


@pytest.mark.parametrize("granularity", [None, 1 << 20])
async def test_the_granularity_is_what_a_small_write_costs(
    engine: Engine, qemu_factory: QemuFactory, tmp_path: Path, granularity: int | None
):
    """QEMU's own is 64 KiB; the pivot tells that it was asked for another one."""
    qemu = qemu_factory([Disk(create_image(tmp_path / "old.qcow2"))])
    await engine.connect(qemu)
    new = {"disk0": tmp_path / "new.qcow2"}
    driver = await engine.copy("web1", new, pivot=False, granularity_bytes=granularity)
    pivot = await engine.resting(driver)

    def length() -> int:
        return int(next(job["len"] for job in qemu.spy("query-block-jobs") if job["device"] == pivot.disks[0].job))

    before = length()
    write(qemu, "disk0", 7, count=1)
    async with asyncio.timeout(60):
        while length() == before:
            await asyncio.sleep(0.02)
    assert length() - before == (granularity or 1 << 16)
    assert pivot.options.granularity_bytes == granularity


async def test_an_existing_image_is_reused(engine: Engine, qemu_factory: QemuFactory, tmp_path: Path):
    """--reuse opens what is there."""
    qemu = qemu_factory([Disk(create_image(tmp_path / "old.qcow2"))])
    await engine.connect(qemu)
    target = create_image(tmp_path / "new.qcow2")
    pivot = await engine.closed(await engine.copy("web1", {"disk0": target}, reuse=True))
    assert pivot.outcome == Outcome.SWITCHED, pivot.error


async def test_domains_side_by_side(engine: Engine, qemu_factory: QemuFactory, tmp_path: Path):
    """Three domains at once; each gets its own outcome."""
    names = ["web1", "web2", "web3"]
    for name in names:
        qemu = qemu_factory([Disk(create_image(tmp_path / f"{name}-old.qcow2"))], name=name)
        await engine.connect(qemu, name)
    drivers = [await engine.copy(name, {"disk0": tmp_path / f"{name}-new.qcow2"}) for name in names]
    assert {(await engine.closed(driver)).outcome for driver in drivers} == {Outcome.SWITCHED.value}


async def test_two_pivots_of_one_domain_pause_it_one_after_the_other(
    engine: Engine, qemu_factory: QemuFactory, tmp_path: Path
):
    """Two disks, two pivots, one guest: both switch, and each resumed only its own pause."""
    qemu = qemu_factory([Disk(create_image(tmp_path / f"old{i}.qcow2")) for i in range(2)])
    await engine.connect(qemu)
    drivers = [await engine.copy("web1", {f"disk{i}": tmp_path / f"new{i}.qcow2"}) for i in range(2)]
    assert [(await engine.closed(driver)).outcome for driver in drivers] == ["switched", "switched"]
    assert qemu.run_state() == "running"
    assert_clean(qemu, 2)


async def test_the_same_disk_again_and_back(engine: Engine, qemu_factory: QemuFactory, tmp_path: Path):
    """Names are never used twice, so a disk can move on and on."""
    qemu = qemu_factory([Disk(create_image(tmp_path / "old.qcow2"))])
    await engine.connect(qemu)
    for number in range(3):
        pivot = await engine.closed(await engine.copy("web1", {"disk0": tmp_path / f"new{number}.qcow2"}))
        assert pivot.outcome == Outcome.SWITCHED, pivot.error
    assert_clean(qemu)


# -- run states ---------------------------------------------------------------------------------------------------


async def test_a_paused_guest_stays_paused(engine: Engine, qemu_factory: QemuFactory, tmp_path: Path):
    """Somebody else's pause is left alone, and none is reported."""
    qemu = qemu_factory([Disk(create_image(tmp_path / "old.qcow2"))])
    qemu.spy("stop")
    await engine.connect(qemu)
    pivot = await engine.closed(await engine.copy("web1", {"disk0": tmp_path / "new.qcow2"}))
    assert pivot.outcome == Outcome.SWITCHED, pivot.error
    assert qemu.run_state() == "paused"
    assert pivot.pause_ms is None


async def test_a_guest_that_was_never_started_is_not_started(engine: Engine, qemu_factory: QemuFactory, tmp_path: Path):
    """-S: prelaunch before, prelaunch after."""
    qemu = qemu_factory([Disk(create_image(tmp_path / "old.qcow2"))], paused=True)
    await engine.connect(qemu)
    pivot = await engine.closed(await engine.copy("web1", {"disk0": tmp_path / "new.qcow2"}))
    assert pivot.outcome == Outcome.SWITCHED, pivot.error
    assert qemu.run_state() == "prelaunch"


# -- the deadline, completing by hand, cancelling -----------------------------------------------------------------


async def test_a_deadline_that_cannot_be_met_keeps_source_and_mirror(
    engine: Engine, qemu_factory: QemuFactory, tmp_path: Path
):
    """No time at all: kept, waiting at ready, the mirror in place."""
    qemu = qemu_factory([Disk(create_image(tmp_path / "old.qcow2"))])
    await engine.connect(qemu)
    driver = await engine.copy("web1", {"disk0": tmp_path / "new.qcow2"}, max_pause_ms=0, attempts=2)
    pivot = await engine.resting(driver)
    assert (pivot.phase, pivot.outcome) == (Phase.READY, "kept"), pivot.error
    assert len(pivot.pauses) == 2
    assert [pause.ended for pause in pivot.pauses] == ["ready", "kept"]
    assert qemu.run_state() == "running"
    assert qemu.jobs()[pivot.disks[0].job]["status"] == "ready"
    assert qemu.root("disk0").filename == str(tmp_path / "old.qcow2")
    driver.state.inbox.post(Cancel(WHO))
    assert (await engine.closed(driver)).outcome == Outcome.KEPT
    assert_clean(qemu)


async def test_no_pivot_waits_and_completes_when_told(engine: Engine, qemu_factory: QemuFactory, tmp_path: Path):
    """--no-pivot, then `pivot complete`."""
    qemu = qemu_factory([Disk(create_image(tmp_path / "old.qcow2"))])
    await engine.connect(qemu)
    driver = await engine.copy("web1", {"disk0": tmp_path / "new.qcow2"}, pivot=False)
    pivot = await engine.resting(driver)
    assert (pivot.phase, pivot.outcome, pivot.pauses) == (Phase.READY, None, ())
    write(qemu, "disk0", 5)
    await driver.complete(pivot.requested_by)
    assert (await engine.closed(driver)).outcome == Outcome.SWITCHED
    qemu.kill(15)
    qemu.wait()
    assert content(tmp_path / "old.qcow2", "qcow2") == content(tmp_path / "new.qcow2", "qcow2")


@pytest.mark.parametrize("phase", [Phase.PREPARING, Phase.COPYING, Phase.READY, Phase.PAUSING])
async def test_cancel_at_every_phase_leaves_the_guest_on_its_source_or_says_switched(
    engine: Engine, qemu_factory: QemuFactory, tmp_path: Path, phase: Phase
):
    """Whatever the cancel met: the outcome is what the graph shows, the guest runs, nothing is left."""
    qemu = qemu_factory([Disk(create_image(tmp_path / "old.qcow2"))])
    await engine.connect(qemu)
    driver = await engine.copy("web1", {"disk0": tmp_path / "new.qcow2"}, pivot=phase is not Phase.READY)
    await engine.until(driver, lambda pivot: pivot.phase is phase or pivot.phase is Phase.CLOSED)
    driver.state.inbox.post(Cancel(WHO))
    pivot = await engine.closed(driver)
    name = {"kept": "old.qcow2", "switched": "new.qcow2"}[pivot.outcome or ""]
    assert qemu.root("disk0").filename == str(tmp_path / name)
    assert phase is Phase.PAUSING or pivot.outcome == Outcome.KEPT
    assert qemu.run_state() == "running"
    assert_clean(qemu)


# -- what cannot work ---------------------------------------------------------------------------------------------


async def refused(engine: Engine, error: type[Exception], targets: dict[str, Path], **options: Any) -> str:
    with pytest.raises(error) as caught:
        await engine.copy("web1", targets, **options)
    assert engine.journal.last_seq == 0, "nothing was recorded"
    return str(caught.value)


async def test_unknown_disk_is_refused(engine: Engine, qemu_factory: QemuFactory, tmp_path: Path):
    """The message names the disks that there are."""
    await engine.connect(qemu_factory([Disk(create_image(tmp_path / "old.qcow2"))]))
    assert "disk0" in await refused(engine, NotFoundError, {"disk9": tmp_path / "new.qcow2"})


async def test_the_same_image_is_refused(engine: Engine, qemu_factory: QemuFactory, tmp_path: Path):
    """Also under another name."""
    source = create_image(tmp_path / "old.qcow2")
    (tmp_path / "link.qcow2").hardlink_to(source)
    await engine.connect(qemu_factory([Disk(source)]))
    assert "present image" in await refused(engine, BadRequestError, {"disk0": tmp_path / "link.qcow2"}, reuse=True)


async def test_an_image_of_another_disk_is_refused(engine: Engine, qemu_factory: QemuFactory, tmp_path: Path):
    """Two disks on one image destroy it."""
    disks = [Disk(create_image(tmp_path / f"old{i}.qcow2")) for i in range(2)]
    await engine.connect(qemu_factory(disks))
    assert "in use by disk1" in await refused(engine, BadRequestError, {"disk0": tmp_path / "old1.qcow2"}, reuse=True)


async def test_an_existing_image_is_refused_without_reuse(engine: Engine, qemu_factory: QemuFactory, tmp_path: Path):
    """Nothing is overwritten by mistake."""
    await engine.connect(qemu_factory([Disk(create_image(tmp_path / "old.qcow2"))]))
    target = create_image(tmp_path / "new.qcow2")
    before = target.read_bytes()
    assert "--reuse" in await refused(engine, BadRequestError, {"disk0": target})
    assert target.read_bytes() == before


async def test_a_missing_directory_is_refused(engine: Engine, qemu_factory: QemuFactory, tmp_path: Path):
    """The message names the directory."""
    await engine.connect(qemu_factory([Disk(create_image(tmp_path / "old.qcow2"))]))
    assert "does not exist" in await refused(engine, BadRequestError, {"disk0": tmp_path / "no" / "new.qcow2"})


async def test_a_disk_in_a_job_of_somebody_else_is_refused(engine: Engine, qemu_factory: QemuFactory, tmp_path: Path):
    """The message names the job."""
    qemu = qemu_factory([Disk(create_image(tmp_path / "old.qcow2"))])
    other = create_image(tmp_path / "other.qcow2")
    qemu.spy("blockdev-add", {"driver": "qcow2", "node-name": "o", "file": {"driver": "file", "filename": str(other)}})
    qemu.spy("blockdev-mirror", job_id="theirs", device="src0", target="o", sync="full")
    await engine.connect(qemu)
    assert "theirs" in await refused(engine, DiskBusyError, {"disk0": tmp_path / "new.qcow2"})


async def test_a_second_pivot_of_a_disk_is_refused_with_the_id_of_the_first(
    engine: Engine, qemu_factory: QemuFactory, tmp_path: Path
):
    """One pivot per disk at a time."""
    await engine.connect(qemu_factory([Disk(create_image(tmp_path / "old.qcow2"))]))
    driver = await engine.copy("web1", {"disk0": tmp_path / "a.qcow2"}, pivot=False)
    await engine.resting(driver)
    with pytest.raises(DiskBusyError, match=driver.pivot.id):
        await engine.copy("web1", {"disk0": tmp_path / "b.qcow2"})


async def test_a_full_destination_is_waited_for(engine: Engine, qemu_factory: QemuFactory, tmp_path: Path):
    """The copy waits for room, the guest runs on, and nothing is copied again."""
    if default_binary()[0] == "chroot":
        pytest.skip("a QEMU in another root does not see the small file system")
    qemu = qemu_factory([Disk(create_image(tmp_path / "old.raw", image_format="raw"), format="raw")])
    await engine.connect(qemu)
    small = tmp_path / "full"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(small)], check=False)
    if mounted.returncode:
        pytest.skip("needs root to mount a small file system")
    try:
        write(qemu, "disk0", 4, count=64)
        driver = await engine.copy("web1", {"disk0": small / "new.qcow2"}, "qcow2")
        async with asyncio.timeout(60):
            while "is full" not in driver.waits_for:
                await asyncio.sleep(0.02)
        assert (driver.pivot.phase, qemu.run_state()) == (Phase.COPYING, "running")
        subprocess.run(["mount", "-o", "remount,size=8m", str(small)], check=True)
        pivot = await engine.closed(driver)
        assert pivot.outcome == Outcome.SWITCHED, pivot.error
        assert_clean(qemu)
        qemu.stop()
    finally:
        subprocess.run(["umount", "-l", str(small)], check=True)


@pytest.mark.parametrize("event", ["pwritev", "flush_to_disk"])
async def test_a_failing_destination_ends_kept(engine: Engine, qemu_factory: QemuFactory, tmp_path: Path, event: str):
    """Writes or flushes of the destination fail while it is ready: never switched to, and the guest runs on."""
    qemu = qemu_factory([Disk(create_image(tmp_path / "old.raw", image_format="raw"), format="raw")])
    await engine.connect(qemu)
    driver = await engine.copy("web1", {"disk0": tmp_path / "new.raw"}, pivot=False)
    pivot = await engine.resting(driver)
    # Slip a failing layer below the destination, as a broken disk would be.
    inject = {"event": event, "errno": 5, "once": False}
    if event == "flush_to_disk":
        inject["iotype"] = "flush"
    node = f"p{pivot.id}-0f"
    qemu.spy("blockdev-add", {"driver": "blkdebug", "node-name": "bad", "image": node, "inject-error": [inject]})
    qemu.spy(
        "blockdev-reopen", {"options": [{"driver": "raw", "node-name": pivot.disks[0].destination.node, "file": "bad"}]}
    )
    write(qemu, "disk0", 4)
    # Where that write has failed before the switch is asked for, it is as good.
    with contextlib.suppress(PhaseConflictError):
        await driver.complete(pivot.requested_by)
    pivot = await engine.closed(driver)
    assert pivot.outcome == Outcome.KEPT
    assert "Input/output error" in (pivot.error or ""), pivot.error
    assert qemu.run_state() == "running"
    assert qemu.root("disk0").filename == str(tmp_path / "old.raw")


async def test_two_devices_of_one_name_are_told_apart(engine: Engine, qemu_factory: QemuFactory, tmp_path: Path):
    """A drive called like another device's id: each is known by its path, and the right one moves."""
    images = [create_image(tmp_path / f"old{number}.qcow2") for number in range(2)]
    drive = f"if=none,id=disk0,file={images[1]},format=qcow2,cache=none"
    extra = ["-drive", drive, "-device", "virtio-blk-pci,drive=disk0"]
    qemu = qemu_factory([Disk(images[0])], extra=extra)
    supervisor = await engine.connect(qemu)
    assert supervisor.session is not None
    disks = await supervisor.session.disks()
    paths = {Path(disk.filename).name: name for name, disk in disks.items()}
    assert sorted(paths) == ["old0.qcow2", "old1.qcow2"]
    pivot = await engine.closed(await engine.copy("web1", {paths["old1.qcow2"]: tmp_path / "new.qcow2"}))
    assert pivot.outcome == Outcome.SWITCHED, pivot.error
    now = {entry["inserted"]["file"] for entry in qemu.spy("query-block")}
    assert now == {str(images[0]), str(tmp_path / "new.qcow2")}
