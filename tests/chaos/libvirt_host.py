"""A private libvirtd: its own configuration, state and sockets below one directory, in a mount namespace of its own.

Needs root, and the packages libvirt-daemon-system and libvirt-clients. Nothing of it runs afterwards.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

from tests.support.qemu import popen_tied

READY_TIMEOUT_S = 30.0
POLL_S = 0.02
VIRSH_TIMEOUT_S = 60.0
PLACES = {
    "etc": "/etc/libvirt",
    "lib": "/var/lib/libvirt",
    "cache": "/var/cache/libvirt",
    "log": "/var/log/libvirt",
    "run": "/run/libvirt",
}
"""Our directory for each of those that are built into libvirtd."""
QEMU_CONF = """
security_driver = "none"
user = "root"
group = "root"
dynamic_ownership = 0
remember_owner = 0
namespaces = []
cgroup_controllers = []
stdio_handler = "file"
"""


def missing() -> str | None:
    """Return why there can be no libvirtd here, None if there can."""
    if os.geteuid() != 0:
        return "needs root: libvirtd gets a mount namespace"
    if shutil.which("libvirtd") is None or shutil.which("virsh") is None:
        return "needs libvirt: apt-get install -y libvirt-daemon-system libvirt-clients"
    return None


class Libvirtd:
    """One libvirtd at a time; the QEMUs that it has started outlive it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        for name in PLACES:
            (directory / name).mkdir()
        (directory / "etc" / "qemu.conf").write_text(QEMU_CONF)
        (directory / "libvirtd.conf").write_text('auth_unix_rw = "none"\n')
        self._uri = f"qemu+unix:///system?socket={directory}/run/libvirt-sock"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start libvirtd and wait until it answers."""
        binds = " && ".join(
            f"mkdir -p {theirs} && mount --bind {self.directory / ours} {theirs}" for ours, theirs in PLACES.items()
        )
        run = (
            f"{binds} && exec libvirtd --config {self.directory}/libvirtd.conf --pid-file {self.directory}/libvirtd.pid"
        )
        self._process = popen_tied(
            ["unshare", "--mount", "--propagation", "private", "sh", "-c", run],
            self.directory / "libvirtd.stderr", self.directory,
        )  # fmt: skip
        deadline_s = time.monotonic() + READY_TIMEOUT_S
        while self.virsh("version").returncode:
            said = (self.directory / "libvirtd.stderr").read_text()[-1000:]
            assert time.monotonic() < deadline_s and self._process.poll() is None, f"libvirtd does not answer: {said}"  # noqa: PT018
            time.sleep(POLL_S)

    def kill(self) -> None:
        """SIGKILL; may be called repeatedly."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def virsh(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run virsh to its end."""
        return subprocess.run(
            ["virsh", "-q", "-c", self._uri, *arguments],
            capture_output=True, text=True, check=False, timeout=VIRSH_TIMEOUT_S,
        )  # fmt: skip

    def start_virsh(self, *arguments: str) -> subprocess.Popen[bytes]:
        """Start virsh; it ends at the latest with the test."""
        return popen_tied(
            ["virsh", "-q", "-c", self._uri, *arguments], self.directory / "virsh.log", self.directory
        )  # fmt: skip

    def source(self, domain: str, disk: str = "vda", *, inactive: bool) -> str | None:
        """Return the image that libvirt names for a disk: of the running domain, or for its next boot."""
        done = self.virsh("domblklist", domain, *(["--inactive"] if inactive else []))
        for line in done.stdout.splitlines():
            words = line.split(maxsplit=1)
            if len(words) == 2 and words[0] == disk:
                return words[1].strip()
        return None

    def qemu_pid(self, domain: str) -> int:
        """Return the process id of a domain's QEMU."""
        return int((self.directory / "run" / "qemu" / f"{domain}.pid").read_text())


def kill_qemu(pid: int) -> None:
    """SIGKILL a QEMU that is no child of ours, and return when it is gone."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        deadline_s = time.monotonic() + READY_TIMEOUT_S
        while Path(f"/proc/{pid}").exists() and _runs(pid):
            assert time.monotonic() < deadline_s, f"process {pid} survives SIGKILL"
            time.sleep(POLL_S)
    finally:
        os.close(descriptor)


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False
