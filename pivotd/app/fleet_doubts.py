"""Tells the fleet of guests that have run on other images than their last pivots name, until it knows.

The journal has each of them first. So neither the end of QEMU nor that of pivotd makes one forgotten, and what a person
has settled meanwhile is not told.
"""

from __future__ import annotations

import asyncio

from pivotd import limits
from pivotd.app import telling_words
from pivotd.app.due_domains import DueDomains
from pivotd.app.registry import Host
from pivotd.engine.ports import Fleet
from pivotd.errors import FleetConflictError, PivotdError
from pivotd.journal.journal import Journal
from pivotd.log import get_logger

log = get_logger()


class FleetDoubts:
    """Tells what the journal has when this begins, and what ``ask`` names."""

    def __init__(self, host: Host, journal: Journal, fleet: Fleet) -> None:
        self._host, self._journal, self._fleet = host, journal, fleet
        self._due = DueDomains(self._try, at_once=limits.FLEET_READS_AT_ONCE)
        self._again: dict[str, asyncio.TimerHandle] = {}
        self._said: dict[str, str] = {}

    def ask(self, domain: str) -> None:
        """Tell the fleet what the journal has of a domain."""
        self._due.ask(domain)

    async def run(self) -> None:
        """Tell whatever is due; ends only when it is cancelled."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._due.run())
                for domain in await self._known():
                    self.ask(domain)
        finally:
            for timer in self._again.values():
                timer.cancel()

    async def _known(self) -> set[str]:
        while True:
            try:
                return {pivot.domain for pivot, _ in await self._journal.other_images()}
            except PivotdError:  # its own alarms tell of that
                await asyncio.sleep(limits.FLEET_AGAIN_S)

    async def _try(self, domain: str) -> None:
        try:
            again_s = await self._tell(domain)
        except FleetConflictError:
            again_s = 0.0
        except PivotdError as error:
            again_s = limits.FLEET_AGAIN_S
            if self._said.get(domain) != error.message:
                self._said[domain] = error.message
                log.warning("fleet.doubt-not-told", domain=domain, error=error.message)
        except Exception as error:  # one domain must end neither the others' words nor, with them, pivotd
            again_s = limits.FLEET_AGAIN_S
            log.exception("domain.not-checked", domain=domain, error=repr(error))
        if again_s is not None and domain not in self._again:
            self._again[domain] = asyncio.get_running_loop().call_later(again_s, self._ask_again, domain)

    def _ask_again(self, domain: str) -> None:
        del self._again[domain]
        self.ask(domain)

    async def _tell(self, domain: str) -> float | None:
        """Return after how many seconds to try again, None if nothing is left to be told. Raises: FleetError.

        No pivot begins meanwhile, and nobody accepts an image.
        """
        async with self._host.lock(domain):
            doubts = await self._journal.other_images(domain)
            told = not doubts or await telling_words.doubt(self._fleet, domain, doubts)
        self._said.pop(domain, None)
        supervisor = self._host.supervisors.get(domain)
        if told or supervisor is None or supervisor.session is None:
            return None
        return limits.ALARM_AGAIN_S  # this host may claim the guest, or take it
