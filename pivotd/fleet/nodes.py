"""Looking at each endpoint by itself: for `pivotd --check` and `pivotctl fleet status`."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Any

from pivotd.config import Fleet
from pivotd.errors import FleetError, FleetRefusedError, FleetSilentError
from pivotd.fleet.endpoint import Endpoint
from pivotd.fleet.gateway import Gateway
from pivotd.fleet.store import TXN, EtcdFleet, never

STATUS = "/v3/maintenance/status"


@dataclass(frozen=True, slots=True)
class NodeSeen:
    """One endpoint: ``error`` is None if it takes reads and writes, which it cannot without a majority.

    ``answer_ms`` is the time of a transaction that changes nothing. The other fields are None if it did not tell them.
    """

    url: str
    error: FleetError | None
    answer_ms: float | None = None
    version: str | None = None
    leads: bool | None = None
    database_bytes: int | None = None


async def look(fleet: EtcdFleet) -> list[NodeSeen]:
    """Return what each endpoint says, in the order of the configuration; all are asked at once."""
    gateway = fleet.gateway
    endpoints = {endpoint.url: endpoint for endpoint in gateway.endpoints}
    probe = never(fleet.keys.host(fleet.host or "nobody"))
    asked = [_look(gateway, endpoints[url], probe, fleet.timeout_s) for url in gateway.settings.endpoints]
    return list(await asyncio.gather(*asked))


async def _look(gateway: Gateway, endpoint: Endpoint, probe: dict[str, Any], timeout_s: float) -> NodeSeen:
    try:
        await gateway.ask(endpoint, TXN, probe, timeout_s)  # connects, and gets a token
        began = time.monotonic()
        await gateway.ask(endpoint, TXN, probe, timeout_s)
        answer_ms = (time.monotonic() - began) * 1000
    except FleetError as error:
        return NodeSeen(endpoint.url, error)
    try:
        status = await gateway.ask(endpoint, STATUS, {}, timeout_s)
    except FleetError:
        # Newer releases tell this to administrators alone, and nothing rests on it.
        return NodeSeen(endpoint.url, None, answer_ms)
    leads = status.get("leader") == status["header"].get("member_id")
    size_bytes = int(status["dbSize"]) if "dbSize" in status else None
    return NodeSeen(endpoint.url, None, answer_ms, status.get("version"), leads, size_bytes)


async def check(settings: Fleet, machine: str | None) -> list[str]:
    """Try every endpoint and return a line for each. ``machine`` is this machine's id.

    Raises: FleetRefusedError: a person has to correct something; FleetSilentError: no endpoint has a majority.
    """
    fleet = EtcdFleet(settings)
    try:
        seen = await look(fleet)
        for node in seen:
            if isinstance(node.error, FleetRefusedError):
                raise node.error
        if all(node.error is not None for node in seen):
            raise FleetSilentError(f"etcd: {'; '.join(node.error.message for node in seen if node.error is not None)}")
        other = (await fleet.hosts(fleet.timeout_s)).get(settings.host)
        if other is not None and machine is not None and other.machine != machine:
            raise FleetRefusedError(
                f"[fleet] host: another machine is called {settings.host}, too: give each one a name of its own"
            )
    finally:
        fleet.close()
    return [_line(node) for node in seen]


def _line(node: NodeSeen) -> str:
    if node.error is not None:
        return f"NOT USABLE NOW: {node.error.message}"
    about = [f"etcd {node.version}"] if node.version else []
    return ", ".join([f"{node.url}: ok", *about, f"{node.answer_ms:.1f} ms"])
