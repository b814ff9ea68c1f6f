"""The lines of the log on stderr: how an event is written, and how a line goes out without a wait for its reader."""

from __future__ import annotations

import logging
import os
import select
import socket
import stat
import time
from collections.abc import Callable
from enum import StrEnum
from typing import Any, NamedTuple

LINE_BYTES_MAX = select.PIPE_BUF
"""A pipe takes this much atomically, so lines of several writers never mix."""
SHORT_TEXT_MAX = 200
SHORT_TRACEBACK_MAX = 1500
"""Length to which texts are cut if a line is too long; of a traceback the end stays, which names the error."""

assert SHORT_TEXT_MAX < SHORT_TRACEBACK_MAX < LINE_BYTES_MAX

PRIORITIES = {"error": 3, "warning": 4, "info": 6, "debug": 7}
"""Levels with their syslog(3) priorities, written as ``<N>`` before a line that goes to the systemd journal."""
_RESERVED = frozenset({"self", "event", "level", "timestamp"})

Facts = dict[str, Any]


class Event(NamedTuple):
    """One event: ``at`` in seconds since 1970, and when it came on the monotonic clock."""

    at: float
    since_s: float
    level: str
    name: str
    facts: Facts


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


def timestamp(at: float) -> str:
    """Return a time as RFC 3339, UTC, with microseconds."""
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(at)) + f".{int(at % 1 * 1e6):06}Z"


def renderer(style: Style) -> Callable[[Event], bytes]:
    """Return the function that formats an event. Slow: it imports structlog."""
    import structlog  # noqa: PLC0415 - see the top of log.py

    logger = structlog.wrap_logger(
        structlog.ReturnLogger(),
        wrapper_class=structlog.make_filtering_bound_logger(logging.DEBUG),
        processors=[structlog.processors.add_log_level, *_last_processors(style, structlog)],
    ).bind()

    def render(event: Event) -> bytes:
        level, facts = event.level, event.facts
        if style is Style.TERMINAL:
            facts = {key: _short(key, value) if key != "exc_info" else value for key, value in facts.items()}
        safe = {f"{key}_" if key in _RESERVED else key: value for key, value in facts.items()}
        text: str = getattr(logger, level)(event.name, timestamp=timestamp(event.at), **safe)
        prefix = f"<{PRIORITIES[level]}>" if style is Style.JOURNAL else ""
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
