"""One etcd endpoint: HTTP/1.1 over connections that are kept open, and what is known of a request without an answer."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import ssl
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from urllib.parse import urlsplit

import httptools

from pivotd import limits
from pivotd.fleet.addresses import Addresses
from pivotd.fleet.tls import Tls

_SANDBOX = {errno.EPERM, errno.EACCES, errno.EAFNOSUPPORT, errno.ENETUNREACH}
"""What IPAddressDeny=, RestrictAddressFamilies= and PrivateNetwork= of the unit look like."""
_CLOSED = "closed the connection"
_CLOSED_BY_OTHER = (ConnectionResetError, ConnectionAbortedError, BrokenPipeError)
"""What the other end's close looks like, depending on what was under way; it is told as one thing."""


class EndpointError(Exception):
    """A request to one endpoint got no answer; the text says why, in a few words.

    ``sent``: the endpoint may have read the request. ``refused``: trying again cannot help, as with a certificate.
    """

    def __init__(self, reason: str, *, sent: bool, refused: bool = False) -> None:
        super().__init__(reason)
        self.sent = sent
        self.refused = refused


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP answer, complete."""

    status: int
    body: bytes


class Endpoint:
    """Sends requests to one URL. Any number may be under way; each has a connection of its own meanwhile."""

    def __init__(self, url: str, tls: Tls) -> None:
        self.url = url
        parts = urlsplit(url)
        self._host, self._port = parts.hostname or "", parts.port or 2379
        self._tls = tls if parts.scheme == "https" else None
        self._addresses = Addresses(self._host, self._port)
        self._idle: list[_Connection] = []
        self._has_answered = False

    async def post(self, path: str, body: bytes, token: str | None = None) -> Answer:
        """Send a request and return the answer; the caller bounds the time. Raises: EndpointError."""
        connection = self._unused() or await self._connect()
        try:
            answer = await connection.exchange(self._request(path, body, token))
        except BaseException as error:
            connection.abort()
            if isinstance(error, EndpointError) and self._tls is None and not self._has_answered:
                # What etcd does where it expects TLS.
                raise EndpointError(f"{error} (if it speaks TLS, use https://)", sent=error.sent) from error
            raise
        self._has_answered = True
        if connection.reusable:
            self._idle.append(connection)
        return answer

    async def stream(self, path: str, body: bytes, token: str | None = None) -> AsyncIterator[bytes]:
        """Send a request whose answer does not end; yield its pieces, lines of JSON, as they come.

        Raises: EndpointError, also at the end of the answer.
        """
        connection = await self._connect()
        try:
            connection.send(self._request(path, body, token))
            while True:
                yield await connection.piece()
        finally:
            connection.abort()

    def close(self) -> None:
        """Close the connections that nobody uses."""
        while self._idle:
            self._idle.pop().abort()

    def _request(self, path: str, body: bytes, token: str | None) -> bytes:
        authorization = f"Authorization: {token}\r\n" if token else ""
        head = f"POST {path} HTTP/1.1\r\nHost: {self._host}:{self._port}\r\n{authorization}Content-Length: {len(body)}"
        return head.encode() + b"\r\n\r\n" + body

    def _unused(self) -> _Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if connection.reusable and time.monotonic() - connection.used < limits.FLEET_IDLE_S:
                return connection
            connection.abort()
        return None

    async def _connect(self) -> _Connection:
        """Open a connection. Raises: EndpointError; nothing was sent."""
        context = self._tls.context() if self._tls is not None else None
        try:
            return await self._connect_to_any(context)
        except ssl.SSLError as error:
            raise EndpointError(_tls_words(error), sent=False, refused=_is_certain(error)) from error
        except OSError as error:
            hint = ""
            if context is not None and isinstance(error, _CLOSED_BY_OTHER):
                hint = " (if it speaks no TLS, use http://)"
            elif error.errno in _SANDBOX and not isinstance(error, socket.gaierror):
                hint = " (under systemd, pivotd-fleet.conf has to allow this address)"
            raise EndpointError(_words(error) + hint, sent=False) from error

    async def _connect_to_any(self, context: ssl.SSLContext | None) -> _Connection:
        """Connect to the first address that takes a connection. Raises: OSError: none does."""
        loop, server = asyncio.get_running_loop(), self._host if context is not None else None
        failure: OSError = OSError("has no address")
        for address in await self._addresses.get():
            try:
                _, connection = await loop.create_connection(
                    _Connection, address, self._port, ssl=context, server_hostname=server
                )
            except ssl.SSLError:
                raise
            except OSError as error:
                failure = error
            else:
                return connection
        raise failure


class _Connection(asyncio.Protocol):
    """One connection, one request at a time."""

    def __init__(self) -> None:
        self.used = time.monotonic()
        self._transport: asyncio.Transport | None = None
        self._lost: EndpointError | None = None
        self._reset()

    def _reset(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._body: list[bytes] = []
        self._size_bytes = 0
        self._complete = False
        self._keep = False
        self._news = asyncio.Event()

    @property
    def reusable(self) -> bool:
        """Return whether another request may be sent."""
        return self._lost is None and self._transport is not None and not self._transport.is_closing()

    def send(self, request: bytes) -> None:
        """Write a request."""
        assert self._transport is not None
        self._reset()
        self._transport.write(request)

    async def exchange(self, request: bytes) -> Answer:
        """Send a request and wait for the whole answer. Raises: EndpointError."""
        self.send(request)
        while not self._complete:
            if self._lost is not None:
                raise self._lost
            self._news.clear()
            await self._news.wait()
        self.used = time.monotonic()
        answer = Answer(self._parser.get_status_code(), b"".join(self._body))
        if not self._keep:
            self.abort()
        return answer

    async def piece(self) -> bytes:
        """Return the next piece of an answer that does not end. Raises: EndpointError."""
        while not self._body:
            if self._lost is not None:
                raise self._lost
            if self._complete:
                raise EndpointError("the stream has ended", sent=True)
            self._news.clear()
            await self._news.wait()
        pieces, self._body, self._size_bytes = self._body, [], 0
        return b"".join(pieces)

    def abort(self) -> None:
        """Close at once."""
        if self._transport is not None:
            self._transport.abort()

    # -- called by asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell whoever waits why no answer comes."""
        if self._lost is None:
            if isinstance(exc, ssl.SSLError):
                # With TLS 1.3 a server says that it does not take the client's certificate only after the handshake.
                self._lost = EndpointError(_tls_words(exc), sent=not _is_certain(exc), refused=_is_certain(exc))
            else:
                self._lost = EndpointError(_CLOSED if exc is None else _words(exc), sent=True)
        self._news.set()

    def data_received(self, data: bytes) -> None:
        """Parse what has come."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._lost = EndpointError("does not speak HTTP", sent=True)
            self.abort()
        self._news.set()

    # -- called by the parser

    def on_body(self, body: bytes) -> None:
        """Keep a piece of the answer."""
        self._size_bytes += len(body)
        if self._size_bytes > limits.FLEET_ANSWER_BYTES_MAX:
            self._lost = EndpointError("sent more than pivotd takes", sent=True)
            self.abort()
            return
        self._body.append(body)

    def on_message_complete(self) -> None:
        """Note the end of the answer; only now the parser knows whether the connection stays open."""
        self._complete = True
        self._keep = self._parser.should_keep_alive()


def _is_certain(error: ssl.SSLError) -> bool:
    """Return whether a certificate is the reason: then the request was not read, and trying again cannot help."""
    return isinstance(error, ssl.SSLCertVerificationError) or _refuses_ours(error)


def _refuses_ours(error: ssl.SSLError) -> bool:
    """Return whether the server does not take this host's certificate: etcd 3.4 and 3.5 say so in different words."""
    return any(word in (error.reason or "") for word in ("CERTIFICATE", "UNKNOWN_CA"))


def _words(error: Exception) -> str:
    """Return the system's words alone: asyncio puts the address into its own, which is in the message anyway."""
    if isinstance(error, socket.gaierror):
        return str(error.strerror)
    if isinstance(error, _CLOSED_BY_OTHER):
        return _CLOSED
    number = getattr(error, "errno", None)
    return os.strerror(number) if number else str(error) or _CLOSED


def _tls_words(error: ssl.SSLError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not valid here: {error.verify_message}"
    if _refuses_ours(error):
        return "it does not accept this host's certificate"
    return f"TLS: {error.reason or error}"
