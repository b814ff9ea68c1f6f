"""What pivotd tells its service manager."""

from __future__ import annotations

import queue
import socket
import threading
from pathlib import Path

TIMEOUT_S = 90


class Manager:
    """Stands for systemd: takes every message at once, as its socket holds few."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._receiver = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._receiver.bind(str(path))
        self._messages: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._receive, daemon=True)
        self._thread.start()

    def _receive(self) -> None:
        while (message := self._receiver.recv(1000)) != b"end":
            self._messages.put(message)

    def await_message(self, wanted: bytes) -> None:
        """Wait for a message with these bytes in it; those before it are gone."""
        while wanted not in self._messages.get(timeout=TIMEOUT_S):
            pass

    def end(self) -> list[bytes]:
        """Return what came since."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.sendto(b"end", str(self.path))
        self._thread.join()
        self._receiver.close()
        return [self._messages.get() for _ in range(self._messages.qsize())]
