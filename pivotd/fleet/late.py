"""The fleet for the daemon: a start without a guest that waits for etcd does not pay for the import of its client."""

from __future__ import annotations

import asyncio
from importlib import import_module
from typing import TYPE_CHECKING

from pivotd.config import Fleet
from pivotd.core.fleet import FleetView, OnSilence
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

    async def store(self) -> EtcdFleet:
        """Return what talks to etcd. The import takes 30 ms, in a thread: other guests may be in their pauses."""
        if self._store is None:
            made: EtcdFleet = (await asyncio.to_thread(import_module, "pivotd.fleet.store")).EtcdFleet(self.settings)
            self._store = self._store or made  # two may have asked at once
        return self._store

    async def read(self, domain: str, timeout_s: float) -> FleetView:
        """Return everything of a domain: EtcdFleet.read. Raises: FleetSilentError, FleetRefusedError."""
        return await (await self.store()).read(domain, timeout_s)

    async def write(self, before: FleetView, after: FleetView, timeout_s: float) -> FleetView:
        """Replace everything of a domain: EtcdFleet.write.

        Raises: FleetConflictError, FleetRefusedError, FleetSilentError.
        """
        return await (await self.store()).write(before, after, timeout_s)

    def close(self) -> None:
        """Close all connections."""
        if self._store is not None:
            self._store.close()
