"""Following a fleet: every domain once, then each domain again that has changed.

A watch of etcd only says which domains have changed; what they have become is then read, so that no answer is ever
older than a majority knows. Where the watch breaks, as when its node dies or etcd has compacted what it missed, all
domains are read again and compared.
"""

from __future__ import annotations

import asyncio
from base64 import b64decode
from collections.abc import Awaitable, Callable
from typing import Any

from pivotd import limits
from pivotd.core.fleet import FleetView
from pivotd.errors import FleetError, FleetSilentError
from pivotd.fleet.gateway import CompactedError
from pivotd.fleet.store import RANGE, EtcdFleet, all_below, encoded_key

WATCH = "/v3/watch"

Changed = Callable[[str, FleetView | None], None]
"""Gets a domain's name and the domain, None once the fleet has forgotten it."""
Told = Callable[[FleetError | None], None]
"""Gets why nothing can be followed at the moment, and None once it goes on."""


class Watching:
    """Follows all domains until run() is cancelled."""

    def __init__(self, fleet: EtcdFleet, changed: Changed, told: Told) -> None:
        self._fleet = fleet
        self._changed = changed
        self._told = told
        self._known: dict[str, FleetView] = {}
        self._silent = False

    async def run(self) -> None:
        """Follow. Raises: FleetRefusedError."""
        while True:
            try:
                revision = await self._compare()
                self._tell(None)
                await self._watch(revision + 1)
            except FleetSilentError as error:
                self._tell(error)
            except CompactedError:
                continue
            await asyncio.sleep(limits.FLEET_WATCH_AGAIN_S)

    def _tell(self, error: FleetError | None) -> None:
        if self._silent != (error is not None):
            self._told(error)
        self._silent = error is not None

    async def _compare(self) -> int:
        """Read all domains, and tell of those that are not as they were; return the revision of what was read."""
        views, revision = await self._fleet.domains(self._fleet.timeout_s)
        now = {view.domain: view for view in views}
        for domain in sorted(now.keys() | self._known.keys()):
            self._take(domain, now.get(domain))
        return revision

    def _take(self, domain: str, view: FleetView | None) -> None:
        if view == self._known.get(domain):
            return
        if view is None:
            del self._known[domain]
        else:
            self._known[domain] = view
        self._changed(domain, view)

    async def _watch(self, revision: int) -> None:
        """Tell of changes from a revision on.

        Raises: FleetSilentError, CompactedError: begin again; FleetRefusedError.
        """
        async with asyncio.TaskGroup() as group:
            tasks = {group.create_task(_error(self._changes(revision))), group.create_task(_error(self._look()))}
            done, others = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in others:
                task.cancel()
        raise next(iter(done)).result()

    async def _changes(self, revision: int) -> None:
        gateway, keys = self._fleet.gateway, self._fleet.keys
        request = {"create_request": {**all_below(keys.domains), "start_revision": str(revision)}}
        async for message in gateway.stream(WATCH, request):
            if message.get("canceled"):
                why = message.get("cancel_reason", "no reason given")
                if "compact_revision" in message:
                    raise CompactedError(why)
                raise FleetSilentError(f"etcd ends the watch: {why}")
            names = [b64decode(event["kv"]["key"]).decode() for event in message.get("events", ())]
            for domain in sorted({name.removeprefix(keys.domains).partition("/")[0] for name in names}):
                view = await self._fleet.read(domain, self._fleet.timeout_s)
                self._take(domain, view if view.known else None)

    async def _look(self) -> None:
        """Return once another endpoint than that of the watch answers: its node may have lost the majority."""
        gateway = self._fleet.gateway
        watched = gateway.endpoints[0]
        nothing: dict[str, Any] = {"key": encoded_key(self._fleet.keys.domains), "limit": "1", "keys_only": True}
        while gateway.endpoints[0] is watched:
            await asyncio.sleep(limits.FLEET_WATCH_LOOK_S)
            await gateway.call(RANGE, nothing, self._fleet.timeout_s)


async def _error(work: Awaitable[None]) -> Exception:
    """Return how the work has failed; its end is a failure, too."""
    try:
        await work
    except (FleetError, CompactedError) as error:
        return error
    return FleetSilentError("etcd has ended the watch, or another node has to be watched")
