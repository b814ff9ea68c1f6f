"""What a caller asks for: the kind of pivot, its disks and its options. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from pivotd.core.creation import ImageOptions


class Kind(StrEnum):
    """What a pivot does."""

    COPY = "copy"
    """Mirrors each disk to another image and switches to that."""
    COMMIT = "commit"
    """Writes layers of the chain into one below them; with the active layer among them a switch to that one."""
    PULL = "pull"
    """Copies what lies below into the active image, which then needs those layers no more; no switch."""
    SNAPSHOT = "snapshot"
    """Puts a new empty overlay on each disk, all at one instant, and switches to them."""


class CopyMode(StrEnum):
    """How a mirror follows guest writes once it is ready (QEMU's MirrorCopyMode, and auto)."""

    AUTO = "auto"
    BACKGROUND = "background"
    WRITE_BLOCKING = "write-blocking"


class Discard(StrEnum):
    """What becomes of the space that a guest gives back (QEMU's BlockdevDiscardOptions)."""

    UNMAP = "unmap"
    IGNORE = "ignore"


class Sync(StrEnum):
    """Which layers of the backing chain a copy takes (QEMU's MirrorSyncMode)."""

    FULL = "full"
    TOP = "top"


@dataclass(frozen=True, slots=True)
class Requester:
    """Who asked, as the kernel told it (SO_PEERCRED)."""

    uid: int
    gid: int
    pid: int


Limits = tuple[tuple[str, int | str], ...]
"""Limits of a disk's I/O, as arguments of QEMU's block_set_io_throttle, sorted by name."""


@dataclass(frozen=True, slots=True)
class WriteLimit:
    """Limits of one disk's I/O that pivotd has put in place, or was about to: what was there before comes back.

    ``placed``: every set of limits that may be in place; a disk found with others was limited by somebody else since.
    """

    qdev: str
    before: Limits
    placed: tuple[Limits, ...]


@dataclass(frozen=True, slots=True)
class CopyOptions:
    """What the requester chose, and what follows from it for QEMU. ``bandwidth_bytes_per_s`` 0 means unlimited."""

    sync: Sync = Sync.FULL
    reuse: bool = False
    bandwidth_bytes_per_s: int = 0
    max_pause_ms: int = 500
    attempts: int = 5
    copy_mode: CopyMode = CopyMode.AUTO
    pivot: bool = True
    """False: stop at ready and wait for ``pivot complete``."""
    image_options: ImageOptions = field(default_factory=ImageOptions)
    """How images are made."""
    secret_file: str | None = None
    """The file from which QEMU reads the passphrase of LUKS-encrypted destinations; None: they are not encrypted."""
    discard: Discard = Discard.UNMAP
    """How destinations are opened: QEMU does not show it of the source, and unmap keeps sparse images sparse."""
    keep_synced: bool = False
    """After the switch the source follows the destination until the window ends, so that `pivot undo` can return."""
    keep_synced_s: int = 3600
    """How long that window stays open."""
    force: bool = False
    """Go on where a warning would refuse."""
    resumable: bool = False
    """A destination that fails interrupts the copy, which goes on from there as soon as it works again."""
    throttle: bool = True
    """Whether the guest's writes may be slowed where they come faster than the destination takes them."""
    adopted: bool = False
    """The jobs and destinations are somebody else's: their names are not pivotd's, their nodes not its to delete."""
    bandwidth_due: bool = False
    """The bandwidth was changed, and QEMU has perhaps not heard of it."""
    write_limits: tuple[WriteLimit, ...] = ()
    """What was limited, and has to be put back."""
    nodes_below: tuple[str, ...] = ()
    """Nodes below the disks' images as the jobs began, but for those that QEMU has named, each before its children.

    What no disk needs in the end goes; QEMU does not show any more what was below a node that has gone.
    """


@dataclass(frozen=True, slots=True)
class Target:
    """What is wanted of one disk. ``image`` is where it moves to, ``top`` and ``base`` layers of its chain.

    ``format`` None: that of the source. ``top`` None: the active layer. ``base`` None: as far down as it goes.
    ``job``: the disk is the one on which this block job works, and ``disk`` is empty.
    """

    disk: str
    image: str = ""
    format: str | None = None
    top: str | None = None
    base: str | None = None
    job: str | None = None
