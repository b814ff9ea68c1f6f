"""The daemon behind the API: requests in, journalled pivots out."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from ulid import ULID

from pivotd import __version__, limits
from pivotd.api.ports import DiskView, DomainView, JobView, PivotRequest, Progress
from pivotd.app.live_verdicts import LiveVerdicts, image_path
from pivotd.app.registry import CONFIG, DISCOVERED, RUNTIME, Host
from pivotd.config import Config
from pivotd.core import nbd, verdict
from pivotd.core.phases import is_resting
from pivotd.core.pivot import Outcome, Phase, Pivot, PivotDisk, Record
from pivotd.core.request import CopyOptions, Kind, Requester, Target
from pivotd.core.undo import Undo, request_id
from pivotd.core.verdict import Verdict
from pivotd.engine.driver import Driver
from pivotd.engine.supervisor import Supervisor
from pivotd.errors import ConflictError, DomainUnreachableError, NotFoundError, PhaseConflictError, QmpError
from pivotd.host import process
from pivotd.journal.journal import Journal
from pivotd.journal.reader import Reader
from pivotd.planning.adoptable_jobs import adoptable_jobs
from pivotd.planning.plan import Wish, plan
from pivotd.qmp.session import Session

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
        self._accepting = asyncio.Lock()
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

    # -- domains ------------------------------------------------------------------------------------------------

    async def domains(self) -> list[DomainView]:
        """Return all domains, sorted by name."""
        # Side by side: one QEMU that hangs must not hold up what is known of the others.
        supervisors = [self._host.supervisors[name] for name in sorted(self._host.supervisors)]
        return list(await asyncio.gather(*map(self._view, supervisors)))

    async def domain(self, name: str) -> DomainView:
        """Return one domain with the block jobs that somebody else started."""
        supervisor = self._host.get(name)
        view = await self._view(supervisor)
        return replace(view, jobs=await self._jobs(supervisor)) if view.run_state is not None else view

    @staticmethod
    async def _jobs(supervisor: Supervisor) -> tuple[JobView, ...] | None:
        session = supervisor.session
        try:
            if session is None:
                return None
            blocks = await session.blocks()
        except QmpError:
            return None
        pivots = [driver.pivot for driver in supervisor.drivers.values()]
        return tuple(
            JobView(one.id, one.job.kind, one.job.status, one.disk, one.obstacle is None, one.obstacle)
            for one in adoptable_jobs(blocks, pivots)
        )

    async def _view(self, supervisor: Supervisor) -> DomainView:
        session = supervisor.session
        connected = session is not None
        run_state = None
        if session is not None:
            try:
                run_state = await session.run_state()
            except QmpError as error:
                connected, session, supervisor.detail = False, None, error.message
        return DomainView(
            name=supervisor.name,
            qmp=supervisor.path,
            origin=supervisor.origin,
            connection=supervisor.connection if connected or supervisor.session is None else "unreachable",
            detail=None if connected else supervisor.detail,
            run_state=run_state,
            qemu_version=session.version_text if session else None,
            pid=session.pid if session else None,
            uptime_s=process.uptime_s(session.pid) if session else None,
            open_pivots=tuple(sorted(supervisor.drivers)),
        )

    async def add_domain(self, name: str, qmp: str, who: Requester) -> DomainView:
        """Add a domain durably; the same name and path again is no error."""
        known = self._host.supervisors.get(name)
        if known is not None and known.path == qmp:
            return await self._view(known)
        if known is not None:
            raise ConflictError(f"domain {name} exists with {known.path}; remove it first", domain=name)
        owner = next((s.name for s in self._host.supervisors.values() if s.path == qmp), None)
        if owner is not None:
            raise ConflictError(f"{qmp} belongs to domain {owner} already: a monitor has one owner", domain=owner)
        await self._journal.add_domain(name, qmp, who.uid)
        supervisor = self._host.add(name, qmp, RUNTIME)
        await supervisor.settled(limits.GREETING_TIMEOUT_S + limits.CONNECT_TIMEOUT_S)
        return await self._view(supervisor)

    async def remove_domain(self, name: str, who: Requester) -> None:
        """Forget a domain durably; its pivots stay in the journal."""
        supervisor = self._host.get(name)
        if supervisor.drivers:
            pivot = next(iter(supervisor.drivers))
            raise ConflictError(f"domain {name} has an open pivot, {pivot}: cancel it or wait for it", pivot=pivot)
        if supervisor.origin == CONFIG:
            raise ConflictError(f"domain {name} stands in the configuration: remove it there and restart pivotd")
        if supervisor.origin == DISCOVERED:
            raise ConflictError(f"domain {name} was discovered by its socket {supervisor.path}: it goes with that")
        await self._journal.remove_domain(name, who.uid)
        self._host.remove(name)

    async def _session(self, name: str) -> Session:
        """Return the connection, after one more try where there is none."""
        supervisor = self._host.get(name)
        if supervisor.session is None:
            supervisor.hurry()
            await supervisor.settled(limits.GREETING_TIMEOUT_S + limits.CONNECT_TIMEOUT_S)
        if supervisor.session is None:
            raise DomainUnreachableError(f"domain {name}: {supervisor.detail}", domain=name)
        return supervisor.session

    async def disks(self, domain: str) -> list[DiskView]:
        """Ask QEMU for the disks of a domain, and the journal what it says of each."""
        session = await self._session(domain)
        blocks = await session.blocks()
        history = {v.disk: v for v in verdict.verdicts(await self._read(self._reader.disk_history, domain, None))}
        views = []
        for name, disk in sorted(blocks.disks.items()):
            last = history.get(name)
            jobs = blocks.graph.jobs.get(disk.node, ())
            views.append(
                DiskView(
                    disk=name,
                    qdev=disk.qdev,
                    image=await image_path(disk.filename, session),
                    format=disk.format,
                    size_bytes=disk.size_bytes,
                    node=disk.node,
                    read_only=disk.read_only,
                    backing_chain=tuple([await image_path(layer.filename, session) for layer in disk.layers[1:]]),
                    backing_formats=tuple(layer.format for layer in disk.layers[1:]),
                    job=jobs[0] if jobs else None,
                    pivot=last.pivot if last else None,
                    outcome=last.outcome if last else None,
                )
            )
        return views

    # -- pivots -------------------------------------------------------------------------------------------------

    async def start(self, request: PivotRequest, who: Requester) -> Pivot:
        """Check the request, make it durable and start it; a known request id returns its pivot."""
        if request.request_id is not None:
            known: Pivot | None = await self._read(self._reader.pivot, request.request_id)
            if known is not None:
                return _same_request(known, request)
        pivot = str(ULID())
        supervisor = self._host.get(request.domain)
        wish = Wish(
            pivot=pivot,
            request_id=request.request_id or pivot,
            domain=request.domain,
            kind=request.kind,
            targets=request.targets,
            options=request.options,
            who=who,
            created_at=datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z"),
            force=request.force,
        )
        # One at a time: two requests for one destination must not both pass the check.
        async with self._accepting:
            drivers = (driver for s in self._host.supervisors.values() for driver in s.drivers.values())
            others = [driver.pivot for driver in drivers]
            planned = await plan(wish, await self._session(request.domain), others)
            accepted, new = await self._journal.accept(planned, {"force": request.force})
            if not new:
                return _same_request(accepted, request)
            supervisor.start(accepted)
        return accepted

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

    def health(self) -> dict[str, Any]:
        """Return what a monitoring system asks for."""
        supervisors = self._host.supervisors.values()
        silent = [s.name for s in supervisors if s.session is None and s.drivers]
        healthy = self._journal.healthy and not silent
        return {
            "status": "ok" if healthy else "degraded",
            "version": __version__,
            "journal": {
                "path": str(self._journal.path),
                "healthy": self._journal.healthy,
                "last_seq": self._journal.last_seq,
            },
            "domains": {
                "total": len(self._host.supervisors),
                "connected": sum(s.session is not None for s in supervisors),
                "with_open_pivots": sum(bool(s.drivers) for s in supervisors),
                "silent_with_open_pivots": silent,
            },
        }


def _same_request(known: Pivot, request: PivotRequest) -> Pivot:
    """A retry is safe; another request under a used id is a mistake that must not look like success."""
    had = {disk.disk: disk for disk in known.disks}
    same = (
        known.domain == request.domain
        and known.options.adopted is request.options.adopted
        and (known.options.adopted or known.kind is request.kind)
    )
    same = same and len(had) == len(request.targets)
    by_job = {disk.job: disk for disk in known.disks}
    asked = [(had.get(t.disk) if t.job is None else by_job.get(t.job), t) for t in request.targets]
    if not same or not all(disk is not None and _same_target(request.kind, disk, t) for disk, t in asked):
        raise ConflictError(
            f"request id {known.request_id} belongs to pivot {known.id} with other disks or images: use a new id",
            pivot=known.id,
        )
    return known


def _same_target(kind: Kind, had: PivotDisk, asked: Target) -> bool:
    wanted = ((asked.image, had.destination), (asked.top, had.top), (asked.base, had.base))
    named = all(
        not name or (image is not None and image.filename in {name, nbd.canonical(name)}) for name, image in wanted
    )
    # What is left out means something too: the active layer for a commit, all layers for a pull.
    if kind is Kind.COMMIT and asked.top is None:
        return named and had.switches
    if kind is Kind.PULL and asked.base is None:
        return named and had.base is None
    return named
