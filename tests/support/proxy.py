"""A proxy between pivotd and QEMU's monitor: it sees every message and can stop the world at any of them.

The proxy is a thread of the test process. The listening socket is bound here, but ``listen()`` is called by the
process that becomes QEMU (see qemu.py): SO_PEERCRED at ``listen_path`` is then QEMU's own pid and start time, exactly
as without the proxy, and the socket refuses connections once QEMU is gone.

A hook runs in the proxy's thread, twice per message: ``before`` it is forwarded and ``after``. Nothing else is
forwarded meanwhile, in either direction, so a hook that kills a process and waits for its end stops it *at* this
message. What was lost where, for a command of pivotd:

    to-qemu, before, Cut      the command never reached QEMU
    to-qemu, after            in doubt: pivotd's end closes right behind it, and QEMU may drop it unread
    from-qemu, before, Cut    executed, and pivotd never heard of it
    from-qemu, after          pivotd was told and may have acted

Bytes are forwarded unchanged. Like QEMU the proxy serves one client at a time; others wait without a greeting.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from tests.support.stream import CommandSplitter, LineSplitter

EXIT_TIMEOUT_S = 60.0
"""How long a killed process may take to be gone: it waits for what it has given to the disk."""
CHUNK_BYTES = 1 << 18


class Direction(StrEnum):
    """Which way a message goes."""

    TO_QEMU = "to-qemu"
    FROM_QEMU = "from-qemu"


class When(StrEnum):
    """The two moments at which a hook sees a message."""

    BEFORE = "before"
    AFTER = "after"


class Cut(Exception):  # noqa: N818 - not an error: the hook's way to say what happens next
    """Raised by a hook: close both ends here; ``before`` means that the message is not forwarded."""


@dataclass(frozen=True, slots=True)
class Message:
    """One QMP message.

    ``label`` is ``command:NAME``, ``return:NAME``, ``error:NAME``, ``event:NAME``, ``greeting`` or ``?``: a reply
    carries the name of the command it answers. ``nth`` counts messages with this label and direction, from 1, over
    the life of the proxy; ``index`` all messages, ``connection`` the clients, both from 0.
    """

    raw: bytes
    json: dict[str, Any]
    label: str
    nth: int
    direction: Direction
    index: int
    connection: int
    connection_index: int


Hook = Callable[[Direction, int, Message, When], None]


@dataclass
class Recorder:
    """A hook that keeps the messages of a run; ``labels()`` is what a chaos test walks through."""

    messages: list[Message]

    @staticmethod
    def new() -> Recorder:
        """Return an empty one."""
        return Recorder([])

    def __call__(self, direction: Direction, index: int, message: Message, when: When) -> None:
        """Take one message."""
        if when is When.BEFORE:
            self.messages.append(message)

    def labels(self) -> list[tuple[Direction, str, int]]:
        """Return (direction, label, nth) of every message in order."""
        return [(message.direction, message.label, message.nth) for message in self.messages]


@dataclass
class KillAt:
    """A hook that kills processes at one message and cuts the connection there.

    The message is the one with this ``index``, or the ``nth`` with this ``label`` that the hook sees; give a label
    where the run has to be the same every time, since events and replies may change places. ``pids`` is asked at that
    moment; each process is gone when the connection is cut. Then ``struck`` is set, and ``at_s`` is the monotonic
    time of the kill.
    """

    pids: Callable[[], list[int]]
    when: When
    label: str | None = None
    nth: int = 1
    index: int | None = None
    direction: Direction | None = None

    def __post_init__(self) -> None:
        """Start unstruck."""
        assert (self.label is None) != (self.index is None), "either a label or an index"
        self.struck = threading.Event()
        self.at_s = 0.0
        self._seen = 0

    def __call__(self, direction: Direction, index: int, message: Message, when: When) -> None:
        """Strike if this is the moment; only once."""
        if self.struck.is_set() or when is not self.when or self.direction not in (None, direction):
            return
        if self.label is not None and message.label == self.label:
            self._seen += 1
        if index != self.index if self.label is None else (message.label, self._seen) != (self.label, self.nth):
            return
        self.at_s = time.monotonic()
        for pid in self.pids():
            kill_and_wait(pid)
        self.struck.set()
        raise Cut


def kill_and_wait(pid: int, *, timeout_s: float = EXIT_TIMEOUT_S) -> None:
    """SIGKILL a process and return when it runs no more; reaping it stays with its parent."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        assert select.select([pidfd], [], [], timeout_s)[0], f"process {pid} survives SIGKILL"
    finally:
        os.close(pidfd)


class Proxy:
    """Forwards one client at a time to QEMU and shows every message to ``on_message``.

    ``log`` is a file that receives one JSON line per message. ``on_message`` may be replaced while the proxy runs.
    """

    def __init__(
        self, listen_path: Path, qemu_path: Path, *, on_message: Hook | None = None, log: Path | None = None
    ) -> None:
        self.listen_path, self.qemu_path, self.on_message = listen_path, qemu_path, on_message
        self.failure: BaseException | None = None
        self._log = log.open("a", buffering=1) if log else None
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listen_path.unlink(missing_ok=True)
        self._listener.bind(str(listen_path))
        self._listener_fd = self._listener.fileno()
        self._wake_read, self._wake_write = os.pipe()
        self._thread: threading.Thread | None = None
        self._pair: tuple[socket.socket, socket.socket] | None = None
        self._counts: dict[tuple[Direction, str], int] = {}
        self._index = 0
        self._connection = -1
        self._connection_index = 0
        self._commands: dict[str, str] = {}
        self._unnamed: list[str] = []

    def fileno(self) -> int:
        """Return the bound socket, on which the process behind ``qemu_path`` calls listen()."""
        return self._listener_fd

    @property
    def count(self) -> int:
        """How many messages were seen, in both directions."""
        return self._index

    def start(self, qemu_pid: int | None = None) -> None:
        """Serve until stop() or until that process has ended. Without a pid this process is the one that listens."""
        if qemu_pid is None:
            self._listener.listen(1)
        self._thread = threading.Thread(target=self._run, args=(qemu_pid,), name="qmp-proxy", daemon=True)
        self._thread.start()

    def await_end(self, *, timeout_s: float = EXIT_TIMEOUT_S) -> bool:
        """Wait until the proxy has seen QEMU's end; from then on its socket refuses connections."""
        if self._thread is not None:
            self._thread.join(timeout_s)
        return self._thread is None or not self._thread.is_alive()

    def stop(self) -> None:
        """Close everything and raise what a hook raised by mistake; may be called repeatedly."""
        if self._wake_write >= 0:
            os.write(self._wake_write, b"x")
            pair = self._pair
            for end in pair or ():
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
            if self._thread is not None:
                self._thread.join(EXIT_TIMEOUT_S)
                assert not self._thread.is_alive(), "a hook does not return"
            self._listener.close()
            os.close(self._wake_read)
            os.close(self._wake_write)
            self._wake_write = -1
            if self._log:
                self._log.close()
        self.check()

    def check(self) -> None:
        """Raise what a hook raised by mistake; once."""
        if self.failure is not None:
            failure, self.failure = self.failure, None
            raise failure

    # -- the thread

    def _run(self, qemu_pid: int | None) -> None:
        pidfd = -1
        try:
            if qemu_pid is not None:
                pidfd = os.pidfd_open(qemu_pid)
            watched = [self._wake_read] + [pidfd] * (pidfd >= 0)
            while not set(watched) & set(select.select([*watched, self._listener], [], [])[0]):
                client, _ = self._listener.accept()
                with client, socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as monitor:
                    self._pair = client, monitor
                    try:
                        monitor.connect(str(self.qemu_path))
                        self._serve(client, monitor)
                    except (Cut, ConnectionError, FileNotFoundError):
                        pass
                    finally:
                        self._pair = None
        except BaseException as error:  # noqa: BLE001 - shown to the test by stop()
            self.failure = error
        finally:
            self._listener.close()
            if pidfd >= 0:
                os.close(pidfd)

    def _serve(self, client: socket.socket, monitor: socket.socket) -> None:
        self._connection += 1
        self._connection_index = 0
        self._commands, self._unnamed = {}, []
        ways = {
            client: (Direction.TO_QEMU, CommandSplitter(), monitor),
            monitor: (Direction.FROM_QEMU, LineSplitter(), client),
        }
        while True:
            ready = select.select([self._wake_read, client, monitor], [], [])[0]
            if self._wake_read in ready:
                return
            for source in ready:
                direction, splitter, peer = ways[source]
                data = source.recv(CHUNK_BYTES)
                if not data:
                    peer.sendall(splitter.rest)
                    return
                for raw in splitter.feed(data):
                    self._forward(raw, direction, peer)

    def _forward(self, raw: bytes, direction: Direction, peer: socket.socket) -> None:
        if not raw.strip():
            peer.sendall(raw)
            return
        message = self._describe(raw, direction)
        if self._log:
            facts = {"at_s": time.monotonic(), "index": message.index, "connection": message.connection,
                     "direction": direction, "label": message.label, "nth": message.nth,
                     "message": message.json or raw.decode(errors="replace")}  # fmt: skip
            self._log.write(json.dumps(facts) + "\n")
        self._show(message, When.BEFORE)
        # A client that died may have left commands behind: read and forward them, as QEMU would have read them.
        with contextlib.suppress(ConnectionError) if direction is Direction.FROM_QEMU else contextlib.nullcontext():
            peer.sendall(raw)
        self._show(message, When.AFTER)

    def _show(self, message: Message, when: When) -> None:
        if self.on_message is not None:
            self.on_message(message.direction, message.index, message, when)

    def _describe(self, raw: bytes, direction: Direction) -> Message:
        try:
            body = json.loads(raw)
        except ValueError:
            body = {}
        body = body if isinstance(body, dict) else {}
        label = self._label(body, direction)
        key = (direction, label)
        self._counts[key] = self._counts.get(key, 0) + 1
        message = Message(
            raw, body, label, self._counts[key], direction, self._index, self._connection, self._connection_index
        )
        self._index += 1
        self._connection_index += 1
        return message

    def _label(self, body: dict[str, Any], direction: Direction) -> str:
        if direction is Direction.TO_QEMU:
            name = str(body.get("execute", body.get("exec-oob", "?")))
            if "id" in body:
                self._commands[json.dumps(body["id"])] = name
            else:
                self._unnamed.append(name)
            return f"command:{name}"
        if "QMP" in body:
            return "greeting"
        if "event" in body:
            return f"event:{body['event']}"
        for kind in ("return", "error"):
            if kind in body:
                named = self._commands.pop(json.dumps(body["id"]), "?") if "id" in body else ""
                return f"{kind}:{named or (self._unnamed.pop(0) if self._unnamed else '?')}"
        return "?"
