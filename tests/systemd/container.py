"""A real systemd in a container, on a throw-away overlay of a Debian tree. Needs root.

``systemd-nspawn --boot`` gets a control group of its own first: a systemd that finds itself in the root group moves every
process of the host. It is only ever ended by SIGTERM, or by the death of what it has booted: a killed nspawn leaves its
container behind.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

BOOT_TIMEOUT_S = 180.0
COMMAND_TIMEOUT_S = 180.0
END_TIMEOUT_S = 90.0
LOOK_S = 0.01
NETWORK = ("etc/resolv.conf", "etc/pip.conf", "etc/ssl/certs/ca-certificates.crt")
"""What a tree needs of this host to reach a package index."""
_TARGET = "[Unit]\nRequires=basic.target\nAfter=basic.target\nAllowIsolate=yes\n"
_starter = ThreadPoolExecutor(1, thread_name_prefix="nspawn-starter")
"""The kernel ties the death signal to the thread that forked; this one lives as long as the test process."""


class Container:
    """A directory tree to prepare, then a booted systemd in it; use it as a context manager around boot().

    ``tree`` is the Debian to use: ``/`` or one made by debootstrap. It is never written to.
    """

    def __init__(self, tree: Path) -> None:
        self.tree = tree
        self.root = Path()
        self._place = Path()
        self._process: subprocess.Popen[bytes] | None = None
        self._group: Path | None = None
        self._leader = 0

    def __enter__(self) -> Self:
        self._place = Path(tempfile.mkdtemp(prefix="pvc"))
        self.root = self._place / "root"
        for name in ("upper", "work", "root"):
            (self._place / name).mkdir()
        options = f"lowerdir={self.tree},upperdir={self._place}/upper,workdir={self._place}/work"
        try:
            subprocess.run(
                ["mount", "-t", "overlay", "overlay", "-o", options, self.root], check=True, capture_output=True
            )
        except subprocess.CalledProcessError:
            shutil.rmtree(self._place)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(END_TIMEOUT_S)
        subprocess.run(["umount", self.root], check=True)
        shutil.rmtree(self._place)
        self._remove_group()

    def _remove_group(self) -> None:
        if self._group is not None:
            # The groups below went with the container; those of other control group versions were never made.
            for directory, _, _ in os.walk(self._group, topdown=False):
                with contextlib.suppress(OSError):
                    Path(directory).rmdir()
            self._group = None

    # -- before the boot

    def prepare(self, script: str, *, timeout_s: float = COMMAND_TIMEOUT_S, **environment: str) -> str:
        """Run a shell script in the tree, with this host's way to the network; return what it says."""
        for name in NETWORK:
            if Path("/", name).exists():
                shutil.copyfile(Path("/", name).resolve(), self.root / name)
        done = subprocess.run(
            ["chroot", self.root, "/bin/sh", "-euc", script],
            env=os.environ | environment, capture_output=True, text=True, timeout=timeout_s, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{script}\n{done.stdout}{done.stderr}"
        return done.stdout

    # -- life

    @property
    def console(self) -> str:
        """What systemd has said since the boot."""
        return (self._place / "console").read_text(errors="replace")

    def boot(self, *, first_pid: int = 0) -> None:
        """Boot, and wait until systemd says that it is up; its later processes have pids from ``first_pid`` on."""
        (self.root / "etc/systemd/system/test.target").write_text(_TARGET)
        self._group = _own_group()
        command = [
            "setpriv", "--pdeathsig", "TERM", "sh", "-c", f'echo $$ > {self._group}/cgroup.procs; exec "$@"', "sh",
            "systemd-nspawn", "--quiet", "--boot", f"--directory={self.root}", "--register=no", "--keep-unit",
            "--private-network", "--link-journal=no", "--console=pipe", "systemd.unit=test.target",
        ]  # fmt: skip
        environment = os.environ | {"SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"}
        with (self._place / "console").open("wb") as console:
            self._process = _starter.submit(
                subprocess.Popen, command, stdin=subprocess.DEVNULL, stdout=console, stderr=console, env=environment
            ).result()
        deadline_s = time.monotonic() + BOOT_TIMEOUT_S
        while first_pid and not self._next_pid(first_pid):
            assert self._process.poll() is None, f"the container ended: {self.console}"
            time.sleep(LOOK_S)
        while not self._is_up():
            assert self._process.poll() is None, f"the container ended: {self.console}"
            assert time.monotonic() < deadline_s, f"the container does not boot: {self.console}"
            time.sleep(LOOK_S)

    def crash(self) -> None:
        """Kill systemd, and with it every process in the container, at one instant; the tree can be booted again.

        What was written and not flushed is still there: it is in the memory of the host outside.
        """
        assert self._process is not None
        os.kill(self._leader, signal.SIGKILL)
        self._process.wait(END_TIMEOUT_S)
        self._process = None
        self._remove_group()

    def _next_pid(self, pid: int) -> bool:
        """Set the pid of the next process, in the /proc of this host: that of the container is read-only."""
        assert self._process is not None
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        try:
            if not children or Path(f"/proc/{children[0]}/ns/pid").readlink() == Path("/proc/self/ns/pid").readlink():
                return False
        except FileNotFoundError:  # one that only helps to make the container, and has ended
            return False
        write = f"echo {pid - 1} > /proc/sys/kernel/ns_last_pid"
        enter = ["nsenter", f"--target={children[0]}", "-p", "sh", "-c", write]
        return subprocess.run(enter, check=False, capture_output=True).returncode == 0

    def _is_up(self) -> bool:
        assert self._process is not None
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        if not children:
            return False
        self._leader = int(children[0])
        return self.run("systemctl", "is-active", "test.target", check=False).stdout == "active\n"

    # -- after the boot

    @property
    def inside(self) -> Path:
        """The tree as processes in the container see it, /run and /tmp included; sockets in there can be used."""
        return Path(f"/proc/{self._leader}/root")

    def run(
        self, *command: str, user: str | None = None, check: bool = True, timeout_s: float = COMMAND_TIMEOUT_S
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in the container, as root or as a user with the user's groups.

        In a session of its own: what it sends to its process group does not reach the tests.
        """
        done = subprocess.run(
            self._enter(command, user), capture_output=True, text=True, timeout=timeout_s, check=False, cwd="/",
            start_new_session=True,
        )  # fmt: skip
        assert not check or done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done

    def start(self, *command: str, user: str | None = None) -> subprocess.Popen[str]:
        """Start a command in the container; its output is to be read by the caller."""
        return subprocess.Popen(
            self._enter(command, user), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd="/"
        )

    def _enter(self, command: Sequence[str], user: str | None) -> list[str]:
        as_user = [] if user is None else ["setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups"]
        return ["nsenter", f"--target={self._leader}", "-m", "-p", "-i", "-u", "-n", "--", *as_user, *command]

    def property_of(self, unit: str, name: str) -> str:
        """Return one property of a unit."""
        return self.run("systemctl", "show", unit, f"--property={name}", "--value").stdout.strip()

    def host_pid(self, pid: int) -> int:
        """Return the number that a process of the container has out here."""
        for status in Path("/proc").glob("[0-9]*/status"):
            with contextlib.suppress(OSError):
                numbers = next(line for line in status.read_text().splitlines() if line.startswith("NSpid:")).split()[
                    1:
                ]
                if len(numbers) == 2 and int(numbers[1]) == pid and self._is_ours(int(numbers[0])):
                    return int(numbers[0])
        raise AssertionError(f"no process {pid} in the container")

    def _is_ours(self, pid: int) -> bool:
        return (Path(f"/proc/{pid}/ns/pid")).readlink() == (Path(f"/proc/{self._leader}/ns/pid")).readlink()


def _own_group() -> Path:
    """Make a control group for systemd-nspawn: below ours, in the hierarchy that systemd uses."""
    rows = dict(line.split(":", 2)[1:] for line in Path("/proc/self/cgroup").read_text().splitlines())
    if "name=systemd" in rows:
        top = Path("/sys/fs/cgroup/systemd") / rows["name=systemd"].lstrip("/")
    else:
        top = Path("/sys/fs/cgroup") / rows[""].lstrip("/")
    group = top / f"pivotd-test-{os.getpid()}"
    group.mkdir()
    return group


def wait_for_exit(pid: int, timeout_s: float) -> bool:
    """Wait until a process of somebody else has ended."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([descriptor], [], [], timeout_s)[0])
    finally:
        os.close(descriptor)
