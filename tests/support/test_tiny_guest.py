"""The tiny guest writes what it says, and its judge would see if it did not."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import QemuFactory
from tests.support.qemu import Disk, create_image
from tests.support.tiny_guest import TinyGuest

pytestmark = pytest.mark.qemu


def test_every_acknowledged_number_is_in_the_image(qemu_factory: QemuFactory, tmp_path: Path):
    """Killed while it writes to two disks: both hold every number said."""
    guest = TinyGuest(disks=2)
    images = [create_image(tmp_path / f"{name}.qcow2") for name in "ab"]
    qemu = qemu_factory([Disk(image, bus="ide") for image in images], guest=guest)
    judge = guest.judge(qemu)
    judge.await_acks(more_than=300)
    qemu.kill()
    assert [judge.missing(image, "qcow2") for image in images] == [[], []]


def test_an_image_that_was_left_behind_is_seen(qemu_factory: QemuFactory, tmp_path: Path):
    """The judge names the numbers that a copy of before lacks."""
    guest = TinyGuest()
    image = create_image(tmp_path / "a.qcow2")
    qemu = qemu_factory([Disk(image, bus="ide")], guest=guest)
    judge = guest.judge(qemu)
    judge.await_acks(more_than=20)
    qemu.spy("stop")
    copy = tmp_path / "copy.qcow2"
    copy.write_bytes(image.read_bytes())
    before = judge.last_ack()
    qemu.spy("cont")
    now = judge.await_acks(more_than=before + 40)
    qemu.kill()
    assert judge.missing(copy, "qcow2", before) == []
    missing = judge.missing(copy, "qcow2")
    assert missing, "the copy is old"
    assert set(missing) <= set(range(before + 1, judge.last_ack() + 1)), (before, now)


def test_a_reset_goes_on_counting(qemu_factory: QemuFactory, tmp_path: Path):
    """No number is used twice, so an older life cannot excuse a lost write of a newer one."""
    guest = TinyGuest()
    qemu = qemu_factory([Disk(create_image(tmp_path / "a.qcow2"), bus="ide")], guest=guest)
    judge = guest.judge(qemu)
    before = judge.await_acks(more_than=20)
    qemu.spy("system_reset")
    judge.await_acks(more_than=before + 40)
    assert judge.boots() == 2
