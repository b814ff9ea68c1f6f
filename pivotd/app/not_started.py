"""Answers for clients that systemd has queued for a daemon that cannot start: the reason, instead of silence.

Whoever may connect is told: who has access stands in the configuration, which may be what is wrong.
"""

from __future__ import annotations

import contextlib
import json
import select
import socket
import time

from pivotd import limits, sd
from pivotd.errors import EXIT_UNREACHABLE, ConfigError

KIND = "not-started"
"""The stable ``kind`` of the problem: the request has not reached a daemon."""


def answer(why: str) -> None:
    """Answer everybody who waits at the socket from systemd; without one, or without clients, return at once."""
    try:
        listeners = sd.listen_fds()
    except ConfigError:
        return
    response = _response(why)
    for listener in listeners:
        with listener:
            _answer(listener, response)


def _answer(listener: socket.socket, response: bytes) -> None:
    """Send the answer to each client before it has said anything: so no client can delay the others."""
    listener.setblocking(False)
    deadline_s, wait_s = time.monotonic() + limits.NOT_STARTED_S, 0.0
    with contextlib.ExitStack() as answered:
        while time.monotonic() < deadline_s and select.select([listener], [], [], wait_s)[0]:
            with contextlib.suppress(OSError):
                client, _ = listener.accept()
                answered.enter_context(client)
                client.setblocking(False)
                client.sendall(response)
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
