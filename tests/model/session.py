"""pivotd's own Session on a monitor whose other end is the model; the kernel's facts come from the model too."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, cast

import pivotd.engine.driver
import pivotd.engine.driver_state
import pivotd.engine.failures
import pivotd.engine.fleet_steps
import pivotd.engine.inbox
import pivotd.engine.intent
import pivotd.engine.journal_failures
import pivotd.engine.record_steps
import pivotd.engine.steps
import pivotd.engine.watchdog
import pivotd.qmp.looking
import pivotd.qmp.opening
import pivotd.qmp.rollback
from pivotd.core.pivot import Identity
from pivotd.errors import QmpRefusedError, QmpUnsentError
from pivotd.qmp.monitor import Monitor
from pivotd.qmp.session import Session
from tests.model.qemu import RefusedError

Message = dict[str, Any]


class Wire(Protocol):
    """What is between a monitor and the model, and may go wrong."""

    async def burst(self, monitor: ModelMonitor, messages: Sequence[Message], resumes_at: list[int]) -> list[Any]:
        """Run commands that leave in one write; return a value or RefusedError for each. Raises: QmpUnknownError.

        ``resumes_at`` gets the number of RESUME events at each reply.
        """
        ...

    async def pause(self, changed: asyncio.Event, timeout_s: float) -> None:
        """Wait for an event of QEMU inside one step of a pivot."""
        ...


class ModelMonitor:
    """What pivotd.qmp.monitor.Monitor is to a Session."""

    version_text = "7.2.0"

    def __init__(self, wire: Wire, pid: int) -> None:
        self.wire = wire
        self.pid = pid
        self.connected = True
        self.resumes = 0
        self.job_status: dict[str, str] = {}
        self._callbacks: list[Callable[[], None]] = []

    async def execute(self, message: Message, timeout_s: float = 0) -> Any:
        (reply,) = await self.burst([message], timeout_s)
        if isinstance(reply, QmpRefusedError):
            raise reply
        return reply

    async def burst(self, messages: Sequence[Message], timeout_s: float) -> list[Any]:
        replies, _ = await self.alone(messages, timeout_s, lambda: None)
        return replies

    async def alone(
        self, messages: Sequence[Message], _timeout_s: float, leaving: Callable[[], None]
    ) -> tuple[list[Any], list[int]]:
        if not messages:
            return [], []
        if not self.connected:
            raise QmpUnsentError("the monitor is not connected")
        leaving()
        resumes_at: list[int] = []
        replies = await self.wire.burst(self, messages, resumes_at)
        return [_value(reply, message) for reply, message in zip(replies, messages, strict=True)], resumes_at

    def subscribe(self, callback: Callable[[], None]) -> Callable[[], None]:
        self._callbacks.append(callback)
        return lambda: self._callbacks.remove(callback)

    def hear(self, events: Sequence[tuple[str, str, str]]) -> None:
        """Take QEMU's events."""
        for event, job, status in events:
            if event == "RESUME":
                self.resumes += 1
            elif status == "null":
                self.job_status.pop(job, None)
            elif event == "JOB_STATUS_CHANGE":
                self.job_status[job] = status
        if events:
            self.wake()

    def lose(self) -> None:
        """The connection is gone."""
        self.connected = False
        self.wake()

    def wake(self) -> None:
        for callback in tuple(self._callbacks):
            callback()


def session_on(monitor: ModelMonitor) -> Session:
    """Return the real Session."""
    return Session(cast("Monitor", monitor), "/model")


def _value(reply: Any, message: Message) -> Any:
    if not isinstance(reply, RefusedError):
        return reply
    name, text = str(message["execute"]), str(reply)
    return QmpRefusedError(f"QEMU refused {name}: {text}", command=name, text=text)


class Host(Protocol):
    """The kernel's facts."""

    def process_gone(self, identity: Identity) -> bool: ...
    def monotonic(self) -> float: ...


class _Identity:
    """In place of pivotd.host.process."""

    def __init__(self, host: Callable[[], Host]) -> None:
        self._host = host

    def is_gone(self, pid: int, ticks: int | None, boot: str) -> bool:
        return self._host().process_gone(Identity(boot, pid, ticks, ""))

    def boot_id(self) -> str:
        return "boot"

    def start_ticks(self, pid: int) -> int:
        return pid

    def working_directory(self, _pid: int) -> None:
        return None


class _Time:
    """In place of the time module."""

    def __init__(self, host: Callable[[], Host]) -> None:
        self._host = host

    def monotonic(self) -> float:
        return self._host().monotonic()


class _Silence:
    """In place of the log: millions of lines that nobody reads."""

    def __getattr__(self, _name: str) -> Callable[..., None]:
        return lambda *_args, **_facts: None

    def get_logger(self) -> _Silence:
        return self


class ModelFuture:
    """In place of a future where there is no loop: whoever awaits it gives up its turn for good."""

    def __init__(self) -> None:
        self.answer: object = None

    def __await__(self) -> Iterator[ModelFuture]:
        yield self

    def done(self) -> bool:
        return self.answer is not None

    def set_result(self, answer: object) -> None:
        self.answer = answer

    def set_exception(self, answer: object) -> None:
        self.answer = answer

    def exception(self) -> object:
        return self.answer


class _NoLoop:
    """In place of asyncio where there is no loop: nothing takes time."""

    def __getattr__(self, name: str) -> Any:
        return getattr(asyncio, name)

    def timeout(self, _timeout_s: float) -> contextlib.AbstractAsyncContextManager[None]:
        return contextlib.nullcontext()

    def get_running_loop(self) -> _NoLoop:
        return self

    def create_future(self) -> ModelFuture:
        return ModelFuture()


async def _at_once(_timeout_s: float, function: Callable[..., Any], *args: Any, **_paths: Any) -> Any:
    return function(*args)


DRIVER = (
    pivotd.engine.driver,
    pivotd.engine.driver_state,
    pivotd.engine.failures,
    pivotd.engine.fleet_steps,
    pivotd.engine.inbox,
    pivotd.engine.intent,
    pivotd.engine.journal_failures,
    pivotd.engine.record_steps,
    pivotd.engine.steps,
    pivotd.engine.watchdog,
)
"""The modules of the driver, whose log, threads and event loop are the model's."""


@contextlib.contextmanager
def model_kernel(
    host: Callable[[], Host], pause: Callable[[asyncio.Event, float], Any], *, loop: bool = False
) -> Iterator[None]:
    """Have the real Session ask the model about processes, time and files while this lasts.

    ``loop``: there is an event loop, whatever its time is.
    """
    looking, rollback = pivotd.qmp.looking, pivotd.qmp.rollback
    replaced = {
        looking: {"process": _Identity(host), "in_thread": _at_once},
        rollback: {"time": _Time(host), "_until": pause, "in_thread": _at_once},
        pivotd.qmp.opening: {"in_thread": _at_once},
    }
    for module in DRIVER:
        names = {"log": _Silence(), "in_thread": _at_once, "asyncio": asyncio if loop else _NoLoop()}
        replaced[module] = {name: value for name, value in names.items() if hasattr(module, name)}
    saved = {module: {name: getattr(module, name) for name in names} for module, names in replaced.items()}
    try:
        for module, names in replaced.items():
            for name, value in names.items():
                setattr(module, name, value)
        yield
    finally:
        for module, names in saved.items():
            for name, value in names.items():
                setattr(module, name, value)
