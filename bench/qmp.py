"""A small synchronous QMP client, and a QEMU whose disk can be mirrored again and again, for the benches.

with Guest.started() as guest:
    job = guest.mirror("m0")     # READY, auto-finalize and auto-dismiss off
    ...                          # whatever is measured switches the disk through guest.monitor
    guest.clean_up(job)          # dismiss the job, drop the image that lost
"""

from __future__ import annotations

import json
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

QEMU = "qemu-system-x86_64"
REPLY_TIMEOUT_S = 30.0
START_TIMEOUT_S = 10.0
EVENTS_MAX = 10_000
DISK = "disk0"
DIRTY_STEP_MIB = 64

Message = dict[str, Any]


class Qmp:
    """One monitor connection; events that come while a reply is awaited are kept in ``events``."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(REPLY_TIMEOUT_S)
        self._socket.connect(str(path))
        self._lines = self._socket.makefile("rb")
        self.events: list[Message] = []
        self._read()
        self.execute("qmp_capabilities")

    def execute(self, command: str, **arguments: Any) -> Any:
        """Run one command and return what QEMU returned. Underscores in argument names stand for hyphens.

        Raises: RuntimeError if QEMU refuses it.
        """
        arguments = {name.replace("_", "-"): value for name, value in arguments.items()}
        self.send(json.dumps({"execute": command, "arguments": arguments}))
        return self.answer(command)

    def send(self, message: str) -> None:
        """Send one message as it is."""
        self._socket.sendall(message.encode() + b"\n")

    def answer(self, command: str) -> Any:
        """Return what QEMU returned to the oldest command without an answer. Raises: RuntimeError."""
        for _ in range(EVENTS_MAX):
            message = self._read()
            if "return" in message:
                return message["return"]
            if "error" in message:
                raise RuntimeError(f"{command}: {message['error']['desc']}")
            self.events.append(message)
        raise RuntimeError(f"{command}: no reply among {EVENTS_MAX} messages")

    def wait(self, wanted: Callable[[Message], bool]) -> Message:
        """Return the first event that is wanted, out of those kept or still to come; drop those before it."""
        for _ in range(EVENTS_MAX):
            event = self.events.pop(0) if self.events else self._read()
            if wanted(event):
                return event
        raise RuntimeError(f"not among {EVENTS_MAX} events")

    def wait_job(self, job: str, status: str) -> None:
        """Wait for the event that says that a job has come to a status."""
        self.wait(
            lambda event: event["event"] == "JOB_STATUS_CHANGE" and event["data"] == {"id": job, "status": status}
        )

    def close(self) -> None:
        self._lines.close()
        self._socket.close()

    def _read(self) -> Message:
        line = self._lines.readline()
        if not line:
            raise RuntimeError("QEMU closed the connection")
        message: Message = json.loads(line)
        return message


@dataclass
class Guest:
    """A QEMU that runs its firmware and nothing else, with one full qcow2 disk, by default without host cache.

    ``control`` is our own connection; the sockets at ``monitor`` and ``pivotd`` are free for what is measured. ``node``
    and ``image`` are what the disk is on now.
    """

    directory: Path
    process: subprocess.Popen[bytes]
    control: Qmp
    monitor: Path
    pivotd: Path
    node: str
    image: Path
    size_mib: int
    cached: bool
    _destinations: dict[str, tuple[str, Path]] = field(default_factory=dict)

    @classmethod
    @contextmanager
    def started(cls, parent: Path = Path("/var/tmp"), *, size_mib: int = 64, cached: bool = False) -> Iterator[Guest]:
        """Start one in a new directory below ``parent``, whose file system must do O_DIRECT; end it afterwards."""
        with tempfile.TemporaryDirectory(prefix="pivot-bench-", dir=parent) as name:
            directory = Path(name)
            image = directory / "source.qcow2"
            _image(image, size_mib)
            fill = [
                word
                for mib in range(0, size_mib, 64)
                for word in ("-c", f"write -P 0xa5 {mib}M {min(64, size_mib - mib)}M")
            ]
            subprocess.run(["qemu-io", "-n", "-f", "qcow2", *fill, str(image)], check=True, stdout=subprocess.DEVNULL)
            with subprocess.Popen(_command(directory, image, cached=cached)) as process:
                try:
                    control = Qmp(_appeared(directory / "control.qmp", process))
                    sockets = directory / "monitor.qmp", directory / "pivotd.qmp"
                    yield cls(directory, process, control, *sockets, "source", image, size_mib, cached)
                    control.close()
                finally:
                    process.terminate()

    def mirror(self, job: str) -> str:
        """Create a destination, start a mirror to it, and return its job id once it is READY."""
        image, node = self.directory / f"{job}.qcow2", f"{job}-node"
        _image(image, self.size_mib)
        self.control.execute("blockdev-add", **_blockdev(node, image, cached=self.cached))
        self.control.execute(
            "blockdev-mirror",
            job_id=job,
            device=self.node,
            target=node,
            sync="full",
            auto_finalize=False,
            auto_dismiss=False,
        )
        self.control.wait_job(job, "ready")
        self._destinations[job] = (node, image)
        return job

    def dirty(self, mib: int) -> None:
        """Write so much through the disk's device, unflushed, and wait until every mirror has it too."""
        path = f"/machine/peripheral/{DISK}/virtio-backend"
        for place in range(0, mib, DIRTY_STEP_MIB):
            line = f'qemu-io -d {path} "write -q -P 0x5a {place}M {min(DIRTY_STEP_MIB, mib - place)}M"'
            self.control.execute("human-monitor-command", command_line=line)
        deadline = time.monotonic() + REPLY_TIMEOUT_S
        while any(job["len"] != job["offset"] for job in self.control.execute("query-block-jobs")):
            if time.monotonic() > deadline:
                raise RuntimeError("the mirror does not catch up")
            time.sleep(0.02)

    def clean_up(self, job: str) -> None:
        """Dismiss a concluded job and drop the image that the disk is not on, whichever way the pivot went."""
        self.control.execute("job-dismiss", id=job)
        (device,) = self.control.execute("query-block")
        destination = self._destinations.pop(job)
        loser = destination
        if device["inserted"]["node-name"] == destination[0]:
            loser = (self.node, self.image)
            self.node, self.image = destination
        self.control.execute("blockdev-del", node_name=loser[0])
        loser[1].unlink()

    def moved_to(self, image: Path) -> None:
        """Note that somebody else has moved the disk to this image and closed the one before; remove that file."""
        (device,) = self.control.execute("query-block")
        if device["inserted"]["file"] != str(image):
            raise RuntimeError(f"the disk is on {device['inserted']['file']}, not on {image}")
        self.image.unlink()
        self.node, self.image = device["inserted"]["node-name"], image
        self.control.events.clear()


def _image(image: Path, size_mib: int) -> None:
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(image), f"{size_mib}M"], check=True)


def _blockdev(node: str, image: Path, *, cached: bool) -> Message:
    cache = {"direct": not cached, "no-flush": False}
    file = {"driver": "file", "filename": str(image), "cache": cache}
    return {"driver": "qcow2", "node-name": node, "cache": cache, "file": file}


def _command(directory: Path, image: Path, *, cached: bool) -> list[str]:
    monitors = [(name, directory / f"{name}.qmp") for name in ("control", "monitor", "pivotd")]
    return [
        *(QEMU, "-nodefaults", "-display", "none", "-machine", "q35", "-accel", "tcg", "-m", "128"),
        *("-blockdev", json.dumps(_blockdev("source", image, cached=cached))),
        *("-device", f"virtio-blk-pci,id={DISK},drive=source"),
        *(word for name, path in monitors for word in _monitor(name, path)),
    ]


def _monitor(name: str, path: Path) -> list[str]:
    return [
        *("-chardev", f"socket,id={name},path={path},server=on,wait=off"),
        *("-mon", f"chardev={name},mode=control"),
    ]


def _appeared(path: Path, process: subprocess.Popen[bytes]) -> Path:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        # QEMU makes the sockets in the order of its command line; pivotd's comes last.
        if path.exists() and path.with_name("pivotd.qmp").exists():
            return path
        if process.poll() is not None:
            raise RuntimeError(f"QEMU ended with status {process.returncode}")
        time.sleep(0.005)
    raise RuntimeError(f"QEMU made no {path} in {START_TIMEOUT_S} s")
