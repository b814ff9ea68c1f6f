"""qemu.qmp's client with what a pause needs: several commands in one write, no formatting of messages for a log.

qemu.qmp renders every message as indented JSON for its debug log even where that log is off, and hands every event to
listeners that keep a history for ever. Both hooks are taken over here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from qemu.qmp import Message, QMPClient
from qemu.qmp.protocol import Runstate, StateError


class Client(QMPClient):
    """A QMP client that can send commands in one burst; QEMU runs them in order."""

    def __init__(self, on_event: Callable[[Message], None]) -> None:
        super().__init__()

        def take(event: Message) -> bool:
            on_event(event)
            return False

        # The default listener would keep every event; this filter consumes each one instead.
        self.events.event_filter = take

    def _cb_outbound(self, msg: Message) -> Message:
        return msg

    def _cb_inbound(self, msg: Message) -> Message:
        return msg

    def _cleanup(self) -> None:
        # Whoever waits holds its own queue and has been told; qemu.qmp asserts that they have all run by now.
        self._pending.clear()
        super()._cleanup()

    def send_burst(self, commands: Sequence[Message]) -> list[asyncio.Queue[QMPClient._PendingT]]:
        """Send commands in one write; return one queue per command for receive().

        Raises: StateError: nothing was sent.
        """
        if self.runstate is not Runstate.RUNNING or self._writer is None or self._writer.is_closing():
            raise StateError("the monitor is not connected", self.runstate, Runstate.RUNNING)
        queues: list[asyncio.Queue[QMPClient._PendingT]] = []
        data = bytearray()
        for command in commands:
            message = Message(command)
            name = self._get_exec_id()
            message["id"] = name
            queue: asyncio.Queue[QMPClient._PendingT] = asyncio.Queue(maxsize=1)
            self._pending[name] = queue
            queues.append(queue)
            data += bytes(message)
        self._writer.write(bytes(data))
        return queues

    def forget(self, queues: Sequence[asyncio.Queue[QMPClient._PendingT]]) -> None:
        """Drop commands that nobody waits for any more; their replies are ignored when they come."""
        dead = set(map(id, queues))
        for name in [name for name, queue in self._pending.items() if id(queue) in dead]:
            del self._pending[name]
