"""The daemon behind the API: requests in, journalled pivots out."""

from __future__ import annotations

from ulid import ULID

from pivotd.app.accepting import Accepting
from pivotd.app.doctor import Doctor
from pivotd.app.domains import Domains
from pivotd.app.fleet_service import FleetService
from pivotd.app.health import Health
from pivotd.app.metrics import Metrics
from pivotd.app.reads import Reads
from pivotd.app.registry import Host
from pivotd.app.retention import Retention
from pivotd.app.start import Starter
from pivotd.client.answers import ArchiveProgress, Progress
from pivotd.client.requests import ArchiveRequest
from pivotd.config import Config
from pivotd.core.phases import is_decided
from pivotd.core.pivot import Pivot
from pivotd.core.request import CopyOptions, Requester
from pivotd.core.undo import Undo
from pivotd.engine.driver import Driver
from pivotd.engine.inbox import taken_back, too_late
from pivotd.engine.ports import Fleet
from pivotd.errors import BusyError, PhaseConflictError
from pivotd.journal.journal import Journal


class DaemonService:
    """Implements api.ports.Service with the host's supervisors and the journal."""

    def __init__(self, config: Config, host: Host, journal: Journal, reads: Reads, fleet: Fleet | None = None) -> None:
        self.reads = reads
        self._config = config
        self._host = host
        self._journal = journal
        domains, starter = Domains(host, journal, reads.latest), Starter(host, journal, reads, fleet)
        self.accept = Accepting(host, journal, reads, starter.reservations, fleet).accept
        self.domains, self.domain, self.disks = domains.all, domains.one, domains.disks
        self.add_domain, self.remove_domain = domains.add, domains.remove
        self.start = starter.start
        self.fleet = FleetService(config.fleet, journal)
        health = Health(host, journal, starter)
        self.health = health.look
        self.retention = Retention(journal, config.journal.keep_s)
        self.doctor = Doctor(
            lambda: self._config, host, journal, reads, domains, self.fleet, health.report, self.retention
        ).report
        in_fleet = bool(config.fleet.endpoints)
        self.metrics = Metrics(host, journal, reads, health.report, in_fleet=in_fleet).text
        self._ending = False

    def use(self, config: Config) -> None:
        """Take the defaults of a reloaded configuration."""
        self._config = config
        self.retention.use(config.journal.keep_s)

    @property
    def defaults(self) -> CopyOptions:
        """The configuration's values for fields that a request leaves out."""
        return CopyOptions(max_pause_ms=self._config.pause.max_ms, attempts=self._config.pause.attempts)

    @property
    def shutting_down(self) -> bool:
        """True once the daemon was told to end."""
        return self._ending

    def end(self) -> None:
        """Make streams and waits finish."""
        self._ending = True
        self.reads.end()

    # -- pivots -------------------------------------------------------------------------------------------------

    async def complete(self, pivot: str, who: Requester) -> Pivot:
        """Let a pivot that waits at READY switch."""
        found = await self.reads.current(pivot)
        driver = self._host.driver(found.id)
        if driver is None:
            raise PhaseConflictError(
                f"pivot {found.id} is {found.phase}: only one that waits at ready can be completed"
            )
        return await driver.complete(who)

    async def cancel(self, pivot: str, who: Requester) -> Pivot:
        """Ask a pivot to keep the source; returns once the request is durable or the outcome is known."""
        found, driver = await self._driven(pivot)
        if driver is not None:
            return await driver.cancel(who)
        if refusal := too_late(found):
            raise refusal
        return found

    async def _driven(self, pivot: str) -> tuple[Pivot, Driver | None]:
        """Return a pivot and its driver, None if its outcome is recorded. Raises: NotFoundError, BusyError."""
        found = await self.reads.current(pivot)
        if (driver := self._host.driver(found.id)) is None and not is_decided(found):
            async with self._host.lock(found.domain):  # one that was just recorded has its driver after this
                driver = self._host.driver(found.id)
            found = await self.reads.current(found.id)
            if driver is None and not is_decided(found):
                raise BusyError(f"pivot {found.id} is {found.phase}, and not taken up yet: ask again", pivot=found.id)
        return found, driver

    async def undo(self, pivot: str, who: Requester) -> Pivot:
        """Undo a pivot while its window is open; return the pivot that does this, the same one if repeated."""
        found = await self.reads.current(pivot)
        driver = self._host.driver(found.id)  # before the look into the journal: one of both has the undo
        known = await self.reads.undo_of(found.id)
        if known is None and driver is not None:
            known = driver.successor
        if known is not None:
            return known
        if driver is None or not driver.pivot.window_open:
            raise PhaseConflictError(
                f"pivot {found.id} has no open undo window: the old images are out of date; copy the disks back"
            )
        return await driver.undo(Undo(str(ULID()), who))

    async def release(self, pivot: str, who: Requester) -> Pivot:
        """End the undo window of a pivot; the old images are out of date from then on."""
        found = await self.reads.current(pivot)
        driver = self._host.driver(found.id)
        if driver is None or not driver.pivot.window_open:
            if (undo := await self.reads.undo_of(found.id)) is not None:
                raise taken_back(found, undo)
            if found.options.keep_synced and is_decided(found):
                return found
            raise PhaseConflictError(f"pivot {found.id} has no undo window")
        return await driver.release(who)

    async def set_bandwidth(self, pivot: str, bytes_per_s: int, who: Requester) -> Pivot:
        """Change how fast an open pivot copies; returns once that is durable."""
        found, driver = await self._driven(pivot)
        if driver is None:
            raise PhaseConflictError(f"pivot {found.id} is {found.phase}: nothing is copied any more")
        return await driver.set_bandwidth(bytes_per_s, who)

    async def archive(self, request: ArchiveRequest, who: Requester) -> ArchiveProgress:
        """Move old pivots to archives for a few seconds."""
        done = await self.retention.step(request.keep_s, request.after, dry_run=request.dry_run, who=who)
        return ArchiveProgress(
            done.pivots, done.records, tuple(sorted(done.names)), tuple(done.obstacles), done.following
        )

    def progress(self, pivot: str) -> Progress | None:
        """Return the progress of an open pivot, None for a closed one."""
        driver = self._host.driver(pivot)
        if driver is None:
            return None
        pace = driver.pace
        left, copied = pace.backlog_bytes, pace.copied_bytes
        return Progress(
            driver.pivot.phase.value,
            copied,
            None if left is None or copied is None else copied + left,
            driver.waits_for,
            left,
            pace.dirty_bytes_per_s,
            pace.copy_bytes_per_s,
            pace.expected_pause_ms,
            driver.stalled,
        )
