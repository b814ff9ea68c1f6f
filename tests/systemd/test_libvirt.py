"""The shipped unit guards a guest of the distribution's own libvirtd: pivotd is a user of its own, in its sandbox.

It is in the group libvirt, may read neither libvirt's files nor the images, and sees no process of another user.
"""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.support.qmp_spy import Spy
from tests.support.waiting import WAIT_S, until
from tests.systemd.container import Container, wait_for_exit
from tests.systemd.host import TRIES_MAX, Host, commands, install

pytestmark = [pytest.mark.systemd, pytest.mark.qemu, pytest.mark.long, pytest.mark.timeout(600)]

QEMU_CONF = """
security_driver = "none"
namespaces = []
cgroup_controllers = []
stdio_handler = "file"
"""
DOMAIN = """
<domain type='qemu' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
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
  <qemu:commandline>
    <qemu:arg value='-chardev'/><qemu:arg value='socket,id=spy,path=/var/lib/libvirt/qemu/spy.qmp,server=on,wait=off'/>
    <qemu:arg value='-mon'/><qemu:arg value='chardev=spy,mode=control'/>
  </qemu:commandline>
</domain>
"""
GIVES_UP_SOON = "[Unit]\nStartLimitIntervalSec=1h\nStartLimitBurst=1\n"
"""systemd's own limit is five starts in ten seconds, which a busy machine does not reach."""
SOCKETS = ("libvirtd.socket", "libvirtd-ro.socket", "libvirtd-admin.socket")
ANEW = (
    ("systemctl", "reset-failed", "libvirtd", *SOCKETS),
    ("systemctl", "start", *SOCKETS),
    ("systemctl", "restart", "libvirtd"),
)
"""Starts a libvirtd that systemd has given up; it counts as the first start."""


class LibvirtHost(Host):
    """The booted host with a domain of libvirt beside that of pivotd."""

    def __init__(self, container: Container) -> None:
        super().__init__(container)
        container.run("systemctl", "start", "libvirtd")
        assert until(lambda: self.virsh("version")[0] == 0, 60), self.virsh("version")
        for command in (("define", "/srv/db1.xml"), ("start", "db1")):
            status, said = self.virsh(*command)
            assert status == 0, said
        self.db1_spy = Spy(container.inside / "var/lib/libvirt/qemu/spy.qmp")

    def virsh(self, *arguments: str) -> tuple[int, str]:
        """Run virsh in the container; return its status and what it says."""
        done = self.container.run("virsh", "-q", "-c", "qemu:///system", *arguments, check=False)
        return done.returncode, done.stdout.strip() + done.stderr.strip()

    def new_image(self) -> str:
        """Return the path of an image that is not there yet."""
        self.copies += 1
        return f"/var/lib/libvirt/images/copy{self.copies}.qcow2"

    def kill_libvirtd_in_a_pause(self, prepare: Sequence[Sequence[str]] = ()) -> str:
        """Copy the disk of db1, and kill libvirtd when the guest stops; return the pivot.

        ``prepare``: run first. Where the guest runs again already, all is done once more with another copy.
        """
        for _ in range(TRIES_MAX):
            for command in prepare:
                self.container.run(*command)
            assert until(lambda: self.row()["connection"] == "connected"), self.said()
            libvirtd = self.container.host_pid(int(self.container.property_of("libvirtd", "MainPID")))
            self.db1_spy.events()
            status, pivot = self.ctl("copy", "--detach", "--max-pause", "10s", "db1", f"vda={self.new_image()}")
            assert status == 0, pivot
            self.db1_spy.await_event("STOP", timeout_s=WAIT_S)
            os.kill(libvirtd, signal.SIGKILL)
            wait_for_exit(libvirtd, WAIT_S)
            if not any(event["event"] == "RESUME" for event in self.db1_spy.events()):
                return str(pivot["id"])
            self.closed(pivot["id"])
        raise AssertionError("no pause was met")

    def agree(self) -> str:
        """Return the image of db1 that QEMU, both definitions and the verdict name. Raises: AssertionError: not one."""
        blocks = self.db1_spy.execute("query-block")
        (root,) = (block["inserted"]["file"] for block in blocks if "virtio-disk0" in block.get("qdev", ""))
        for view in ((), ("--inactive",)):
            assert self.virsh("domblklist", "db1", *view)[1].split()[-1] == root, (root, view)
        status, verdict = self.ctl("verdict", "db1", "vda")
        assert (status, verdict["image"], verdict["certain"]) == (0, root, True), verdict
        return str(root)

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
        booted.db1_spy.close()
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


def test_a_restart_while_a_copy_waits(host: LibvirtHost):
    """The copy of libvirt waits over the restart, and is switched then."""
    image = host.new_image()
    status, pivot = host.ctl("copy", "--no-pivot", "db1", f"vda={image}")
    assert (status, pivot.get("phase")) == (0, "ready"), pivot
    host.container.run("systemctl", "restart", "libvirtd")
    assert until(lambda: host.row()["connection"] == "connected", 60), host.row()
    status, pivot = host.ctl("pivot", "complete", pivot["id"])
    assert (status, pivot.get("outcome")) == (0, "switched"), pivot
    assert host.agree() == image


def test_libvirtd_killed_in_the_pause_is_started_by_systemd_and_the_pivot_ends(host: LibvirtHost):
    """`kill -9` with the distribution's own units and pivotd's hook: the guest goes on by itself, on the agreed image."""
    host.container.run("/usr/local/bin/pivotctl", "libvirt", "install-hooks")
    pivot = host.closed(host.kill_libvirtd_in_a_pause())
    assert pivot["outcome"] in {"switched", "kept"}, pivot
    assert host.agree() == pivot["disks"][0]["destination" if pivot["outcome"] == "switched" else "source"]
    assert host.db1_spy.execute("query-status")["status"] == "running"


def test_a_libvirtd_that_systemd_has_given_up(host: LibvirtHost):
    """In a pause: pivotd says why the guest waits, serves everything else, and goes on when libvirtd is started again."""
    container = host.container
    drop_in = container.root / "etc/systemd/system/libvirtd.service.d/limit.conf"
    drop_in.parent.mkdir(exist_ok=True)
    drop_in.write_text(GIVES_UP_SOON)
    container.run("systemctl", "daemon-reload")
    waiting = host.kill_libvirtd_in_a_pause(ANEW)
    assert until(lambda: container.property_of("libvirtd", "ActiveState") == "failed"), host.said()
    log = ("journalctl", "-u", "libvirtd", "--no-pager")
    assert until(lambda: "Start request repeated too quickly" in container.run(*log).stdout)

    assert until(lambda: host.row()["connection"] == "unreachable"), host.row()
    assert "start libvirtd.socket" in host.row()["detail"]
    assert until(lambda: "stays paused" in host.said()), host.said()
    shown = container.run("/usr/local/bin/pivotctl", "pivot", "show", waiting, check=False).stdout
    assert "start libvirtd.socket" in " ".join(shown.split()), shown
    assert host.db1_spy.execute("query-status")["status"] == "paused"
    # Both images are complete, and which is next is not decided: nobody may start the guest from either.
    assert host.ctl("image", "db1", "vda")[0] == 6
    # pivotd's own guest is moved as ever.
    status, answer = host.ctl("copy", "web1", "disk0=/srv/images/beside.qcow2")
    assert (status, answer.get("outcome")) == (0, "switched"), answer

    drop_in.unlink()
    container.run("systemctl", "daemon-reload")
    for command in ANEW:
        container.run(*command)
    pivot = host.closed(waiting)
    assert host.agree() == pivot["disks"][0]["destination" if pivot["outcome"] == "switched" else "source"]
    assert host.db1_spy.execute("query-status")["status"] == "running"
