"""The line that `systemctl status` shows: kept true as domains and pivots come and go."""

from __future__ import annotations

import asyncio

from pivotd import limits, log, sd
from pivotd.app.registry import Host
from pivotd.journal.journal import Journal


class Status:
    """Tells systemd the state of the host. ``more`` is added to it, for what a person should see."""

    def __init__(self, host: Host, journal: Journal) -> None:
        self._host = host
        self._journal = journal
        self._told = ""
        self._more = ""

    @property
    def text(self) -> str:
        """The present line."""
        supervisors = self._host.supervisors.values()
        connected = sum(supervisor.session is not None for supervisor in supervisors)
        pivots = sum(len(supervisor.drivers) for supervisor in supervisors)
        wrong = sum(bool(supervisor.alarms) for supervisor in supervisors)
        more = f"; ON A WRONG IMAGE: {wrong}" if wrong else ""
        more += f"; {self._more}" if self._more else ""
        domains = _many(len(supervisors), "domain")
        return f"supervising {domains}, {connected} connected, {_many(pivots, 'open pivot')}{more}"

    def add(self, more: str) -> None:
        """Add this to the line from now on, in place of what was added before."""
        self._more = more
        self.tell()

    def tell(self, *assignments: str) -> None:
        """Tell systemd now, and anything else with it."""
        text = self.text
        if sd.notify(*assignments, f"STATUS={text}"):
            self._told = text
        else:
            self._host.changed.set()

    async def run(self) -> None:
        """Tell each change until cancelled, but none while a guest is in its pause."""
        while True:
            await self._host.changed.wait()
            if not log.held():
                self._host.changed.clear()
                if self._journal.alive and self.text != self._told:
                    self.tell()
            await asyncio.sleep(limits.STATUS_INTERVAL_S)


def _many(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
