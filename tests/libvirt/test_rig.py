"""The rig itself: a libvirtd that starts, moves a disk, dies at a chosen point and believes the wrong image."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.libvirt.domain import PIVOT_POINTS, Belief, Domain
from tests.libvirt.libvirtd import Libvirtd, Point

pytestmark = pytest.mark.qemu


@pytest.mark.long
def test_libvirtd_starts_at_once_and_moves_two_disks(libvirtd: Libvirtd):
    """Undisturbed, each disk ends on its copy, and the other one is left alone."""
    libvirtd.start()
    domain = Domain(libvirtd, disks=2, guest=False).define().boot()
    domain.copy("vdb")
    assert domain.believe("vdb") == Belief("running", "web1-vdb-0.qcow2", "web1-vdb-0.qcow2", "yes")
    libvirtd.ask("blockjob", "web1", "vdb", "--pivot")
    assert domain.believe("vdb") == Belief("running", "web1-vdb-1.qcow2", "web1-vdb-1.qcow2", None)
    assert domain.believe("vda") == Belief("running", "web1-vda-0.qcow2", "web1-vda-0.qcow2", None)
    assert (domain.root("vda"), domain.root("vdb")) == ("web1-vda-0.qcow2", "web1-vdb-1.qcow2")
    libvirtd.stop()
    libvirtd.start()
    assert domain.believe("vdb").live == "web1-vdb-1.qcow2"


@pytest.mark.long
def test_plain_libvirt_believes_the_wrong_image_after_a_kill(libvirtd: Libvirtd):
    """Killed after QEMU switched: without help libvirt goes back to the image that QEMU has left."""
    libvirtd.start()
    domain = Domain(libvirtd, guest=False).define().boot()
    domain.copy()
    domain.die_in_pivot(PIVOT_POINTS["K2"])
    assert "job-complete" in libvirtd.steps()[-1]
    monitor = domain.own_spy()
    assert domain.root(monitor=monitor) == "web1-vda-1.qcow2"
    monitor.close()
    libvirtd.start()
    believed = domain.believe()
    assert (believed.live, believed.next_boot) == ("web1-vda-0.qcow2", "web1-vda-0.qcow2")
    assert domain.root() == "web1-vda-1.qcow2"


def test_a_program_inside_sees_this_libvirtd_at_the_default_paths(libvirtd: Libvirtd):
    """What runs beside libvirtd finds its files and its socket where they always are."""
    (libvirtd.directory / "etc/hooks/mark").write_text("ours\n")
    command = libvirtd.inside("sh", "-c", "read word </etc/libvirt/hooks/mark; echo $word")
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "ours\n"
    assert not Path("/etc/libvirt/hooks/mark").exists()


def test_nothing_is_left_of_a_libvirtd_and_its_qemus(libvirtd: Libvirtd):
    """All processes end, also a QEMU that libvirtd has forgotten."""
    libvirtd.start()
    domain = Domain(libvirtd, guest=False).define().boot()
    pid = domain.qemu_pid()
    parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    assert parent == libvirtd.keeper_pid, "nobody would reap this QEMU where process 1 does not"
    libvirtd.kill()
    domain.status_file().unlink()
    assert Path(f"/proc/{pid}").exists()
    libvirtd.clear()
    assert not Path(f"/proc/{pid}").exists()
    assert list((libvirtd.directory / "run").iterdir()) == []


def test_the_point_is_written_as_the_shim_reads_it():
    """The words of kill_at.c, in its order."""
    assert (
        str(Point("after", "rename", "/x.xml", since="job", count=2, delay_ms=3)) == "kill after rename /x.xml job 2 3"
    )
