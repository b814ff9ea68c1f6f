"""A small synchronous QMP client: the test's own monitor, independent of pivotd's code."""

from __future__ import annotations

import json
import select
import socket
import time
from collections import deque
from pathlib import Path
from typing import Any

SPY_TIMEOUT_S = 60.0


class SpyError(Exception):
    """QEMU refused a command of the test; ``reply`` is its error object."""

    def __init__(self, command: str, reply: dict[str, Any]) -> None:
        super().__init__(f"{command}: {reply.get('desc', reply)}")
        self.reply = reply


class Spy:
    """One monitor connection; every call blocks, none longer than its time limit."""

    def __init__(self, path: Path, *, timeout_s: float = SPY_TIMEOUT_S) -> None:
        self._timeout_s = timeout_s
        self._events: deque[dict[str, Any]] = deque()
        self._buffer = b""
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._socket.settimeout(timeout_s)
            self._socket.connect(str(path))
            self.greeting: dict[str, Any] = self._receive(time.monotonic() + timeout_s)["QMP"]
            self.execute("qmp_capabilities")
        except BaseException:
            self._socket.close()
            raise

    def close(self) -> None:
        """End the connection."""
        self._socket.close()

    def execute(self, command: str, arguments: dict[str, Any] | None = None) -> Any:
        """Return what QEMU returns.

        Raises: SpyError when QEMU refuses, TimeoutError, ConnectionError when QEMU is gone.
        """
        deadline_s = time.monotonic() + self._timeout_s
        message = {"execute": command, "arguments": arguments or {}}
        self._socket.sendall(json.dumps(message).encode())
        while True:
            reply = self._receive(deadline_s)
            if "return" in reply:
                return reply["return"]
            if "error" in reply:
                raise SpyError(command, reply["error"])
            self._events.append(reply)

    def events(self) -> list[dict[str, Any]]:
        """Return and forget the events that have arrived; does not wait."""
        while b"\n" in self._buffer or select.select([self._socket], [], [], 0)[0]:
            try:
                self._events.append(self._receive(time.monotonic() + self._timeout_s))
            except ConnectionError:
                break
        seen = list(self._events)
        self._events.clear()
        return seen

    def await_event(self, name: str, *, timeout_s: float | None = None, **data: Any) -> dict[str, Any]:
        """Return the next event of this name whose data contains ``data``; earlier events are forgotten."""
        deadline_s = time.monotonic() + (self._timeout_s if timeout_s is None else timeout_s)
        while True:
            event = self._events.popleft() if self._events else self._receive(deadline_s)
            if event.get("event") == name and data.items() <= event.get("data", {}).items():
                return event

    def next_event(self) -> dict[str, Any]:
        """Return the next event, whatever it is, however long that takes. Raises: ConnectionError."""
        while True:
            if self._events:
                return self._events.popleft()
            if b"\n" not in self._buffer:
                select.select([self._socket], [], [])
            self._events.append(self._receive(time.monotonic() + self._timeout_s))

    def _receive(self, deadline_s: float) -> dict[str, Any]:
        while b"\n" not in self._buffer:
            left_s = deadline_s - time.monotonic()
            if left_s <= 0:
                raise TimeoutError("QEMU's monitor did not answer the test in time")
            self._socket.settimeout(left_s)
            data = self._socket.recv(1 << 16)
            if not data:
                raise ConnectionResetError("QEMU closed the test's monitor")
            self._buffer += data
        line, self._buffer = self._buffer.split(b"\n", 1)
        message: dict[str, Any] = json.loads(line)
        return message
