"""A caller's request: the kind of pivot, its disks and its options. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from pivotd import limits
from pivotd.core.creation import ImageOptions


class Kind(StrEnum):
    """The kind of a pivot."""

    COPY = "copy"
    """Mirrors each disk to another image and switches to it."""
    COMMIT = "commit"
    """Writes layers of the chain into a layer below them; if the active layer is among them, a switch to that layer."""
    PULL = "pull"
    """Copies lower layers into the active image, which then no longer needs them; no switch."""
    SNAPSHOT = "snapshot"
    """Puts a new empty overlay on each disk, all at one instant, and switches to them."""


class Manager(StrEnum):
    """The program that holds the guest's monitor, and so carries out the steps of a pivot."""

    PIVOTD = "pivotd"
    """pivotd itself, over QMP."""
    LIBVIRT = "libvirt"
    """libvirt: pivotd asks it, and guards what it does."""


class CopyMode(StrEnum):
    """How a mirror follows guest writes once it is ready (QEMU's MirrorCopyMode, and auto)."""

    AUTO = "auto"
    BACKGROUND = "background"
    WRITE_BLOCKING = "write-blocking"


class Discard(StrEnum):
    """What QEMU does with space that the guest frees (QEMU's BlockdevDiscardOptions)."""

    UNMAP = "unmap"
    IGNORE = "ignore"


class Aio(StrEnum):
    """How QEMU reads and writes the files of new images (QEMU's BlockdevAioOptions)."""

    THREADS = "threads"
    NATIVE = "native"
    IO_URING = "io_uring"


class Cache(StrEnum):
    """Whether QEMU opens a new image past the page cache of the host, or through it, as in its ``cache=``."""

    NONE = "none"
    WRITEBACK = "writeback"


class Sync(StrEnum):
    """Which layers of the backing chain a copy includes (QEMU's MirrorSyncMode)."""

    FULL = "full"
    TOP = "top"


@dataclass(frozen=True, slots=True)
class Requester:
    """The requester, as reported by the kernel (SO_PEERCRED)."""

    uid: int
    gid: int
    pid: int


Limits = tuple[tuple[str, int | str], ...]
"""Limits of a disk's I/O, as arguments of QEMU's block_set_io_throttle, sorted by name."""


@dataclass(frozen=True, slots=True)
class WriteLimit:
    """Limits on one disk's I/O that pivotd has set, or was about to set, and the earlier limits to restore.

    ``placed``: every set of limits that may be in place; if a disk has others, another client has set them since.
    """

    qdev: str
    before: Limits
    placed: tuple[Limits, ...]


@dataclass(frozen=True, slots=True)
class CopyOptions:
    """The requester's choices, and what follows from them for QEMU. ``bandwidth_bytes_per_s`` 0 means unlimited."""

    sync: Sync = Sync.FULL
    reuse: bool = False
    bandwidth_bytes_per_s: int = 0
    max_pause_ms: int = 500
    attempts: int = 5
    copy_mode: CopyMode = CopyMode.AUTO
    granularity_bytes: int | None = None
    """How much QEMU copies again for the smallest write of the guest; None: QEMU's choice, mostly 64 KiB."""
    pivot: bool = True
    """False: stop at ready and wait for ``pivot complete``."""
    image_options: ImageOptions = field(default_factory=ImageOptions)
    """How pivotd creates images."""
    secret_file: str | None = None
    """The file from which QEMU reads the passphrase of LUKS-encrypted destinations; None: they are not encrypted."""
    discard: Discard = Discard.UNMAP
    """How pivotd opens destinations: QEMU does not show how the source is opened; unmap keeps sparse images sparse."""
    aio: Aio | None = None
    """How QEMU opens destinations that are files or devices; None: QEMU's default. QEMU shows it of no node."""
    cache: Cache | None = None
    """How pivotd opens destinations; None: as the source is opened."""
    keep_synced: bool = False
    """After the switch QEMU keeps the source in sync until the window ends, so that `pivot undo` can return."""
    keep_synced_s: int = 3600
    """How long that window stays open."""
    force: bool = False
    """Continue where pivotd would refuse with a warning."""
    plain: bool = False
    """Data of encrypted images may land in images that are not encrypted."""
    drop_internal_snapshots: bool = False
    """Snapshots inside qcow2 images may stay behind in images that the disk leaves, or lose their data."""
    snapshots_left: tuple[tuple[str, tuple[str, ...]], ...] = ()
    """Those that do: an image, and the names of its snapshots."""
    made_before: tuple[tuple[str, int], ...] = ()
    """New images that an earlier pivot has made for nothing, and that this one makes again: path, and change time in
    ns, by which pivotd sees whether anybody has written to one since."""
    write_thresholds: tuple[tuple[str, int], ...] = ()
    """The write threshold in bytes of each disk that has one, as seen right before the last intent."""
    guest_writes: tuple[tuple[str, int], ...] = ()
    """How often the guest had written to each disk when libvirt was asked to switch, as QEMU counts it."""
    own_monitor: str = ""
    """The monitor that QEMU had for pivotd beside libvirt's at the last intent, a path; empty: none was known."""
    resumable: bool = False
    """A failing destination pauses the copy instead of ending it; the copy continues once the destination works."""
    throttle: bool = True
    """Whether pivotd may slow the guest's writes if they are faster than the destination."""
    adopted: bool = False
    """Another client made the jobs and destinations: it chose the names, and pivotd must not delete the nodes."""
    abort: bool = False
    """An adopted job of a libvirt guest is to end without a switch, in a guarded pause."""
    on_silence: str | None = None
    """What was announced to the fleet that a paused guest does if the fleet is silent: ``wait`` or ``resume``."""
    bandwidth_due: bool = False
    """The bandwidth was changed, and QEMU may not have the new value yet."""
    write_limits: tuple[WriteLimit, ...] = ()
    """The limits that pivotd has set and must restore."""
    nodes_below: tuple[str, ...] = ()
    """Nodes below the disks' images when the jobs began, except those that QEMU has named; parents before children.

    At the end, pivotd deletes those that no disk needs. QEMU no longer shows what was below a node that has gone.
    """


def is_granularity(size: float) -> bool:
    """Return whether QEMU takes so many bytes as the granularity of a mirror."""
    whole = size == int(size) and limits.GRANULARITY_BYTES_MIN <= size <= limits.GRANULARITY_BYTES_MAX
    return whole and int(size).bit_count() == 1


def past_cache(options: CopyOptions, source: bool) -> bool:
    """Return whether a destination is opened past the host's page cache; ``source``: whether the source is."""
    return source if options.cache is None else options.cache is Cache.NONE


@dataclass(frozen=True, slots=True)
class Target:
    """The request for one disk. ``image`` is its new image, ``top`` and ``base`` are layers of its chain.

    ``format`` None: that of the source. ``top`` None: the active layer. ``base`` None: as far down as it goes.
    ``job``: a block job that identifies the disk on which it works; ``disk`` is then empty.
    """

    disk: str
    image: str = ""
    format: str | None = None
    top: str | None = None
    base: str | None = None
    job: str | None = None


@dataclass(frozen=True, slots=True)
class PivotRequest:
    """One pivot of disks of one domain, as a client asks for it."""

    domain: str
    kind: Kind
    targets: tuple[Target, ...]
    options: CopyOptions = field(default_factory=CopyOptions)
    request_id: str | None = None
    """The client's own id: the same id returns the same pivot. None: it has none, and the pivot's id serves."""
