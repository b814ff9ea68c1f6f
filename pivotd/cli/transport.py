"""HTTP over the Unix socket: one connection per request, and errors that say what is known."""

from __future__ import annotations

import errno
import json
import socket
import struct
from collections.abc import Iterator
from contextlib import closing
from http.client import HTTPConnection, HTTPException, HTTPResponse, IncompleteRead
from typing import Any

from pivotd.cli.errors import CtlError, LostError, NotPivotdError, UnreachableError
from pivotd.errors import EXIT_REFUSED

CONNECT_TIMEOUT_S = 5
REQUEST_TIMEOUT_S = 60.0
"""Longer than the slowest answer that is no long poll: a command to a QEMU whose storage hangs, 20 s."""
ANSWER_BYTES_MAX = 64 << 20
"""A thousand pivots with every record stay far below; more is not an answer of pivotd."""
MEDIA_PROBLEM = "application/problem+json"


class UnixConnection(HTTPConnection):
    """An HTTP connection to a Unix socket."""

    def __init__(self, path: str, timeout_s: float) -> None:
        super().__init__("pivotd", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        """Connect. Raises: UnreachableError."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        # settimeout() would make connect() fail at once where the queue is full for a moment; this one waits.
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", int(CONNECT_TIMEOUT_S), 0))
        try:
            self.sock.connect(self._path)
        except OSError as error:
            self.sock.close()
            raise _not_connected(self._path, error) from None
        self.sock.settimeout(self.timeout)


def _not_connected(path: str, error: OSError) -> UnreachableError:
    """Say why, and what to check."""
    other = "or name its socket with --socket or PIVOTCTL_SOCKET"
    if isinstance(error, PermissionError):
        return UnreachableError(
            f"you may not open {path}: ask to be put into one of the groups under [access] in pivotd.toml, "
            "usually pivotd (operators) or pivotd-ro (readers)",
            kind="not-allowed",
            exit_status=EXIT_REFUSED,
        )
    match error.errno:
        case errno.ENOENT:
            return UnreachableError(f"there is no {path}: is pivotd running? See `systemctl status pivotd`, {other}")
        case errno.ECONNREFUSED:
            return UnreachableError(f"nobody listens at {path}: see `systemctl status pivotd`, {other}")
        case errno.EAGAIN:
            return UnreachableError(f"pivotd takes no more connections at {path}: see `journalctl -u pivotd`")
        case _:
            return UnreachableError(f"cannot connect to {path}: {error.strerror or error}; check --socket")


class Transport:
    """Requests to one daemon. Every method raises CtlError and its subclasses, nothing else."""

    def __init__(self, path: str) -> None:
        self.path = path

    def request(
        self,
        method: str,
        target: str,
        body: Any = None,
        *,
        headers: dict[str, str] | None = None,
        timeout_s: float = REQUEST_TIMEOUT_S,
    ) -> Any:
        """Return the JSON document of the answer, None if it has no body."""
        with closing(UnixConnection(self.path, timeout_s)) as connection:
            response = self._send(connection, method, target, body, {"Accept": "application/json", **(headers or {})})
            return self._document(response)

    def lines(self, target: str, *, headers: dict[str, str], timeout_s: float) -> Iterator[str]:
        """Yield the lines of an endless answer. Raises LostError at its end, however it ends."""
        with closing(UnixConnection(self.path, timeout_s)) as connection:
            response = self._send(connection, "GET", target, None, headers)
            if response.status != 200 or not _media_type(response).startswith("text/event-stream"):
                self._document(response)
                raise NotPivotdError(self.path, "no event stream")
            while True:
                try:
                    line = response.readline()
                except (OSError, HTTPException) as error:
                    raise _lost(error) from None
                if not line.endswith(b"\n"):
                    raise LostError("pivotd ended the event stream")
                yield line.decode(errors="replace").rstrip("\r\n")

    def _send(
        self, connection: UnixConnection, method: str, target: str, body: Any, headers: dict[str, str]
    ) -> HTTPResponse:
        content = None if body is None else json.dumps(body).encode()
        if content is not None:
            headers = {"Content-Type": "application/json", **headers}
        try:
            connection.request(method, target, content, {"Connection": "close", **headers})
            return connection.getresponse()
        except (OSError, IncompleteRead) as error:
            raise _lost(error) from None
        except (HTTPException, ValueError) as error:
            raise NotPivotdError(self.path, f"no HTTP: {type(error).__name__}") from None

    def _document(self, response: HTTPResponse) -> Any:
        try:
            content = response.read(ANSWER_BYTES_MAX)
        except (OSError, HTTPException) as error:
            raise _lost(error) from None
        if response.length and len(content) < ANSWER_BYTES_MAX:
            raise LostError("pivotd ended the connection in the middle of an answer: try again")
        try:
            document = json.loads(content) if content else None
        except ValueError:
            raise NotPivotdError(self.path, f"status {response.status} without JSON") from None
        if response.status < 300:
            return document
        if _media_type(response) != MEDIA_PROBLEM or not isinstance(document, dict) or "kind" not in document:
            raise NotPivotdError(self.path, f"status {response.status} without a reason")
        raise _problem(document)


def _media_type(response: HTTPResponse) -> str:
    return (response.getheader("Content-Type") or "").split(";")[0].strip().lower()


def _lost(error: Exception) -> LostError:
    if isinstance(error, TimeoutError):
        return LostError("pivotd took the request and does not answer: see `journalctl -u pivotd`")
    return LostError("pivotd ended the connection without an answer: see `systemctl status pivotd`, then try again")


def _problem(document: dict[str, Any]) -> CtlError:
    """Return an RFC 9457 problem as the failure that it describes."""
    shown = {"type", "title", "status", "detail", "kind", "exit_status", "instance"}
    status = document.get("exit_status")
    fields = {key: value for key, value in document.items() if key not in shown}
    message = str(document.get("detail") or document.get("title") or document["kind"])
    failure = CtlError(str(document["kind"]), message, status if isinstance(status, int) else EXIT_REFUSED)
    failure.fields = fields
    return failure
