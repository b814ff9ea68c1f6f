"""pivotd as the victim: started plainly or under strace, asked over its socket, killed and started again."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import socket
import sys
from pathlib import Path
from typing import Any

from pivotd.core.pivot import Pivot
from pivotd.journal.journal import Journal
from pivotd.journal.reader import Reader
from tests.chaos.plan import Point
from tests.support.daemon import Daemon

PIVOTD = Path(sys.executable).parent / "pivotd"


class ChaosDaemon(Daemon):
    """A daemon each of whose lives may be under strace."""

    @property
    def alive(self) -> bool:
        """Whether the newest process runs."""
        return self._process is not None and self._process.poll() is None

    def launch(self, point: Point | None = None, *, wait: bool = True) -> None:
        """Start pivotd, to be killed at a system call if ``point`` is one; that it dies while it starts is no error."""
        self.kill()
        under_strace = point is not None and bool(point.syscall)
        self._command = point.strace(str(PIVOTD)) if point is not None and under_strace else [str(PIVOTD)]
        with contextlib.suppress(*([RuntimeError] if under_strace or not wait else [])):
            self.start(wait=wait)


class Api(http.client.HTTPConnection):
    """HTTP over the daemon's socket."""

    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def call(daemon: Daemon, method: str, path: str, body: Any = None, *, timeout_s: float = 30, **headers: str) -> Any:
    """Return the JSON answer; HTTP errors are answers too, connection errors are raised."""
    api = Api(daemon.socket, timeout_s)
    try:
        data = None if body is None else json.dumps(body)
        api.request(method, path, data, {"Content-Type": "application/json", **headers})
        return json.loads(api.getresponse().read() or b"null")
    finally:
        api.close()


def try_call(daemon: Daemon, method: str, path: str, body: Any = None, *, timeout_s: float = 30, **headers: str) -> Any:
    """Return the JSON answer, None if pivotd died or was dead: then nobody knows what became of the request."""
    try:
        return call(daemon, method, path, body, timeout_s=timeout_s, **headers)
    except (OSError, http.client.HTTPException, ValueError):
        return None


def make_journal(state_dir: Path) -> None:
    """Leave an empty journal, as a pivotd that has run before."""

    async def make() -> None:
        await Journal.open(state_dir).close()

    state_dir.mkdir()
    asyncio.run(make())


def journal(state_dir: Path) -> list[Pivot]:
    """Return the pivots as the journal alone tells, newest first, none if there is no journal yet."""
    if not (state_dir / "journal.db").exists():
        return []
    reader = Reader.offline(state_dir)
    try:
        return reader.pivots()
    finally:
        reader.close()


def has_record(state_dir: Path, event: str) -> bool:
    """Return whether the journal holds a record of this kind."""
    reader = Reader.offline(state_dir)
    try:
        return any(record.event == event for record in reader.events(0))
    finally:
        reader.close()
