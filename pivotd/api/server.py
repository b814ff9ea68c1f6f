"""The server: uvicorn inside the daemon's event loop, peer credentials for every connection."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route as StarletteRoute
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from pivotd.api import access as access_module
from pivotd.api import openapi, problems
from pivotd.api.access import Access
from pivotd.api.handlers import Call, Streams
from pivotd.api.ports import Service
from pivotd.api.routes import ROUTES, Route
from pivotd.core.words import Requester

SHUTDOWN_S = 2
"""How long an answer that is being sent may hold up the end of the daemon."""


class PeerProtocol(HttpToolsProtocol):
    """Adds the caller's credentials, as the kernel tells them, to every request of a connection."""

    def connection_made(self, transport: Any) -> None:
        """Read SO_PEERCRED once per connection; a client cannot change it afterwards."""
        super().connection_made(transport)
        self.app_state = {**self.app_state, "peer": access_module.peer(transport.get_extra_info("socket"))}


class Server(uvicorn.Server):
    """A uvicorn server that leaves signals to the daemon."""

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
                access.check(who, route.access)
                return await route.handler(Call(who, service, streams, document), request)
            except Exception as error:  # noqa: BLE001 - one broken handler must not end the connection mute
                return problems.of_error(error)

        return call

    routes = [StarletteRoute(route.path, endpoint(route), methods=[route.method]) for route in ROUTES]
    return Starlette(routes=_merged(routes), exception_handlers={404: problems.not_found, 405: problems.wrong_method})


def _merged(routes: list[StarletteRoute]) -> list[StarletteRoute]:
    """Leave HEAD out: Starlette adds it to every GET, and the table does not have it."""
    for route in routes:
        assert route.methods is not None
        route.methods.discard("HEAD")
    return routes


async def serve(service: Service, access: Access, sock: socket.socket, stop: asyncio.Event) -> None:
    """Serve until ``stop`` is set and every answer under way has ended."""
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
        )
    )
    async with asyncio.TaskGroup() as group:
        group.create_task(server.serve(sockets=[sock]))
        await stop.wait()
        server.should_exit = True
