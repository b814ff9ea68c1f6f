"""The addresses of an endpoint's host name, looked up in threads that keep nobody from ending.

A resolver whose servers do not answer takes 10 to 40 s, and cannot be interrupted. In asyncio's own threads it would
keep those from all other work, and the process from its end.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from pivotd.host.threads import starts


class Addresses:
    """The addresses of one host. Whoever asks while a look is under way shares it: there is one thread at most."""

    def __init__(self, host: str, port: int) -> None:
        self._host, self._port = host, port
        self._look: asyncio.Future[list[str]] | None = None

    async def get(self) -> list[str]:
        """Return the addresses as text, in the order of preference, at least one. Raises: OSError: there is none."""
        with suppress(ValueError):
            ipaddress.ip_address(self._host)
            return [self._host]
        loop = asyncio.get_running_loop()
        if self._look is None or self._look.done() or self._look.get_loop() is not loop:
            look: asyncio.Future[list[str]] = loop.create_future()
            look.add_done_callback(lambda done: done.cancelled() or done.exception())  # counts as told
            if not starts(threading.Thread(target=self._work, args=(look,), name="addresses", daemon=True)):
                raise OSError("this host gives pivotd no thread to look up a name")
            self._look = look
        return await asyncio.shield(self._look)

    def _work(self, look: asyncio.Future[list[str]]) -> None:
        resolve: Callable[[Any], None]
        outcome: Any
        try:
            found = socket.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
            resolve, outcome = look.set_result, [str(one[4][0]) for one in found]
        except (OSError, UnicodeError) as error:
            resolve, outcome = look.set_exception, error if isinstance(error, OSError) else OSError("is no host name")

        def end() -> None:
            if not look.done():
                resolve(outcome)

        with suppress(RuntimeError):  # the loop is closed: nobody waits
            look.get_loop().call_soon_threadsafe(end)
