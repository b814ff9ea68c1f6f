"""qemu.qmp's client, extended for the pause: several short commands in one write, no formatting of messages for a log.

qemu.qmp renders every message as indented JSON for its debug log even where that log is off, and hands every event to
listeners that keep a history for ever. This module overrides both hooks.

This is the only module that uses private names of qemu.qmp. They are those of the pinned version:
tests/qmp/test_library.py lists them and fails if one of them, or the version, is another.

QEMU reads its monitor byte by byte, at about 3 microseconds each (bench/monitor.py): commands are written without
white space and with short ids.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Sequence
from typing import Any, cast

from qemu.qmp import ExecInterruptedError, Message, QMPClient, Runstate, StateError

from pivotd import limits

# pivotd tells what happens to a connection in its own words; these lines would reach stderr unformatted.
logging.getLogger("qemu.qmp").addHandler(logging.NullHandler())

Command = dict[str, Any]
"""A QMP command without its id: ``{"execute": name, "arguments": {…}}``."""


class Burst:
    """The replies to commands that were sent together, and the value of ``moment()`` when each reply came.

    ``done`` gives both in the order of the commands; a moment separates the events before its reply from those after.
    """

    def __init__(self, size: int, moment: Callable[[], int]) -> None:
        self.names: list[int] = []
        """The ids of its commands."""
        self.done: asyncio.Future[list[tuple[Message, int]]] = asyncio.get_running_loop().create_future()
        self._size = size
        self._moment = moment
        self._replies: dict[int, tuple[Message, int]] = {}

    def take(self, index: int, reply: Message) -> None:
        """Note the reply to one command; a second one is ignored."""
        self._replies.setdefault(index, (reply, self._moment()))
        if len(self._replies) == self._size and not self.done.done():
            self.done.set_result([self._replies[index] for index in range(self._size)])

    def fail(self, error: Exception) -> None:
        """Pass this error to the waiting task, if there is one."""
        if not self.done.done():
            self.done.set_exception(error)
            self.done.exception()  # counts as told


class _Slot:
    """Replaces qemu.qmp's queue for each command: the waiting task is woken once for the whole burst."""

    def __init__(self, burst: Burst, index: int) -> None:
        self._burst = burst
        self._index = index

    async def put(self, reply: Message) -> None:
        """Take a reply from the reader."""
        self._burst.take(self._index, reply)

    def put_nowait(self, error: ExecInterruptedError) -> None:
        """Take the loss of the connection."""
        self._burst.fail(error)


class Client(QMPClient):
    """A QMP client that can send commands in one burst; QEMU runs them in order."""

    def __init__(self, on_event: Callable[[Message], None], moment: Callable[[], int]) -> None:
        super().__init__()
        self._moment = moment
        self._next_id = 0

        def take(event: Message) -> bool:
            on_event(event)
            return False

        # The default listener would keep every event; this filter consumes each one instead.
        self.events.event_filter = take

    def _cb_outbound(self, msg: Message) -> Message:
        return msg

    def _cb_inbound(self, msg: Message) -> Message:
        return msg

    def _schedule_disconnect(self) -> None:
        # Every disconnect begins here. Unsent data is dropped: a peer that does not read must not delay the disconnect.
        # The descriptor is closed at the next turn of the loop, even if a task waits for the rest.
        if self._writer is not None:
            self._writer.transport.abort()
        super()._schedule_disconnect()

    async def _bh_flush_writer(self) -> None:
        return

    def _cleanup(self) -> None:
        # A waiting task holds its own burst and has got its error; qemu.qmp asserts that all of them have run by now.
        self._pending.clear()
        super()._cleanup()

    def send_burst(self, commands: Sequence[Command], leaving: Callable[[], None] | None = None) -> Burst:
        """Send commands in one write; with ``leaving``, send the first alone, call ``leaving``, then send the rest.

        Raises: StateError: nothing was sent.
        """
        if self.runstate is not Runstate.RUNNING or self._writer is None or self._writer.is_closing():
            raise StateError("the monitor is not connected", self.runstate, Runstate.RUNNING)
        if self._writer.transport.get_write_buffer_size() > limits.UNSENT_BYTES_MAX:
            raise StateError("QEMU does not read its monitor", self.runstate, Runstate.RUNNING)
        queues: dict[int, Any] = cast("Any", self._pending)
        burst = Burst(len(commands), self._moment)
        lines = []
        for index, command in enumerate(commands):
            name = self._next_id
            self._next_id += 1
            burst.names.append(name)
            queues[name] = _Slot(burst, index)
            lines.append(json.dumps({**command, "id": name}, separators=(",", ":")))
        if leaving is not None:
            self._writer.write(f"{lines.pop(0)}\n".encode())
            leaving()
        self._writer.write("\n".join([*lines, ""]).encode())
        return burst

    def forget(self, burst: Burst) -> None:
        """Drop commands for which no task waits any more; their replies are ignored."""
        queues: dict[int, Any] = cast("Any", self._pending)
        for name in burst.names:
            queues.pop(name, None)
        burst.done.cancel()
