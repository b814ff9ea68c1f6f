"""A proxy between pivotd and one etcd node: it loses requests or answers, delays them, delivers them late or twice.

    async with Proxy(node.url) as proxy:
        proxy.next(Fate.ANSWER_LOST)

Each request of a client is read completely before anything happens to it. ``fates`` are used up one by one by the
requests whose path is ``path``; all others pass.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from enum import Enum, auto
from typing import Self
from urllib.parse import urlsplit

from tests.support.waiting import end_of

TXN = "/v3/kv/txn"


class Fate(Enum):
    """What becomes of a request."""

    PASS = auto()
    LOST = auto()
    """It does not arrive, and no answer comes."""
    ANSWER_LOST = auto()
    """It is carried out, and no answer comes."""
    REFUSED = auto()
    """The connection is closed before it is delivered."""
    CLOSED = auto()
    """It is carried out, and the connection is closed instead of an answer."""
    LATE = auto()
    """No answer comes, and it is delivered by deliver()."""
    TWICE = auto()
    """It is answered as it should be, and delivered once more by deliver()."""


class Proxy:
    """Listens on a port of its own; ``delay_s`` is added to each request that passes."""

    def __init__(self, target: str, path: str = TXN) -> None:
        self._target = urlsplit(target)
        self._path = path
        self._fates: list[Fate] = []
        self._kept: list[bytes] = []
        self._connections: dict[asyncio.Task[None], asyncio.StreamWriter] = {}
        self.delay_s = 0.0
        self.seen: list[str] = []
        """The paths of all requests."""
        self.held = asyncio.Event()
        """Set when a request waits for release()."""
        self._hold: tuple[str, int] | None = None
        self._released = asyncio.Event()
        self.carried_out = asyncio.Event()
        """Set when a request was carried out whose answer does not come."""
        self.decide: Callable[[str, bytes], Awaitable[Fate | None]] | None = None
        """Asked for the fate of each request, by path and text, before ``fates``; it may take its time."""
        self.on_carried_out: Callable[[bytes], None] | None = None
        """Called with each request that was carried out, right after its answer was handed on or lost."""

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        return self

    async def __aexit__(self, *_: object) -> None:
        await end_of(self._server)
        for task, writer in self._connections.items():
            task.cancel()
            writer.transport.abort()  # also one whose peer takes no answer any more
        await asyncio.gather(*self._connections, return_exceptions=True)
        await asyncio.sleep(0)  # what was aborted ends

    def next(self, *fates: Fate) -> None:
        """Decide what becomes of the next requests."""
        self._fates += fates

    def hold(self, path: str, after: int = 0) -> None:
        """Let the next request for a path wait, or the one after so many others, until release()."""
        self._hold = path, after

    def release(self) -> None:
        """Deliver the request that waits."""
        self._released.set()

    async def deliver(self) -> list[bytes]:
        """Deliver what was kept back, and return the answers."""
        kept, self._kept = self._kept, []
        return [await self._pass(request) for request in kept]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections[task] = writer
        try:
            with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
                while True:
                    request = await _request(reader)
                    if await self._treat(request, writer) is None:
                        return
        except asyncio.CancelledError:
            pass
        finally:
            del self._connections[task]
            writer.close()

    async def _treat(self, request: bytes, writer: asyncio.StreamWriter) -> bytes | None:
        """Answer a request; return None if it was not answered."""
        path = request.split(b" ", 2)[1].decode()
        self.seen.append(path)
        fate = await self.decide(path, request) if self.decide is not None else None
        if fate is None:
            fate = self._fates.pop(0) if path == self._path and self._fates else Fate.PASS
        if self._hold is not None and self._hold[0] == path:
            self._hold = (path, self._hold[1] - 1) if self._hold[1] else None
            if self._hold is None:
                self.held.set()
                await self._released.wait()
        if fate is Fate.REFUSED:
            return None
        if fate is Fate.LATE or fate is Fate.TWICE:
            self._kept.append(request)
        if fate is Fate.LOST or fate is Fate.LATE:
            await asyncio.Event().wait()
        await asyncio.sleep(self.delay_s)
        if fate in {Fate.PASS, Fate.TWICE}:
            answer = await self._pass(request, writer)
            self._has_carried_out(request)
            return answer
        await self._pass(request)
        self.carried_out.set()
        self._has_carried_out(request)
        if fate is Fate.ANSWER_LOST:
            await asyncio.Event().wait()
        return None

    def _has_carried_out(self, request: bytes) -> None:
        if self.on_carried_out is not None:
            self.on_carried_out(request)

    async def _pass(self, request: bytes, to: asyncio.StreamWriter | None = None) -> bytes:
        """Deliver a request by a connection of its own, and hand the answer on as it comes; return the whole of it."""
        reader, writer = await asyncio.open_connection(self._target.hostname, self._target.port)
        try:
            writer.write(request.replace(b"\r\n", b"\r\nConnection: close\r\n", 1))
            answer = b""
            while piece := await reader.read(1 << 16):
                answer += piece
                if to is not None:
                    to.write(piece)
                    await to.drain()
            return answer
        finally:
            writer.close()


async def _request(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
    return head + await reader.readexactly(int(length.split(b":")[1]))
