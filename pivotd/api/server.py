"""The server: uvicorn inside the daemon's event loop, peer credentials for every connection."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, ClassVar

import uvicorn
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route as StarletteRoute
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from pivotd import limits
from pivotd.api import access as access_module
from pivotd.api import openapi, problems
from pivotd.api.access import Access, AccessClass
from pivotd.api.handlers import Call
from pivotd.api.ports import Service
from pivotd.api.refusals import REFUSALS
from pivotd.api.routes import ROUTES, Route
from pivotd.api.streams import Streams
from pivotd.core.request import Requester
from pivotd.core.standing_back import patient
from pivotd.errors import BadRequestError, NotAllowedError, PivotdError, TooBusyError
from pivotd.host import users

HEAD_BYTES_MAX = 64 << 10
CONNECTIONS_PER_UID_MAX = 128
"""Every user may connect, so only root may use up the descriptors that monitors need."""
ACCEPTED_AT_ONCE_MAX = 64
"""asyncio accepts this many in one turn before the first can be counted; uvicorn's default is 2048."""
SHUTDOWN_S = 2
"""How long an answer in transmission may delay the end of the daemon."""


class PeerProtocol(HttpToolsProtocol):
    """Adds the caller's credentials, as reported by the kernel, to every request of a connection."""

    _connected: ClassVar[Counter[int]] = Counter()
    _uid: int | None = None

    def connection_made(self, transport: Any) -> None:
        """Read the peer's credentials once per connection; a client cannot change them afterwards."""
        super().connection_made(transport)
        self._head_bytes = 0
        sock = transport.get_extra_info("socket")
        peer = access_module.peer(sock)
        self._uid = peer.uid
        self._connected[peer.uid] += 1
        self.app_state = {**self.app_state, "peer": peer, "groups": access_module.peer_groups(sock)}
        if peer.uid != 0 and self._connected[peer.uid] > CONNECTIONS_PER_UID_MAX:
            REFUSALS.tell(peer, "connect", "", TooBusyError(f"more than {CONNECTIONS_PER_UID_MAX} connections"))
            transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Release the user's place."""
        if self._uid is not None:
            self._connected[self._uid] -= 1
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Cut a connection whose request head does not end."""
        self._head_bytes += len(data)
        super().data_received(data)  # counts from zero again where the head has ended in it
        if self._head_bytes > limits.REQUEST_BODY_BYTES_MAX + HEAD_BYTES_MAX:
            self.transport.close()

    def on_headers_complete(self) -> None:
        """Count the next head from zero."""
        self._head_bytes = 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """A body has its own bound: the server reads only up to that bound."""
        self._head_bytes = 0
        super().on_body(body)


class Server(uvicorn.Server):
    """A uvicorn server that leaves signals to the daemon."""

    def __init__(self, config: uvicorn.Config, stop: asyncio.Event) -> None:
        super().__init__(config)
        self._stop = stop

    async def main_loop(self) -> None:
        """Wait for the end instead of polling ten times a second."""
        await self._stop.wait()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Do nothing: SIGTERM belongs to the daemon, which finishes pauses first."""
        yield


def application(service: Service, access: Access) -> Starlette:
    """Return the ASGI application for the route table."""
    streams = Streams()
    document = openapi.document()

    def endpoint(route: Route) -> Callable[[Request], Awaitable[Response]]:
        async def call(request: Request) -> Response:
            try:
                who: Requester = request.state.peer
                groups: frozenset[int] = request.state.groups
                if route.access is AccessClass.OPERATOR:
                    await users.learn(who.uid)
                access.check(who, groups, route.access)
                _check_query(request, route)
                if route.access is AccessClass.READER:
                    async with service.reads.door:
                        await asyncio.sleep(0)  # one reader for each turn of the loop: urgent work runs in between
                operator = access.may(who, groups, AccessClass.OPERATOR)
                handled = route.handler(Call(who, service, streams, document, operator), request)
                if route.access is AccessClass.READER:
                    with patient():
                        return await handled
                return await handled
            except ClientDisconnect:
                return Response(status_code=400)  # the client has gone
            except Exception as error:  # noqa: BLE001 - one broken handler must not end the connection mute
                await _tell(request, route, error)
                await _read_on(request, route)
                return problems.of_error(error)

        return call

    # The disk of a device without an id is named by its path in QEMU's tree.
    paths = [(route.path.replace("{disk}", "{disk:path}"), route) for route in ROUTES]
    routes = [StarletteRoute(path, endpoint(route), methods=[route.method]) for path, route in paths]
    app = Starlette(routes=_merged(routes), exception_handlers={404: problems.not_found, 405: problems.wrong_method})
    app.router.redirect_slashes = False
    return app


async def _tell(request: Request, route: Route, error: Exception) -> None:
    """Log a refusal to change something, and one to somebody who may not even look."""
    told = route.access is AccessClass.OPERATOR or isinstance(error, NotAllowedError)
    if told and isinstance(error, PivotdError):
        who: Requester = request.state.peer
        await users.learn(who.uid)
        REFUSALS.tell(who, request.method, request.url.path, error, request.path_params.get("domain"))


async def _read_on(request: Request, route: Route) -> None:
    """Read the body of a request that is refused: the end of the connection would hide the answer from its writer."""
    if route.body is None:
        return
    size_bytes = 0
    # RuntimeError: the handler has read it.
    with contextlib.suppress(RuntimeError, ClientDisconnect, TimeoutError):
        async with asyncio.timeout(limits.REFUSED_BODY_S):
            async for chunk in request.stream():
                size_bytes += len(chunk)
                if size_bytes > limits.REQUEST_READ_BYTES_MAX:
                    return


def _check_query(request: Request, route: Route) -> None:
    unknown = [name for name in request.query_params if name not in route.query]
    if unknown:
        known = ", ".join(route.query) or "none"
        raise BadRequestError(f"there is no parameter {unknown[0][:40]} here; known are: {known}")


def _merged(routes: list[StarletteRoute]) -> list[StarletteRoute]:
    """Remove HEAD: Starlette adds it to every GET, and it is not in the table."""
    for route in routes:
        assert route.methods is not None
        route.methods.discard("HEAD")
    return routes


async def serve(service: Service, access: Access, sock: socket.socket, stop: asyncio.Event) -> None:
    """Serve until ``stop`` is set and every answer in progress has ended."""
    server = Server(
        uvicorn.Config(
            application(service, access),
            http=PeerProtocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            date_header=False,
            timeout_graceful_shutdown=SHUTDOWN_S,
            backlog=ACCEPTED_AT_ONCE_MAX,
        ),
        stop,
    )
    try:
        await server.serve(sockets=[sock])
    finally:
        REFUSALS.end()
