"""Guests on loop devices: a device is the file that is behind it now, under whatever name."""

from __future__ import annotations

import pytest

from tests.cli.ctl import complaint
from tests.cli.test_images import Guest, guest
from tests.support.loop_devices import LoopDevice, disk_of
from tests.support.qemu import Disk, Qemu, create_image

__all__ = ["guest"]
pytestmark = [pytest.mark.qemu]


def runs_on(guest: Guest, *disks: Disk) -> None:
    """Start the guest again with these disks."""
    guest.qemu.stop()
    guest.qemu = Qemu(guest.directory, list(disks)).start()
    guest.until("connected", "connection")


def test_a_stale_image_below_a_disk_is_not_named_for_deletion(guest: Guest):
    """Nor one on which there is a device at all: something else may use that."""
    old = guest.disks[0]
    new = guest.moved()
    assert guest.ctl("stale", "-q").stdout == f"{old}\n"
    with LoopDevice(old) as device:
        assert (guest.ctl("stale", "-q").stdout, guest.json("stale").json[0]["used_by"]) == ("", str(device))
        runs_on(guest, Disk(new), disk_of(device))
        guest.noted("old-image-used")
        assert (guest.ctl("stale", "-q").stdout, guest.json("stale").json) == ("", [])
        guest.qemu.stop()


@pytest.mark.parametrize("away", [False, True])
def test_a_device_on_a_stale_image_is_stale(guest: Guest, away: bool):
    """To start a disk with that was never moved, or the one that has left the image; also without the daemon."""
    old, link = guest.disks[0], guest.directory / "link.qcow2"
    link.hardlink_to(old)
    guest.moved()
    guest.qemu.stop()
    with LoopDevice(link) as device:
        if away:
            guest.daemon.kill()
        for disk in ("disk0", "disk1"):
            refused = guest.ctl("guard", "web1", f"{disk}={device}", "--wait", "0", offline=away)
            assert refused.status == 4, refused
        assert "stale for web1 disk0" in complaint(refused)
        default = guest.ctl("image", "web1", "disk1", "--default", device, "--wait", "0", offline=away)
        assert (default.status, default.stdout) == (4, "")
        shown = guest.ctl("verdict", "--image", device, offline=away)
        assert shown.stdout.startswith(f"{device}  stale")


def test_a_guest_that_runs_on_a_device_on_its_stale_image(guest: Guest):
    """That image is not named for deletion afterwards: it may have writes that no other one has."""
    old = guest.disks[0]
    guest.moved()
    with LoopDevice(old) as device:
        runs_on(guest, disk_of(device), Disk(guest.disks[1]))
        guest.noted("ran-on-other-image")
        guest.qemu.stop()
    rows = guest.json("verdict", "--image", old).json
    assert [row["standing"] for row in rows] == ["unknown"]


def test_a_device_to_which_a_disk_has_moved_has_another_file_now(guest: Guest):
    """While the guest is off, with the daemon and without; with the first file again, it is the right image again."""
    images = [create_image(guest.directory / name, image_format="raw") for name in ("one.raw", "two.raw")]
    loop = LoopDevice(images[0])
    with loop as device:
        assert guest.ctl("copy", "web1", f"disk0={device}", "--format", "raw", "--reuse").status == 0
        guest.qemu.stop()
        asked = ("image", "web1", "disk0", "--wait", "0")

        def says() -> set[int]:
            return {guest.ctl(*asked, offline=offline).status for offline in (False, True)}

        assert says() == {0}
        loop.detach()
        assert says() == {6}
        loop.attach(images[1])
        assert says() == {6}
        assert "leads to another file now" in complaint(guest.ctl("guard", "web1", f"disk0={device}", "--wait", "0"))
        loop.detach()
        loop.attach(images[0], "--offset", "65536")
        assert says() == {6}
        loop.detach()
        loop.attach(images[0])
        assert says() == {0}


def test_a_guest_that_runs_on_another_file_behind_its_device(guest: Guest):
    """Its name and number are right, and its data is not."""
    images = [create_image(guest.directory / name, image_format="raw") for name in ("one.raw", "two.raw")]
    loop = LoopDevice(images[0])
    with loop as device:
        assert guest.ctl("copy", "web1", f"disk0={device}", "--format", "raw", "--reuse").status == 0
        guest.qemu.stop()
        loop.detach()
        loop.attach(images[1])
        runs_on(guest, disk_of(device, "raw"), Disk(guest.disks[1]))
        assert guest.ctl("image", "web1", "disk0", "--wait", "0").status == 6
        guest.noted("ran-on-other-image")
        guest.qemu.stop()
        loop.detach()
        loop.attach(images[0])
        assert guest.ctl("image", "web1", "disk0", "--wait", "0").status == 6


def test_a_device_that_a_person_has_accepted_has_another_file_now(guest: Guest):
    """The word was for the file that was behind it."""
    images = [create_image(guest.directory / name, image_format="raw") for name in ("one.raw", "two.raw")]
    guest.moved()
    guest.qemu.stop()
    loop = LoopDevice(images[0])
    with loop as device:
        word = ("verdict", "accept", "web1", "disk0", device, "--format", "raw", "--reason", "restored")
        assert guest.ctl(*word).status == 0
        asked = ("image", "web1", "disk0", "--wait", "0")
        assert guest.ctl(*asked).stdout == f"{device}\n"
        loop.detach()
        loop.attach(images[1])
        assert [guest.ctl(*asked, offline=offline).status for offline in (False, True)] == [6, 6]
