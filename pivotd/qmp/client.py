"""qemu.qmp's client with what a pause needs: several short commands in one write, no formatting of messages for a log.

qemu.qmp renders every message as indented JSON for its debug log even where that log is off, and hands every event to
listeners that keep a history for ever. Both hooks are taken over here.

QEMU reads its monitor byte by byte, at about 3 microseconds each (bench/monitor.py): commands are written without
white space and with short ids, because they are sent while a guest is paused.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Sequence
from typing import Any, cast

from qemu.qmp import Message, QMPClient
from qemu.qmp.protocol import Runstate, StateError
from qemu.qmp.qmp_client import ExecInterruptedError

from pivotd import limits

# pivotd tells what happens to a connection in its own words; these lines would reach stderr unformatted.
logging.getLogger("qemu.qmp").addHandler(logging.NullHandler())
IDS = 100_000
"""Ids repeat after so many at the latest, and as soon as every reply has come: short ones are read sooner."""

Command = dict[str, Any]
"""A QMP command without its id: ``{"execute": name, "arguments": {…}}``."""


class Burst:
    """The replies to come to commands that left in one write. ``done`` gives them in order.

    ``moments``: what ``moment()`` said as each reply came, to tell the events before it from those after.
    """

    def __init__(self, names: Sequence[int], moment: Callable[[], int]) -> None:
        self.names = names
        self.moments: list[int] = []
        self._moment = moment
        self.done: asyncio.Future[list[Message]] = asyncio.get_running_loop().create_future()
        self._replies: dict[int, Message] = {}

    def take(self, name: int, reply: Message | ExecInterruptedError) -> None:
        """Note one reply, or that none will come."""
        if self.done.done():
            return
        if isinstance(reply, ExecInterruptedError):
            self.done.set_exception(reply)
            return
        self._replies[name] = reply
        self.moments.append(self._moment())
        if len(self._replies) == len(self.names):
            self.done.set_result([self._replies[name] for name in self.names])


class _Slot:
    """Stands where qemu.qmp keeps a queue per command: whoever waits is woken once for the whole burst."""

    def __init__(self, burst: Burst, name: int) -> None:
        self._burst = burst
        self._name = name

    async def put(self, reply: Message) -> None:
        """Take a reply from the reader."""
        self._burst.take(self._name, reply)

    def put_nowait(self, reply: ExecInterruptedError) -> None:
        """Take the news of a lost connection."""
        self._burst.take(self._name, reply)


class Client(QMPClient):
    """A QMP client that can send commands in one burst; QEMU runs them in order."""

    def __init__(self, on_event: Callable[[Message], None], moment: Callable[[], int]) -> None:
        super().__init__()
        self._moment = moment
        self._next_id = 0
        self._forgotten = False

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
        # Every end begins here. What has not left by now never will: a peer that does not read must not hold up the
        # end, and the descriptor goes at the next turn of the loop, whoever waits for the rest.
        if self._writer is not None:
            self._writer.transport.abort()
        super()._schedule_disconnect()

    async def _bh_flush_writer(self) -> None:
        return

    def _cleanup(self) -> None:
        # Whoever waits holds its own burst and has been told; qemu.qmp asserts that they have all run by now.
        self._pending.clear()
        super()._cleanup()

    def send_burst(self, commands: Sequence[Command]) -> Burst:
        """Send commands in one write.

        Raises: StateError: nothing was sent.
        """
        if self.runstate is not Runstate.RUNNING or self._writer is None or self._writer.is_closing():
            raise StateError("the monitor is not connected", self.runstate, Runstate.RUNNING)
        if self._writer.transport.get_write_buffer_size() > limits.UNSENT_BYTES_MAX:
            raise StateError("QEMU does not read its monitor", self.runstate, Runstate.RUNNING)
        slots: dict[int, Any] = cast("Any", self._pending)
        if not slots and not self._forgotten:
            self._next_id = 0  # every reply has come
        burst = Burst(range(self._next_id, self._next_id + len(commands)), self._moment)
        self._next_id = (self._next_id + len(commands)) % IDS
        lines = []
        for name, command in zip(burst.names, commands, strict=True):
            slots[name] = _Slot(burst, name)
            lines.append(json.dumps({**command, "id": name}, separators=(",", ":")))
        self._writer.write("\n".join([*lines, ""]).encode())
        return burst

    def forget(self, burst: Burst) -> None:
        """Drop commands that nobody waits for any more; their replies are ignored when they come."""
        slots: dict[int, Any] = cast("Any", self._pending)
        for name in burst.names:
            slots.pop(name, None)
        self._forgotten = self._forgotten or not burst.done.done() or burst.done.cancelled()
        burst.done.cancel()
