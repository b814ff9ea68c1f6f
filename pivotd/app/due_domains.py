"""The domains that a background task has to look at, each once, in the order in which they were asked for.

One look follows the other. But a QEMU, its storage or etcd may not answer for a long time: such a look delays the next
one only for a moment. Another domain's guest may be leaving, and its QEMU ends right after that.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from pivotd import limits


class DueDomains:
    """A queue of names: whoever asks twice before the look gets one look, and whoever asks during it gets another.

    ``look`` looks at one domain, and is never called twice at once for the same. It raises nothing.
    """

    def __init__(self, look: Callable[[str], Awaitable[None]], *, at_once: int = limits.LOOKS_AT_ONCE) -> None:
        self._look = look
        self._at_once = at_once
        self._names: dict[str, None] = {}
        self._running: set[str] = set()
        self._woken = asyncio.Event()

    def ask(self, domain: str) -> None:
        """Ask for a look at a domain."""
        self._names[domain] = None
        self._woken.set()

    async def run(self) -> None:
        """Look at each domain that is due; ends only when it is cancelled."""
        async with asyncio.TaskGroup() as group:
            while True:
                name = await self._next()
                await asyncio.wait([group.create_task(self._one(name))], timeout=limits.LOOK_TURN_S)

    async def _next(self) -> str:
        """Wait for a domain that may be looked at, and take it off."""
        while True:
            if len(self._running) < self._at_once:
                for name in self._names:
                    if name not in self._running:
                        del self._names[name]
                        self._running.add(name)
                        return name
            self._woken.clear()
            await self._woken.wait()

    async def _one(self, name: str) -> None:
        try:
            await self._look(name)
        finally:
            self._running.discard(name)
            self._woken.set()
