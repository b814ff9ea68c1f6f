"""etcd's JSON gateway, on several endpoints: each request gets one answer, or a reason, within its time.

Source: etcd's "API reference" (rpc.proto) and "gRPC gateway"; the codes are those of gRPC.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import msgspec

from pivotd import limits
from pivotd.config import Fleet
from pivotd.counts import COUNTS
from pivotd.errors import FleetRefusedError, FleetSilentError
from pivotd.fleet.endpoint import Answer, Endpoint, EndpointError
from pivotd.fleet.race import race
from pivotd.fleet.tls import Tls

_OK = 200
_SERVER_ERROR = 500
OUT_OF_RANGE = 11
_INVALID_ARGUMENT = 3
_NOT_FOUND = 5
_PERMISSION_DENIED = 7
_RESOURCE_EXHAUSTED = 8
_FAILED_PRECONDITION = 9
_UNIMPLEMENTED = 12
_UNAUTHENTICATED = 16
_RENEWED = ("invalid auth token", "revision of auth store is old")
"""Refusals that a new token ends."""


class CompactedError(Exception):
    """etcd has forgotten the revision that was asked for."""


@dataclass(frozen=True, slots=True)
class Reply:
    """``document`` is etcd's answer. ``alone``: no other copy of the request can have been carried out."""

    document: dict[str, Any]
    alone: bool


class Gateway:
    """Sends requests to the endpoints of one cluster."""

    def __init__(self, settings: Fleet) -> None:
        self.settings = settings
        self.endpoints = [
            Endpoint(url, Tls(settings.ca, settings.certificate, settings.key)) for url in settings.endpoints
        ]
        self.cluster = settings.cluster
        """The id of the cluster, of the first answer unless it is configured."""
        self._token: str | None = None
        self._token_at = 0.0

    def close(self) -> None:
        """Close all connections."""
        for endpoint in self.endpoints:
            endpoint.close()

    async def call(self, path: str, body: dict[str, Any], timeout_s: float, *, writes: bool = False) -> Reply:
        """Send a request and return the first answer.

        Raises: FleetSilentError; FleetRefusedError; CompactedError. With ``writes``, FleetRefusedError means that no
        copy of the request has had an effect.
        """
        request = msgspec.json.encode(body)

        async def attempt(endpoint: Endpoint) -> dict[str, Any] | Exception:
            try:
                return await self._answer(endpoint, path, request, renew=not writes)
            except (FleetRefusedError, CompactedError) as error:
                return error

        began_s = time.monotonic()
        ended = await race(tuple(self.endpoints), attempt, timeout_s)
        if ended.answer is None:
            COUNTS.fleet_failed += 1
        else:
            COUNTS.fleet.observe(time.monotonic() - began_s)
        if ended.hopeless and (ended.alone or not writes):
            raise FleetRefusedError(f"etcd cannot be used: {_listed(ended.said)}")
        if ended.answer is None or ended.endpoint is None:
            why = _listed(ended.said)
            raise FleetSilentError(
                f"etcd gave no answer in {timeout_s:.3g} s: {why}; a majority of its nodes must be up"
            )
        if isinstance(ended.answer, FleetRefusedError) and writes and not ended.alone:
            raise FleetSilentError(f"{ended.answer.message}; an earlier copy of the request may be carried out")
        if isinstance(ended.answer, Exception):
            raise ended.answer
        self._prefer(ended.endpoint)
        return Reply(ended.answer, ended.alone)

    async def _answer(self, endpoint: Endpoint, path: str, request: bytes, *, renew: bool) -> dict[str, Any]:
        """Return what one endpoint answers. Raises: EndpointError, FleetRefusedError, CompactedError."""
        token = await self._authenticated(endpoint, renew=renew)
        answer = await endpoint.post(path, request, token)
        if token is not None and _is_stale(answer):
            self._token = None
            answer = await endpoint.post(path, request, await self._authenticated(endpoint))
        return self._understood(endpoint, answer)

    async def stream(self, path: str, body: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        """Send a request to the endpoint that answered last; yield each message of its answer, which does not end.

        Raises: FleetSilentError when the stream ends, for whatever reason; FleetRefusedError.
        """
        endpoint = self.endpoints[0]
        rest = b""
        try:
            token = await self._authenticated(endpoint)
            async for piece in endpoint.stream(path, msgspec.json.encode(body), token):
                *lines, rest = (rest + piece).split(b"\n")
                if len(rest) > limits.FLEET_ANSWER_BYTES_MAX:
                    raise FleetRefusedError(f"{endpoint.url} sends a message that is larger than pivotd takes")
                for line in filter(None, lines):
                    yield self._understood(endpoint, Answer(_OK, line))
        except EndpointError as error:
            raise FleetSilentError(f"etcd: {endpoint.url}: {error}") from error

    async def ask(self, endpoint: Endpoint, path: str, body: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        """Ask one endpoint and no other. Raises: FleetSilentError, FleetRefusedError."""
        try:
            async with asyncio.timeout(timeout_s):
                token = await self._authenticated(endpoint)
                answer = await endpoint.post(path, msgspec.json.encode(body), token)
                return self._understood(endpoint, answer)
        except TimeoutError as error:
            raise FleetSilentError(f"{endpoint.url}: no answer in {timeout_s:g} s") from error
        except EndpointError as error:
            kind = FleetRefusedError if error.refused else FleetSilentError
            raise kind(f"{endpoint.url}: {error}") from error

    async def _authenticated(self, endpoint: Endpoint, *, renew: bool = False) -> str | None:
        """Return a token, None if no user is configured. Raises: EndpointError, FleetRefusedError."""
        settings = self.settings
        if settings.user is None or settings.password_file is None:
            return None
        old = time.monotonic() - self._token_at > limits.FLEET_TOKEN_S
        if self._token is not None and not (renew and old):
            return self._token
        try:
            password = settings.password_file.read_text().rstrip("\r\n")
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "not UTF-8"
            raise FleetRefusedError(f"[fleet] password_file: {settings.password_file}: {why}") from error
        body = msgspec.json.encode({"name": settings.user, "password": password})
        try:
            answer = self._understood(endpoint, await endpoint.post("/v3/auth/authenticate", body))
        except EndpointError as error:
            # Whatever became of this, the request itself was not sent.
            raise EndpointError(str(error), sent=False, refused=error.refused) from error
        self._token, self._token_at = str(answer["token"]), time.monotonic()
        return self._token

    def _understood(self, endpoint: Endpoint, answer: Answer) -> dict[str, Any]:
        """Return etcd's answer. Raises: EndpointError, FleetRefusedError, CompactedError."""
        try:
            document: dict[str, Any] = msgspec.json.decode(answer.body, type=dict[str, Any])
        except msgspec.DecodeError as error:
            if answer.status >= _SERVER_ERROR:
                raise EndpointError(f"HTTP status {answer.status}", sent=True) from error
            raise FleetRefusedError(
                f"{endpoint.url} answers, but not as etcd 3.4 or newer does (HTTP status {answer.status}): check the "
                "URL, and that etcd runs with --enable-grpc-gateway"
            ) from error
        if answer.status != _OK or "error" in document:
            self._refuse(endpoint, document)
        document = document.get("result", document)  # a stream wraps its messages
        header = document.get("header")
        if header is not None:
            self._check_cluster(endpoint, f"{int(header['cluster_id']):x}")
        return document

    def _check_cluster(self, endpoint: Endpoint, cluster: str) -> None:
        if self.cluster is None:
            self.cluster = cluster
        if cluster != self.cluster:
            known = "[fleet] cluster says" if self.settings.cluster else "the other endpoints belong to"
            raise FleetRefusedError(
                f"{endpoint.url} belongs to etcd cluster {cluster}, but {known} {self.cluster}: correct the endpoints"
            )

    def _refuse(self, endpoint: Endpoint, document: dict[str, Any]) -> None:
        """Raise what an error of etcd's means."""
        inner = document["error"] if isinstance(document.get("error"), dict) else document
        said = str(inner.get("message") or inner.get("error") or "no reason given").removeprefix("etcdserver: ")
        code = inner.get("code", inner.get("grpc_code"))
        user = self.settings.user
        if code == OUT_OF_RANGE:
            raise CompactedError(said)
        if "database space exceeded" in said:
            raise FleetRefusedError(
                f"etcd at {endpoint.url} takes no writes, its database is full (alarm NOSPACE): compact and defragment "
                "it, then `etcdctl alarm disarm`"
            )
        if code == _PERMISSION_DENIED:
            who = f"user {user}" if user else "this host"
            raise FleetRefusedError(
                f"etcd allows {who} too little: its role needs readwrite permission for prefix {self.settings.prefix}"
            )
        if "authentication failed" in said:
            raise FleetRefusedError(
                f"etcd refuses user {user}: no such user, or not the password in {self.settings.password_file}"
            )
        if "authentication is not enabled" in said:
            raise FleetRefusedError(
                f"etcd at {endpoint.url} knows no users: remove user and password_file from [fleet]"
            )
        if "user name is empty" in said or (code == _UNAUTHENTICATED and user is None):
            raise FleetRefusedError(f"etcd at {endpoint.url} asks for a user: set user and password_file in [fleet]")
        if code in {_INVALID_ARGUMENT, _NOT_FOUND, _FAILED_PRECONDITION, _UNIMPLEMENTED} and not _any(said):
            raise FleetRefusedError(f"etcd at {endpoint.url} refuses the request: {said}")
        raise EndpointError(said, sent=True)

    def _prefer(self, endpoint: Endpoint) -> None:
        """Ask this endpoint first from now on."""
        if self.endpoints[0] is not endpoint:
            self.endpoints.remove(endpoint)
            self.endpoints.insert(0, endpoint)


def _any(said: str) -> bool:
    return any(words in said for words in _RENEWED)


def _is_stale(answer: Answer) -> bool:
    """Return whether a request was refused, without effect, for its token alone."""
    return answer.status != _OK and any(words.encode() in answer.body for words in _RENEWED)


def _listed(said: dict[str, str]) -> str:
    return ", ".join(f"{url}: {why}" for url, why in sorted(said.items()))
