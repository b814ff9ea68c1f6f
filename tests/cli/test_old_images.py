"""A guest that runs under another name on an image that its disk has left, or a copy that somebody starts from that."""

from __future__ import annotations

import pytest

from tests.cli.ctl import complaint
from tests.cli.test_images import Guest, guest
from tests.support.qemu import Disk, Qemu, create_image
from tests.support.waiting import until

__all__ = ["guest"]
pytestmark = [pytest.mark.qemu]


def start_as_vda(guest: Guest) -> None:
    """Start the guest again, its disk0 as vda on the image before the last move."""
    guest.qemu.stop()
    guest.qemu = Qemu(guest.directory, [Disk(guest.disks[0], name="vda"), Disk(guest.disks[1], name="vdb")]).start()
    guest.until("connected", "connection")


def test_a_disk_with_another_id_on_a_stale_image(guest: Guest):
    """As after a change of its definition: an alarm, no pivot, nothing certain, and no name to delete."""
    old, new = guest.disks[0], guest.moved()
    start_as_vda(guest)
    (alarm,) = guest.until(None, "alarms")  # type: ignore[misc]
    assert f"vda runs on {old}, but pivot " in alarm
    assert f"has moved the data to {new}: somebody changed the disk without pivotd" in alarm
    guest.noted("ran-on-other-image")
    refused = guest.ctl("copy", "web1", f"vda={guest.path('third')}")
    assert (refused.status, "`pivotctl verdict accept web1 disk0 IMAGE" in complaint(refused)) == (4, True), refused
    assert guest.ctl("image", "web1", "disk0").status == 6
    guest.qemu.stop()
    for offline in (False, True):
        refused = guest.ctl("image", "web1", "disk0", "--wait", "0", offline=offline)
        assert (refused.status, f"but the guest ran on {old}" in complaint(refused)) == (6, True), refused
    guest.start_on(new)
    guest.noted("image-seen")
    assert guest.ctl("image", "web1", "disk0").stdout == f"{new}\n"
    assert guest.ctl("stale", "-q").stdout == ""
    assert guest.ctl("verdict", "accept", "web1", "disk0", new, "--reason", "compared").status == 0
    assert str(old) in guest.ctl("stale", "-q").stdout


@pytest.mark.parametrize("word", ["old", "new"])
def test_a_word_on_a_disk_with_another_id(guest: Guest, word: str):
    """Whatever a person has chosen: the disk that runs on the old image may be moved then, and its alarm goes."""
    guest.moved()
    start_as_vda(guest)
    guest.until(None, "alarms")
    assert guest.ctl("verdict", "accept", "web1", "disk0", guest.path(word), "--reason", "so").status == 0
    guest.until([], "alarms")
    assert guest.ctl("copy", "web1", f"vda={guest.path('third')}").status == 0


def test_a_saved_guest_that_goes_on_from_a_stale_image(guest: Guest):
    """It has left by a migration to a file: no other host can have moved its disk to an image that is stale here."""
    old, new, saved = guest.disks[0], guest.moved(), guest.directory / "saved"
    guest.qemu.spy("migrate", uri=f"exec:cat > {saved}")
    guest.noted("guest-left")
    guest.qemu.stop()
    disks = [Disk(old), Disk(guest.disks[1])]
    guest.qemu = Qemu(guest.directory, disks, extra=["-incoming", f"exec:cat {saved}"]).start()
    guest.noted("ran-on-other-image")
    guest.start_on(new)
    guest.noted("image-seen")
    assert guest.ctl("image", "web1", "disk0").stdout == f"{new}\n"
    assert guest.ctl("stale", "-q").stdout == ""


def test_a_guest_with_another_name_on_a_stale_image(guest: Guest):
    """Its old domain does not run: one guest or two, nobody knows."""
    old, new = guest.disks[0], guest.moved()
    guest.qemu.stop()
    with Qemu(guest.directory, [Disk(old)], name="web9") as other:
        assert guest.ctl("domain", "add", "web9", "--qmp", other.qmp).status == 0
        guest.noted("ran-on-other-image")
        assert until(lambda: bool(guest.json("domain", "show", "web9").json["alarms"]))
        assert guest.ctl("image", "web1", "disk0", "--wait", "0").status == 6
        assert guest.ctl("verdict", "accept", "web1", "disk0", new, "--reason", "web9 is a copy").status == 0
        assert until(lambda: not guest.json("domain", "show", "web9").json["alarms"])
        assert guest.ctl("copy", "web9", f"disk0={guest.path('third')}").status == 0


def test_a_copy_that_is_started_from_a_stale_image(guest: Guest):
    """The guest runs on its right image: no alarm and no doubt, but the old image is another guest's now."""
    old, new = guest.disks[0], guest.moved()
    with Qemu(guest.directory, [Disk(old)], name="copy") as other:
        assert guest.ctl("domain", "add", "copy", "--qmp", other.qmp).status == 0
        guest.noted("old-image-used")
        assert guest.json("domain", "show", "copy").json["alarms"] == []
        assert guest.ctl("image", "web1", "disk0").stdout == f"{new}\n"
    assert guest.ctl("stale", "-q").stdout == ""


def test_a_new_disk_with_the_name_of_a_stale_image(guest: Guest):
    """It was made after the move: it is none of the guest's."""
    old, new = guest.disks[0], guest.moved()
    guest.qemu.stop()
    old.unlink()
    with Qemu(guest.directory, [Disk(create_image(old))], name="web9") as other:
        assert guest.ctl("domain", "add", "web9", "--qmp", other.qmp).status == 0
        assert guest.ctl("copy", "web9", f"disk0={guest.path('third')}").status == 0
        assert guest.json("domain", "show", "web9").json["alarms"] == []
    assert guest.ctl("image", "web1", "disk0", "--wait", "60s").stdout == f"{new}\n"


def test_a_disk_that_is_plugged_in_again_with_another_id_and_moved(guest: Guest):
    """Another client has put an overlay above the right image: its writes are there, and QEMU shows no disk0."""
    directory, bus = guest.directory, "virtio-scsi"
    guest.qemu.stop()
    guest.qemu = Qemu(directory, [Disk(guest.disks[0], bus=bus), Disk(guest.disks[1])]).start()
    guest.until("connected", "connection")
    guest.moved()
    qemu, overlay = guest.qemu, guest.path("overlay")
    node = qemu.root().node
    qemu.spy("device_del", id="disk0")
    qemu.await_event("DEVICE_DELETED")
    qemu.spy("device_add", driver="scsi-hd", bus="scsi0.0", drive=node, id="vda", serial="vda")
    assert guest.ctl("image", "web1", "disk0").status == 0
    qemu.spy("blockdev-snapshot-sync", {"node-name": node, "snapshot-file": str(overlay), "snapshot-node-name": "o"})
    qemu.spy("stop")  # pivotd looks whenever the guest has stopped
    qemu.spy("cont")
    guest.noted("ran-on-other-image")
    assert guest.ctl("guard", "web1", f"disk0={guest.path('new')}", "--wait", "0").status == 6
    qemu.stop()
    refused = guest.ctl("image", "web1", "disk0", "--wait", "0")
    assert (refused.status, f"but the guest ran on {overlay}" in complaint(refused)) == (6, True), refused
