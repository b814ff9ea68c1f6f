"""What the API needs from the rest of the daemon; the composition root supplies it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Protocol, TypeVar

from pivotd.client.answers import (
    ArchiveProgress,
    DiskView,
    DoctorReport,
    DomainView,
    FleetDomain,
    FleetStatus,
    FleetVerdict,
    Health,
    JournalStats,
    Progress,
)
from pivotd.client.requests import AcceptRequest, ArchiveRequest
from pivotd.core.list_filters import EventFilter, PivotFilter
from pivotd.core.pivot import Pivot, Record
from pivotd.core.request import CopyOptions, PivotRequest, Requester
from pivotd.core.standing import ImageFound
from pivotd.core.verdict import Verdict

T = TypeVar("T")


class Reads(Protocol):
    """Reads and event streams. ``encode`` makes the answer from each item, in a thread if there may be many items.

    Raises from every method: TooBusyError, JournalError.
    """

    @property
    def door(self) -> AbstractAsyncContextManager[None]:
        """The queue in which readers wait for their turn and for the end of a pause."""
        ...

    async def pivots(
        self, chosen: PivotFilter, *, limit: int, before: str | None, encode: Callable[[Pivot], T]
    ) -> tuple[list[T], str | None]:
        """Return pivots that a filter wants, newest first, and the id from which to go on, None at the end.

        ``before``: only those accepted before this pivot. Raises: NotFoundError.
        """
        ...

    async def count(self, chosen: PivotFilter) -> int:
        """Return how many pivots a filter wants that is indexed."""
        ...

    async def named(self, name: str, encode: Callable[[Pivot], T]) -> list[T]:
        """Return the pivot with this id or request id; else some of those whose ids begin so, in order."""
        ...

    async def current(self, pivot: str) -> Pivot:
        """Return one pivot by its id or its request id; an open pivot at once. Raises: NotFoundError."""
        ...

    async def shown(self, pivot: str, encode: Callable[[Pivot, list[Record]], T]) -> T:
        """Return one pivot with every record, oldest first. Raises: NotFoundError."""
        ...

    async def wait(self, pivot: str, timeout_s: float) -> Pivot:
        """Return the pivot as soon as it rests (closed, or waiting at READY), or its state after timeout_s."""
        ...

    def events(self, after: int, encode: Callable[[Record], T]) -> AsyncIterator[list[T]]:
        """Yield every durable record with seq > after, then new ones as they become durable, for ever."""
        ...

    async def events_page(
        self, chosen: EventFilter, after: int, limit: int, encode: Callable[[Record], T]
    ) -> tuple[list[T], int | None]:
        """Return up to limit records with seq > after that a filter wants, oldest first, and where to go on."""
        ...

    async def last_events(
        self, chosen: EventFilter, before: int | None, limit: int, encode: Callable[[Record], T]
    ) -> tuple[list[T], int | None]:
        """Return the last limit records with seq < before that a filter wants, oldest first, and where to go on."""
        ...

    async def verdicts(
        self, domain: str | None, disk: str | None, encode: Callable[[Verdict], T], *, local: bool
    ) -> list[T]:
        """Return the verdicts on all known disks, or on those selected. Raises: NotFoundError.

        ``local``: this host's word counts alone if its fleet does not answer.
        """
        ...

    async def image(self, image: str, encode: Callable[[ImageFound], T]) -> list[T]:
        """Return what history and QEMU say of one image, for each disk that has or had it. Raises: ConflictError."""
        ...

    async def obsolete(self, after: str, limit: int, encode: Callable[[ImageFound], T]) -> tuple[list[T], str | None]:
        """Return those of the next ``limit`` images of the journal that no disk needs, and the name to go on from."""
        ...

    async def journal(self, encode: Callable[[JournalStats], T]) -> T:
        """Return how large the journal and its archives are; ``encode`` runs in the thread."""
        ...


class Fleet(Protocol):
    """What all hosts of the fleet know. ``encode`` makes the answer, in a thread.

    Raises from every method: ConflictError: this host belongs to no fleet; FleetError.
    """

    async def verdicts(self, domain: str | None, disk: str | None, encode: Callable[[list[FleetVerdict]], T]) -> T:
        """Return the fleet's verdicts on all disks, or on those selected."""
        ...

    async def domains(self, encode: Callable[[list[FleetDomain]], T]) -> T:
        """Return all domains of the fleet."""
        ...

    async def status(self, encode: Callable[[FleetStatus], T]) -> T:
        """Return the state of etcd and of the fleet, also without a majority."""
        ...

    async def take(self, domain: str, chosen: Mapping[str, str], who: Requester) -> FleetDomain:
        """Make this host the owner of a guest whose host was fenced; ``chosen``: a person's word, image by disk.

        Raises: NeverMovedError, UncertainError, ConflictError.
        """
        ...

    async def forget(self, domain: str, who: Requester) -> None:
        """Remove a domain from the fleet. Raises: NeverMovedError, ConflictError: a pivot of it is undecided."""
        ...


class Service(Protocol):
    """The daemon behind the API. Every method raises PivotdError subclasses and nothing else on purpose."""

    async def domains(self) -> list[DomainView]:
        """Return all domains, sorted by name."""
        ...

    async def domain(self, name: str) -> DomainView:
        """Return one domain with the block jobs that other clients started. Raises: NotFoundError."""
        ...

    async def add_domain(self, name: str, qmp: str, who: Requester) -> DomainView:
        """Add a domain durably; repeating it is not an error. Raises: BadRequestError, ConflictError."""
        ...

    async def remove_domain(self, name: str, who: Requester) -> None:
        """Forget a domain durably; its pivots stay in the journal. Raises: NotFoundError, ConflictError."""
        ...

    async def disks(self, domain: str) -> list[DiskView]:
        """Ask QEMU for the disks of a domain. Raises: NotFoundError, DomainUnreachableError."""
        ...

    async def start(self, request: PivotRequest, who: Requester) -> Pivot:
        """Check the request, make it durable and start it; a known request id returns its pivot.

        Raises: RequestError and subclasses (nothing recorded), DomainUnreachableError, JournalError.
        """
        ...

    async def complete(self, pivot: str, who: Requester) -> Pivot:
        """Let a pivot that waits at READY switch. Raises: NotFoundError, PhaseConflictError."""
        ...

    async def cancel(self, pivot: str, who: Requester) -> Pivot:
        """Ask a pivot to keep the source; returns once the request is durable or the outcome is known.

        A pivot that has already switched stays unchanged. Raises: NotFoundError, PhaseConflictError.
        """
        ...

    async def set_bandwidth(self, pivot: str, bytes_per_s: int, who: Requester) -> Pivot:
        """Change how fast an open pivot copies; returns once that is durable.

        Raises: NotFoundError, PhaseConflictError.
        """
        ...

    async def undo(self, pivot: str, who: Requester) -> Pivot:
        """Undo a pivot while its window is open; return the pivot that does this, the same one for a repeated request.

        Raises: NotFoundError, PhaseConflictError.
        """
        ...

    async def release(self, pivot: str, who: Requester) -> Pivot:
        """End the undo window of a pivot; no error if it has ended. Raises: NotFoundError, PhaseConflictError."""
        ...

    async def accept(self, domain: str, disk: str, word: AcceptRequest, who: Requester) -> Verdict:
        """Record a person's word on which image holds a disk's data; return the verdict that rests on it.

        Raises: NotFoundError, ConflictError, BadRequestError, JournalError.
        """
        ...

    async def archive(self, request: ArchiveRequest, who: Requester) -> ArchiveProgress:
        """Move old pivots to archives for a few seconds. Raises: BadRequestError, JournalError."""
        ...

    def progress(self, pivot: str) -> Progress | None:
        """Return the progress of an open pivot, None for a closed one."""
        ...

    async def health(self) -> Health:
        """Return the state of the daemon for a monitoring system."""
        ...

    async def metrics(self) -> bytes:
        """Return metrics in Prometheus' text format 0.0.4."""
        ...

    async def doctor(self) -> DoctorReport:
        """Return what is wrong here, as far as the daemon can see it; bounded by twice limits.DOCTOR_S."""
        ...

    @property
    def fleet(self) -> Fleet:
        """The fleet of this host."""
        ...

    @property
    def reads(self) -> Reads:
        """The read-only part of the service."""
        ...

    @property
    def defaults(self) -> CopyOptions:
        """The configuration's values for fields that a request leaves out."""
        ...

    @property
    def shutting_down(self) -> bool:
        """True once the daemon was told to end: streams must finish."""
        ...
