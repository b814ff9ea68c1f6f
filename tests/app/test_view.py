"""What pivotd's mount namespace hides, and a QEMU with another one: what cannot be looked at never passes for the same."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pivotd.host import view
from tests.support.daemon import Daemon
from tests.support.qemu import Disk, Qemu, create_image, default_binary

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="another mount namespace needs root")

LINES = (
    ("36 1 0:32 / /tmp rw - tmpfs tmpfs rw", None),
    ("36 1 0:32 /systemd-private-9f-pivotd.service-x/tmp /tmp rw - tmpfs tmpfs rw", "PrivateTmp"),
    (
        "36 1 8:1 /var/tmp/systemd-private-9f-pivotd.service-x/tmp /var/tmp rw,relatime - ext4 /dev/sda1 rw",
        "PrivateTmp",
    ),
    ("36 1 0:24 /systemd/inaccessible/dir /home ro,nosuid shared:5 - tmpfs tmpfs rw", "ProtectHome"),
    ("36 1 0:24 /host/inaccessible/dir /srv/a\\040b ro - tmpfs tmpfs rw", "InaccessiblePaths"),
    ("36 1 0:99 / /root ro - tmpfs tmpfs ro", "ProtectHome"),
    ("36 1 0:99 / /dev ro,nosuid - tmpfs tmpfs rw", "PrivateDevices"),
    ("36 1 0:5 / /dev rw,nosuid - devtmpfs devtmpfs rw", None),
    ("36 1 0:50 / /home rw - nfs server:/home rw", None),
)
"""Lines of mountinfo, and the setting that each stands for."""


@pytest.mark.parametrize(("line", "setting"), LINES)
def test_what_a_mount_hides(line: str, setting: str | None):
    """What systemd mounts for a setting of a unit, and what any host has."""
    assert view._mount(line) == (line.split()[4].replace("\\040", " "), setting)


def same(pid: int, path: str) -> bool | None:
    """Return what is known: None is neither yes nor no."""
    yes, no = view.same_directory(pid, path), view.other_directory(pid, path) is not None
    assert not (yes and no)
    return yes if yes != no else None


@contextmanager
def process(*command: str) -> Iterator[int]:
    """Run a command that says a line once it is where it belongs; yield its pid."""
    with subprocess.Popen([*command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        running.stdout.readline()
        yield running.pid
        running.kill()


def elsewhere(directory: Path) -> tuple[str, ...]:
    """Return the prefix of a command that sees another, empty directory."""
    return ("unshare", "--mount", "sh", "-c", f'mount -t tmpfs t "{directory}" && exec "$@"', "sh")


WAITING = ("sh", "-c", "echo here; exec cat")


def test_a_process_that_sees_the_same(tmp_path: Path):
    """Until it is gone."""
    with process(*WAITING) as pid:
        assert same(pid, str(tmp_path)) is True
    assert same(pid, str(tmp_path)) is None, "it is gone"


@as_root
def test_a_process_with_another_mount_namespace(tmp_path: Path):
    """Another directory, or none, under the same name."""
    (tmp_path / "below/images").mkdir(parents=True)
    with process(*elsewhere(tmp_path / "below"), *WAITING) as pid:
        assert same(pid, str(tmp_path)) is True
        assert same(pid, str(tmp_path / "below")) is False
        assert same(pid, str(tmp_path / "below/images")) is False


@as_root
def test_a_link_in_the_other_namespace_is_not_followed(tmp_path: Path):
    """It would lead on from this process's own root, to the very directory that is asked for."""
    (tmp_path / "below/images").mkdir(parents=True)
    (tmp_path / "true").mkdir()
    script = f'ln -s "{tmp_path}/true" "{tmp_path}/below/images"; echo here; exec cat'
    with process(*elsewhere(tmp_path / "below"), "sh", "-c", script) as pid:
        assert same(pid, str(tmp_path / "below/images")) is None


@as_root
def test_what_may_not_be_looked_at_is_not_the_same(tmp_path: Path):
    """A stranger gets no answer, neither yes nor no."""
    tmp_path.chmod(0o755)
    look = (
        "import os; from pivotd.host import view; os.setuid(65534); pid = int(os.sys.argv[1]);"
        "print(view.same_directory(pid, '/'), view.other_directory(pid, '/'))"
    )
    with process(*WAITING) as pid:
        done = subprocess.run([sys.executable, "-c", look, str(pid)], capture_output=True, text=True, check=True)
    assert done.stdout == "False None\n"


@as_root
@pytest.mark.qemu
def test_a_qemu_that_pivotd_may_not_look_into():
    """Its image is missed before a byte is copied."""
    with tempfile.TemporaryDirectory(prefix="pivotd-") as name:
        directory = Path(name)
        other = directory / "other"
        other.mkdir()
        disks = [Disk(create_image(directory / "a.qcow2"))]
        qemu = Qemu(directory, disks, binary=[*elsewhere(other), *default_binary()])
        program = str(Path(sys.executable).parent / "pivotd")
        command = ["setpriv", "--bounding-set=-sys_ptrace", "--", program]
        with qemu, Daemon(directory, {"web1": qemu.qmp}, command=command) as daemon:
            answer = daemon.ctl("copy", "web1", f"disk0={other}/new.qcow2")
            shown = daemon.ctl("pivot", "show", answer.json["id"]).json
    assert (answer.status, answer.json["outcome"]) == (5, "kept")
    assert "in a mount namespace of its own" in answer.json["error"]
    assert "copying" not in [record["phase"] for record in shown["records"]]


@as_root
def test_mount_points_with_odd_names(tmp_path: Path):
    """The kernel escapes blanks and line feeds in them; whoever may mount with FUSE chooses the rest."""
    odd = tmp_path / "car\rriage\x0cfeed\u2028separator \udcff"
    odd.mkdir()
    look = (
        "import os; from pivotd.host import threads, view; path = os.sys.argv[1] + '/image'; "
        "assert view.hidden(path) is None; assert threads._mount(path, threads._mounts()) == os.sys.argv[1]"
    )
    done = subprocess.run(
        [*elsewhere(odd), sys.executable, "-c", look, odd], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
