"""The domains that a background task has to look at next, each once, in the order in which they were asked for."""

from __future__ import annotations

import asyncio


class DueDomains:
    """A queue of names: whoever asks twice before the look gets one look."""

    def __init__(self) -> None:
        self._names: dict[str, None] = {}
        self._woken = asyncio.Event()

    def ask(self, domain: str) -> None:
        """Ask for a look at a domain."""
        self._names[domain] = None
        self._woken.set()

    async def next(self) -> str:
        """Wait for a domain that is due, and take it off."""
        while not self._names:
            self._woken.clear()
            await self._woken.wait()
        name = next(iter(self._names))
        del self._names[name]
        return name
