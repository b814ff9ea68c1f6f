"""Waiting for something that another process does, or that the event loop has begun."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

WAIT_S = 60.0
LOOK_S = 0.002


def until(done: Callable[[], bool], timeout_s: float = WAIT_S, look_s: float = LOOK_S) -> bool:
    """Look every so many seconds until something is so, at most so long."""
    deadline_s = time.monotonic() + timeout_s
    while not done():
        if time.monotonic() > deadline_s:
            return False
        time.sleep(look_s)
    return True


async def end_of(server: asyncio.Server) -> None:
    """End a server of this loop once each connection that it has accepted is with its handler.

    The event loop takes three turns for that. asyncio loses one unclosed if the server is closed before.
    """
    loop = asyncio.get_running_loop()
    for listening in server.sockets:
        loop.remove_reader(listening)
    for _ in range(3):
        await asyncio.sleep(0)
    server.close()
