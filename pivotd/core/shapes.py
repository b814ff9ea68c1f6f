"""What pivotd answers: one type each for the API, its OpenAPI document, pivotctl and the client library. Pure.

Verdicts and records are shown as core has them: core.verdict.Verdict, core.pivot.Record.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Self

from pivotd.core import pivot as core
from pivotd.core import undo
from pivotd.core.creation import ImageOptions
from pivotd.core.request import CopyMode, CopyOptions, Discard, Kind, Requester, Sync
from pivotd.core.stale import stale


@dataclass(frozen=True, slots=True, kw_only=True)
class PivotOptions:
    """What the requester chose, or the configuration where the request said nothing."""

    sync: Sync
    reuse: bool
    bandwidth_bytes_per_s: int
    """0: no limit."""
    max_pause_ms: int
    attempts: int
    copy_mode: CopyMode
    pivot: bool
    """False: the pivot waits at ready to be completed."""
    image_options: ImageOptions
    secret_file: str | None
    discard: Discard
    keep_synced: bool
    keep_synced_s: int
    undo_of: str | None
    """The pivot that this one takes back."""
    force: bool
    resumable: bool
    throttle: bool
    adopted: bool
    """Somebody else had started the block jobs."""

    @classmethod
    def of(cls, options: CopyOptions) -> PivotOptions:
        """Return what of the options is not pivotd's own book-keeping."""
        return cls(**{field.name: getattr(options, field.name) for field in fields(cls)})


@dataclass(frozen=True, slots=True, kw_only=True)
class PivotDisk:
    """One disk of a pivot. ``top``, ``base`` and ``between``: the layers of a commit or a pull, by file name."""

    disk: str
    source: str
    source_format: str
    destination: str
    destination_format: str
    top: str | None
    base: str | None
    between: tuple[str, ...]
    size_bytes: int
    job: str
    outcome: core.Outcome | None
    stale: tuple[str, ...]
    """Images that do not hold the disk's data any more."""

    @classmethod
    def of(cls, pivot: core.Pivot, disk: core.PivotDisk) -> PivotDisk:
        """Return one disk of a pivot of the journal."""
        return cls(
            disk=disk.disk,
            source=disk.source.filename,
            source_format=disk.source.format,
            destination=disk.destination.filename,
            destination_format=disk.destination.format,
            top=None if disk.top is None else disk.top.filename,
            base=None if disk.base is None else disk.base.filename,
            between=disk.between,
            size_bytes=disk.size_bytes,
            job=disk.job,
            outcome=disk.outcome,
            stale=tuple(stale(pivot, disk)),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Pivot:
    """One pivot. Times are UTC, RFC 3339 with microseconds; None: not yet."""

    id: str
    request_id: str
    domain: str
    kind: Kind
    phase: core.Phase
    outcome: str | None
    """An outcome, ``split`` where the disks differ, None while it is open."""
    requested_by: Requester
    options: PivotOptions
    disks: tuple[PivotDisk, ...]
    hold: bool
    """It waits: at ready to be completed or cancelled, after the switch for the end of its undo window."""
    undo_until: str | None
    """Until when it can be undone; None: it cannot."""
    attempt: int
    """How many pauses were tried."""
    run_state_before: str | None
    pause_ms: float | None
    """Length of the last pause, None if the guest was not paused."""
    pauses: tuple[core.Pause, ...]
    created: str
    decided: str | None
    closed: str | None
    error: str | None

    @classmethod
    def of(cls, pivot: core.Pivot, **more: tuple[core.Record, ...]) -> Self:
        """Return a pivot of the journal as it is shown. ``more``: the fields that a subclass adds."""
        return cls(
            id=pivot.id,
            request_id=pivot.request_id,
            domain=pivot.domain,
            kind=pivot.kind,
            phase=pivot.phase,
            outcome=pivot.outcome,
            requested_by=pivot.requested_by,
            options=PivotOptions.of(pivot.options),
            disks=tuple(PivotDisk.of(pivot, disk) for disk in pivot.disks),
            hold=pivot.hold,
            undo_until=undo.window_ends(pivot),
            attempt=pivot.attempt,
            run_state_before=pivot.run_state_before,
            pause_ms=pivot.pause_ms,
            pauses=pivot.pauses,
            created=pivot.created_at,
            decided=pivot.decided_at,
            closed=pivot.closed_at,
            error=pivot.error,
            **more,
        )

    @property
    def rests(self) -> bool:
        """Whether nothing more happens to it by itself."""
        waits = (self.phase is core.Phase.READY and self.hold) or self.undo_until is not None
        return self.phase is core.Phase.CLOSED or waits


@dataclass(frozen=True, slots=True, kw_only=True)
class PivotWithRecords(Pivot):
    """One pivot with everything that the journal holds of it, oldest first."""

    records: tuple[core.Record, ...]


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
    sentence where it is not ``connected``. ``uptime_s`` is the age of the QEMU process, None where /proc hides it.
    The journal alone knows neither ``connection`` nor, of domains that it has not added, ``origin``.
    """

    name: str
    qmp: str
    origin: str | None
    """``config``, ``runtime`` or ``discovered``."""
    connection: str | None
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


@dataclass(frozen=True, slots=True)
class JournalHealth:
    """The journal of the daemon. ``healthy``: the last record could be written."""

    path: str
    healthy: bool
    last_seq: int


@dataclass(frozen=True, slots=True)
class DomainsHealth:
    """How many domains there are. ``silent_with_open_pivots``: those with work to do whose QEMU is not reached."""

    total: int
    connected: int
    with_open_pivots: int
    silent_with_open_pivots: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Health:
    """What a monitoring system asks for. ``status``: ``ok`` or ``degraded``."""

    status: str
    version: str
    journal: JournalHealth
    domains: DomainsHealth
