"""From a request to a driver: plan without a lock, reserve the destinations, record the pivot, start its driver."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Protocol

from ulid import ULID

from pivotd import limits
from pivotd.app import half_made, holders
from pivotd.app.holders import Holders
from pivotd.app.registry import Host
from pivotd.app.reservations import Marked, Reservations
from pivotd.core import nbd
from pivotd.core.pivot import JsonObject, Pivot, PivotDisk
from pivotd.core.request import Kind, PivotRequest, Requester, Target
from pivotd.core.rules.fleet_pivots import of_another
from pivotd.core.verdict import Verdict
from pivotd.engine import pivot_log
from pivotd.engine.ports import Fleet
from pivotd.engine.supervisor import Supervisor
from pivotd.errors import (
    BadRequestError,
    ConflictError,
    DomainUnreachableError,
    FleetError,
    PivotdError,
)
from pivotd.journal.journal import Journal
from pivotd.planning import placing
from pivotd.planning.plan import marks, plan, refuse_run_state, written
from pivotd.qmp.session import Session


class History(holders.History, half_made.History, Protocol):
    """What a request needs of the journal; app.reads.Reads has it."""

    async def doubts(self, domain: str, *, ask_fleet: bool) -> tuple[dict[str, Verdict], bool]:
        """Return, by disk, the verdicts that a person has to settle, and whether nothing is left to be compared."""
        ...


class Starter:
    """Accepts requests for pivots."""

    def __init__(self, host: Host, journal: Journal, history: History, fleet: Fleet | None = None) -> None:
        self._host = host
        self._fleet = fleet
        self._journal = journal
        self._history = history
        self._holders = Holders(host, history)
        self._under_way: dict[str, tuple[PivotRequest, asyncio.Future[Pivot]]] = {}
        self.reservations = Reservations(host)

    async def start(self, request: PivotRequest, who: Requester) -> Pivot:
        """Return the new pivot once it is durable, or the pivot that already has this request id.

        Raises: RequestError and subclasses (nothing recorded), DomainUnreachableError, QmpError, JournalError.
        """
        key = request.request_id
        if key is None:
            return await self._start(request, who)
        if key in self._under_way:
            return await self._join(key, request)
        done: asyncio.Future[Pivot] = asyncio.get_running_loop().create_future()
        self._under_way[key] = request, done
        try:
            known = await self._history.known(key)
            started = await self._start(request, who) if known is None else _same_request(known, request)
        except BaseException as error:
            given_up = ConflictError(f"request {key} was given up on the way: send it again")
            done.set_exception(error if isinstance(error, PivotdError) else given_up)
            done.exception()  # perhaps no other request waits for it
            raise
        else:
            done.set_result(started)
            return started
        finally:
            del self._under_way[key]

    async def _join(self, key: str, request: PivotRequest) -> Pivot:
        """Wait for the first request under this id, and share its result."""
        first, done = self._under_way[key]
        try:
            return _same_request(await asyncio.shield(done), request)
        except PivotdError:
            if done.exception() is None or request == first:
                raise
            raise ConflictError(f"request id {key} was under way with another request: use a new id") from None

    async def _start(self, request: PivotRequest, who: Requester) -> Pivot:
        supervisor = self._host.get(request.domain)
        epoch = await self._refuse_others(request.domain)
        async with _turn(supervisor):
            session = await supervisor.connected()
            planned = await self._plan(request, session, self._host.open_pivots(), who)
            images = written(planned)
            marked = list(zip(images, await marks(images), strict=True))
            accepted, new = await self._host.finish(self._accept(planned, marked, supervisor, session, epoch))
        return accepted if new else _same_request(accepted, request)

    async def _plan(self, request: PivotRequest, session: Session, others: Sequence[Pivot], who: Requester) -> Pivot:
        """Return the planned pivot, also where an image that an earlier one has made for nothing is in its way."""
        made: dict[str, int] = {}
        while True:
            try:
                return await plan(request, session, others, pivot=str(ULID()), who=who, made=made)
            except BadRequestError as error:
                path = error.fields.get("exists")
                if path is None or path in made:
                    raise
                changed = await half_made.unused_since(self._history, path)
                if changed is None:
                    raise
                made[path] = changed

    async def _refuse_others(self, domain: str) -> int | None:
        """Return the epoch of the guest's owner, None without an answer: the pivot then waits for one at READY.

        Raises: ConflictError: the guest is another host's.
        """
        if self._fleet is None:
            return None
        try:
            view = await self._fleet.read(domain, self._fleet.timeout_s)
        except FleetError:
            return None
        if (refusal := of_another(view, self._fleet.host)) is not None:
            assert view.owner is not None
            raise ConflictError(f"domain {domain}: {refusal}", domain=domain, host=view.owner.host)
        return view.epoch

    async def _refuse_doubtful(self, planned: Pivot, *, ask_fleet: bool) -> bool:
        """Return whether nothing is left to be compared with the fleet's word.

        Raises: ConflictError: a disk may be on a wrong image, and after another pivot nobody could tell any more.
        """
        doubts, compared = await self._history.doubts(planned.domain, ask_fleet=ask_fleet)
        for disk in planned.disks:
            if disk.disk in doubts:
                doubt, name = doubts[disk.disk], f"{planned.domain} {disk.disk}"
                raise ConflictError(
                    f"{name} is in doubt: {doubt.reason.rstrip('.')}; first say which image is right: "
                    f"`pivotctl verdict accept {doubt.domain} {doubt.disk} IMAGE --reason TEXT`",
                    disk=disk.disk,
                )
        return compared

    async def _accept(
        self, planned: Pivot, marked: Marked, supervisor: Supervisor, session: Session, epoch: int | None
    ) -> tuple[Pivot, bool]:
        """Record and start the planned pivot, unless the facts of the plan have changed."""
        async with self._host.lock(planned.domain):
            # With the lock: no person's word on a disk comes between this and the record.
            # Without a comparison now, the source is compared with the fleet's word before the intent.
            if await self._refuse_doubtful(planned, ask_fleet=epoch is not None):
                planned = replace(planned, fleet_epoch=epoch)
            self.reservations.reserve(planned.id, marked)
            try:
                # After the reservation: a pivot that wrote to one of the images before has ended, and left its record.
                found = await self._holders.check(planned)
                self._refuse_another_qemu(planned.domain, supervisor, session)
                # A new pivot ends what the journal knows of a guest that has left: that must be older than this.
                await refuse_run_state(planned.domain, session)
                self._refuse_another_qemu(planned.domain, supervisor, session)
                facts = _facts(planned) | found.facts
                accepted, new = await self._journal.accept(planned, facts, found.overwritten(planned))
                if new:
                    pivot_log.accepted(accepted)
                if new and not supervisor.ended:
                    supervisor.start(accepted)
            finally:
                self.reservations.accepting.discard(planned.id)
        return accepted, new

    def _refuse_another_qemu(self, domain: str, supervisor: Supervisor, session: Session) -> None:
        """Raises: ConflictError, DomainUnreachableError: the plan was made for another domain, or QEMU, than now."""
        if self._host.supervisors.get(domain) is not supervisor or supervisor.ended:
            raise ConflictError(f"domain {domain} was removed meanwhile: add it and try again")
        if supervisor.session is not session:
            raise DomainUnreachableError(f"domain {domain}: QEMU has closed the monitor; try again")


def _facts(planned: Pivot) -> JsonObject:
    """Return what the record of a new pivot says of the request, and of what the request lets the disks lose."""
    options = planned.options
    left = {image: list(names) for image, names in options.snapshots_left}
    return {
        "force": options.force,
        **({"plain": True} if options.plain else {}),
        **({"internal_snapshots": left} if left else {}),
    }


@asynccontextmanager
async def _turn(supervisor: Supervisor) -> AsyncIterator[None]:
    """Wait until no other request for the domain is being planned. Raises: DomainUnreachableError."""
    try:
        async with asyncio.timeout(limits.PLANNING_PATIENCE_S):
            await supervisor.planning.acquire()
    except TimeoutError:
        raise DomainUnreachableError(
            f"domain {supervisor.name} has not answered earlier requests yet: try again later", domain=supervisor.name
        ) from None
    try:
        yield
    finally:
        supervisor.planning.release()


def _same_request(known: Pivot, request: PivotRequest) -> Pivot:
    """A retry is safe; a different request under a used id is a mistake that must not look like success."""
    had = {disk.disk: disk for disk in known.disks}
    same = (
        known.domain == request.domain
        and known.options.adopted is request.options.adopted
        and (known.options.adopted or known.kind is request.kind)
    )
    by_job = {disk.job: disk for disk in known.disks}
    asked = [(had.get(t.disk) if t.job is None else by_job.get(t.job), t) for t in request.targets]
    # Each image must be named, by any of the devices on it: two devices on one image do not make up for another one.
    same = same and {disk.source.node for disk, _ in asked if disk} == {disk.source.node for disk in known.movers}
    same = same and len({disk.disk for disk, _ in asked if disk}) == len(asked)
    if not same or not all(disk is not None and _same_target(request.kind, disk, t) for disk, t in asked):
        raise ConflictError(
            f"request id {known.request_id} belongs to pivot {known.id} with other disks or images: use a new id",
            pivot=known.id,
        )
    return known


def _same_target(kind: Kind, had: PivotDisk, asked: Target) -> bool:
    wanted = ((asked.image, had.destination), (asked.top, had.top), (asked.base, had.base))
    # The image may have been asked for by its directory, whatever has become of that since.
    inside = placing.inside(asked.image, had.source.filename)
    named = all(
        not name or (image is not None and image.filename in {name, nbd.canonical(name), name and inside})
        for name, image in wanted
    )
    # What is left out means something too: the active layer for a commit, all layers for a pull.
    if kind is Kind.COMMIT and asked.top is None:
        return named and had.switches
    if kind is Kind.PULL and asked.base is None:
        return named and had.base is None
    return named
