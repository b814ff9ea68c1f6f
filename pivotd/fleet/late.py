"""The fleet for the daemon: a start without a guest that waits for etcd does not pay for the import of its client.

Nor does the end of the daemon wait for etcd: what was asked then gets a moment more, and counts as not answered. The
next daemon goes on from the journal, as after a crash.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib import import_module
from typing import TYPE_CHECKING

from pivotd import limits
from pivotd.config import Fleet
from pivotd.core.fleet import FleetView, OnSilence
from pivotd.errors import FleetSilentError
from pivotd.host.process import boot_id

if TYPE_CHECKING:
    from pivotd.fleet.store import EtcdFleet


class LateFleet:
    """The port ``Fleet`` of the engine. ``store`` is what is behind it, once it was used."""

    def __init__(self, settings: Fleet) -> None:
        self.settings = settings
        self.host: str = settings.host
        self.boot_id: str = boot_id()
        self.on_silence: OnSilence = settings.on_silence
        self.timeout_s = settings.timeout_ms / 1000
        self._store: EtcdFleet | None = None
        self._ending = False
        self._bounds: set[asyncio.Timeout] = set()
        """Of the calls that are under way."""

    async def store(self) -> EtcdFleet:
        """Return what talks to etcd. The import takes 30 ms, in a thread: other guests may be in their pauses."""
        if self._store is None:
            made: EtcdFleet = (await asyncio.to_thread(import_module, "pivotd.fleet.store")).EtcdFleet(self.settings)
            self._store = self._store or made  # two may have asked at once
        return self._store

    async def read(self, domain: str, timeout_s: float) -> FleetView:
        """Return everything of a domain: EtcdFleet.read. Raises: FleetSilentError, FleetRefusedError."""
        async with self._unless_ending():
            return await (await self.store()).read(domain, timeout_s)

    async def write(self, before: FleetView, after: FleetView, timeout_s: float) -> FleetView:
        """Replace everything of a domain: EtcdFleet.write.

        Raises: FleetConflictError, FleetRefusedError, FleetSilentError.
        """
        async with self._unless_ending():
            return await (await self.store()).write(before, after, timeout_s)

    def end(self) -> None:
        """Let no call, of those under way and all later ones, take longer than FLEET_END_S from now on."""
        if self._ending:
            return
        self._ending = True
        for bound in self._bounds:
            bound.reschedule(asyncio.get_running_loop().time() + limits.FLEET_END_S)

    @asynccontextmanager
    async def _unless_ending(self) -> AsyncIterator[None]:
        """Bound a call once the daemon ends. Raises: FleetSilentError: it was given up, and may have had its effect."""
        bound = asyncio.timeout(limits.FLEET_END_S if self._ending else None)
        self._bounds.add(bound)
        try:
            async with bound:
                yield
        except TimeoutError as error:
            raise FleetSilentError("etcd has not answered, and pivotd ends: the next pivotd asks again") from error
        finally:
            self._bounds.discard(bound)

    def close(self) -> None:
        """Close all connections."""
        if self._store is not None:
            self._store.close()
