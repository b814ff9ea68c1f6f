"""HTTP over the Unix socket: one connection per request, and errors that say what is known about the effect."""

from __future__ import annotations

import errno
import json
import select
import socket
import struct
from collections.abc import Callable, Generator
from contextlib import closing, suppress
from email.message import Message
from http.client import HTTPConnection, HTTPException, HTTPResponse, IncompleteRead
from typing import Any

import msgspec

from pivotd.errors import EXIT_REFUSED, ClientError, RefusedError, UnknownError, UnsentError

CONNECT_TIMEOUT_S = 5
SILENT_S = 5.0
"""After so much silence a person is told. An answer comes within milliseconds, unless a QEMU or a storage hangs."""
REQUEST_TIMEOUT_S = 60.0
"""Longer than the slowest answer except long polls: a command to a QEMU whose storage hangs, 20 s."""
ANSWER_BYTES_MAX = 64 << 20
"""A page of pivots stays far below this; a longer answer is not pivotd's."""
MEDIA_PROBLEM = "application/problem+json"
LOST = "connection-lost"
UNREACHABLE = "unreachable"
NOT_STARTED = "not-started"
"""The kind of problem with which a daemon answers that cannot start: nothing has reached it."""
TELLS_NOTHING = frozenset({"internal", "qmp", "qmp-unknown", "journal", "journal-write"})
"""Kinds of problem after which a request may or may not have been carried out."""
MAY_BE_WRITTEN = frozenset({"fleet", "fleet-silent", "unanswered"})
"""The same, of a request that changes something. Every other kind is a refusal."""


class UnixConnection(HTTPConnection):
    """An HTTP connection to a Unix socket."""

    def __init__(self, path: str, timeout_s: float) -> None:
        super().__init__("pivotd", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        """Connect. Raises: UnsentError."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        wait_s = max(1, min(CONNECT_TIMEOUT_S, int(self.timeout or CONNECT_TIMEOUT_S)))
        # settimeout() would make connect() fail at once where the queue is full for a moment; this one waits.
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", wait_s, 0))
        try:
            self.sock.connect(self._path)
        except OSError as error:
            self.sock.close()
            raise not_connected(self._path, error) from None
        self.sock.settimeout(self.timeout)


def not_connected(path: str, error: OSError) -> UnsentError:
    """Return the error that says why there is no connection, and what to check."""
    other = "or name its socket with --socket or PIVOTCTL_SOCKET"
    if isinstance(error, PermissionError):
        return UnsentError(
            "not-allowed",
            f"you may not open {path}: ask to be put into one of the groups under [access] in pivotd.toml, "
            "usually pivotd (operators) or pivotd-ro (readers)",
            EXIT_REFUSED,
        )
    match error.errno:
        case errno.ENOENT:
            why = f"there is no {path}: is pivotd running? See `systemctl status pivotd`, {other}"
        case errno.ECONNREFUSED:
            why = f"no daemon listens at {path}: see `systemctl status pivotd`, {other}"
        case errno.EAGAIN:
            why = f"pivotd takes no more connections at {path}: see `journalctl -u pivotd`"
        case _:
            why = f"cannot connect to {path}: {error.strerror or error}; check --socket"
    return UnsentError(UNREACHABLE, why)


class Transport:
    """Requests to one daemon. Every method raises ClientError and its subclasses, nothing else."""

    def __init__(
        self, path: str, timeout_s: float = REQUEST_TIMEOUT_S, tell: Callable[[str], None] | None = None
    ) -> None:
        """``timeout_s``: how long an answer may take, unless a request says otherwise.

        ``tell``: called with one line, once, if the daemon is silent for SILENT_S longer than a request takes.
        """
        self.path, self.timeout_s = path, timeout_s
        self._tell = tell

    def request(  # noqa: PLR0913 - the parts of a request
        self,
        method: str,
        target: str,
        body: msgspec.Struct | None = None,
        *,
        headers: dict[str, str] | None = None,
        timeout_s: float | None = None,
        takes_s: float = 0.0,
    ) -> Any:
        """Return the JSON document of the answer, None if it has no body; shaped() converts it to a type.

        ``takes_s``: how long the daemon was asked to wait before it answers.
        """
        with closing(UnixConnection(self.path, takes_s + (timeout_s or self.timeout_s))) as connection:
            headers = {"Accept": "application/json", **(headers or {})}
            with closing(self._send(connection, method, target, body, headers, takes_s)) as response:
                return self._document(response, reads=method == "GET")

    def text(self, target: str, *, timeout_s: float = REQUEST_TIMEOUT_S) -> str:
        """Return an answer that is plain text."""
        with (
            closing(UnixConnection(self.path, timeout_s)) as connection,
            closing(self._send(connection, "GET", target, None, {"Accept": "text/plain"})) as response,
        ):
            if response.status != 200 or _media_type(response) != "text/plain":
                self._document(response)
                raise self._not_pivotd("no text")
            try:
                content = response.read(ANSWER_BYTES_MAX)
            except (OSError, HTTPException) as error:
                raise _lost(error) from None
        return content.decode(errors="replace")

    def page(self, target: str) -> tuple[Any, Message]:
        """Return the JSON document of a list, and the headers, which say where it goes on."""
        with (
            closing(UnixConnection(self.path, self.timeout_s)) as connection,
            closing(self._send(connection, "GET", target, None, {"Accept": "application/json"})) as response,
        ):
            return self._document(response), response.headers

    def lines(self, target: str, *, headers: dict[str, str], timeout_s: float) -> Generator[str, None, None]:
        """Yield the lines of an endless answer. Raises: UnknownError, however the answer ends."""
        with closing(UnixConnection(self.path, timeout_s)) as connection:
            response = self._send(connection, "GET", target, None, headers)
            if response.status != 200 or not _media_type(response).startswith("text/event-stream"):
                self._document(response)
                raise self._not_pivotd("no event stream")
            while True:
                try:
                    line = response.readline()
                except (OSError, HTTPException) as error:
                    raise _lost(error) from None
                if not line.endswith(b"\n"):
                    raise UnknownError(LOST, "pivotd ended the event stream")
                yield line.decode(errors="replace").rstrip("\r\n")

    def shaped(self, document: Any, answer: Any) -> Any:
        """Convert a JSON document to a type. Drops fields that the type does not know."""
        try:
            return msgspec.convert(document, answer)
        except msgspec.ValidationError as error:
            raise self._not_pivotd(f"an answer of another shape: {error}") from None

    def _send(  # noqa: PLR0913, PLR0917 - the parts of a request
        self,
        connection: UnixConnection,
        method: str,
        target: str,
        body: Any,
        headers: dict[str, str],
        takes_s: float = 0.0,
    ) -> HTTPResponse:
        # msgspec refuses file names that are no text, json escapes them.
        content = None if body is None else json.dumps(msgspec.to_builtins(body)).encode()
        if content is not None:
            headers = {"Content-Type": "application/json", **headers}
        try:
            # A daemon that refuses by the head alone may end the connection before it has the body.
            with suppress(BrokenPipeError, ConnectionResetError):
                connection.request(method, target, content, {"Connection": "close", **headers})
            self._await_answer(connection, takes_s + SILENT_S)
            return connection.getresponse()
        except (OSError, IncompleteRead) as error:
            raise _lost(error) from None
        except (HTTPException, ValueError) as error:
            raise self._not_pivotd(f"no HTTP: {type(error).__name__}") from None

    def _await_answer(self, connection: UnixConnection, silent_s: float) -> None:
        """Return at the first byte of the answer, or after so long a silence, which is told."""
        assert connection.timeout is not None
        left_s = connection.timeout - silent_s
        if self._tell is None or left_s <= 0:
            return
        poll = select.poll()
        poll.register(connection.sock, select.POLLIN)
        if not poll.poll(silent_s * 1000):
            self._tell(
                f"pivotd has not answered for {SILENT_S:.0f} s; waiting for up to {left_s:.0f} s more: "
                "see `systemctl status pivotd`"
            )
            self._tell = None
            connection.sock.settimeout(left_s)

    def _document(self, response: HTTPResponse, *, reads: bool = True) -> Any:
        try:
            content = response.read(ANSWER_BYTES_MAX)
        except (OSError, HTTPException) as error:
            raise _lost(error) from None
        if response.length and len(content) < ANSWER_BYTES_MAX:
            raise UnknownError(LOST, "pivotd ended the connection in the middle of an answer: try again")
        try:
            document = json.loads(content) if content else None
        except ValueError:
            raise self._not_pivotd(f"status {response.status} without JSON") from None
        if response.status < 300:
            return document
        if _media_type(response) != MEDIA_PROBLEM or not isinstance(document, dict) or "kind" not in document:
            raise self._not_pivotd(f"status {response.status} without a reason")
        raise _problem(document, reads=reads)

    def _not_pivotd(self, why: str) -> UnknownError:
        return UnknownError(
            "not-pivotd",
            f"what answers at {self.path} is not pivotd, or another version of it ({why}); "
            "check --socket and PIVOTCTL_SOCKET",
        )


def _media_type(response: HTTPResponse) -> str:
    return (response.getheader("Content-Type") or "").split(";")[0].strip().lower()


def _lost(error: Exception) -> UnknownError:
    if isinstance(error, TimeoutError):
        return UnknownError(LOST, "pivotd took the request and does not answer: see `journalctl -u pivotd`")
    return UnknownError(
        LOST, "pivotd ended the connection without an answer: see `systemctl status pivotd`, then try again"
    )


def _problem(document: dict[str, Any], *, reads: bool) -> ClientError:
    """Return an RFC 9457 problem as the failure that it describes. ``reads``: the request was to change nothing."""
    shown = {"type", "title", "status", "detail", "kind", "exit_status", "instance"}
    status = document.get("exit_status")
    kind = str(document["kind"])
    if kind == NOT_STARTED:
        return UnsentError(UNREACHABLE, " ".join(str(document.get("detail")).split()))
    is_unknown = kind in TELLS_NOTHING or (kind in MAY_BE_WRITTEN and not reads)
    failure = (UnknownError if is_unknown else RefusedError)(
        kind,
        " ".join(str(document.get("detail") or document.get("title") or kind).split()),
        status if isinstance(status, int) else EXIT_REFUSED,
    )
    failure.fields = {key: value for key, value in document.items() if key not in shown}
    return failure
