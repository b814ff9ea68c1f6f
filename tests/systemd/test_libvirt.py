"""The shipped unit guards a guest of the distribution's own libvirtd: pivotd is a user of its own, in its sandbox.

It is in the group libvirt, may read neither libvirt's files nor the images, and sees no process of another user.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.waiting import until
from tests.systemd.container import Container
from tests.systemd.host import Host, commands, install

pytestmark = [pytest.mark.systemd, pytest.mark.qemu, pytest.mark.long, pytest.mark.timeout(600)]

QEMU_CONF = """
security_driver = "none"
namespaces = []
cgroup_controllers = []
stdio_handler = "file"
"""
DOMAIN = """
<domain type='qemu'>
  <name>db1</name><memory unit='MiB'>32</memory><vcpu>1</vcpu>
  <os><type arch='x86_64' machine='pc'>hvm</type></os>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2'/>
      <source file='/var/lib/libvirt/images/old.qcow2'/><target dev='vda' bus='virtio'/>
    </disk>
    <memballoon model='none'/>
  </devices>
</domain>
"""


class LibvirtHost(Host):
    """The booted host with a domain of libvirt beside that of pivotd."""

    def __init__(self, container: Container) -> None:
        super().__init__(container)
        container.run("systemctl", "start", "libvirtd")
        assert until(lambda: self.virsh("version")[0] == 0, 60), self.virsh("version")
        for command in (("define", "/srv/db1.xml"), ("start", "db1")):
            status, said = self.virsh(*command)
            assert status == 0, said

    def virsh(self, *arguments: str) -> tuple[int, str]:
        """Run virsh in the container; return its status and what it says."""
        done = self.container.run("virsh", "-q", "-c", "qemu:///system", *arguments, check=False)
        return done.returncode, done.stdout.strip() + done.stderr.strip()

    def said(self) -> str:
        """Return the end of pivotd's log, for a failure."""
        return self.container.run("journalctl", "-u", "pivotd", "-n", "20", "--no-pager").stdout

    def row(self) -> Any:
        """Return what pivotd knows of libvirt's domain."""
        status, answer = self.ctl("domain", "ls")
        found = [row for row in answer if row["name"] == "db1"] if status == 0 else []
        return found[0] if found else {"connection": str(answer)}


@pytest.fixture(scope="module")
def host() -> Iterator[LibvirtHost]:
    if os.geteuid() != 0:
        pytest.skip("booting a container needs root")
    if os.environ.get("PIVOTD_CHROOT"):
        pytest.skip("no container boots in a chroot")
    for program in ("systemd-nspawn", "libvirtd"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
    with Container(Path("/")) as container:
        install(container, None)
        etc = container.root / "etc"
        (etc / "libvirt/qemu.conf").write_text(QEMU_CONF)
        container.prepare("usermod -aG libvirt pivotd")
        (etc / "pivotd/pivotd.toml.d/libvirt.toml").write_text('[libvirt]\nuri = "qemu:///system"\n')
        (container.root / "srv/db1.xml").write_text(DOMAIN)
        container.prepare("qemu-img create -q -f qcow2 /var/lib/libvirt/images/old.qcow2 64M")
        container.boot()
        booted = LibvirtHost(container)
        yield booted
        booted.spy.close()


def test_the_unit_guards_a_pivot_of_libvirt(host: LibvirtHost):
    """A copy by libvirt, guarded by a pivotd that may look at nothing but libvirt's socket."""
    assert commands("4. Units")
    assert until(lambda: host.row()["connection"] == "connected", 30), host.said()
    assert host.row()["manager"] == "libvirt"
    status, pivot = host.ctl("copy", "db1", "vda=/var/lib/libvirt/images/new.qcow2")
    assert (status, pivot.get("outcome")) == (0, "switched"), (pivot, host.virsh("domblklist", "db1"))
    for view in ((), ("--inactive",)):
        assert host.virsh("domblklist", "db1", *view)[1].split()[-1] == "/var/lib/libvirt/images/new.qcow2"
    status, verdict = host.ctl("verdict", "db1", "vda")
    assert (status, verdict["image"], verdict["certain"]) == (0, "/var/lib/libvirt/images/new.qcow2", True)
    assert host.virsh("domstate", "db1") == (0, "running")


def test_a_restart_of_libvirtd_is_survived(host: LibvirtHost):
    """`systemctl restart libvirtd` with the distribution's own units: pivotd is there again by itself."""
    host.container.run("systemctl", "restart", "libvirtd")
    assert until(lambda: host.row()["connection"] == "connected", 60), host.row()
    status, pivot = host.ctl("copy", "db1", "vda=/var/lib/libvirt/images/newer.qcow2")
    assert (status, pivot.get("outcome")) == (0, "switched"), pivot
