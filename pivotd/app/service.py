"""The daemon behind the API: requests in, journalled pivots out."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

from ulid import ULID

from pivotd import limits
from pivotd.api.ports import Progress
from pivotd.app.domains import Domains
from pivotd.app.health import Health
from pivotd.app.live_verdicts import LiveVerdicts
from pivotd.app.registry import Host
from pivotd.app.start import Starter
from pivotd.config import Config
from pivotd.core import verdict
from pivotd.core.phases import is_resting
from pivotd.core.pivot import Outcome, Phase, Pivot, Record
from pivotd.core.request import CopyOptions, Requester
from pivotd.core.undo import Undo, request_id
from pivotd.core.verdict import Verdict
from pivotd.engine.driver import Driver
from pivotd.errors import NotFoundError, PhaseConflictError
from pivotd.journal.journal import Journal
from pivotd.journal.reader import Reader

VERDICT_READS_MAX = 3
"""A record that comes between the journal and the look at QEMU makes both stale: read both again."""


class DaemonService:
    """Implements api.ports.Service on the host's supervisors and the journal."""

    def __init__(self, config: Config, host: Host, journal: Journal, reader: Reader) -> None:
        self._config = config
        self._host = host
        self._journal = journal
        self._reader = reader
        self._reading = asyncio.Lock()
        domains = Domains(host, journal, lambda domain: self._read(reader.disk_history, domain, None))
        self.domains, self.domain, self.disks = domains.all, domains.one, domains.disks
        self.add_domain, self.remove_domain = domains.add, domains.remove
        starter = Starter(host, journal, lambda pivot: self._read(reader.pivot, pivot))
        self.start = starter.start
        self.health = Health(host, journal, starter).report
        self._ending = False
        self._unsubscribe = journal.subscribe(self._on_records)
        self._tick = asyncio.Event()
        self._late: asyncio.TimerHandle | None = None

    # -- the journal as news ------------------------------------------------------------------------------------

    def _on_records(self, _records: list[Record]) -> None:
        """Tell whoever waits, but not in the middle of a pause: readers would take the processor from it."""
        if not any(supervisor.window.locked() for supervisor in self._host.supervisors.values()):
            self._tell()
        elif self._late is None:
            self._late = asyncio.get_running_loop().call_later(limits.NEWS_DELAY_S, self._tell)

    def _tell(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None
        tick, self._tick = self._tick, asyncio.Event()
        tick.set()

    async def _read(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """One read-only connection, one thread at a time."""
        async with self._reading:
            return await asyncio.to_thread(function, *arguments)

    @property
    def defaults(self) -> CopyOptions:
        """What the configuration says where a request says nothing."""
        return CopyOptions(max_pause_ms=self._config.pause.max_ms, attempts=self._config.pause.attempts)

    @property
    def shutting_down(self) -> bool:
        """True once the daemon was told to end."""
        return self._ending

    def end(self) -> None:
        """Let streams and waits finish."""
        self._ending = True
        self._tell()

    # -- pivots -------------------------------------------------------------------------------------------------

    async def complete(self, pivot: str, who: Requester) -> Pivot:
        """Let a pivot that waits at READY switch."""
        found = await self.pivot(pivot)
        driver = self._host.driver(found.id)
        if driver is None:
            raise PhaseConflictError(
                f"pivot {found.id} is {found.phase}: only one that waits at ready can be completed"
            )
        await driver.complete(who)
        return driver.pivot

    async def cancel(self, pivot: str, who: Requester) -> Pivot:
        """Ask a pivot to keep the source; returns once that is durable or the outcome is known."""
        found = await self.pivot(pivot)
        driver = self._host.driver(found.id)
        if driver is None or verdict.is_decided(driver.pivot):
            if found.outcome == Outcome.KEPT.value:
                return found
            undoable = "; `pivot undo` returns to the old images" if found.window_open else ""
            raise PhaseConflictError(
                f"pivot {found.id} is {found.phase} with outcome {found.outcome}: too late to cancel{undoable}"
            )
        await self._journal.note("cancel-requested", {"uid": who.uid}, domain=found.domain, pivot=found.id)
        driver.cancel()
        ended = {Phase.CANCELLING, Phase.DECIDED, Phase.CLOSED}
        await self._until(driver, lambda: driver.pivot.phase in ended)
        return driver.pivot

    async def undo(self, pivot: str, who: Requester) -> Pivot:
        """Take a pivot back while its window is open: return the pivot that does it, the same one if asked again."""
        found = await self.pivot(pivot)
        known: Pivot | None = await self._read(self._reader.pivot, request_id(found.id))
        if known is not None:
            return known
        driver = self._host.driver(found.id)
        if driver is None or not driver.pivot.window_open:
            raise PhaseConflictError(
                f"pivot {found.id} has no open undo window: the old images are out of date; copy the disks back"
            )
        driver.undo(Undo(str(ULID()), request_id(found.id), who))
        await self._until(driver, lambda: driver.successor is not None or not driver.pivot.window_open)
        if driver.successor is None:
            why = "QEMU does not answer yet: ask again" if driver.pivot.window_open else "its window has just ended"
            raise PhaseConflictError(f"pivot {found.id} cannot be taken back now: {why}")
        return driver.successor

    async def release(self, pivot: str, who: Requester) -> Pivot:
        """End the undo window of a pivot; the old images are out of date from then on."""
        found = await self.pivot(pivot)
        driver = self._host.driver(found.id)
        if driver is None or not driver.pivot.window_open:
            if found.options.keep_synced and verdict.is_decided(found):
                return found
            raise PhaseConflictError(f"pivot {found.id} has no undo window")
        await self._journal.note("release-requested", {"uid": who.uid}, domain=found.domain, pivot=found.id)
        driver.release()
        await self._until(driver, lambda: not driver.pivot.window_open)
        return driver.pivot

    @staticmethod
    async def _until(driver: Driver, done: Callable[[], bool]) -> None:
        """Wait for a record of the driver that makes it so, as long as a command may take."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limits.COMMAND_TIMEOUT_S):
                while not done():
                    await driver.advanced.wait()

    async def set_bandwidth(self, pivot: str, bytes_per_s: int, who: Requester) -> Pivot:
        """Change how fast an open pivot copies; returns once that is durable."""
        found = await self.pivot(pivot)
        driver = self._host.driver(found.id)
        if driver is None:
            raise PhaseConflictError(f"pivot {found.id} is {found.phase}: nothing is copied any more")
        await driver.set_bandwidth(bytes_per_s, who)
        return driver.pivot

    async def pivots(self, domain: str | None = None, *, open_only: bool = False) -> list[Pivot]:
        """Return pivots, newest first."""
        found: list[Pivot] = await self._read(
            lambda: self._reader.pivots(domain=domain, open_only=open_only, limit=limits.PIVOTS_LISTED_MAX)
        )
        return found

    async def pivot(self, pivot: str) -> Pivot:
        """Return one pivot by its id or its request id."""
        found: Pivot | None = await self._read(self._reader.pivot, pivot)
        if found is None:
            raise NotFoundError(f"there is no pivot {pivot}; see `pivotctl pivot ls`", pivot=pivot)
        return found

    async def records(self, pivot: str) -> list[Record]:
        """Return every record of one pivot, oldest first."""
        found: list[Record] = await self._read(self._reader.records, (await self.pivot(pivot)).id)
        return found

    async def wait(self, pivot: str, timeout_s: float) -> Pivot:
        """Return the pivot as soon as it rests (closed, or waiting at READY), or as it is after timeout_s."""
        deadline = asyncio.get_running_loop().time() + min(timeout_s, limits.WAIT_TIMEOUT_S_MAX)
        while True:
            tick = self._tick
            found = await self.pivot(pivot)
            if is_resting(found) or self._ending:
                return found
            try:
                async with asyncio.timeout_at(deadline):
                    await tick.wait()
            except TimeoutError:
                return found

    def progress(self, pivot: str) -> Progress | None:
        """Return how far an open pivot is, None for a closed one."""
        driver = self._host.driver(pivot)
        if driver is None:
            return None
        left, total = driver.backlog or (None, None)
        copied = None if left is None or total is None else max(0, total - left)
        pace = driver.pace
        return Progress(
            driver.pivot.phase.value,
            copied,
            total,
            driver.waits_for,
            pace.backlog_bytes,
            pace.dirty_bytes_per_s,
            pace.copy_bytes_per_s,
            pace.expected_pause_ms,
            driver.stalled,
        )

    # -- events and verdicts ------------------------------------------------------------------------------------

    async def events(self, after: int) -> AsyncIterator[Record]:
        """Yield every durable record with seq > after, then new ones as they become durable."""
        while not self._ending:
            tick = self._tick
            page = await self.events_page(after, limits.EVENTS_PAGE_MAX)
            for record in page:
                after = record.seq
                yield record
            if not page:
                await tick.wait()

    async def events_page(self, after: int, limit: int) -> list[Record]:
        """Return up to limit records with seq > after, oldest first."""
        found: list[Record] = await self._read(self._reader.events, after, limit)
        return found

    async def verdicts(self, domain: str | None, disk: str | None, image: str | None) -> list[Verdict]:
        """Return verdicts of all disks known, checked against QEMU where it answers."""
        for _ in range(VERDICT_READS_MAX):
            before = self._journal.last_seq
            history: list[Pivot] = await self._read(self._reader.disk_history, domain, None)
            if domain is not None and not history:
                self._host.get(domain)
            names = [domain] if domain is not None else sorted(self._host.supervisors)
            sessions = {n: s.session for n in names if (s := self._host.supervisors.get(n)) is not None and s.session}
            result = await LiveVerdicts(history).all(sessions, disk, image)
            if self._journal.last_seq == before:
                break
        if disk is not None and not result:
            raise NotFoundError(f"{domain} has no disk {disk}, neither in QEMU nor in the journal", disk=disk)
        if image is not None and not result:
            raise NotFoundError(f"no disk uses or used {image}", image=image)
        return result
