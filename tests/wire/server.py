"""A QMP server that misbehaves as told: it knows no disks, only the wire."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, Self

from tests.support.stream import CommandSplitter
from tests.support.waiting import end_of

STAMP = {"seconds": 1, "microseconds": 2}
OPEN_FILES_BACKLOG = 8

Json = dict[str, Any]
Answer = Callable[[Json], Coroutine[Any, Any, Json | None]]
"""Takes a command, returns its reply without the id; None: no reply."""


def line(message: Any) -> bytes:
    """Return a message as QEMU sends it."""
    return json.dumps(message).encode() + b"\r\n"


def greeting(version: Any = None, capabilities: Any = ()) -> bytes:
    """Return a greeting, of QEMU 8.2.0 unless told otherwise."""
    qemu = {"qemu": {"major": 8, "minor": 2, "micro": 0}, "package": ""} if version is None else version
    return line({"QMP": {"version": qemu, "capabilities": capabilities}})


def event(name: str, **data: Any) -> bytes:
    """Return an event."""
    return line({"event": name, "data": data, "timestamp": STAMP})


async def done(command: Json) -> Json | None:
    """Answer every command with an empty success."""
    return {"return": {}}


class FakeQemu:
    """Listens at ``path``; serves one client at a time and lets further ones wait, like QEMU.

    ``received`` are the commands that arrived, ``executed`` those that ran: commands wait in a queue, run in order, and
    those that still wait when their client leaves are dropped. qmp_capabilities is in neither.
    ``greeting`` None: none ever comes. ``gate`` cleared: nothing runs. ``hearing`` cleared: nothing is even read.
    ``chunks`` cuts what is sent; ``bytes_max`` closes the connection after so many bytes.
    """

    def __init__(self, path: Path, answer: Answer = done, greeting: bytes | None = greeting()) -> None:
        self.path = str(path)
        self.answer = answer
        self.greeting = greeting
        self.greet = _set_event()
        self.gate = _set_event()
        self.hearing = _set_event()
        self.received: list[str] = []
        self.executed: list[str] = []
        self.asked: list[Json] = []
        self.chunks: Callable[[bytes], Iterator[bytes]] = lambda data: iter([data])
        self.bytes_max: int | None = None
        self.clients = 0
        self.sent_bytes = 0
        self._free = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._writer: asyncio.StreamWriter | None = None

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_unix_server(self._accept, self.path, backlog=OPEN_FILES_BACKLOG)
        return self

    async def __aexit__(self, *_: object) -> None:
        await end_of(self._server)
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    # -- from the test

    def push(self, data: bytes) -> None:
        """Send bytes now, whatever else is under way."""
        assert self._writer is not None, "somebody is connected"
        self._writer.write(data)

    def hang_up(self) -> None:
        """Close the connection."""
        assert self._writer is not None, "somebody is connected"
        self._writer.close()

    # -- serving

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            async with self._free:
                self.clients += 1
                self.sent_bytes = 0
                self._writer = writer
                await self._serve(reader, writer)
        except ConnectionError:
            pass
        finally:
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        queue: asyncio.Queue[Json] = asyncio.Queue()
        await self.greet.wait()
        if self.greeting is not None:
            await self._send(writer, self.greeting)
        running = asyncio.get_running_loop().create_task(self._execute(queue, writer))
        try:
            await self._read(reader, queue)
        finally:
            running.cancel()
            await asyncio.wait([running])

    async def _read(self, reader: asyncio.StreamReader, queue: asyncio.Queue[Json]) -> None:
        splitter = CommandSplitter()
        while True:
            await self.hearing.wait()
            data = await reader.read(1 << 16)
            if not data:
                return
            for text in filter(bytes.strip, splitter.feed(data)):
                command = json.loads(text)
                name = command.get("execute") or command["exec-oob"]
                if name != "qmp_capabilities":
                    self.received.append(name)
                    self.asked.append(command)
                queue.put_nowait(command)

    async def _execute(self, queue: asyncio.Queue[Json], writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                command = await queue.get()
                await self.gate.wait()
                name = command.get("execute") or command["exec-oob"]
                if name == "qmp_capabilities":
                    reply: Json | None = {"return": {}}
                else:
                    self.executed.append(name)
                    reply = await self.answer(command)
                if reply is not None:
                    named = {"id": command["id"]} if "id" in command else {}
                    await self._send(writer, line(named | reply))
        except ConnectionError:
            return

    async def _send(self, writer: asyncio.StreamWriter, data: bytes) -> None:
        left = len(data) if self.bytes_max is None else self.bytes_max - self.sent_bytes
        for chunk in self.chunks(data[:left]):
            writer.write(chunk)
            self.sent_bytes += len(chunk)
            await writer.drain()
            # Let the other side, in the same loop, read this chunk alone.
            for _ in range(3):
                await asyncio.sleep(0)
        if left <= len(data) and self.bytes_max is not None:
            writer.close()
            raise ConnectionResetError


def _set_event() -> asyncio.Event:
    event = asyncio.Event()
    event.set()
    return event
