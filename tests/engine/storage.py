"""Places other than image files that a disk can move to: NBD servers; and what images look like."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

TIMEOUT_S = 90.0


class NbdServer:
    """qemu-nbd with one export ``exp`` of a raw image; TCP on a free port, or a Unix socket."""

    def __init__(self, image: Path, *, tcp: bool = False, image_format: str = "raw") -> None:
        self.image = image
        self.path = image.parent / f"{image.stem}.sock"
        self._format = image_format
        self._port: int | None = None
        self._process = self._start(tcp=tcp)

    def _start(self, *, tcp: bool) -> subprocess.Popen[bytes]:
        self._port = _free_port() if tcp else None
        where = ["-b", "127.0.0.1", "-p", str(self._port)] if tcp else ["-k", str(self.path)]
        command = ["qemu-nbd", "-t", "-e", "8", "-f", self._format, "-x", "exp", "--discard=unmap", *where]
        return subprocess.Popen(["setpriv", "--pdeathsig", "KILL", *command, str(self.image)])

    @property
    def uri(self) -> str:
        if self._port is not None:
            return f"nbd://127.0.0.1:{self._port}/exp"
        return f"nbd+unix:///exp?socket={self.path}"

    def __enter__(self) -> Self:
        deadline_s = time.monotonic() + TIMEOUT_S
        while not self._listens():
            assert time.monotonic() < deadline_s, "qemu-nbd does not listen"
            if self._process.poll() is not None:
                assert self._port is not None, "qemu-nbd has ended"
                self._process = self._start(tcp=True)  # the port that was free is another test's by now
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    def _listens(self) -> bool:
        family, address = (
            (socket.AF_UNIX, str(self.path)) if self._port is None else (socket.AF_INET, ("127.0.0.1", self._port))
        )
        with socket.socket(family) as sock:
            return sock.connect_ex(address) == 0

    def hang(self) -> None:
        """Answer nothing any more, and keep every connection."""
        self._process.send_signal(signal.SIGSTOP)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def end(self) -> None:
        """End in order: what was written is in the image."""
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(TIMEOUT_S)


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def info(path: Path | str, *, image_format: str = "qcow2") -> dict[str, Any]:
    """Return what qemu-img says of an image that may be in use."""
    done = subprocess.run(
        ["qemu-img", "info", "-U", "-f", image_format, "--output=json", str(path)], capture_output=True, check=True
    )
    return dict(json.loads(done.stdout))


def header_chain(path: Path) -> list[tuple[str, str | None]]:
    """Return (file, format named for it) all the way down, as a QEMU that is started anew would open it."""
    done = subprocess.run(
        ["qemu-img", "info", "-U", "-f", "qcow2", "--backing-chain", "--output=json", str(path)],
        capture_output=True,
        check=True,
    )
    layers = json.loads(done.stdout)
    formats = ["qcow2", *(layer.get("backing-filename-format") for layer in layers[:-1])]
    return [(os.path.realpath(layer["filename"]), name) for layer, name in zip(layers, formats, strict=True)]


def shown_chain(query_block: list[dict[str, Any]], node: str) -> list[tuple[str, str]]:
    """Return (file, format) all the way down as a running QEMU shows it."""
    image = next(row["inserted"]["image"] for row in query_block if row["inserted"]["node-name"] == node)
    found = []
    while image is not None:
        name = image["filename"]
        if name.startswith("json:"):  # QEMU compares names as text: ../mid.qcow2 is overridden for it
            name = json.loads(name.removeprefix("json:"))["file"]["filename"]
        found.append((os.path.realpath(name), image["format"]))
        image = image.get("backing-image")
    return found


def allocated_bytes(path: Path) -> int:
    return path.stat().st_blocks * 512
