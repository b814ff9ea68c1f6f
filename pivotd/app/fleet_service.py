"""What the API answers of the fleet: the same as `pivotctl fleet`, on a connection of its own in a thread of its own.

A fleet has many domains. Reading them may take long, and must not hold up a guest that is paused.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from importlib import import_module
from typing import Any, TypeVar

from pivotd.client.answers import FleetDomain, FleetStatus, FleetVerdict
from pivotd.config import Fleet
from pivotd.core.request import Requester
from pivotd.engine.pivot_log import by
from pivotd.errors import ConflictError
from pivotd.journal.journal import Journal
from pivotd.log import get_logger

T = TypeVar("T")
log = get_logger()


class FleetService:
    """Implements api.ports.Fleet; ``settings`` without endpoints: this host belongs to no fleet."""

    def __init__(self, settings: Fleet, journal: Journal) -> None:
        self._settings = settings
        self._journal = journal

    async def verdicts(self, domain: str | None, disk: str | None, encode: Callable[[list[FleetVerdict]], T]) -> T:
        """Return the fleet's verdicts on all disks, or on those selected."""
        return await self._ask(lambda store: _answers().verdicts(store, domain, disk), encode)

    async def domains(self, encode: Callable[[list[FleetDomain]], T]) -> T:
        """Return all domains of the fleet."""
        return await self._ask(lambda store: _answers().domains(store), encode)

    async def status(self, encode: Callable[[FleetStatus], T]) -> T:
        """Return the state of etcd and of the fleet, also without a majority."""
        return await self._ask(lambda store: _answers().status(store), encode)

    async def take(self, domain: str, chosen: Mapping[str, str], who: Requester) -> FleetDomain:
        """Make this host the owner of a guest whose host was fenced; ``chosen``: a person's word, image by disk."""
        found: FleetDomain = await self._ask(lambda store: _taking().take(store, domain, chosen), _answers_domain)
        facts = {"host": found.host, "epoch": found.epoch, "images": dict(chosen)}
        await self._journal.note("guest-taken", {**facts, "uid": who.uid}, domain=domain)
        log.warning("fleet.taken", domain=domain, **facts, **by(who))
        return found

    async def forget(self, domain: str, who: Requester) -> None:
        """Remove a domain from the fleet."""
        await self._ask(lambda store: _taking().forget(store, domain), lambda _: None)
        await self._journal.note("guest-forgotten", {"uid": who.uid}, domain=domain)
        log.warning("fleet.forgotten", domain=domain, **by(who))

    async def _ask(self, work: Callable[[Any], Coroutine[Any, Any, Any]], encode: Callable[[Any], T]) -> T:
        """Return what a piece of work on the fleet returns, encoded.

        Raises: ConflictError: there is no fleet; FleetError, and what the work raises.
        """
        if not self._settings.endpoints:
            raise ConflictError("this pivotd belongs to no fleet: configure [fleet] (docs/fleet.md)")

        async def run() -> T:
            store = import_module("pivotd.fleet.store").EtcdFleet(self._settings)
            try:
                return encode(await work(store))
            finally:
                store.close()

        return await asyncio.to_thread(lambda: asyncio.run(run()))


def _answers() -> Any:
    return import_module("pivotd.fleet.fleet_answers")


def _taking() -> Any:
    return import_module("pivotd.fleet.taking")


def _answers_domain(view: Any) -> FleetDomain:
    found: FleetDomain = _answers().domain(view)
    return found
