"""The hook script for Proxmox VE, with a real pivotd and QEMU; ``qm`` and ``pvesm`` print what those of Proxmox VE print."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.daemon import Daemon
from tests.support.qemu import Disk, Qemu, create_image

pytestmark = pytest.mark.qemu

HOOK = Path(__file__).parents[2] / "systemd" / "hooks" / "proxmox-hookscript"
CONFIG = """\
boot: order=scsi0;ide2
cores: 2
description: scsi7%3A not a disk
hookscript: local:snippets/pivotd
ide2: local:iso/debian.iso,media=cdrom,size=600M
ide3: none,media=cdrom
memory: 2048
net0: virtio=BC:24:11:00:00:01,bridge=vmbr0
scsi0: {scsi0},discard=on,iothread=1,size=64M
scsi1: file=local:100/vm-100-data.qcow2,size=64M
scsihw: virtio-scsi-single
unused0: local:100/vm-100-disk-9.qcow2
{more}"""


class Node:
    """The guest 100 with two disks, moved once, and the node's own programs."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.old, self.data = (create_image(directory / f"vm-100-{name}.qcow2") for name in ("disk-0", "data"))
        self.new = directory / "moved.qcow2"
        disks = [Disk(self.old, name="scsi0"), Disk(self.data, name="scsi1")]
        self.daemon = Daemon(directory, {"100": directory / "100.qmp"})
        with Qemu(directory, disks, name="100"), self.daemon:
            assert self.daemon.ctl("copy", "100", f"scsi0={self.new}").status == 0

    def run(self, scsi0: str = "local:100/vm-100-disk-0.qcow2", *, vmid: str = "100", phase: str = "pre-start",
            more: str = "", away: bool = False, **environment: str) -> subprocess.CompletedProcess[str]:  # fmt: skip
        """Run the script as Proxmox VE does, pivotd dead; ``away``: there is no journal either."""
        state = self.directory / "none" if away else self.daemon.state_dir
        (self.directory / "config").write_text(CONFIG.format(scsi0=scsi0, more=more))
        programs = {
            "qm": f'[ "$2" = {vmid} ] || {{ echo no such VM >&2; exit 2; }}\ncat {self.directory}/config',
            "pvesm": f'case $2 in local:100/*) echo "{self.directory}/${{2#local:100/}}";; /*) echo "$2";;\n'
            'local:iso/*) echo asked for a CD >&2; exit 1;; *) echo "no such volume $2" >&2; exit 255;; esac',
            "pivotctl": f'exec {Path(sys.executable).parent}/pivotctl --offline {state} "$@"',
        }
        for name, text in programs.items():
            (self.directory / name).write_text(f"#!/bin/sh\n{text}\n")
            (self.directory / name).chmod(0o755)
        path = f"{self.directory}:/usr/bin:/bin"
        return subprocess.run(
            [HOOK, vmid, phase], env={"PATH": path} | environment, capture_output=True, text=True, check=False
        )


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    with tempfile.TemporaryDirectory(prefix="pv") as name:
        yield Node(Path(name))


def test_right_images_start(node: Node) -> None:
    """Without a word; drives for CDs, unused volumes and what only looks like a disk are left alone."""
    done = node.run(str(node.new))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_wrong_image_does_not_start(node: Node) -> None:
    """One line with the right one."""
    done = node.run()
    assert done.returncode != 0
    right = f"100 must start with scsi0={node.new}, not with scsi0={node.old}"
    assert done.stderr == f"pivotd: guest 100 is not started: pivotctl: {right}\n"


def test_only_the_start_is_its_business(node: Node) -> None:
    """Other phases pass, whatever the images are."""
    for phase in ("post-start", "pre-stop", "post-stop"):
        assert node.run(phase=phase).returncode == 0


def test_what_was_decided_elsewhere_passes(node: Node) -> None:
    """A migration that comes in, from this cluster or another, and a roll-back to a snapshot."""
    assert node.run(PVE_MIGRATED_FROM="other").returncode == 0
    for lock in ("migrate", "create", "rollback"):
        assert node.run(more=f"lock: {lock}\n").returncode == 0
    assert node.run(more="lock: backup\n").returncode != 0


def test_what_cannot_be_asked_does_not_start(node: Node) -> None:
    """No configuration, no path of a volume, no journal, a guest that nobody has heard of: one line each."""
    for done, why in (
        (node.run("gone:vm-100-disk-0"), "scsi0: pvesm path gone:vm-100-disk-0: no such volume gone:vm-100-disk-0"),
        (node.run(str(node.new), away=True), "there is no journal at"),
        (node.run(str(node.new), vmid="101"), "no domain 101"),
    ):
        assert done.returncode != 0
        assert len(done.stderr.splitlines()) == 1, done.stderr
        assert why in done.stderr


def test_shell_finds_no_fault() -> None:
    """It is read by every sh."""
    subprocess.run(["sh", "-n", HOOK], check=True)
