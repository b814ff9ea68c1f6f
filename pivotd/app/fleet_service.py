"""What the API answers of the fleet: the same as `pivotctl fleet`, on a connection of its own in a thread of its own.

A fleet has many domains. Reading them may take long, and must not hold up a guest that is paused. An etcd that does not
answer keeps a few threads, and holds up nothing else: neither what else needs a thread, nor the end of pivotd.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import suppress
from importlib import import_module
from typing import Any, TypeVar

from pivotd import limits
from pivotd.client.answers import FleetDomain, FleetStatus, FleetVerdict
from pivotd.config import Fleet
from pivotd.core.request import Requester
from pivotd.engine.pivot_log import by
from pivotd.errors import ConflictError, TooBusyError
from pivotd.journal.journal import Journal
from pivotd.log import get_logger

T = TypeVar("T")
log = get_logger()


class FleetService:
    """Implements api.ports.Fleet; ``settings`` without endpoints: this host belongs to no fleet."""

    def __init__(self, settings: Fleet, journal: Journal) -> None:
        self._settings = settings
        self._journal = journal
        self._readers, self._changes = _Threads(journal.calm), _Threads(_at_once)

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
        await self._requested("take-requested", domain, who, images=dict(chosen))
        found: FleetDomain = await self._ask(
            lambda store: _taking().take(store, domain, chosen), _answers_domain, changes=True
        )
        facts = {"host": found.host, "epoch": found.epoch, "images": dict(chosen)}
        await self._journal.note("guest-taken", {**facts, "uid": who.uid}, domain=domain)
        log.warning("fleet.taken", domain=domain, **facts, **by(who))
        return found

    async def forget(self, domain: str, who: Requester) -> None:
        """Remove a domain from the fleet."""
        await self._requested("forget-requested", domain, who)
        await self._ask(lambda store: _taking().forget(store, domain), lambda _: None, changes=True)
        await self._journal.note("guest-forgotten", {"uid": who.uid}, domain=domain)
        log.warning("fleet.forgotten", domain=domain, **by(who))

    async def _requested(self, event: str, domain: str, who: Requester, **facts: Any) -> None:
        """Record who asks for a change: etcd may make it, and pivotd end before the answer. Raises: JournalError."""
        self._check()
        await self._journal.note(event, {**facts, "uid": who.uid}, domain=domain)

    def _check(self) -> None:
        """Raises: ConflictError: there is no fleet."""
        if not self._settings.endpoints:
            raise ConflictError("this pivotd belongs to no fleet: configure [fleet] (docs/fleet.md)")

    async def _ask(
        self, work: Callable[[Any], Coroutine[Any, Any, Any]], encode: Callable[[Any], T], *, changes: bool = False
    ) -> T:
        """Return what a piece of work on the fleet returns, encoded. Who only reads keeps nobody from a change.

        Raises: ConflictError: there is no fleet; TooBusyError; FleetError, and what the work raises.
        """
        self._check()

        async def run() -> T:
            store = import_module("pivotd.fleet.store").EtcdFleet(self._settings)
            try:
                return encode(await work(store))
            finally:
                store.close()

        return await (self._changes if changes else self._readers).run(lambda: asyncio.run(run()))


class _Threads:
    """Threads that do not keep the process from ending; a caller that leaves leaves the thread at work.

    One works at a time, and none begins in a pause: they share the interpreter with the driver. While etcd does not
    answer there are a few.
    """

    def __init__(self, calm: Callable[[], Awaitable[None]]) -> None:
        self._calm = calm
        self._free = asyncio.Semaphore(limits.FLEET_READERS_AT_ONCE)
        self._turn = asyncio.Semaphore(1)
        self._waiting = 0

    async def run(self, work: Callable[[], T]) -> T:
        """Return the result of ``work``, once there is a thread for it. Raises: TooBusyError, and what it raises."""
        if self._waiting >= limits.READS_WAITING_MAX:
            raise TooBusyError(f"{self._waiting} requests already wait for the fleet: ask again in a moment")
        self._waiting += 1
        try:
            await self._free.acquire()
        finally:
            self._waiting -= 1
        result: asyncio.Future[T] | None = None
        try:
            async with self._turn:
                await self._calm()
                result = self._start(work)
                await asyncio.wait([result], timeout=limits.LOOK_TURN_S)
        finally:
            if result is None:
                self._free.release()
        return await result

    def _start(self, work: Callable[[], T]) -> asyncio.Future[T]:
        result: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        result.add_done_callback(lambda done: done.cancelled() or done.exception())  # counts as told
        threading.Thread(target=self._work, args=(work, result), name="fleet", daemon=True).start()
        return result

    def _work(self, work: Callable[[], T], result: asyncio.Future[T]) -> None:
        resolve: Callable[[Any], None]
        outcome: Any
        try:
            resolve, outcome = result.set_result, work()
        except Exception as error:  # noqa: BLE001 - it is raised where it was asked for
            resolve, outcome = result.set_exception, error

        def end() -> None:
            self._free.release()
            if not result.done():
                resolve(outcome)

        with suppress(RuntimeError):  # the loop is closed: nobody waits
            result.get_loop().call_soon_threadsafe(end)


async def _at_once() -> None:
    """Wait for nothing: an operator acts."""


def _answers() -> Any:
    return import_module("pivotd.fleet.fleet_answers")


def _taking() -> Any:
    return import_module("pivotd.fleet.taking")


def _answers_domain(view: Any) -> FleetDomain:
    found: FleetDomain = _answers().domain(view)
    return found
