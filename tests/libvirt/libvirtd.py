"""A private libvirtd: its own configuration, state and sockets below one directory, in a mount namespace of its own.

Inside the namespace everything is at libvirt's default paths; outside, the same files are below ``Libvirtd.directory``:
``etc`` is /etc/libvirt, ``run`` is /run/libvirt and so on (PLACES). ``inside()`` runs a program in the namespace.
Needs root and the packages that tests/support/setup.sh installs. libvirtd and its QEMUs end with the test.

The libvirtd of another Debian release runs in a tree that `make libvirts` has fetched: after a chroot, with the same
paths of images and monitors inside as outside.
"""

from __future__ import annotations

import hashlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.support.guest_assets import cache_directory

ANSWER_TIMEOUT_S = 180.0
END_TIMEOUT_S = 60.0
LOOK_S = 0.05
VIRSH_TIMEOUT_S = 120.0
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
LIBVIRTD_CONF = 'auth_unix_rw = "none"\nlog_outputs = "2:file:/var/log/libvirt/libvirtd.log"\n'
HERE = Path(__file__).parent
CHECKOUT = HERE.parents[1]


def trees() -> list[Path]:
    """Return the trees of other releases: those listed in PIVOTD_TEST_LIBVIRTS (``TREE:TREE``), else those fetched."""
    listed = os.environ.get("PIVOTD_TEST_LIBVIRTS")
    if listed is not None:
        return [Path(tree).resolve() for tree in listed.split(":") if tree]
    return sorted(stamp.parent.resolve() for stamp in (cache_directory() / "libvirts").glob("*/.complete"))


def missing() -> str | None:
    """Return why there can be no libvirtd here, None if there can."""
    if os.geteuid() != 0:
        return "needs root: libvirtd gets a mount namespace"
    if shutil.which("libvirtd") is None or shutil.which("virsh") is None:
        return "libvirt is not installed (Debian: libvirt-daemon libvirt-daemon-driver-qemu libvirt-clients)"
    tried = subprocess.run(
        ["unshare", "--mount", "--propagation", "private", "mount", "--bind", "/mnt", "/mnt"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if tried.returncode:
        return f"no mount namespace here: {tried.stderr.strip()}"
    return None


@dataclass(frozen=True, slots=True)
class Point:
    """One point of libvirtd's work, see kill_at.c. ``delay_ms`` gives what was asked for the time to happen."""

    when: str
    what: str
    pattern: str
    since: str = "-"
    count: int = 1
    delay_ms: int = 0
    action: str = "kill"

    def __str__(self) -> str:
        return f"{self.action} {self.when} {self.what} {self.pattern} {self.since} {self.count} {self.delay_ms}"


class LibvirtError(AssertionError):
    """virsh failed where the test needs it; the message is what it said."""


class Libvirtd:
    """One libvirtd at a time; its QEMUs outlive it and end with this. Use it as a context manager.

    ``tree``: of another release; None for what is installed here.
    """

    def __init__(self, tree: Path | None = None, *, qemu_conf: str = QEMU_CONF) -> None:
        self.tree, self._qemu_conf = tree, qemu_conf
        self.directory = Path()
        self.pid: int | None = None
        """Of the running libvirtd, None after it was ended by one of our own methods."""
        self._keeper: subprocess.Popen[bytes] | None = None

    # --- its life

    def __enter__(self) -> Self:
        self.directory = Path(tempfile.mkdtemp(prefix="lv"))  # short: it is part of paths of sockets
        for name in (*PLACES, "etc/hooks", "etc/qemu", "kill_at", "images", "root/etc"):
            (self.directory / name).mkdir(parents=True)
        (self.directory / "root/etc/libvirt").symlink_to(self.directory / "etc")
        (self.directory / "etc/qemu.conf").write_text(self._qemu_conf)
        (self.directory / "etc/libvirtd.conf").write_text(LIBVIRTD_CONF)
        self._keeper = subprocess.Popen(
            ["unshare", "--mount", "--propagation", "private", "sh", "-euc", self._enter()],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=self.directory,
        )  # fmt: skip
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._keeper is not None
        assert self._keeper.stdin is not None
        assert self._keeper.stdout is not None
        self._keeper.stdin.close()
        self._keeper.wait(END_TIMEOUT_S)
        self._keeper.stdout.close()
        if kind is not None:
            print(self.said()[-3000:])  # noqa: T201 - pytest shows it beside the failure
        shutil.rmtree(self.directory)

    def _enter(self) -> str:
        """Return a script that mounts everything in its place, enters the tree, and becomes the keeper."""
        root = self.tree or Path("/")
        binds = [(self.directory / ours, theirs) for ours, theirs in PLACES.items()]
        if self.tree is not None:
            binds += [(path, str(path)) for path in (CHECKOUT, cache_directory().resolve(), self.directory)]
        lines = [f"mount -t tmpfs tmp {root}/tmp"] * (self.tree is not None)
        lines += [f"mkdir -p {root}{theirs} && mount --bind {ours} {root}{theirs}" for ours, theirs in binds]
        keeper = f"-I -S {HERE / 'keeper.py'}"
        if self.tree is None:
            return "\n".join([*lines, f"exec {sys.executable} {keeper}"])
        lines += [f"mount --rbind /{name} {root}/{name}" for name in ("proc", "sys", "dev")]
        return "\n".join([*lines, f"LC_ALL=C exec chroot {root} python3 {keeper}"])

    def start(self, *, wait: bool = True, shim: bool = True) -> None:
        """Start libvirtd, with what kill_at() needs unless it is not wanted; ``wait`` until it answers."""
        environment = {"LD_PRELOAD": str(_shim()), "PIVOTD_KILL_AT": str(self.directory / "kill_at")} if shim else {}
        self.pid = self.spawn("libvirtd", "--pid-file", "/run/libvirt/libvirtd.pid", environment=environment)
        if wait:
            self.await_answer()

    def clear(self) -> None:
        """End everything in the namespace and forget all domains, images, hooks and logs; what was probed is kept."""
        self.clear_processes()
        self.never_kill()
        for place in ("run", "lib", "log", "images", "etc/qemu", "etc/hooks"):
            for path in (self.directory / place).glob("*"):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        for path in self.directory.glob("*.*"):
            path.unlink()

    def clear_processes(self) -> None:
        """End libvirtd and its QEMUs, also one that it has forgotten."""
        self._keep(run=None)
        self.pid = None

    def await_answer(self) -> None:
        """Wait until libvirtd has reconnected to its domains and answers."""
        assert self.pid is not None
        deadline_s = time.monotonic() + ANSWER_TIMEOUT_S
        while self.virsh("version").returncode:
            assert _runs(self.pid), f"libvirtd has ended: {self.said()}"
            assert time.monotonic() < deadline_s, f"libvirtd does not answer: {self.said()}"
            time.sleep(LOOK_S)

    def kill(self) -> None:
        """SIGKILL libvirtd; may be called repeatedly."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """End libvirtd as a service manager does, by SIGTERM."""
        self._end(signal.SIGTERM)

    def await_death(self) -> None:
        """Wait until libvirtd has ended by itself, at its point for example."""
        pid, self.pid = self.pid, None
        assert pid is not None
        try:
            descriptor = os.pidfd_open(pid)
        except ProcessLookupError:
            return
        try:
            # Of all its threads: until the last one is gone, it has its pid file locked.
            assert select.select([descriptor], [], [], END_TIMEOUT_S)[0], "libvirtd goes on"
        finally:
            os.close(descriptor)

    def _end(self, number: signal.Signals) -> None:
        if self.pid is not None:
            end_process(self.pid, number)
            self.pid = None

    # --- its point

    def kill_at(self, point: Point) -> None:
        """Let libvirtd end at a point of what it does from now on; once."""
        (self.directory / "kill_at/steps").unlink(missing_ok=True)
        new = self.directory / "kill_at/new"
        new.write_text(f"{point}\n")
        new.rename(self.directory / "kill_at/point")

    def never_kill(self) -> None:
        """Forget the point, if it was not reached."""
        (self.directory / "kill_at/point").unlink(missing_ok=True)

    def steps(self) -> list[str]:
        """Return the commands and renames of libvirtd since kill_at(), in their order."""
        try:
            return (self.directory / "kill_at/steps").read_text(errors="replace").splitlines()
        except FileNotFoundError:
            return []

    # --- asking it

    @property
    def uri(self) -> str:
        """Its address outside the namespace; inside it is qemu:///system."""
        return f"qemu+unix:///system?socket={self.directory}/run/libvirt-sock"

    def virsh(self, *arguments: str, timeout_s: float = VIRSH_TIMEOUT_S) -> subprocess.CompletedProcess[str]:
        """Run virsh to its end, whatever comes of it."""
        return subprocess.run(
            ["virsh", "-q", "-c", self.uri, *arguments],
            capture_output=True, text=True, check=False, timeout=timeout_s,
        )  # fmt: skip

    def ask(self, *arguments: str) -> str:
        """Run virsh and return what it says.

        Raises: LibvirtError.
        """
        done = self.virsh(*arguments)
        if done.returncode:
            raise LibvirtError(f"virsh {' '.join(arguments)}: {done.stderr.strip()}")
        return done.stdout.strip()

    def version(self) -> str:
        """Return the release of libvirt."""
        done = subprocess.run(self.inside("libvirtd", "--version"), capture_output=True, text=True, check=True)
        return done.stdout.split()[-1]

    def virsh_session(self) -> VirshSession:
        """Return a virsh that is connected and waits for commands: no time is lost when one is sent."""
        return VirshSession(self.uri)

    def said(self) -> str:
        """Return the log of libvirtd, and what it wrote to stderr."""
        logs = [self.directory / "log/libvirtd.log", self.directory / "output", self.directory / "log/hook.log"]
        return "\n".join(log.read_text(errors="replace") for log in logs if log.exists())

    # --- the hook

    def install_hook(self) -> None:
        """Install pivotd's hook as its users do; what it says when libvirtd starts is kept (hook_said())."""
        pivotctl = Path(sys.executable).with_name("pivotctl")
        root = str(self.directory / "root")
        subprocess.run(
            [pivotctl, "libvirt", "install-hooks", "--starts", "--root", root], check=True, capture_output=True
        )
        program = self.directory / "etc/hooks/daemon.d/pivotd"
        program.write_text(program.read_text().replace('daemon "$@"', 'daemon "$@" 2>>/var/log/libvirt/hook.log'))

    def hook_said(self) -> str:
        """Return what the hook has said at the starts of libvirtd, one line for each domain that it changed."""
        log = self.directory / "log/hook.log"
        return log.read_text() if log.exists() else ""

    def dry_run(self) -> str:
        """Return what the hook says it would repair; libvirtd has to be dead."""
        done = subprocess.run(
            self.inside("/usr/bin/python3", "-I", "-S", "/etc/libvirt/hooks/pivotd-libvirt-hook.py", "--dry-run"),
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        return done.stderr

    # --- others in its namespace

    @property
    def keeper_pid(self) -> int:
        """Of the parent of all that is started in the namespace."""
        assert self._keeper is not None
        return self._keeper.pid

    def inside(self, *command: str) -> list[str]:
        """Return a command that runs another one where libvirt's default paths are this libvirtd's."""
        process = f"/proc/{self.keeper_pid}"
        return ["nsenter", f"--mount={process}/ns/mnt", f"--root={process}/root", "--wdns=/", *command]

    def spawn(self, *command: str, environment: dict[str, str] | None = None, output: str = "output") -> int:
        """Start a program in the namespace that ends with this, and return its process id."""
        return self._keep(run=command, environment=environment or {}, output=str(self.directory / output))

    def _keep(self, **asked: Any) -> int:
        assert self._keeper is not None
        assert self._keeper.stdin is not None
        assert self._keeper.stdout is not None
        self._keeper.stdin.write(json.dumps(asked).encode() + b"\n")
        self._keeper.stdin.flush()
        return int(self._keeper.stdout.readline())


class VirshSession:
    """An interactive virsh, connected already."""

    def __init__(self, uri: str) -> None:
        self._process = subprocess.Popen(
            ["virsh", "-q", "-c", uri], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, bufsize=0,
        )  # fmt: skip
        self._read, self._said = self._process.stdout, b""
        self.send("echo connected")
        self._await(b"connected\n")

    def send(self, command: str) -> None:
        """Let it run a command; do not wait."""
        assert self._process.stdin is not None
        self._process.stdin.write(command.encode() + b"\n")

    def end(self) -> str:
        """End it after its last command and return all it has said."""
        try:
            rest, _ = self._process.communicate(timeout=VIRSH_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            rest, _ = self._process.communicate()
        return (self._said + rest).decode(errors="replace").strip()

    def _await(self, text: bytes) -> None:
        assert self._read is not None
        deadline_s = time.monotonic() + VIRSH_TIMEOUT_S
        while text not in self._said:
            assert select.select([self._read], [], [], max(0.0, deadline_s - time.monotonic()))[0], self._said
            data = os.read(self._read.fileno(), 4096)
            assert data, self._said
            self._said += data


def end_process(pid: int, number: signal.Signals = signal.SIGKILL) -> None:
    """Send a signal to a process that is no child of ours, and return when it is gone."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        signal.pidfd_send_signal(descriptor, number)
        assert select.select([descriptor], [], [], END_TIMEOUT_S)[0], f"process {pid} survives {number.name}"
    except ProcessLookupError:
        pass
    finally:
        os.close(descriptor)


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


@cache
def _shim() -> Path:
    """Return the compiled kill shim."""
    source = HERE / "kill_at.c"
    directory = cache_directory() / "libvirt"
    built = directory / f"kill_at-{hashlib.sha256(source.read_bytes()).hexdigest()[:16]}.so"
    if not built.exists():
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=directory, delete=False) as file:
            subprocess.run(["gcc", "-O2", "-Wall", "-shared", "-fPIC", "-o", file.name, source, "-ldl"], check=True)
        Path(file.name).replace(built)
    return built
