"""The helper that starts QEMU: what it promises to every other test."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import QemuFactory
from tests.support.guest_assets import CHECKOUT
from tests.support.qemu import BUSES, Disk, Qemu, create_image

pytestmark = pytest.mark.qemu


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return create_image(tmp_path / "a.qcow2")


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("bus", BUSES)
def test_the_root_of_every_kind_of_disk_is_seen(qemu_factory: QemuFactory, image: Path, bus: str, legacy: bool) -> None:
    """Whatever the bus and the spelling, root() finds the image under disk0."""
    qemu = qemu_factory([Disk(image, bus=bus, legacy=legacy)], paused=True)
    assert qemu.root("disk0").filename == str(image)


def test_nodes_are_named_in_order(qemu_factory: QemuFactory, tmp_path: Path) -> None:
    """Disks given by -blockdev have the nodes src0, src1 and so on."""
    qemu = qemu_factory([Disk(create_image(tmp_path / name)) for name in ("a", "b")])
    assert [qemu.root("disk0").node, qemu.root("disk1").node] == ["src0", "src1"]


def test_a_relative_name_stays_relative(qemu_factory: QemuFactory, image: Path) -> None:
    """With relative=True QEMU shows the bare file name."""
    assert qemu_factory([Disk(image, relative=True)]).root().filename == "a.qcow2"


def test_an_unusual_name_reaches_qemu_unchanged(qemu_factory: QemuFactory, tmp_path: Path) -> None:
    """Commas and spaces in a file name are escaped on the legacy command line."""
    image = create_image(tmp_path / "a,b c.qcow2")
    assert qemu_factory([Disk(image, legacy=True)]).root().filename == str(image)


def test_paused_means_prelaunch(qemu_factory: QemuFactory) -> None:
    """paused=True leaves the guest before its first instruction."""
    assert qemu_factory(paused=True).run_state() == "prelaunch"


def test_a_prefix_may_exec_qemu(qemu_factory: QemuFactory) -> None:
    """With a prefix that execs (chroot, env, nice) the pid is still QEMU's own."""
    qemu = qemu_factory(binary=["nice", "env", "-u", "LANG", "qemu-system-x86_64"])
    assert "qemu-system" in str(Path(f"/proc/{qemu.pid}/exe").readlink())


def test_the_spys_events_are_kept(qemu_factory: QemuFactory) -> None:
    """An event that arrives during a command is seen afterwards."""
    qemu = qemu_factory(paused=True)
    qemu.spy("cont")
    assert "RESUME" in [event["event"] for event in qemu.spy_events()]


def test_a_wrong_argument_shows_qemus_reason(tmp_path: Path) -> None:
    """A QEMU that does not start raises what it said, and is not left behind."""
    with pytest.raises(RuntimeError, match="nonesuch"):
        Qemu(tmp_path, extra=["-device", "nonesuch"]).start()


DEAF_AT_FIRST = r"""
import re, socket, sys
listener = socket.socket(socket.AF_UNIX)
listener.bind(re.search("path=([^ ]*spy.qmp)", " ".join(sys.argv))[1])
listener.listen()
first, _ = listener.accept()
first.shutdown(socket.SHUT_RD)
first.sendall(b'{"QMP": {}}\n')
second, _ = listener.accept()
second.sendall(b'{"QMP": {}}\n{"return": {}}\n')
second.recv(1000)
second.recv(1000)
"""


def test_a_monitor_that_closes_behind_its_greeting_is_tried_again(tmp_path: Path) -> None:
    """A broken pipe is as good as a refusal while the process lives."""
    with Qemu(tmp_path, binary=[sys.executable, "-c", DEAF_AT_FIRST]) as qemu:
        assert qemu.returncode is None


def test_an_exception_leaves_no_process(tmp_path: Path) -> None:
    """Leaving the context by an exception kills QEMU."""
    qemu = Qemu(tmp_path)
    with pytest.raises(KeyError), qemu:
        raise KeyError
    assert qemu.returncode == -signal.SIGKILL


def test_a_killed_test_run_leaves_no_process(tmp_path: Path) -> None:
    """QEMU ends with the process that started it, even when that one is killed."""
    program = (
        "import pathlib,signal,os\nfrom tests.support.qemu import Qemu\n"
        f"q = Qemu(pathlib.Path({str(tmp_path)!r})).start()\nprint(q.pid, flush=True)\nsignal.pause()"
    )
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, cwd=CHECKOUT, stdout=subprocess.PIPE, text=True) as starter:
        assert starter.stdout is not None
        pidfd = os.pidfd_open(int(starter.stdout.readline()))
        starter.kill()
    try:
        assert select.select([pidfd], [], [], 60)[0]
    finally:
        os.close(pidfd)
