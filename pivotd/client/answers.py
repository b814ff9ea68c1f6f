"""pivotd's answers: one type each for the API, its OpenAPI document, pivotctl and the client library.

Times are UTC, RFC 3339 with microseconds. client.shown makes these types from the journal's.
"""

from __future__ import annotations

from typing import Any, Literal

from msgspec import Struct

from pivotd.client.requests import Aio, Cache, CopyMode, Discard, Sync

Kind = Literal["copy", "commit", "pull", "snapshot"]
Manager = Literal["pivotd", "libvirt"]
Phase = Literal["preparing", "copying", "ready", "pausing", "cancelling", "decided", "closed"]
Presence = Literal["there", "gone", "replaced", "unseen", "no file"]
Fleet = Literal["none", "announced", "told", "superseded"]
"""What etcd knows of a pivot: nothing; the intent, and perhaps not the outcome; the outcome; ``superseded``: another
host had the guest meanwhile."""
Standing = Literal["current", "base", "in sync", "destination", "never switched to", "released", "stale", "unknown"]
"""How an image stands to a disk: it holds the data (``current``); it is a layer below (``base``); it can still be
returned to (``in sync``); a pivot is writing to it (``destination``) or has kept the source (``never switched to``); a
pull has copied its data up (``released``); its data is out of date (``stale``); a person must look (``unknown``)."""
Outcome = Literal["switched", "kept", "merged", "unknown"]
"""``switched``: the destination holds the data; ``kept``: the source does; ``merged``: the same image, on a shorter
chain; ``unknown``: a person must look."""


class Requester(Struct, frozen=True):
    """The requester, as reported by the kernel."""

    uid: int
    gid: int
    pid: int


class ImageOptions(Struct, frozen=True):
    """Options of new images; null leaves the choice to QEMU."""

    cluster_size: int | None = None
    """Bytes."""
    extended_l2: bool | None = None
    preallocation: str | None = None
    lazy_refcounts: bool | None = None
    version: str | None = None
    refcount_bits: int | None = None
    compression_type: str | None = None
    luks_iter_ms: int | None = None


class Pause(Struct, frozen=True):
    """One pause of the guest: which attempt, how long, and how it ended (a phase)."""

    attempt: int
    pause_ms: float
    ended: str


class Record(Struct, frozen=True):
    """One record of the journal. ``seq`` increases by one over all domains."""

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
    outcome: Outcome | Literal["accepted"] | None
    """``accepted``: a person's word; None: pivotd has never moved this disk."""
    certain: bool
    pivot: str | None
    since: str | None
    reason: str
    evidence: tuple[str, ...]
    pending: bool = False
    """A pivot is being decided or recovered: ask again in a moment."""
    file: Presence | None = None
    """What the image's name leads to: its file, none, another file; ``unseen`` if pivotd could not look."""


class FleetCandidate(Struct, frozen=True):
    """An image that may be the right one."""

    image: str
    format: str


class FleetVerdict(Struct, frozen=True):
    """Which image holds a disk's data, by the fleet. ``certain`` with ``image`` None: pivotd has never moved the disk.

    ``host`` owns the guest, None: it has left its host by a migration. ``decides`` is the host whose journal knows
    which of the ``candidates`` is right, where it is not certain.
    """

    domain: str
    disk: str
    image: str | None
    format: str | None
    outcome: Outcome | Literal["accepted"] | None
    certain: bool
    reason: str
    candidates: tuple[FleetCandidate, ...]
    decides: str | None
    pivot: str | None
    since: str | None
    host: str | None
    epoch: int | None


class FleetDomain(Struct, frozen=True):
    """What the fleet keeps of a domain. ``pivot`` was announced, and its outcome was not."""

    domain: str
    host: str | None
    epoch: int | None
    since: str | None
    pivot: str | None
    disks: tuple[FleetVerdict, ...]


class FleetNode(Struct, frozen=True):
    """One endpoint of etcd: ``error`` is None if it takes reads and writes, which it cannot without a majority.

    ``answer_ms`` is the time of a transaction that changes nothing. What it did not tell is None.
    """

    endpoint: str
    error: str | None
    leader: bool | None
    version: str | None
    answer_ms: float | None
    database_bytes: int | None


class FleetHost(Struct, frozen=True):
    """A host whose pivotd has run within the last two minutes; nothing may be decided by that."""

    host: str
    version: str
    since: str


class FleetUndecided(Struct, frozen=True):
    """A pivot that was announced, and whose outcome the fleet does not know."""

    domain: str
    pivot: str
    host: str
    on_silence: Literal["wait", "resume"]


class FleetStatus(Struct, frozen=True):
    """The state of the fleet. Without a majority (``quorum``) ``error`` says why, and only the nodes are known."""

    quorum: bool
    error: str | None
    cluster: str | None
    nodes: tuple[FleetNode, ...]
    domains: int | None
    hosts: tuple[FleetHost, ...]
    undecided: tuple[FleetUndecided, ...]


class ImageVerdict(Verdict, frozen=True, kw_only=True):
    """What the journal's history says of one image and one disk, with that disk's verdict."""

    asked: str
    """The image that was asked for; ``image`` is the one that holds the disk's data."""
    standing: Standing
    standing_reason: str
    standing_since: str | None
    standing_pivot: str | None
    """The pivot by which the image got this standing."""
    above: str | None
    """The image of which it is, or was, a lower layer."""
    known_boot_id: str | None = None
    known_file_id: str | None = None
    """Of a stale image: the file that its name led to, by its numbers, and the boot in which these count."""


class ObsoleteImages(Struct, frozen=True):
    """Images that no disk of the journal needs any more. ``next``: the name to go on from, None at the end."""

    images: tuple[ImageVerdict, ...]
    next: str | None


class ArchiveStats(Struct, frozen=True):
    """One archive of the journal. ``records`` are in it alone; ``first_closed``, ``last_closed``: of its pivots.

    ``fault``: why it cannot be read, null if it can.
    """

    path: str
    size_bytes: int | None
    pivots: int
    records: int
    first_seq: int
    last_seq: int
    first_closed: str
    last_closed: str
    fault: str | None


class JournalStats(Struct, frozen=True):
    """The journal without its archives, and each of those. ``free_bytes`` of the file are used again.

    ``oldest``: the time of the first record that is still in the journal.
    """

    path: str
    size_bytes: int
    wal_bytes: int
    free_bytes: int
    pivots: int
    open_pivots: int
    records: int
    last_seq: int
    oldest: str | None
    archives: tuple[ArchiveStats, ...]


class ArchiveProgress(Struct, frozen=True):
    """What one request has moved to archives, or would move. ``next``: where to go on, null once it is done.

    ``obstacles``: one line for each archive that could not be used.
    """

    pivots: int
    records: int
    archives: tuple[str, ...]
    obstacles: tuple[str, ...]
    next: int | None


class PivotOptions(Struct, frozen=True):
    """The requester's choices, or the configuration's values where the request left them out."""

    sync: Sync
    reuse: bool
    bandwidth_bytes_per_s: int
    """0: no limit."""
    max_pause_ms: int
    attempts: int
    copy_mode: CopyMode
    granularity_bytes: int | None
    """How much of a disk one bit of the copy's bitmap stands for; null: QEMU's choice."""
    pivot: bool
    """False: the pivot waits at ready to be completed."""
    image_options: ImageOptions
    secret_file: str | None
    discard: Discard
    aio: Aio | None
    """None: QEMU's default."""
    cache: Cache | None
    """Null: as the source is opened."""
    keep_synced: bool
    keep_synced_s: int
    force: bool
    plain: bool
    """Data of encrypted images may land in images that are not encrypted."""
    drop_internal_snapshots: bool
    """Snapshots inside qcow2 images may be lost: the record ``accepted`` names them."""
    resumable: bool
    throttle: bool
    adopted: bool
    """Another client started the block jobs."""


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
    """Images that no longer hold the disk's data."""


class Pivot(Struct, frozen=True):
    """One pivot. A time is None until it is reached."""

    id: str
    request_id: str
    undo_of: str | None
    """The pivot that this one undoes."""
    domain: str
    kind: Kind
    manager: Manager
    """The program that carries out the steps: pivotd, or libvirt, whose pivots pivotd guards."""
    phase: Phase
    outcome: str | None
    """An outcome, ``split`` if the disks differ, None until it is decided.

    ``kept`` also while the pivot waits at ready after its last attempt has failed.
    """
    requested_by: Requester
    options: PivotOptions
    disks: tuple[PivotDisk, ...]
    hold: bool
    """The pivot waits: at ready, to be completed or cancelled; after the switch, for the end of its undo window."""
    undo_until: str | None
    """Until when the pivot can be undone; None: it cannot."""
    asking: bool
    """libvirt was asked to switch, and what came of it is not recorded yet: either image may be next."""
    attempt: int
    """Number of pauses tried."""
    run_state_before: str | None
    pause_ms: float | None
    """Length of the last pause, None if the guest was not paused."""
    pauses: tuple[Pause, ...]
    created: str
    decided: str | None
    closed: str | None
    error: str | None
    fleet: Fleet = "none"

    @property
    def rests(self) -> bool:
        """Whether the pivot makes no further step by itself."""
        waits = (self.phase == "ready" and self.hold) or self.undo_until is not None
        return self.phase == "closed" or waits


class PivotWithRecords(Pivot, frozen=True, kw_only=True):
    """One pivot with all its records, oldest first."""

    records: tuple[Record, ...]


class JobView(Struct, frozen=True):
    """One block job that another client started. ``type`` and ``status`` are QEMU's terms."""

    id: str
    type: str
    status: str
    disk: str | None
    """The disk on whose image the job works, None if there is none."""
    adoptable: bool
    """Whether `pivot adopt` can take the job over."""
    reason: str | None = None
    """Why it cannot be adopted."""


class DomainView(Struct, frozen=True):
    """One domain as pivotd sees it now.

    ``connection`` is ``connected``, ``connecting``, ``unreachable`` or ``refused`` (QEMU too old, or a domain of
    libvirt whose name pivotd cannot use); ``detail`` is one
    sentence if the domain is not ``connected``, or if one of its pivots fails again and again. ``uptime_s`` is the age
    of the QEMU process, None if /proc hides it.
    An answer from the journal alone lacks ``connection``, and ``origin`` for domains that were not added at run time.
    """

    name: str
    qmp: str
    """The QMP socket, or the URI of libvirt."""
    origin: str | None
    """``config``, ``runtime``, ``discovered`` or ``libvirt``."""
    connection: str | None
    detail: str | None = None
    run_state: str | None = None
    qemu_version: str | None = None
    """Of a domain of libvirt None until pivotd has asked its QEMU something, as `domain show` and `disk ls` do."""
    pid: int | None = None
    uptime_s: float | None = None
    manager: Literal["pivotd", "libvirt"] = "pivotd"
    """Who changes the guest: pivotd by a monitor of its own, or libvirt, which pivotd asks."""
    open_pivots: tuple[str, ...] = ()
    alarms: tuple[str, ...] = ()
    """One sentence for each disk that runs on an image which does not hold its data, or may not."""
    jobs: tuple[JobView, ...] | None = None
    """Block jobs that other clients started; None in a list of domains, and if QEMU does not answer."""


class InternalSnapshots(Struct, frozen=True):
    """The snapshots inside one qcow2 image."""

    image: str
    names: tuple[str, ...]


class DataFile(Struct, frozen=True):
    """The external file that holds the data of one qcow2 image."""

    image: str
    path: str


class LibvirtImages(Struct, frozen=True):
    """What libvirt believes of one disk; the root image is what QEMU uses, whatever libvirt believes."""

    live: str | None
    """The image by the definition of the running domain; None: it has none, or none that is a local file or device."""
    next: str | None
    """The image by the definition of the next boot; None also for a transient domain, which has none."""
    job: str
    """``none``, ``copying``, ``ready``, ``pivoting`` or ``aborting``."""
    persistent: bool
    """Whether there is a definition for a next boot."""
    agree: bool
    """Whether QEMU's root, the running domain and the next boot name the same image."""


class DiskView(Struct, frozen=True):
    """One disk of a domain: what QEMU shows and what the journal says."""

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
    """Their formats, in the same order."""
    job: str | None = None
    """The block job that works on the disk, if any."""
    pivot: str | None = None
    """The last pivot of this disk in the journal."""
    phase: Phase | None = None
    """The phase of that pivot while it is open."""
    outcome: str | None = None
    """What the journal says of the disk now; of an open pivot whose outcome is not decided: ``kept``."""
    other_writers: tuple[str, ...] = ()
    """What may write to the image besides the guest, such as ``nbd export e0``: no pause stops it."""
    libvirt: LibvirtImages | None = None
    """What libvirt believes of the disk; None for a domain that is not libvirt's, and for a disk that libvirt has on
    the network or in a storage pool: it then names no file or device to compare."""
    internal_snapshots: tuple[InternalSnapshots, ...] = ()
    """Of each image of the chain that has any, the active one first."""
    data_files: tuple[DataFile, ...] = ()
    """Of each image of the chain that has one, the active one first; the disk needs them as it needs the images."""


class Progress(Struct, frozen=True):
    """The progress of an open pivot's block jobs; not durable. ``None`` fields are not known yet.

    ``total_bytes`` is what has been copied and what is left, so it is less than the disks' size if they have holes, and
    grows with what the guest writes.
    """

    phase: str
    copied_bytes: int | None
    total_bytes: int | None
    detail: str | None = None
    """One sentence on what the pivot waits for, e.g. "QEMU does not answer for 12 s"."""
    backlog_bytes: int | None = None
    """What is left to copy now; it grows when the guest writes."""
    dirty_bytes_per_s: int | None = None
    """How fast the guest's writes add to it."""
    copy_bytes_per_s: int | None = None
    """How fast it is copied, measured while there was enough to copy."""
    expected_pause_ms: float | None = None
    """How long a pause would last if it began now; only once the copy is ready."""
    stalled: bool = False
    """Whether there has been no progress for a long time."""


class JournalHealth(Struct, frozen=True):
    """The journal of the daemon. ``healthy``: the last record could be written, and the next one would be kept."""

    path: str
    healthy: bool
    last_seq: int


class FailingPivot(Struct, frozen=True):
    """An open pivot whose driver fails again and again."""

    domain: str
    pivot: str
    reason: str


class WrongImage(Struct, frozen=True):
    """A domain that runs on an image which does not hold a disk's data, or may not."""

    domain: str
    disk: str
    reason: str


class SkippedMonitor(Struct, frozen=True):
    """A monitor that was configured or found and belongs to no domain."""

    qmp: str
    reason: str


class DomainsHealth(Struct, frozen=True):
    """The number of domains. ``silent_with_open_pivots``: those with open pivots whose QEMU cannot be reached."""

    total: int
    connected: int
    with_open_pivots: int
    silent_with_open_pivots: tuple[str, ...]
    failing: tuple[FailingPivot, ...]
    pivots_without_driver: tuple[str, ...]
    """Pivots that are open in the journal and have no driver."""
    skipped: tuple[SkippedMonitor, ...]
    wrong_images: tuple[WrongImage, ...] = ()


class Health(Struct, frozen=True):
    """The state of the daemon for a monitoring system. ``status``: ``ok`` or ``degraded``."""

    status: str
    version: str
    journal: JournalHealth
    domains: DomainsHealth


class DoctorFinding(Struct, frozen=True):
    """What one check of `pivotctl doctor` has found, and what to do about it.

    ``seen`` false: the check could not be made, and ``what`` says why. Nor could those of ``also``, in either case.
    """

    check: str
    severity: Literal["error", "warning"]
    subject: str | None
    """What it is about: a domain, a domain and a disk, a unit, a path."""
    what: str
    remedy: str
    seen: bool = True
    also: tuple[str, ...] = ()


class DoctorArea(Struct, frozen=True):
    """The checks of one kind that were made by one process. ``by`` says as whom, and from where it has looked."""

    area: str
    by: str
    looked_at: str
    checks: tuple[str, ...]
    findings: tuple[DoctorFinding, ...] = ()
    notes: tuple[str, ...] = ()
    """What is as it should be and worth knowing."""


class DoctorReport(Struct, frozen=True):
    """The checks that the daemon makes, as its own user and in its sandbox."""

    version: str
    configuration: tuple[str, ...]
    """The files that it has read."""
    journal: str
    areas: tuple[DoctorArea, ...]
