"""A real daemon with a real QEMU behind its API, started once for all tests here."""

from __future__ import annotations

import http.client
import json
import socket
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.daemon import Daemon
from tests.support.qemu import Disk, Qemu, create_image


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Connection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=90)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        # With a time limit connect() does not wait for a place in the queue.
        self.sock.connect(str(self._path))
        self.sock.settimeout(60)


@dataclass
class Api:
    """The daemon's API, one connection per call."""

    daemon: Daemon
    qemu: Qemu
    directory: Path
    numbers: Iterator[int]

    def call(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        connection = Connection(self.daemon.socket)
        try:
            data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
            named = {key.replace("_", "-"): value for key, value in headers.items()}
            connection.request(method, path, data, named)
            answer = connection.getresponse()
            return Answer(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())
        finally:
            connection.close()

    def image(self) -> str:
        return str(self.directory / f"new{next(self.numbers)}.qcow2")

    def copied(self, **headers: str) -> dict[str, Any]:
        """Copy disk0 and return the closed pivot."""
        answer = self.call(
            "POST", "/v1/domains/web1/copy", {"disks": [{"disk": "disk0", "image": self.image()}]}, **headers
        )
        assert answer.status == 202, answer.body
        found = self.call("GET", f"{answer.headers['location']}/wait?timeout_s=50").json
        assert found["phase"] == "closed", found
        return dict(found)


@pytest.fixture(scope="module")
def api() -> Iterator[Api]:
    with tempfile.TemporaryDirectory(prefix="pv") as name:
        directory = Path(name)
        directory.chmod(0o755)
        disk = Disk(create_image(directory / "old.qcow2"))
        access = '[access]\noperators = ["daemon"]\nreaders = ["@mail"]\n'
        with Qemu(directory, [disk]) as qemu, Daemon(directory, {"web1": qemu.qmp}, configuration=access) as daemon:
            yield Api(daemon, qemu, directory, iter(range(1000)))
