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
DISK_BYTES = 64 << 20
DISK = "disk0"

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
        self._socket.sendall(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
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
    """A QEMU that runs its firmware and nothing else, with one qcow2 disk of 64 MiB, full, without host cache.

    ``control`` is our own connection; the socket at ``monitor`` is free for the program that is measured. ``node`` and
    ``image`` are what the disk is on now.
    """

    directory: Path
    process: subprocess.Popen[bytes]
    control: Qmp
    monitor: Path
    node: str
    image: Path
    _destinations: dict[str, tuple[str, Path]] = field(default_factory=dict)

    @classmethod
    @contextmanager
    def started(cls, parent: Path = Path("/var/tmp")) -> Iterator[Guest]:
        """Start one in a new directory below ``parent``, whose file system must do O_DIRECT; end it afterwards."""
        with tempfile.TemporaryDirectory(prefix="pivot-bench-", dir=parent) as name:
            directory = Path(name)
            image = directory / "source.qcow2"
            _image(image)
            fill = ["qemu-io", "-n", "-f", "qcow2", "-c", f"write -P 0xa5 0 {DISK_BYTES}", str(image)]
            subprocess.run(fill, check=True, stdout=subprocess.DEVNULL)
            with subprocess.Popen(_command(directory, image)) as process:
                try:
                    control = Qmp(_appeared(directory / "control.qmp", process))
                    yield cls(directory, process, control, directory / "monitor.qmp", "source", image)
                    control.close()
                finally:
                    process.terminate()

    def mirror(self, job: str) -> str:
        """Create a destination, start a mirror to it, and return its job id once it is READY."""
        image, node = self.directory / f"{job}.qcow2", f"{job}-node"
        _image(image)
        self.control.execute("blockdev-add", **_blockdev(node, image))
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


def _image(image: Path) -> None:
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(image), str(DISK_BYTES)], check=True)


def _blockdev(node: str, image: Path) -> Message:
    cache = {"direct": True, "no-flush": False}
    file = {"driver": "file", "filename": str(image), "cache": cache}
    return {"driver": "qcow2", "node-name": node, "cache": cache, "file": file}


def _command(directory: Path, image: Path) -> list[str]:
    monitors = [("control", directory / "control.qmp"), ("monitor", directory / "monitor.qmp")]
    return [
        *(QEMU, "-nodefaults", "-display", "none", "-machine", "q35", "-accel", "tcg", "-m", "128"),
        *("-blockdev", json.dumps(_blockdev("source", image))),
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
        # QEMU makes the sockets in the order of its command line, and control comes first.
        if path.exists() and path.with_name("monitor.qmp").exists():
            return path
        if process.poll() is not None:
            raise RuntimeError(f"QEMU ended with status {process.returncode}")
        time.sleep(0.005)
    raise RuntimeError(f"QEMU made no {path} in {START_TIMEOUT_S} s")
