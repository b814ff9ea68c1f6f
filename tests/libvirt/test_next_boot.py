"""The definition of the next boot gets another image, and stays the same word for word otherwise."""

from __future__ import annotations

import pytest

from pivotd.libvirt.next_boot import NewImage, with_images

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


def test_what_libvirt_does_not_write_is_refused():
    """A disk whose image cannot be changed this way stays as it was, with an error."""
    with pytest.raises(ValueError, match="vdc could not be changed"):
        with_images(
            "<domain><devices><disk type='network'><target dev='vdc'/></disk></devices></domain>",
            {"vdc": NewImage("/b", "raw")},
        )
