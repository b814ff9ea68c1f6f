"""What the API needs from the rest of the daemon; the composition root supplies it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from pivotd.core.pivot import Pivot, Record
from pivotd.core.request import CopyOptions, Kind, Requester, Target
from pivotd.core.verdict import Verdict

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class JobView:
    """One block job that somebody else started. ``type`` and ``status`` are QEMU's words."""

    id: str
    type: str
    status: str
    disk: str | None
    """The disk on whose image it works, None for none."""
    adoptable: bool
    """Whether `pivot adopt` can take it."""
    reason: str | None = None
    """Why it cannot."""


@dataclass(frozen=True, slots=True)
class DomainView:
    """One domain as pivotd sees it now.

    ``connection`` is ``connected``, ``connecting``, ``unreachable`` or ``refused`` (QEMU too old); ``detail`` is one
    sentence where it is not ``connected``, or where a pivot of it fails again and again. ``uptime_s`` is the age of the
    QEMU process, None where /proc hides it.
    """

    name: str
    qmp: str
    origin: str
    """``config``, ``runtime`` or ``discovered``."""
    connection: str
    detail: str | None = None
    run_state: str | None = None
    qemu_version: str | None = None
    pid: int | None = None
    uptime_s: float | None = None
    open_pivots: tuple[str, ...] = ()
    jobs: tuple[JobView, ...] | None = None
    """Block jobs that somebody else started; None in a list of domains, and where QEMU does not answer."""


@dataclass(frozen=True, slots=True)
class DiskView:
    """One disk of a domain: what QEMU shows and what the journal says of it."""

    disk: str
    qdev: str
    image: str | None
    format: str | None
    size_bytes: int | None
    node: str | None
    read_only: bool
    backing_chain: tuple[str, ...] = ()
    """Images below the root image, nearest first."""
    backing_formats: tuple[str, ...] = ()
    """The format of each of them."""
    job: str | None = None
    """The block job that has the disk, if any."""
    pivot: str | None = None
    """The last pivot of this disk in the journal."""
    outcome: str | None = None


@dataclass(frozen=True, slots=True)
class PivotRequest:
    """One pivot of disks of one domain."""

    domain: str
    kind: Kind
    targets: tuple[Target, ...]
    options: CopyOptions = field(default_factory=CopyOptions)
    request_id: str | None = None
    """The client's own id: the same id returns the same pivot. None: pivotd makes one up."""
    force: bool = False
    """Go on where a warning would refuse (``cache=unsafe``)."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the mirrors of an open pivot are; not durable. ``None`` fields are not known yet."""

    phase: str
    copied_bytes: int | None
    total_bytes: int | None
    detail: str | None = None
    """One sentence on what the pivot waits for, e.g. "QEMU does not answer for 12 s"."""
    backlog_bytes: int | None = None
    """What is left to copy now; it grows again where the guest writes."""
    dirty_bytes_per_s: int | None = None
    """How fast the guest adds to that."""
    copy_bytes_per_s: int | None = None
    """How fast it is copied, measured while there was enough of it."""
    expected_pause_ms: float | None = None
    """How long the guest would be paused if it were now; only once the copy is ready."""
    stalled: bool = False
    """Whether there has been no progress for a long time."""


class Reads(Protocol):
    """What is read and told. ``encode`` makes the answer of each, in a thread where there may be many of them.

    Raises from every method: TooBusyError, JournalError.
    """

    @property
    def door(self) -> AbstractAsyncContextManager[None]:
        """Where readers wait for their turn, and for the end of a pause."""
        ...

    async def pivots(
        self, domain: str | None, *, open_only: bool, limit: int, before: str | None, encode: Callable[[Pivot], T]
    ) -> list[T]:
        """Return pivots, newest first; ``before``: those accepted before this one. Raises: NotFoundError."""
        ...

    async def current(self, pivot: str) -> Pivot:
        """Return one pivot by its id or its request id, an open one at once. Raises: NotFoundError."""
        ...

    async def shown(self, pivot: str, encode: Callable[[Pivot, list[Record]], T]) -> T:
        """Return one pivot with every record, oldest first. Raises: NotFoundError."""
        ...

    async def wait(self, pivot: str, timeout_s: float) -> Pivot:
        """Return the pivot as soon as it rests (closed, or waiting at READY), or as it is after timeout_s."""
        ...

    def events(self, after: int, encode: Callable[[Record], T]) -> AsyncIterator[list[T]]:
        """Yield every durable record with seq > after, then new ones as they become durable, for ever."""
        ...

    async def events_page(self, after: int, limit: int, encode: Callable[[Record], T]) -> list[T]:
        """Return up to limit records with seq > after, oldest first."""
        ...

    async def verdicts(
        self, domain: str | None, disk: str | None, image: str | None, encode: Callable[[Verdict], T]
    ) -> list[T]:
        """Return verdicts of all disks known, narrowed by what is given. Raises: NotFoundError."""
        ...


class Service(Protocol):
    """The daemon behind the API. Every method raises PivotdError subclasses and nothing else on purpose."""

    async def domains(self) -> list[DomainView]:
        """Return all domains, sorted by name."""
        ...

    async def domain(self, name: str) -> DomainView:
        """Return one domain with the block jobs that somebody else started. Raises: NotFoundError."""
        ...

    async def add_domain(self, name: str, qmp: str, who: Requester) -> DomainView:
        """Add a domain durably; the same name and path again is no error. Raises: BadRequestError, ConflictError."""
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
        """Ask a pivot to keep the source; returns once that is durable or the outcome is known.

        A pivot that has switched already is not changed. Raises: NotFoundError, PhaseConflictError.
        """
        ...

    async def set_bandwidth(self, pivot: str, bytes_per_s: int, who: Requester) -> Pivot:
        """Change how fast an open pivot copies; returns once that is durable.

        Raises: NotFoundError, PhaseConflictError.
        """
        ...

    async def undo(self, pivot: str, who: Requester) -> Pivot:
        """Take a pivot back while its window is open: return the pivot that does it, the same one if asked again.

        Raises: NotFoundError, PhaseConflictError.
        """
        ...

    async def release(self, pivot: str, who: Requester) -> Pivot:
        """End the undo window of a pivot; no error where it has ended. Raises: NotFoundError, PhaseConflictError."""
        ...

    def progress(self, pivot: str) -> Progress | None:
        """Return how far an open pivot is, None for a closed one."""
        ...

    def health(self) -> dict[str, Any]:
        """Return at least ``status`` (``ok`` or ``degraded``), ``version``, ``journal`` and ``domains`` counts."""
        ...

    @property
    def reads(self) -> Reads:
        """What changes nothing."""
        ...

    @property
    def defaults(self) -> CopyOptions:
        """What the configuration says where a request says nothing."""
        ...

    @property
    def shutting_down(self) -> bool:
        """True once the daemon was told to end: streams must finish."""
        ...
