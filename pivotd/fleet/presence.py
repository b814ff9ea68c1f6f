"""The key by which a host shows that its pivotd runs, for people who look at the fleet. No decision rests on it.

The key is bound to a lease, so it disappears some time after its host has. Nothing here keeps pivotd from anything: an
etcd that is away, or refuses, is asked again later.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pivotd import limits
from pivotd.errors import FleetError
from pivotd.fleet.records import VERSION, HostSeen
from pivotd.fleet.store import TXN, EtcdFleet, put

GRANT, KEEP_ALIVE, REVOKE = "/v3/lease/grant", "/v3/lease/keepalive", "/v3/lease/revoke"
MACHINE_ID = Path("/etc/machine-id")


def machine_id() -> str | None:
    """Return the id of this machine, None if it has none. Source: machine-id(5)."""
    try:
        return MACHINE_ID.read_text().strip() or None
    except OSError:
        return None


class Presence:
    """Keeps the key of this host until run() is cancelled. ``since`` is UTC, RFC 3339.

    ``tell`` gets an error each time that the trouble has changed, and None once it is over.
    """

    def __init__(self, fleet: EtcdFleet, version: str, since: str, tell: Callable[[FleetError | None], None]) -> None:
        self._fleet = fleet
        self._value = HostSeen(VERSION, version, since, machine_id() or "")
        self._tell = tell
        self._told: str | None = None
        self._lease: str | None = None

    async def run(self) -> None:
        """Show this host until cancelled."""
        while True:
            try:
                await self.renew()
            except FleetError as error:
                if error.kind != self._told:
                    self._tell(error)
                self._told = error.kind
            else:
                if self._told is not None:
                    self._tell(None)
                self._told = None
            await asyncio.sleep(limits.FLEET_HOST_RENEW_S)

    async def renew(self) -> None:
        """Show this host for another FLEET_HOST_TTL_S. Raises: FleetError."""
        if self._lease is not None:
            answer = await self._call(KEEP_ALIVE, {"ID": self._lease})
            if int(answer.get("TTL", 0)) > 0:
                return
        lease = str((await self._call(GRANT, {"TTL": str(limits.FLEET_HOST_TTL_S)}))["ID"])
        key = self._fleet.keys.host(self._fleet.host)
        await self._call(TXN, {"success": [put(key, self._value, lease=lease)]})
        self._lease = lease

    async def end(self) -> None:
        """Remove the key, as at an orderly end. Raises: FleetError."""
        if self._lease is not None:
            await self._call(REVOKE, {"ID": self._lease})
            self._lease = None

    async def _call(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        return (await self._fleet.gateway.call(path, body, self._fleet.timeout_s)).document
