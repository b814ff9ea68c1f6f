"""Answers for clients that systemd has queued for a daemon that cannot start: the reason, instead of silence.

Whoever may connect is told: who has access stands in the configuration, which may be what is wrong.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import stat
import struct
import time

from pivotd import limits, sd
from pivotd.errors import EXIT_UNREACHABLE, ConfigError

KIND = "not-started"
"""The stable ``kind`` of the problem: the request has not reached a daemon."""


def answer(why: str, file: str | None = None) -> None:
    """Answer everybody who waits at the socket from systemd; without one, or without clients, return at once.

    ``file``: where it stands what is wrong. Its contents are quoted only to those who may read it.
    """
    try:
        listeners = sd.listen_fds()
    except ConfigError:
        return
    closed = file is not None and not _is_public(file)
    stranger = (
        _response(f"{file} cannot be used as it is; `systemctl status pivotd` tells root why") if closed else None
    )
    for listener in listeners:
        with listener:
            _answer(listener, _response(why), stranger)


def _is_public(file: str) -> bool:
    try:
        return bool(os.stat(file).st_mode & stat.S_IROTH)  # noqa: PTH116 - one system call, no object
    except OSError:
        return False


def _uid(client: socket.socket) -> int:
    """Return the uid of the client. Source: unix(7), SO_PEERCRED."""
    size_bytes = struct.calcsize("3i")
    return int(struct.unpack("3i", client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size_bytes))[1])


def _answer(listener: socket.socket, response: bytes, stranger: bytes | None) -> None:
    """Send the answer to each client before it has said anything: so no client can delay the others."""
    listener.setblocking(False)
    deadline_s, wait_s = time.monotonic() + limits.NOT_STARTED_S, 0.0
    with contextlib.ExitStack() as answered:
        while time.monotonic() < deadline_s and select.select([listener], [], [], wait_s)[0]:
            with contextlib.suppress(OSError):
                client, _ = listener.accept()
                answered.enter_context(client)
                client.setblocking(False)
                client.sendall(response if stranger is None or _uid(client) == 0 else stranger)
                client.shutdown(socket.SHUT_WR)
            # A client that is still writing its request must not find the connection closed.
            wait_s = limits.NOT_STARTED_LINGER_S


def _response(why: str) -> bytes:
    problem = {
        "type": "about:blank",
        "title": "Service Unavailable",
        "status": 503,
        "detail": f"pivotd cannot start: {why}",
        "kind": KIND,
        "exit_status": EXIT_UNREACHABLE,
    }
    body = json.dumps(problem).encode()
    head = (
        "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/problem+json\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + body
