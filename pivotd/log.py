"""The daemon's log: constant event names and facts, one line each on stderr, and never a wait for the reader.

    log = get_logger()
    log.info("pivot.switched", pause_ms=3.2, backlog_bytes=0)

``import structlog`` takes longer than the whole recovery of a guest that a dead daemon left paused. So events wait in a
bounded list, with the time at which they happened, until load() has imported it: in a thread once recovery is done, or
at exit if the daemon never came that far.
"""

from __future__ import annotations

import atexit
import logging
import os
import select
import socket
import stat
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from enum import StrEnum
from typing import Any

from pivotd import sd

PENDING_MAX = 500
"""Events that wait for load(); recovery of 100 pivots logs fewer. Later ones are counted and dropped."""
LINE_BYTES_MAX = select.PIPE_BUF
"""A pipe takes this much atomically, so lines of several writers never mix."""
SHORT_TEXT_MAX = 200
SHORT_TRACEBACK_MAX = 1500
"""Length to which texts are cut if a line is too long; of a traceback the end stays, which names the error."""

assert SHORT_TEXT_MAX < SHORT_TRACEBACK_MAX < LINE_BYTES_MAX

_PRIORITIES = {"info": 6, "warning": 4, "error": 3}
"""syslog(3) priorities, written as ``<N>`` before a line that goes to the journal."""
_RESERVED = frozenset({"self", "event", "level", "timestamp"})

Facts = dict[str, Any]
Event = tuple[float, str, str, Facts]
"""Seconds since 1970, level, event name, facts."""


class Style(StrEnum):
    """Who reads the lines."""

    JOURNAL = "journal"
    TERMINAL = "terminal"
    JSON = "json"


class LineWriter:
    """Writes whole lines to a file descriptor that others share, without ever waiting for its reader.

    O_NONBLOCK belongs to the open file description, which stderr shares with other processes, so it is not touched: a
    socket is asked not to wait call by call, a pipe or terminal is opened once more for us alone, and where that is not
    permitted poll() tells beforehand whether there is room.
    """

    def __init__(self, fd: int) -> None:
        mode = os.fstat(fd).st_mode
        self._fd = self._own_description(fd, mode)
        self._socket = socket.socket(fileno=os.dup(fd)) if stat.S_ISSOCK(mode) else None
        self._room = select.poll()
        self._room.register(self._fd, select.POLLOUT)
        self._rest = b""

    @staticmethod
    def _own_description(fd: int, mode: int) -> int:
        if stat.S_ISFIFO(mode) or stat.S_ISCHR(mode):
            try:
                return os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
            except OSError:
                pass
        return os.dup(fd)

    def write(self, line: bytes) -> bool:
        """Write a line whole and return True, or nothing and return False; no exception."""
        self._flush()
        if self._rest:
            return False
        sent = self._send(line)
        if sent:
            self._rest = line[sent:]
            self._flush()
        return sent > 0

    def close(self) -> None:
        """Close our own descriptors; the one given stays as it is."""
        os.close(self._fd)
        if self._socket:
            self._socket.close()

    def _flush(self) -> None:
        # A socket or terminal may take a part of a line; the rest of it goes out before anything else does.
        while self._rest and (sent := self._send(self._rest)):
            self._rest = self._rest[sent:]

    def _send(self, data: bytes) -> int:
        try:
            if self._socket:
                return self._socket.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            return os.write(self._fd, data) if self._room.poll(0) else 0
        except OSError:
            return 0


class Output:
    """Takes events from any thread and brings them to a writer in order, once structlog is there."""

    def __init__(self) -> None:
        self._pending: deque[Event] = deque()
        self._writing = threading.Lock()
        self._loading = threading.Lock()
        self._writer: LineWriter | None = None
        self._style = Style.JSON
        self._render: Callable[[Event], bytes] | None = None
        self._dropped = 0

    def attach(self, fd: int, style: Style | None = None) -> None:
        """Choose where lines go; without a style, by what the descriptor is. Costs no import."""
        self._style = style or (Style.TERMINAL if os.isatty(fd) else Style.JSON)
        self._writer = LineWriter(fd)

    def load(self) -> None:
        """Import structlog and write what has waited for it; call it in a thread. Again, it does nothing."""
        with self._loading:
            if self._render is None and self._writer is not None:
                self._render = _renderer(self._style)
        self._drain()

    def emit(self, level: str, event: str, facts: Facts) -> None:
        """Take one event; never waits and never raises."""
        if len(self._pending) >= PENDING_MAX:
            self._dropped += 1
            return
        self._pending.append((time.time(), level, event, facts))
        if self._render is not None:
            self._drain()

    def close(self) -> None:
        """Close the writer; events wait again."""
        self._render = None
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _drain(self) -> None:
        # The holder of the lock looks again after it releases the lock, so no caller needs to wait: neither another
        # thread nor this one, if the garbage collector logs from a destructor in the middle of a line.
        while self._pending and self._writing.acquire(blocking=False):
            try:
                while self._pending and self._render and self._writer:
                    self._write(self._pending.popleft(), self._render, self._writer)
            finally:
                self._writing.release()
            if not (self._render and self._writer):
                return

    def _write(self, event: Event, render: Callable[[Event], bytes], writer: LineWriter) -> None:
        at, level, name, facts = event
        dropped = self._dropped
        try:
            line = render((at, level, name, facts | {"log_lines_dropped": dropped} if dropped else facts))
        except Exception:  # noqa: BLE001 - a fact whose repr() fails must not fail the pivot that it tells of
            line = render((at, level, name, {"cut": True}))
        if writer.write(line):
            self._dropped -= dropped
        else:
            self._dropped += 1


class Logger:
    """Logs events with the facts it is bound to."""

    def __init__(self, output: Output, facts: Facts | None = None) -> None:
        self._output = output
        self._facts = facts or {}

    def bind(self, **facts: Any) -> Logger:
        """Return a logger that adds these facts to each event."""
        return Logger(self._output, self._facts | facts)

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


def get_logger(**facts: Any) -> Logger:
    """Return a logger of the daemon's log; safe at import time."""
    return Logger(_OUTPUT, facts)


def setup() -> None:
    """Send the log to stderr and route libraries into it; nothing slow is imported. Call it once, first of all."""
    _OUTPUT.attach(sd.STDERR, Style.JOURNAL if sd.under_journald() else None)
    logging.captureWarnings(capture=True)
    logging.basicConfig(handlers=[_LibraryHandler(_OUTPUT)], level=logging.WARNING, force=True)
    atexit.register(load)


def load() -> None:
    """Import structlog and write the waiting events; call it in a thread as soon as recovery is done."""
    _OUTPUT.load()


def _renderer(style: Style) -> Callable[[Event], bytes]:
    """Return the function that formats an event. Slow: it imports structlog."""
    import structlog  # noqa: PLC0415 - see the top of this file

    logger = structlog.wrap_logger(
        structlog.ReturnLogger(),
        wrapper_class=structlog.make_filtering_bound_logger(logging.DEBUG),
        processors=[structlog.processors.add_log_level, *_last_processors(style, structlog)],
    ).bind()

    def render(event: Event) -> bytes:
        at, level, name, facts = event
        if style is Style.TERMINAL:
            facts = {key: _short(key, value) if key != "exc_info" else value for key, value in facts.items()}
        safe = {f"{key}_" if key in _RESERVED else key: value for key, value in facts.items()}
        timestamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(at)) + f".{int(at % 1 * 1e6):06}Z"
        text: str = getattr(logger, level)(name, timestamp=timestamp, **safe)
        prefix = f"<{_PRIORITIES[level]}>" if style is Style.JOURNAL else ""
        return f"{prefix}{text}\n".encode(errors="backslashreplace")

    return render


def _last_processors(style: Style, structlog: Any) -> list[Callable[..., Any]]:
    if style is Style.TERMINAL:
        return [structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)]
    return [structlog.processors.format_exc_info, _json_line]


def _json_line(_logger: object, _level: str, facts: Facts) -> str:
    """Render facts as JSON of one line that fits LINE_BYTES_MAX; long texts are cut, then facts left out."""
    import json  # noqa: PLC0415 - imported by everything that speaks QMP

    head = {name: facts.pop(name) for name in ("timestamp", "level", "event")}
    room = LINE_BYTES_MAX - len("<6>\n")
    for cut in (False, True):
        if cut:
            facts = {key: _short(key, value) for key, value in facts.items()} | {"cut": True}
        try:
            line = json.dumps(head | facts, default=repr)
        except (TypeError, ValueError, RecursionError):
            continue
        if len(line) <= room:
            return line
    return json.dumps(head | {"event": head["event"][:SHORT_TEXT_MAX], "cut": True})


def _short(key: str, value: object) -> object:
    if value is None or isinstance(value, int | float):
        return value
    text = value if isinstance(value, str) else repr(value)
    return text[-SHORT_TRACEBACK_MAX:] if key == "exception" else text[:SHORT_TEXT_MAX]
