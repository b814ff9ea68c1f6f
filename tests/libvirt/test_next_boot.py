"""The definition of the next boot gets another image, and stays the same word for word otherwise."""

from __future__ import annotations

import pytest

from pivotd.libvirt import calls
from pivotd.libvirt.next_boot import NewImage, used_source, with_images

TEXT = """<domain type='qemu' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>web1</name><!-- a comment -->
  <devices>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2' cache='none'/>
      <source file='/a/old &amp; new.qcow2'/>
{chain}      <target dev='vda' bus='virtio'/>
    </disk>
    <disk type='block' device='disk'>
      <driver name='qemu' type='raw'/>
      <source dev='/dev/vg/b' startupPolicy='optional'>
        <seclabel model='dac' relabel='no'/>
      </source>
      <target dev='vdb' bus='virtio'/>
    </disk>
  </devices>
  <qemu:commandline><qemu:arg value="-name"/></qemu:commandline>
</domain>
"""
CHAIN = """      <backingStore type='file'>
        <format type='raw'/>
        <source file='/a/base.raw'/>
        <backingStore/>
      </backingStore>
"""


def test_one_disk_changes_and_not_a_letter_else():
    """Names with special characters and a comment are there as before."""
    changed = with_images(TEXT.format(chain=""), {"vda": NewImage('/b/it\'s "x".qcow2', "qcow2")})
    wanted = TEXT.format(chain="").replace("'/a/old &amp; new.qcow2'", '"/b/it\'s &quot;x&quot;.qcow2"')
    assert changed == wanted.replace("type='qcow2' cache", 'type="qcow2" cache')


def test_the_layers_of_the_old_image_go():
    """Libvirt would hold the new image to them."""
    changed = with_images(TEXT.format(chain=CHAIN), {"vda": NewImage("/b.qcow2", "qcow2")})
    assert "backingStore" not in changed
    assert "base.raw" not in changed


def test_a_file_becomes_a_device_and_a_device_a_file():
    """With its kind, its name and its format; what belonged to the old device goes with that."""
    images = {"vda": NewImage("/dev/vg/a", "raw", device=True), "vdb": NewImage("/b.qcow2", "qcow2")}
    changed = with_images(TEXT.format(chain=""), images)
    assert "<disk type='block' device='disk'>\n      <driver name='qemu' type=\"raw\" cache='none'/>" in changed
    assert '<source dev="/dev/vg/a"/>' in changed
    assert "<disk type='file' device='disk'>\n      <driver name='qemu' type=\"qcow2\"/>" in changed
    assert "seclabel" not in changed


SECRET = "<encryption format='luks'><secret type='passphrase' uuid='1'/></encryption>"


def of_disk(inside: str) -> str:
    """A definition with one disk, vda."""
    return (
        "<domain><devices><disk type='file'><driver name='qemu' type='qcow2'/>"
        f"{inside}<target dev='vda'/></disk></devices></domain>"
    )


def test_an_encrypted_image_keeps_its_secret():
    """It comes from the definition of the running guest, beside the name or below the disk; the old image's goes."""
    old = of_disk(f"<source file='/a'/>{SECRET.replace('1', '2')}")
    for live in (f"<source file='/b' index='7'>{SECRET}</source>", f"<source file='/b' index='7'/>{SECRET}"):
        source = used_source(of_disk(live), "vda", "/b")
        changed = with_images(old, {"vda": NewImage("/b", "qcow2", source=source)})
        wanted = of_disk(f"<source file='/b'>{SECRET}</source>").replace("type='qcow2'", 'type="qcow2"')
        assert changed == wanted


def test_a_plain_image_gets_no_secret():
    """Neither that of the old image nor that of a layer below it in the running guest."""
    below = f"<backingStore type='file'><source file='/c'>{SECRET}</source></backingStore>"
    source = used_source(of_disk(f"<source file='/b' index='7'/>{below}"), "vda", "/b")
    changed = with_images(
        of_disk(f"<source file='/a'>{SECRET}</source>"), {"vda": NewImage("/b", "qcow2", source=source)}
    )
    assert "encryption" not in changed
    assert "'/b'" in changed


def test_the_running_guest_says_nothing_of_another_image():
    """The new image is then named alone."""
    assert used_source(of_disk("<source file='/b'/>"), "vda", "/other") == ""


def test_what_libvirt_does_not_write_is_refused():
    """A disk whose image cannot be changed this way stays as it was, with an error."""
    with pytest.raises(ValueError, match="vdc could not be changed"):
        with_images(
            "<domain><devices><disk type='network'><target dev='vdc'/></disk></devices></domain>",
            {"vdc": NewImage("/b", "raw")},
        )


@pytest.mark.parametrize(
    ("path", "device"),
    [("/dev/vg/hidden by a sandbox", True), ("/dev/shm/new.qcow2", False), ("/images/new.qcow2", False)],
)
def test_what_is_not_there_is_a_device_only_where_devices_are(path: str, device: bool):
    """/dev/shm has files; a new image there is none of the devices that a sandbox hides."""
    assert calls.is_device(path) is device
