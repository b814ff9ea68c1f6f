"""The daemon's log: constant event names and facts, one message each, and never a wait for the reader.

    log = get_logger()
    log.info("pivot.paused", pause_ms=3.2, attempt=1)

Under systemd an event goes to journald in its own protocol, with the facts as fields.
Elsewhere it is a line on stderr.

``import structlog`` takes longer than the whole recovery of a guest that a dead daemon left paused. So events wait in a
bounded list, with the time at which they happened, until load() has imported it: in a thread once recovery is done, or
at exit if the daemon never came that far.

In the same list events wait while a guest is in its pause: see hold().
"""

from __future__ import annotations

import atexit
import logging
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from pivotd import log_lines, sd
from pivotd.log_lines import PRIORITIES, Event, Facts, LineWriter, Style

PENDING_MAX = 5000
"""Events that wait for load() or for the end of a pause; recovery of 1,000 pivots logs fewer. Later ones are counted
and dropped."""
LEVELS = tuple(reversed(PRIORITIES))
"""From the one that says everything to the one that says least."""
LEVEL_DEFAULT = "info"


class Native(Protocol):
    """Takes events as they are."""

    def send(self, event: Event) -> bool | None:
        """Send one event; False: not taken now; None: not there, write a line instead."""

    def close(self) -> None:
        """Close what it has open."""


class Output:
    """Takes events from any thread and brings them to a writer in order, once structlog is there."""

    def __init__(self) -> None:
        self._pending: deque[Event] = deque()
        self._writing = threading.Lock()
        self._loading = threading.Lock()
        self._writer: LineWriter | None = None
        self._native: Native | None = None
        self._journald: Path | None = None
        self._style = Style.JSON
        self._render: Callable[[Event], bytes] | None = None
        self._dropped = 0
        self._priority_max = PRIORITIES[LEVEL_DEFAULT]
        self._holds = 0
        self._hold_s = 0.0
        self._held_since_s = 0.0
        self._wake: Callable[[float], None] | None = None
        self._woken = False

    def attach(self, fd: int, style: Style | None = None, *, journald: Path | None = None) -> None:
        """Choose where lines go; without a style, by what the descriptor is. Costs no import.

        ``journald``: its socket; lines then are for the case that it does not exist.
        """
        self._style = style or (Style.TERMINAL if os.isatty(fd) else Style.JSON)
        self._writer = LineWriter(fd)
        self._journald = journald

    def load(self) -> None:
        """Import structlog and write what has waited for it; call it in a thread. Again, it does nothing."""
        with self._loading:
            if self._render is None and self._writer is not None:
                if self._journald is not None:
                    from pivotd.journald import Journald  # noqa: PLC0415 - it imports json

                    self._native = Journald(self._journald)
                self._render = log_lines.renderer(self._style)
        self._drain()

    def end(self) -> None:
        """Write everything, whether or not it waits for the end of a pause."""
        self._hold_s = 0.0
        self.load()

    def level(self, least: str) -> None:
        """Take events of this level and of those that are more serious."""
        self._priority_max = PRIORITIES[least]

    def emit(self, level: str, event: str, facts: Facts) -> None:
        """Take one event; never waits and never raises."""
        if PRIORITIES[level] > self._priority_max:
            return
        if len(self._pending) >= PENDING_MAX:
            self._dropped += 1
            return
        self._pending.append(Event(time.time(), time.monotonic(), level, event, facts))
        if self._render is not None:
            self._drain()

    # -- pauses of guests ---------------------------------------------------------------------------------------

    def hold(self, hold_s: float) -> None:
        """Write nothing while a guest is in its pause, until release(); no event waits for longer than hold_s. Counted.

        The events keep their times and their order. Call it in the event loop, before ``stop`` is sent.
        """
        if not self._holds:
            self._held_since_s = time.monotonic()
        self._holds += 1
        self._hold_s = max(self._hold_s, hold_s)

    def release(self) -> None:
        """Undo one hold(): the guest runs again."""
        self._holds -= 1
        assert self._holds >= 0, "released more often than held"
        if not self._holds:
            self._hold_s = 0.0
            self._drain()

    def held(self) -> bool:
        """Return whether nothing should be written: a guest is in its pause, and not for longer than it may be."""
        return self._holds > 0 and time.monotonic() - self._held_since_s < self._hold_s

    def wake_with(self, wake: Callable[[float], None]) -> None:
        """Have flush() called by ``wake`` after so many seconds, from whatever thread."""
        self._wake = wake

    def flush(self) -> None:
        """Write the events that have waited long enough."""
        self._woken = False
        self._drain()

    def close(self) -> None:
        """Close the writer; events wait again."""
        self._render = None
        if self._native is not None:
            self._native.close()
            self._native = None
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    # -- writing ------------------------------------------------------------------------------------------------

    def _drain(self) -> None:
        # The holder of the lock looks again after it releases the lock, so no caller needs to wait: neither another
        # thread nor this one, if the garbage collector logs from a destructor in the middle of a line.
        while self._waits_s() <= 0 and self._writing.acquire(blocking=False):
            try:
                while self._waits_s() <= 0 and self._render and self._writer:
                    self._write(self._pending.popleft(), self._render, self._writer)
            finally:
                self._writing.release()
            if not (self._render and self._writer):
                return
        left_s = self._waits_s()
        if 0 < left_s < float("inf") and self._wake is not None and not self._woken:
            self._woken = True
            self._wake(left_s)

    def _waits_s(self) -> float:
        """Return how long the first of the pending events still has to wait; infinite if there is none."""
        try:
            since_s = self._pending[0].since_s
        except IndexError:
            return float("inf")
        return since_s + self._hold_s - time.monotonic() if self._holds else 0.0

    def _write(self, event: Event, render: Callable[[Event], bytes], writer: LineWriter) -> None:
        dropped = self._dropped
        if dropped:
            event = event._replace(facts=event.facts | {"log_lines_dropped": dropped})
        try:
            taken = self._put(event, render, writer)
        except Exception:  # noqa: BLE001 - a fact whose repr() fails must not fail the pivot that it tells of
            taken = self._put(event._replace(facts={"cut": True}), render, writer)
        if taken:
            self._dropped -= dropped
        else:
            self._dropped += 1

    def _put(self, event: Event, render: Callable[[Event], bytes], writer: LineWriter) -> bool:
        taken = None if self._native is None else self._native.send(event)
        return writer.write(render(event)) if taken is None else taken


class Logger:
    """Logs events with the facts it is bound to."""

    def __init__(self, output: Output, facts: Facts | None = None) -> None:
        self._output = output
        self._facts = facts or {}

    def bind(self, **facts: Any) -> Logger:
        """Return a logger that adds these facts to each event."""
        return Logger(self._output, self._facts | facts)

    def log(self, level: str, event: str, /, **facts: Any) -> None:
        """Log an event at one of LEVELS."""
        self._output.emit(level, event, self._facts | facts)

    def debug(self, event: str, /, **facts: Any) -> None:
        """Log a detail for whoever looks for a fault."""
        self._output.emit("debug", event, self._facts | facts)

    def info(self, event: str, /, **facts: Any) -> None:
        """Log a normal event."""
        self._output.emit("info", event, self._facts | facts)

    def warning(self, event: str, /, **facts: Any) -> None:
        """Log a problem from which pivotd continues by itself."""
        self._output.emit("warning", event, self._facts | facts)

    def error(self, event: str, /, **facts: Any) -> None:
        """Log a failure that a person should look at."""
        self._output.emit("error", event, self._facts | facts)

    def exception(self, event: str, /, **facts: Any) -> None:
        """Log an unexpected exception as an error with its traceback."""
        self._output.emit("error", event, self._facts | facts | {"exc_info": sys.exception()})


class _LibraryHandler(logging.Handler):
    """Routes the standard library's logging, which libraries use, into the same log."""

    def __init__(self, output: Output) -> None:
        super().__init__(logging.WARNING)
        self._output = output

    def emit(self, record: logging.LogRecord) -> None:
        facts: Facts = {"logger": record.name}
        try:
            facts["message"] = record.getMessage()
        except (TypeError, ValueError):
            facts["message"] = str(record.msg)
        if record.exc_info:
            facts["exc_info"] = record.exc_info[1]
        self._output.emit("error" if record.levelno >= logging.ERROR else "warning", "library.message", facts)


_OUTPUT = Output()
load, level, hold, release, held = _OUTPUT.load, _OUTPUT.level, _OUTPUT.hold, _OUTPUT.release, _OUTPUT.held
wake_with, flush = _OUTPUT.wake_with, _OUTPUT.flush


def get_logger(**facts: Any) -> Logger:
    """Return a logger of the daemon's log; safe at import time."""
    return Logger(_OUTPUT, facts)


def setup(least: str = LEVEL_DEFAULT) -> None:
    """Send the log to journald or stderr and route libraries into it; nothing slow is imported. Call it once."""
    _OUTPUT.level(least)
    if sd.under_journald():
        _OUTPUT.attach(sd.STDERR, Style.JOURNAL, journald=sd.JOURNALD)
    else:
        _OUTPUT.attach(sd.STDERR)
    logging.captureWarnings(capture=True)
    logging.basicConfig(handlers=[_LibraryHandler(_OUTPUT)], level=logging.WARNING, force=True)
    atexit.register(_OUTPUT.end)
