"""A real QEMU for tests: started in about 0.06 s, watched by a monitor of its own, always gone afterwards.

The process dies with the test process, even when that one is killed: the kernel sends it SIGKILL.
"""

from __future__ import annotations

import json
import os
import select
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from tests.support.proxy import EXIT_TIMEOUT_S, Proxy
from tests.support.qmp_spy import Spy

START_TIMEOUT_S = 60.0
SOCKET_PATH_LENGTH_MAX = 108
CONNECT_RETRY_MS = 2
BUSES = ("virtio-blk", "virtio-scsi", "ide", "nvme")
CACHES = {
    "none": {"direct": True, "no-flush": False},
    "writeback": {"direct": False, "no-flush": False},
    "unsafe": {"direct": False, "no-flush": True},
}

_LISTEN_THEN_EXEC = (
    "import _socket,os,sys;"
    "s=_socket.socket(fileno=int(sys.argv[1]));"
    "s.listen(1);"
    "s.close();"
    "os.execvp(sys.argv[2],sys.argv[2:])"
)
"""SO_PEERCRED shows who called listen(): the process that becomes QEMU has to call it."""

_starter = ThreadPoolExecutor(1, thread_name_prefix="qemu-starter")
"""The kernel ties the death signal to the *thread* that forked; this one lives as long as the test process."""


@dataclass(frozen=True, slots=True)
class Disk:
    """One disk of the guest. ``name`` None means disk0, disk1… in order; the node is src0, src1… in order.

    ``legacy``: ``-drive`` with QEMU's own random node names instead of ``-blockdev``.
    ``relative``: QEMU is given the file name relative to its working directory, which is the image's.
    ``node`` adds to the format node, ``device`` adds properties to the guest device (``werror=stop``), ``before`` are
    nodes that are there before it.
    """

    image: Path
    format: str = "qcow2"
    name: str | None = None
    bus: str = "virtio-blk"
    cache: str = "none"
    legacy: bool = False
    iothread: bool = False
    relative: bool = False
    node: dict[str, Any] = field(default_factory=dict)
    device: str = ""
    before: tuple[dict[str, Any], ...] = ()

    @classmethod
    def of_named_nodes(cls, layers: Sequence[Path], index: int = 0) -> Self:
        """Return a disk of which each layer, lowest first, and each file is a node with a name, as libvirt has it."""
        before: list[dict[str, Any]] = []
        node: dict[str, Any] = {}
        for number, layer in enumerate(layers):
            if node:
                before.append({"driver": "qcow2", "cache": CACHES["none"], "read-only": True, **node})
            name = f"layer{index}-{number}"
            file = {"driver": "file", "node-name": f"{name}-file", "filename": str(layer), "cache": CACHES["none"]}
            backing = {"backing": node["node-name"]} if node else {}
            before.append(file)
            node = {"node-name": name, "file": file["node-name"], **backing}
        del node["node-name"]
        return cls(layers[-1], node=node, before=tuple(before))


class Root(NamedTuple):
    """What is directly under a disk's device."""

    node: str
    filename: str


def default_binary() -> list[str]:
    """Return the QEMU under test: PIVOTD_TEST_QEMU, split like a shell would, or Debian's."""
    return shlex.split(os.environ.get("PIVOTD_TEST_QEMU", "qemu-system-x86_64"))


def create_image(path: Path, *, image_format: str = "qcow2", size: str = "64M", options: str = "") -> Path:
    """Create an empty image and return its path."""
    extra = ["-o", options] if options else []
    subprocess.run(["qemu-img", "create", "-q", "-f", image_format, *extra, str(path), size], check=True)
    return path


def popen_tied(command: Sequence[str], output: Path, cwd: Path, **options: Any) -> subprocess.Popen[bytes]:
    """Start a process that the kernel kills when this process ends, however it ends; ``output`` gets what it says."""

    def start() -> subprocess.Popen[bytes]:
        with output.open("ab") as file:
            return subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *command],
                stdin=subprocess.DEVNULL, stdout=file, stderr=file, cwd=cwd, **options,
            )  # fmt: skip

    return _starter.submit(start).result()


class Qemu:
    """One QEMU process; use it as a context manager, or call start() and stop().

    ``<directory>/<name>.qmp`` is pivotd's monitor and ``<name>.spy.qmp`` the test's own. With a ``proxy`` QEMU's
    monitor is ``<name>.real.qmp`` and the proxy listens at ``<name>.qmp``, with QEMU's pid as SO_PEERCRED.
    ``guest`` is a list of further arguments, as Guest.arguments() returns.
    """

    def __init__(
        self,
        directory: Path,
        disks: Sequence[Disk] = (),
        *,
        name: str = "web1",
        binary: Sequence[str] | None = None,
        machine: str = "q35",
        memory_mib: int = 64,
        paused: bool = False,
        no_shutdown: bool = False,
        guest: Sequence[str] = (),
        extra: Sequence[str] = (),
        proxy: Proxy | None = None,
    ) -> None:
        self.directory, self.name, self.machine, self.proxy = directory, name, machine, proxy
        self.binary = list(binary) if binary is not None else default_binary()
        self.disks = tuple(disks)
        self.qmp = directory / f"{name}.qmp"
        assert len(str(directory / f"{name}.real.qmp")) < SOCKET_PATH_LENGTH_MAX, "a Unix socket needs a shorter path"
        self.spy_path = directory / f"{name}.spy.qmp"
        self.errors_path = directory / f"{name}.stderr"
        self._own_qmp = directory / f"{name}.real.qmp" if proxy else self.qmp
        assert proxy is None or (proxy.listen_path, proxy.qemu_path) == (self.qmp, self._own_qmp), "see proxy_for()"
        self._arguments = self._common(memory_mib, paused=paused, no_shutdown=no_shutdown)
        for index, disk in enumerate(self.disks):
            self._arguments += self._disk(index, disk)
        self._arguments += [*guest, *extra]
        self._process: subprocess.Popen[bytes] | None = None
        self._spy: Spy | None = None

    @staticmethod
    def proxy_for(directory: Path, name: str = "web1", **options: Any) -> Proxy:
        """Return the proxy to give to the constructor, at the paths that Qemu expects."""
        return Proxy(directory / f"{name}.qmp", directory / f"{name}.real.qmp", **options)

    # -- life

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> Self:
        """Start QEMU and wait until its monitors answer; leaves nothing behind when that fails."""
        assert self._process is None, "one Qemu object is one process"
        try:
            # A socket left by a killed predecessor would refuse the first tries of everyone who waits for it.
            for path in {self._own_qmp, self.spy_path}:
                path.unlink(missing_ok=True)
            self._process = self._popen()
            self._spy = self._connect()
            if self.proxy:
                self.proxy.start(self.pid)
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """Kill QEMU if it lives, and close everything; may be called at any time, repeatedly."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        if self._spy is not None:
            self._spy.close()
            self._spy = None
        if self.proxy is not None:
            self.proxy.stop()

    @property
    def pid(self) -> int:
        """The process id of QEMU itself."""
        assert self._process is not None, "not started"
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """None while QEMU lives; minus the signal number if one killed it."""
        assert self._process is not None, "not started"
        return self._process.poll()

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal; SIGKILL returns when the process is gone."""
        assert self._process is not None, "not started"
        self._process.send_signal(number)
        if number == signal.SIGKILL:
            self.wait()

    def wait(self, timeout_s: float = EXIT_TIMEOUT_S) -> int:
        """Wait until QEMU has ended and return its status."""
        assert self._process is not None, "not started"
        return self._process.wait(timeout_s)

    # -- the test's own monitor

    def spy(self, command: str, arguments: dict[str, Any] | None = None, /, **more: Any) -> Any:
        """Run a QMP command; keywords are arguments with ``_`` for ``-``, the positional dict is taken as it is."""
        assert self._spy is not None, "not started"
        return self._spy.execute(command, {**(arguments or {}), **{k.replace("_", "-"): v for k, v in more.items()}})

    def spy_events(self) -> list[dict[str, Any]]:
        """Return and forget the events seen so far."""
        assert self._spy is not None, "not started"
        return self._spy.events()

    def await_event(self, name: str, *, timeout_s: float | None = None, **data: Any) -> dict[str, Any]:
        """Wait for an event of this name with this data; earlier events are forgotten."""
        assert self._spy is not None, "not started"
        return self._spy.await_event(name, timeout_s=timeout_s, **data)

    def run_state(self) -> str:
        """Return query-status' word."""
        return str(self.spy("query-status")["status"])

    def jobs(self) -> dict[str, dict[str, Any]]:
        """Return every job by its id."""
        return {job["id"]: job for job in self.spy("query-jobs")}

    def nodes(self) -> dict[str, dict[str, Any]]:
        """Return every named block node by its name."""
        return {node["node-name"]: node for node in self.spy("query-named-block-nodes")}

    def root(self, disk: str = "disk0") -> Root:
        """Return the node directly under the disk's device, and its file name as QEMU spells it."""
        inserted = self._block(disk)["inserted"]
        return Root(inserted["node-name"], inserted["file"])

    def stats(self, disk: str = "disk0") -> dict[str, Any]:
        """Return QEMU's I/O counters of a disk."""
        qdev = self._block(disk)["qdev"]
        return next(dict(row["stats"]) for row in self.spy("query-blockstats") if row.get("qdev") == qdev)

    def _block(self, disk: str) -> dict[str, Any]:
        ours = {disk, f"/machine/peripheral/{disk}/virtio-backend", f"/machine/peripheral/{disk}"}
        return next(dict(row) for row in self.spy("query-block") if row.get("qdev") in ours)

    # -- the command line

    def _popen(self) -> subprocess.Popen[bytes]:
        command = [*self.binary, *self._arguments]
        descriptors = []
        if self.proxy:
            descriptors = [self.proxy.fileno()]
            command = [sys.executable, "-I", "-S", "-c", _LISTEN_THEN_EXEC, str(descriptors[0]), *command]
        return popen_tied(command, self.errors_path, self._cwd(), pass_fds=descriptors)

    def _connect(self) -> Spy:
        assert self._process is not None
        deadline_s = time.monotonic() + START_TIMEOUT_S
        pidfd = os.pidfd_open(self._process.pid)
        try:
            poll = select.poll()
            poll.register(pidfd, select.POLLIN)
            while time.monotonic() < deadline_s:
                try:
                    return Spy(self.spy_path)
                except (FileNotFoundError, ConnectionError):
                    if poll.poll(CONNECT_RETRY_MS):
                        break
        finally:
            os.close(pidfd)
        said = self.errors_path.read_text(errors="replace")[-2000:]
        raise RuntimeError(f"QEMU did not start: {shlex.join([*self.binary, *self._arguments])}\n{said}")

    def _cwd(self) -> Path:
        relative = [disk.image.parent for disk in self.disks if disk.relative]
        assert len(set(relative)) <= 1, "relative file names need one directory"
        return relative[0] if relative else self.directory

    def _common(self, memory_mib: int, *, paused: bool, no_shutdown: bool) -> list[str]:
        arguments = [
            "-accel",
            "tcg",
            "-machine",
            self.machine,
            "-m",
            str(memory_mib),
            "-nodefaults",
            "-display",
            "none",
        ]
        for index, path in enumerate((self._own_qmp, self.spy_path)):
            arguments += ["-chardev", f"socket,id=mon{index},path={_escape(path)},server=on,wait=off"]
            arguments += ["-mon", f"chardev=mon{index},mode=control"]
        return arguments + ["-S"] * paused + ["-no-shutdown"] * no_shutdown

    def _disk(self, index: int, disk: Disk) -> list[str]:
        assert disk.bus in BUSES, disk
        assert disk.cache in CACHES, disk
        name = disk.name or f"disk{index}"
        filename = disk.image.name if disk.relative else str(disk.image)
        if disk.legacy:
            backend = f"drive{index}"
            value = f"if=none,id={backend},file={_escape(filename)},format={disk.format},cache={disk.cache}"
            arguments = ["-drive", value]
        else:
            backend = f"src{index}"
            cache = CACHES[disk.cache]
            file = {"driver": "file", "filename": filename, "cache": cache}
            node = {"driver": disk.format, "node-name": backend, "cache": cache, "file": file, **disk.node}
            arguments = [part for made in (*disk.before, node) for part in ("-blockdev", json.dumps(made))]
        thread = ""
        if disk.iothread:
            assert disk.bus.startswith("virtio"), "only virtio devices take an iothread here"
            arguments += ["-object", f"iothread,id=io{index}"]
            thread = f",iothread=io{index}"
        properties = f"drive={backend},id={name},serial={name}" + (f",{disk.device}" if disk.device else "")
        match disk.bus:
            case "virtio-blk":
                arguments += ["-device", f"virtio-blk-pci,{properties}{thread}"]
            case "virtio-scsi":
                arguments += ["-device", f"virtio-scsi-pci,id=scsi{index}{thread}"]
                arguments += ["-device", f"scsi-hd,bus=scsi{index}.0,{properties}"]
            case "nvme":
                arguments += ["-device", f"nvme,{properties}"]
            case "ide":
                slot = f"ide.{index // 2},unit={index % 2}" if self.machine.startswith("pc") else f"ide.{index}"
                arguments += ["-device", f"ide-hd,bus={slot},{properties}"]
        return arguments


def _escape(value: str | Path) -> str:
    return str(value).replace(",", ",,")
