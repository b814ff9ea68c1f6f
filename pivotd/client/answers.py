"""What pivotd answers: one type each for the API, its OpenAPI document, pivotctl and the client library.

Times are UTC, RFC 3339 with microseconds. client.shown makes these of what the journal has.
"""

from __future__ import annotations

from typing import Any, Literal

from msgspec import Struct

from pivotd.client.requests import CopyMode, Discard, Sync

Kind = Literal["copy", "commit", "pull", "snapshot"]
Phase = Literal["preparing", "copying", "ready", "pausing", "cancelling", "decided", "closed"]
Outcome = Literal["switched", "kept", "merged", "unknown"]
"""``switched``: the destination holds the data; ``kept``: the source does; ``merged``: the same image, on a shorter
chain; ``unknown``: a person must look."""


class Requester(Struct, frozen=True):
    """Who asked, as the kernel told it."""

    uid: int
    gid: int
    pid: int


class ImageOptions(Struct, frozen=True):
    """Options of new images; null leaves one to QEMU."""

    cluster_size: int | None = None
    """Bytes."""
    extended_l2: bool | None = None
    preallocation: str | None = None
    lazy_refcounts: bool | None = None
    version: str | None = None
    refcount_bits: int | None = None
    luks_iter_ms: int | None = None


class Pause(Struct, frozen=True):
    """One pause of the guest: which attempt, how long, and how it ended (a phase)."""

    attempt: int
    pause_ms: float
    ended: str


class Record(Struct, frozen=True):
    """One line of the journal. ``seq`` grows by one over all domains."""

    seq: int
    at: str
    domain: str | None
    pivot: str | None
    event: str
    phase: Phase | None
    facts: dict[str, Any]


class Verdict(Struct, frozen=True):
    """Which image holds a disk's data, and why. ``certain`` is false exactly where a person must look or ask again."""

    domain: str
    disk: str
    image: str | None
    format: str | None
    outcome: Outcome | None
    """None: pivotd has never moved this disk."""
    certain: bool
    pivot: str | None
    since: str | None
    reason: str
    evidence: tuple[str, ...]


class PivotOptions(Struct, frozen=True):
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
    force: bool
    resumable: bool
    throttle: bool
    adopted: bool
    """Somebody else had started the block jobs."""


class PivotDisk(Struct, frozen=True):
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
    outcome: Outcome | None
    stale: tuple[str, ...]
    """Images that do not hold the disk's data any more."""


class Pivot(Struct, frozen=True):
    """One pivot. A time that is None has not come yet."""

    id: str
    request_id: str
    undo_of: str | None
    """The pivot that this one takes back."""
    domain: str
    kind: Kind
    phase: Phase
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
    pauses: tuple[Pause, ...]
    created: str
    decided: str | None
    closed: str | None
    error: str | None

    @property
    def rests(self) -> bool:
        """Whether nothing more happens to it by itself."""
        waits = (self.phase == "ready" and self.hold) or self.undo_until is not None
        return self.phase == "closed" or waits


class PivotWithRecords(Pivot, frozen=True):
    """One pivot with everything that the journal holds of it, oldest first."""

    records: tuple[Record, ...]


class JobView(Struct, frozen=True):
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


class DomainView(Struct, frozen=True):
    """One domain as pivotd sees it now.

    ``connection`` is ``connected``, ``connecting``, ``unreachable`` or ``refused`` (QEMU too old); ``detail`` is one
    sentence where it is not ``connected``, or where a pivot of it fails again and again. ``uptime_s`` is the age of the
    QEMU process, None where /proc hides it.
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


class DiskView(Struct, frozen=True):
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


class Progress(Struct, frozen=True):
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


class JournalHealth(Struct, frozen=True):
    """The journal of the daemon. ``healthy``: the last record could be written."""

    path: str
    healthy: bool
    last_seq: int


class FailingPivot(Struct, frozen=True):
    """An open pivot whose work fails again and again."""

    domain: str
    pivot: str
    reason: str


class SkippedMonitor(Struct, frozen=True):
    """A monitor that was configured or found and belongs to no domain."""

    qmp: str
    reason: str


class DomainsHealth(Struct, frozen=True):
    """How many domains there are. ``silent_with_open_pivots``: those with work to do whose QEMU is not reached."""

    total: int
    connected: int
    with_open_pivots: int
    silent_with_open_pivots: tuple[str, ...]
    failing: tuple[FailingPivot, ...]
    pivots_without_driver: tuple[str, ...]
    """Open in the journal, and nobody works on them."""
    skipped: tuple[SkippedMonitor, ...]


class Health(Struct, frozen=True):
    """What a monitoring system asks for. ``status``: ``ok`` or ``degraded``."""

    status: str
    version: str
    journal: JournalHealth
    domains: DomainsHealth
