"""The judge is judged: it has to find what is missing before its silence means anything."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.conftest import QemuFactory
from tests.support.guest import BLOCK_BYTES, Guest, GuestJudge, GuestRefusedError, LostWritesError, end_torn_line
from tests.support.guest_assets import GuestAssets
from tests.support.qemu import Disk, create_image

SLOTS = 16


def _block(number: int, disk: str = "disk0") -> bytes:
    return f"pivotd {disk:<9} {number:>14}\n".encode() * (BLOCK_BYTES // 32)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "web1.serial"


@pytest.fixture
def judge(log: Path) -> GuestJudge:
    log.write_bytes(b"READY\r\nSTART disk0 0 -1\r\n" + b"".join(b"ACK disk0 %d\r\n" % n for n in range(21)))
    return GuestJudge(log, slots=SLOTS)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """What numbers 0 to 20 leave in a region of 16 blocks."""
    path = tmp_path / "disk0.raw"
    path.write_bytes(b"".join(_block(n) for n in [16, 17, 18, 19, 20, *range(5, 16)]))
    return path


def _overwrite(path: Path, slot: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(slot * BLOCK_BYTES)
        file.write(data)


def test_a_complete_image_has_nothing_missing(judge: GuestJudge, image: Path) -> None:
    """An image with every acknowledged number is complete."""
    assert judge.check_image(image, "raw") == []


def test_a_removed_block_is_found(judge: GuestJudge, image: Path) -> None:
    """A block of zeros is reported by the number that belongs there."""
    _overwrite(image, 7, bytes(BLOCK_BYTES))
    assert judge.check_image(image, "raw") == [7]


def test_an_older_number_is_missing(judge: GuestJudge, image: Path) -> None:
    """A block that still holds the number of the round before is stale."""
    _overwrite(image, 4, _block(4))
    assert judge.check_image(image, "raw") == [20]


def test_a_torn_block_is_found(judge: GuestJudge, image: Path) -> None:
    """One old sector inside a new block counts as missing."""
    _overwrite(image, 3, _block(3)[:512])
    assert judge.check_image(image, "raw") == [19]


def test_another_disks_block_is_missing(judge: GuestJudge, image: Path) -> None:
    """The right number of the wrong disk does not count."""
    _overwrite(image, 3, _block(19, "disk1"))
    assert judge.check_image(image, "raw") == [19]


def test_a_later_number_counts_as_held(judge: GuestJudge, image: Path) -> None:
    """A write that was under way without an ACK may be on the image."""
    _overwrite(image, 5, _block(21))
    assert judge.check_image(image, "raw") == []


def test_a_shorter_image_is_not_complete(judge: GuestJudge, image: Path) -> None:
    """Blocks behind the end of an image are missing."""
    with image.open("r+b") as file:
        file.truncate(14 * BLOCK_BYTES)
    assert judge.check_image(image, "raw") == [14, 15]


def test_an_earlier_last_ack_asks_for_less(judge: GuestJudge, image: Path) -> None:
    """With last_ack the judge asks only for what was acknowledged until then."""
    _overwrite(image, 4, _block(4))
    assert judge.check_image(image, "raw", last_ack=19) == []


def test_a_half_written_ack_is_no_ack(judge: GuestJudge, log: Path) -> None:
    """A line without its end may be the beginning of a longer number."""
    with log.open("ab") as file:
        file.write(b"ACK disk0 21")
    assert judge.last_ack() == 20


def test_a_cut_line_does_not_swallow_the_next_life(judge: GuestJudge, log: Path, image: Path) -> None:
    """Where QEMU's end cut a word, the word is none, and the START of the next life is seen."""
    with log.open("ab") as file:
        file.write(b"ACK disk0 2")
    end_torn_line(log)
    with log.open("ab") as file:
        file.write(b"START disk0 32 20\r\nACK disk0 32\r\n")
    _overwrite(image, 0, _block(32))
    assert judge.last_ack() == 32
    assert judge.check_image(image, "raw") == []


def test_nothing_acknowledged_is_no_verdict(tmp_path: Path, image: Path) -> None:
    """A judge without a single ACK refuses to call an image complete."""
    with pytest.raises(AssertionError, match="nothing to judge"):
        GuestJudge(tmp_path / "none.serial", slots=SLOTS).check_image(image, "raw")


def test_a_restart_with_less_is_an_error(judge: GuestJudge, log: Path) -> None:
    """A guest that finds less than it was told is on disk has lost writes."""
    with log.open("ab") as file:
        file.write(b"READY\r\nSTART disk0 32 19\r\n")
    with pytest.raises(LostWritesError, match="20 was acknowledged"):
        judge.last_ack()


@pytest.mark.guest
@pytest.mark.long
def test_a_guest_without_its_disk_refuses(qemu_factory: QemuFactory, guest_assets: GuestAssets, tmp_path: Path) -> None:
    """A guest that lacks one of its block devices says so and acknowledges nothing."""
    guest = Guest(guest_assets)
    qemu = qemu_factory([Disk(create_image(tmp_path / "a.qcow2"))], guest=guest, expect=["disk0", "disk1"])
    judge = guest.judge(qemu)
    with pytest.raises(GuestRefusedError, match="no block device for disk1"):
        judge.await_acks()
    assert judge.last_ack() == -1


@pytest.mark.guest
@pytest.mark.parametrize(
    ("bus", "cache"),
    [
        ("virtio-blk", "none"),
        *(
            pytest.param(bus, cache, marks=pytest.mark.long)
            for bus in ("virtio-blk", "virtio-scsi", "nvme", "ide")
            for cache in ("none", "writeback")
            if (bus, cache) != ("virtio-blk", "none")
        ),
    ],
)
def test_a_killed_qemu_loses_nothing_acknowledged(
    qemu_factory: QemuFactory, guest_assets: GuestAssets, tmp_path: Path, cache: str, bus: str
) -> None:
    """Right after an ACK, kill -9 of QEMU leaves every acknowledged write in the image."""
    guest = Guest(guest_assets)
    image = create_image(tmp_path / "a.qcow2")
    qemu = qemu_factory([Disk(image, cache=cache, bus=bus)], guest=guest)
    judge = guest.judge(qemu)
    judge.await_acks(more_than=20)
    qemu.kill()
    assert judge.check_image(image, "qcow2") == []


@pytest.mark.guest
def test_a_guest_that_does_not_flush_is_caught(
    qemu_factory: QemuFactory, guest_assets: GuestAssets, tmp_path: Path
) -> None:
    """ACKs without a flush are found to be untrue after kill -9: the flush is what makes the others true."""
    guest = Guest(guest_assets, flush=False)
    image = create_image(tmp_path / "a.qcow2")
    qemu = qemu_factory([Disk(image)], guest=guest)
    judge = guest.judge(qemu)
    judge.await_acks(more_than=20)
    qemu.kill()
    assert judge.check_image(image, "qcow2") != []


@pytest.mark.guest
def test_every_ack_follows_a_flush(qemu_factory: QemuFactory, guest_assets: GuestAssets, tmp_path: Path) -> None:
    """QEMU has counted at least as many flushes as the guest has acknowledged writes."""
    guest = Guest(guest_assets)
    qemu = qemu_factory([Disk(create_image(tmp_path / "a.qcow2"))], guest=guest)
    acks = guest.judge(qemu).await_acks(more_than=20) + 1
    assert qemu.stats()["flush_operations"] >= acks


@pytest.mark.guest
@pytest.mark.long
def test_a_removed_block_of_a_real_image_is_found(
    qemu_factory: QemuFactory, guest_assets: GuestAssets, tmp_path: Path
) -> None:
    """In an image that a guest has written, zeros over one block are reported by its number."""
    guest = Guest(guest_assets)
    image = create_image(tmp_path / "a.qcow2")
    qemu = qemu_factory([Disk(image)], guest=guest)
    judge = guest.judge(qemu)
    judge.await_acks(more_than=10)
    qemu.kill()
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", "write -q -z 12288 4096", str(image)], check=True)
    assert judge.check_image(image, "qcow2") == [3]


@pytest.mark.guest
@pytest.mark.long
def test_numbers_go_on_after_a_restart(qemu_factory: QemuFactory, guest_assets: GuestAssets, tmp_path: Path) -> None:
    """A QEMU started again on the same image goes on above every number acknowledged before."""
    guest = Guest(guest_assets, slots=SLOTS)
    disks = [Disk(create_image(tmp_path / "a.qcow2"))]
    first = qemu_factory(disks, guest=guest)
    before = guest.judge(first).await_acks(more_than=20)
    first.kill()
    second = qemu_factory(disks, guest=guest)
    judge = guest.judge(second)
    assert judge.await_acks(more_than=before + 5) > before


@pytest.mark.guest
def test_a_stale_image_is_noticed_at_the_next_boot(
    qemu_factory: QemuFactory, guest_assets: GuestAssets, tmp_path: Path
) -> None:
    """A guest started again on an image without its last writes makes the judge raise."""
    guest = Guest(guest_assets, slots=SLOTS)
    first = qemu_factory([Disk(create_image(tmp_path / "a.qcow2"))], guest=guest)
    guest.judge(first).await_acks(more_than=20)
    first.kill()
    second = qemu_factory([Disk(create_image(tmp_path / "stale.qcow2"))], guest=guest)
    with pytest.raises(LostWritesError):
        guest.judge(second).await_acks(more_than=100)


@pytest.mark.guest
@pytest.mark.long
def test_each_disk_has_numbers_of_its_own(qemu_factory: QemuFactory, guest_assets: GuestAssets, tmp_path: Path) -> None:
    """Two disks on different buses are written and judged separately."""
    guest = Guest(guest_assets)
    images = [create_image(tmp_path / "a.qcow2"), create_image(tmp_path / "b.raw", image_format="raw")]
    disks = [Disk(images[0], bus="virtio-scsi", iothread=True), Disk(images[1], "raw", legacy=True)]
    qemu = qemu_factory(disks, guest=guest)
    judge = guest.judge(qemu)
    for disk in ("disk0", "disk1"):
        judge.await_acks(disk, more_than=5)
    qemu.kill()
    missing = [judge.check_image(images[0], "qcow2", "disk0"), judge.check_image(images[1], "raw", "disk1")]
    assert missing == [[], []]


@pytest.mark.guest
@pytest.mark.long
def test_the_busy_guest_outruns_the_acks(qemu_factory: QemuFactory, guest_assets: GuestAssets, tmp_path: Path) -> None:
    """With write=both the guest dirties at least 64 KiB per acknowledged block of 4 KiB."""
    guest = Guest(guest_assets, write="both")
    qemu = qemu_factory([Disk(create_image(tmp_path / "a.qcow2", size="256M"))], guest=guest)
    judge = guest.judge(qemu)
    first = judge.await_acks(more_than=2)
    before = qemu.stats()["wr_bytes"]
    acks = judge.await_acks(more_than=first + 10) - first
    assert qemu.stats()["wr_bytes"] - before > acks << 16
