"""The native protocol of systemd-journald: an event goes there with its facts as fields, without a wait.

Source: https://systemd.io/JOURNAL_NATIVE_PROTOCOL/, systemd.journal-fields(7).
"""

from __future__ import annotations

import array
import errno
import fcntl
import json
import os
import re
import socket
from pathlib import Path
from typing import Any

from pivotd import log_kinds
from pivotd.log_lines import PRIORITIES, Event, timestamp

IDENTIFIER = "pivotd"
FIELD_BYTES_MAX = 512 << 10
"""A longer text is cut: pivotd's own facts are far below this, and a library's may have any length."""
_NAME_LENGTH_MAX = 64
"""Longest name of a field that journald takes."""
_TOO_LARGE = frozenset({errno.EMSGSIZE, errno.ENOBUFS})
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL


class Journald:
    """Sends events to one journald, by the path of its socket: a restarted journald listens there again."""

    def __init__(self, path: Path) -> None:
        self._path = str(path)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)

    def send(self, event: Event) -> bool | None:
        """Send one event whole; False: journald does not take it now; None: there is no journald. No exception."""
        try:
            data = encoded(event)
            try:
                self._send(data, [])
            except OSError as error:
                if error.errno not in _TOO_LARGE:
                    raise
                self._send_file(data)
        except BlockingIOError:
            return False
        except OSError:
            return None
        return True

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def _send(self, data: bytes, ancillary: list[tuple[int, int, array.array[int]]]) -> None:
        self._socket.sendmsg([data], ancillary, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL, self._path)

    def _send_file(self, data: bytes) -> None:
        """Pass a message that is too large for a datagram as a sealed file in memory."""
        descriptor = os.memfd_create(IDENTIFIER, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            with open(descriptor, "wb", closefd=False) as file:
                file.write(data)
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
            self._send(b"", [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [descriptor]))])
        finally:
            os.close(descriptor)


def encoded(event: Event) -> bytes:
    """Return an event in the native protocol."""
    facts = dict(event.facts)
    message = log_kinds.sentence(event.name, facts)
    error = facts.pop("exc_info", None)
    if error is not None:
        facts["exception"] = _traceback(error)
        message += f"\n{facts['exception']}"
    fields: dict[str, Any] = {
        "MESSAGE": message,
        "PRIORITY": PRIORITIES[event.level],
        "SYSLOG_IDENTIFIER": IDENTIFIER,
        "PIVOTD_EVENT": event.name,
        "PIVOTD_AT": timestamp(event.at),
    }
    kind = log_kinds.KINDS.get(event.name)
    if kind is not None:
        fields["MESSAGE_ID"] = kind.message_id
    fields |= {field(name): value for name, value in facts.items() if value is not None}
    return b"".join(_assignment(name, value) for name, value in fields.items())


def field(fact: str) -> str:
    """Return the name of the field that has a fact: ``pause_ms`` is in ``PIVOTD_PAUSE_MS``."""
    return f"PIVOTD_{re.sub('[^A-Z0-9_]', '_', fact.upper())}"[:_NAME_LENGTH_MAX]


def _assignment(name: str, value: object) -> bytes:
    data = _text(value).encode(errors="backslashreplace")
    if len(data) > FIELD_BYTES_MAX:
        data = data[:FIELD_BYTES_MAX].decode(errors="ignore").encode()
    if b"\n" in data:
        return b"%b\n%b%b\n" % (name.encode(), len(data).to_bytes(8, "little"), data)
    return b"%b=%b\n" % (name.encode(), data)


def _text(value: object) -> str:
    if isinstance(value, str):
        return value
    try:
        return json.dumps(value, default=repr)
    except (TypeError, ValueError, RecursionError):
        return repr(value)


def _traceback(error: object) -> str:
    import traceback  # noqa: PLC0415 - only for what is unexpected

    return "".join(traceback.format_exception(error)) if isinstance(error, BaseException) else repr(error)
