"""One connection to one QEMU: each command has a time limit, each event is reduced to the state it changes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from qemu.qmp import ExecInterruptedError, Message, Runstate, StateError

from pivotd import limits
from pivotd.errors import QmpRefusedError, QmpUnknownError, QmpUnsentError
from pivotd.qmp import connecting
from pivotd.qmp.burst import Client, Command
from pivotd.qmp.question import Question

T = TypeVar("T")

JOBS_REMEMBERED_MAX = 4096
DETACHING = frozenset({"DEVICE_DELETED", "DEVICE_TRAY_MOVED", "BLOCK_JOB_COMPLETED", "BLOCK_EXPORT_DELETED"})


def command(name: str, /, **arguments: Any) -> Command:
    """Return a QMP command; underscores in argument names stand for QMP's hyphens."""
    if not arguments:
        return {"execute": name}
    return {"execute": name, "arguments": {key.replace("_", "-"): value for key, value in arguments.items()}}


class Monitor:
    """A live connection. ``pid`` is the peer's, from the kernel; ``version`` is QEMU's (major, minor, micro)."""

    def __init__(self) -> None:
        self._client = Client(self._on_event, lambda: self.resumes)
        self._callbacks: list[Callable[[], None]] = []
        self._free = asyncio.Event()
        self._free.set()
        self.pid = 0
        self.version = (0, 0, 0)
        self.job_status: dict[str, str] = {}
        """Last JOB_STATUS_CHANGE of each job; a hint to look, never the basis of a decision about the graph."""
        self.resumes = 0
        """Number of RESUME events so far: the guest was resumed."""
        self.stops = 0
        """Number of STOP events so far: the guest was paused, or is about to leave by a migration."""
        self.detached = 0
        """Number of events after which a node may have lost its last user: a device, a medium, a job, an export."""

    @classmethod
    async def connect(cls, path: str) -> Monitor:
        """Connect and negotiate; QEMU's answer proves that no command of an earlier client is still waiting.

        Raises: DomainUnreachableError (no listener, or QEMU is stuck), MonitorBusyError, UnsupportedQemuError.
        """
        monitor = cls()
        sock = await connecting.open_socket(path)
        try:
            monitor.pid = connecting.peer(sock, path)
            monitor.version = await connecting.negotiate(monitor._client, sock, path)
        except BaseException:
            # Begins the end before it waits, so that a second cancellation loses nothing.
            try:
                await monitor.close()
            finally:
                sock.close()
            raise
        return monitor

    @property
    def out_of_band(self) -> bool:
        """Whether QEMU takes out-of-band commands on this connection: it reads them even while another one hangs."""
        greeting = self._client.greeting
        return greeting is not None and "oob" in greeting.QMP.capabilities

    @property
    def version_text(self) -> str:
        """QEMU's version as text, empty where QEMU was not asked yet."""
        return ".".join(map(str, self.version)) if any(self.version) else ""

    @property
    def connected(self) -> bool:
        """Whether commands can be sent now."""
        return self._client.runstate is Runstate.RUNNING

    async def closed(self) -> None:
        """Return once the connection is lost or was closed."""
        while self._client.runstate is Runstate.RUNNING:
            await self._client.runstate_changed()
        self._wake()

    async def close(self) -> None:
        """Disconnect; never raises because of the peer."""
        # Shielded: half an end is none.
        await asyncio.shield(self._end())
        self._wake()

    async def _end(self) -> None:
        # disconnect() raises the reader's error again, which can be any: the data was not QMP, JSON or UTF-8, too long
        # or nested too deep. Every task that waited for a reply has already got the error.
        with contextlib.suppress(Exception):
            await self._client.disconnect()

    async def execute(self, message: Command, timeout_s: float = limits.COMMAND_TIMEOUT_S) -> Any:
        """Run one command and return its value; the exception says what is known about its effect.

        Raises: QmpUnsentError, QmpRefusedError, QmpUnknownError.
        """
        (reply,) = await self.burst([message], timeout_s)
        if isinstance(reply, QmpRefusedError):
            raise reply
        return reply

    async def burst(self, messages: Sequence[Command], timeout_s: float) -> list[Any]:
        """Run commands that are sent in one write; return one value or QmpRefusedError for each, in order.

        Raises: QmpUnsentError: none was sent. QmpUnknownError: some of them may not have run.
        """
        if not messages:
            return []
        if "exec-oob" not in messages[0] and not self._free.is_set():
            await self._wait_for_turn(messages, timeout_s)
        replies, _ = await self._run(messages, timeout_s)
        return replies

    async def alone(
        self, messages: Sequence[Command], timeout_s: float, leaving: Callable[[], None]
    ) -> tuple[list[Any], list[int]]:
        """Run commands while all others wait; return the replies, and the number of RESUME events before each.

        ``leaving`` is called when all but the first are about to be sent. QEMU sends events and replies in the order of
        events. All other commands wait, except out-of-band ones: QEMU stops reading once eight commands are queued, and
        then nothing could end a ``stop`` that hangs (monitor/qmp.c, QMP_REQ_QUEUE_LEN_MAX).

        Raises: as burst().
        """
        if not self._free.is_set():
            await self._wait_for_turn(messages, timeout_s)
        self._free.clear()
        try:
            return await self._run(messages, timeout_s, leaving)
        finally:
            self._free.set()

    async def _run(
        self, messages: Sequence[Command], timeout_s: float, leaving: Callable[[], None] | None = None
    ) -> tuple[list[Any], list[int]]:
        """Send commands now; return their replies, and the number of RESUME events at each. Raises: as burst()."""
        try:
            burst = self._client.send_burst(messages, leaving)
        except StateError as error:
            text = _names(messages)
            raise QmpUnsentError(f"{text}: {error.error_message}", command=text) from error
        # A pause has four bursts: asyncio.timeout would cost more.
        late = asyncio.get_running_loop().call_later(timeout_s, burst.fail, TimeoutError())
        try:
            got = await burst.done
        except ExecInterruptedError as error:
            text = _names(messages)
            raise QmpUnknownError(f"{text}: the monitor closed before the answer", command=text) from error
        except TimeoutError as error:
            text = _names(messages)
            raise QmpUnknownError(f"{text}: no answer within {timeout_s:g} s", command=text) from error
        finally:
            late.cancel()
            self._client.forget(burst)
        values = [value_of(reply, message) for (reply, _), message in zip(got, messages, strict=True)]
        return values, [resumes for _, resumes in got]

    async def _wait_for_turn(self, messages: Sequence[Command], timeout_s: float) -> None:
        try:
            async with asyncio.timeout(timeout_s):
                while not self._free.is_set():
                    await self._free.wait()
        except TimeoutError as error:
            text = _names(messages)
            raise QmpUnsentError(f"{text}: QEMU has not answered `stop` yet", command=text) from error

    def subscribe(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Call callback at every relevant event and at the loss of the connection; return a function that ends this."""
        self._callbacks.append(callback)
        return lambda: self._callbacks.remove(callback)

    def _on_event(self, event: Message) -> None:
        name = event["event"]
        self.detached += name in DETACHING
        match name:
            case "JOB_STATUS_CHANGE":
                self._note_job(event.get("data"))
            case "RESUME":
                self.resumes += 1
            case "STOP":
                self.stops += 1
            case "BLOCK_JOB_ERROR":
                return  # can come 60,000 times a second from a job that ignores errors; the status change tells enough
        self._wake()

    def _note_job(self, data: Any) -> None:
        if not isinstance(data, dict):
            return
        job, status = data.get("id"), data.get("status")
        if (
            not isinstance(job, str)
            or not isinstance(status, str)
            or len(job) + len(status) > limits.JOB_NAME_BYTES_MAX
        ):
            return
        if status == "null":
            self.job_status.pop(job, None)
        elif job in self.job_status or len(self.job_status) < JOBS_REMEMBERED_MAX:
            self.job_status[job] = status

    def _wake(self) -> None:
        for callback in self._callbacks:
            callback()


async def ask(monitor: Monitor, question: Question[T]) -> T:
    """Query QEMU and return the answer. Raises: QmpUnsentError, QmpRefusedError, QmpUnknownError."""
    return question(await monitor.execute(question.command, limits.QUERY_TIMEOUT_S))


def _names(messages: Sequence[Command]) -> str:
    return ", ".join(str(message.get("execute") or message["exec-oob"]) for message in messages)


def value_of(reply: Message, message: Command) -> Any:
    """Return the value or the refusal. Raises: QmpUnknownError: it is neither."""
    name = str(message.get("execute") or message["exec-oob"])
    error = reply.get("error")
    if isinstance(error, dict):
        text = str(error.get("desc", "no description")).strip()
        return QmpRefusedError(f"QEMU refused {name}: {text}", command=name, text=text, qmp_class=error.get("class"))
    if "error" in reply or "return" not in reply:
        raise QmpUnknownError(f"{name}: the answer is neither a value nor an error", command=name)
    return reply["return"]
