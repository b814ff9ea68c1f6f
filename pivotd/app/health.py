"""The health of the daemon, for a monitoring system."""

from __future__ import annotations

import time

from pivotd import __version__, limits
from pivotd.app.domains import failing
from pivotd.app.registry import Host
from pivotd.app.start import Starter
from pivotd.client import answers
from pivotd.core.pivot import Phase, Record
from pivotd.journal.journal import Journal


class Health:
    """Compares the pivots that are open in the journal with the drivers."""

    def __init__(self, host: Host, journal: Journal, starter: Starter) -> None:
        self._host = host
        self._journal = journal
        self._starter = starter
        self._open: dict[str, float] = dict.fromkeys(host.drivers(), 0.0)
        """Pivots that are open in the journal, and since when this is known."""
        journal.subscribe(self._on_records)

    def _on_records(self, records: list[Record]) -> None:
        for record in records:
            if record.pivot is not None and record.event == "accepted":
                self._open[record.pivot] = time.monotonic()
            elif record.pivot is not None and record.phase is Phase.CLOSED:
                self._open.pop(record.pivot, None)

    def _without_driver(self) -> list[str]:
        """Return the open pivots without a driver; a driver starts right after its pivot is durable."""
        driven = self._host.drivers().keys() | self._starter.reservations.accepting
        before_s = time.monotonic() - limits.DRIVER_STARTS_S
        return sorted(pivot for pivot, since_s in self._open.items() if pivot not in driven and since_s < before_s)

    async def look(self) -> answers.Health:
        """Return the report after a look at the names of the journal's files."""
        await self._journal.look_for_names()
        return self.report()

    def report(self) -> answers.Health:
        """Return ``ok`` or ``degraded``, and the facts for it."""
        supervisors = self._host.supervisors.values()
        silent = tuple(s.name for s in supervisors if s.session is None and s.drivers)
        failed = tuple(
            answers.FailingPivot(s.name, pivot, why) for s in supervisors for pivot, why in failing(s).items()
        )
        without_driver = tuple(self._without_driver())
        wrong = tuple(
            answers.WrongImage(s.name, disk, why) for s in supervisors for disk, why in sorted(s.alarms.items())
        )
        healthy = self._journal.healthy and not (silent or failed or without_driver or wrong)
        return answers.Health(
            status="ok" if healthy else "degraded",
            version=__version__,
            journal=answers.JournalHealth(str(self._journal.path), self._journal.healthy, self._journal.last_seq),
            domains=answers.DomainsHealth(
                total=len(self._host.supervisors),
                connected=sum(s.session is not None for s in supervisors),
                with_open_pivots=sum(bool(s.drivers) for s in supervisors),
                silent_with_open_pivots=silent,
                failing=failed,
                pivots_without_driver=without_driver,
                skipped=tuple(answers.SkippedMonitor(path, reason) for path, reason in self._host.skipped),
                wrong_images=wrong,
            ),
        )
