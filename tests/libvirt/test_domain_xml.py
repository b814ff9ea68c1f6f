"""What a definition says of disks."""

from __future__ import annotations

import pytest

from pivotd.core.observation import JobBelief
from pivotd.libvirt.domain_xml import DiskDefined, monitor_of, parse

DOMAIN = "<domain><name>web1</name><uuid>u</uuid><devices>{}</devices></domain>"
MIRROR = """<mirror type='file' file='/new' format='qcow2' job='{job}'{ready}>
<format type='qcow2'/><source file='/new' index='2'/><backingStore/></mirror>"""
DISK = """<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='/a &amp; b' index='1'/>
<backingStore type='file'><format type='raw'/><source file='/base'/><backingStore/></backingStore>
{}<target dev='vda' bus='virtio'/><alias name='virtio-disk0'/></disk>"""


def one(element: str) -> DiskDefined:
    (disk,) = parse(DOMAIN.format(element)).disks.values()
    return disk


@pytest.mark.parametrize(
    ("ready", "job"),
    [
        ("", JobBelief.COPYING),
        (" ready='no'", JobBelief.COPYING),
        (" ready='yes'", JobBelief.READY),
        (" ready='pivot'", JobBelief.PIVOTING),
        (" ready='abort'", JobBelief.ABORTING),
    ],
)
def test_a_mirror_is_a_job(ready: str, job: JobBelief):
    """How far it is, and where it goes."""
    disk = one(DISK.format(MIRROR.format(job="copy", ready=ready)))
    assert (disk.job, disk.job_kind, disk.mirror, disk.mirror_format) == (job, "copy", "/new", "qcow2")


def test_a_disk_has_its_images_and_its_device():
    """Names with special characters come back as they are; the layers below in their order."""
    disk = one(DISK.format(""))
    assert (disk.target, disk.alias, disk.image, disk.format) == ("vda", "virtio-disk0", "/a & b", "qcow2")
    assert (disk.chain, disk.job, disk.mirror) == ((("/base", "raw"),), JobBelief.NONE, None)


def test_a_device_and_a_network_disk():
    """A device has a path; what is elsewhere has none here."""
    assert one("<disk type='block'><source dev='/dev/vg/a'/><target dev='vdb'/></disk>").image == "/dev/vg/a"
    assert one("<disk type='network'><source protocol='nbd' name='x'/><target dev='vdb'/></disk>").image is None


def test_what_is_no_definition_is_an_error():
    """Of one kind."""
    with pytest.raises(ValueError, match="no element"):
        parse("")


def test_the_monitor_for_pivotd_is_the_chardev_of_that_name():
    """Of several monitors, and with its socket by a path; the same arguments as of a process."""
    text = (
        "<domain xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'><qemu:commandline>"
        "<qemu:arg value='-chardev'/><qemu:arg value='socket,id=second,path=/run/second,server=on,wait=off'/>"
        "<qemu:arg value='-chardev'/><qemu:arg value='socket,id=pivotd,path=/run/web1.qmp,server=on,wait=off'/>"
        "<qemu:arg value='-mon'/><qemu:arg value='chardev=pivotd,mode=control'/></qemu:commandline></domain>"
    )
    assert parse(text).monitor == "/run/web1.qmp"
    assert parse(text.replace("id=pivotd,", "id=another,")).monitor is None
    assert parse(text.replace("path=/run/web1.qmp", "fd=7")).monitor is None
    assert monitor_of(["qemu", "-chardev", "pty,id=pivotd", "-S"]) is None
