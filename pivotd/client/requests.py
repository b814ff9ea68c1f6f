"""Requests to pivotd: one type each for the API, its OpenAPI document, pivotctl and the client library.

None leaves a choice to the daemon's configuration. The API checks types and bounds when it decodes a request; the
daemon checks which values go together.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import msgspec

from pivotd import limits
from pivotd.core.names import DISKS_MAX, DOMAIN_NAME

# `$` alone would let a final newline through.
NAME_PATTERN = rf"^{DOMAIN_NAME}$(?!\n)"
PATH_PATTERN = r"^/[^\x00\n\r]*$(?!\n)"
DESTINATION_PATTERN = r"^(/|nbd://|nbd\+unix://)[^\x00\n\r]*$(?!\n)"
IMAGE_PATTERN = r"^(/|nbd://|nbd\+unix://|json:)[^\x00\n\r]*$(?!\n)"
REASON_PATTERN = r"^[^\x00-\x1f\x7f]*$(?!\n)"
IMAGE_LENGTH_MAX = 4096
INTEGER_MAX = 2**63 - 1

Name = Annotated[str, msgspec.Meta(pattern=NAME_PATTERN, max_length=limits.NAME_LENGTH_MAX)]
Path = Annotated[str, msgspec.Meta(pattern=PATH_PATTERN, max_length=IMAGE_LENGTH_MAX)]
Destination = Annotated[str, msgspec.Meta(pattern=DESTINATION_PATTERN, max_length=IMAGE_LENGTH_MAX)]
AnyImage = Annotated[str, msgspec.Meta(pattern=IMAGE_PATTERN, max_length=IMAGE_LENGTH_MAX)]
Reason = Annotated[str, msgspec.Meta(pattern=REASON_PATTERN, min_length=1, max_length=1000)]
DiskName = Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
Pause = Annotated[int, msgspec.Meta(ge=limits.PAUSE_MS_MIN, le=limits.PAUSE_MS_LIMIT)]
Attempts = Annotated[int, msgspec.Meta(ge=1, le=limits.ATTEMPTS_MAX)]
Bandwidth = Annotated[int, msgspec.Meta(ge=0, le=INTEGER_MAX)]
Granularity = Annotated[int, msgspec.Meta(ge=limits.GRANULARITY_BYTES_MIN, le=limits.GRANULARITY_BYTES_MAX)]
KeepS = Annotated[int, msgspec.Meta(ge=0, le=limits.KEEP_S_MAX)]
Count = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
WindowLength = Annotated[int, msgspec.Meta(ge=1, le=limits.KEEP_SYNCED_S_MAX)]
Sync = Literal["full", "top"]
CopyMode = Literal["auto", "background", "write-blocking"]
Discard = Literal["unmap", "ignore"]
Aio = Literal["threads", "native", "io_uring"]
Cache = Literal["none", "writeback"]
DISKS = msgspec.Meta(min_length=1, max_length=DISKS_MAX)


class Struct(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """Base of all requests: fields with the API's default value are not sent."""


class DomainRequest(Struct):
    """A domain to add: its name, and the absolute path of its QMP socket."""

    name: Name
    qmp: Path


class TakeDisk(Struct):
    """Your word on the image of a disk, where the fleet is not certain."""

    disk: DiskName
    image: AnyImage


class TakeRequest(Struct):
    """A guest to take from a lost host. ``fenced``: you have made sure that the host runs it no more.

    ``disks``: those whose image is not certain; what you say of them is recorded.
    """

    fenced: bool
    disks: Annotated[list[TakeDisk], msgspec.Meta(max_length=DISKS_MAX)] = []


class AcceptRequest(Struct):
    """A person's word: this image holds the disk's data. ``format`` null means the one that the journal knows of it."""

    image: AnyImage
    reason: Reason
    format: Literal["qcow2", "raw"] | None = None


class ArchiveRequest(Struct):
    """Move pivots to archives that were closed for longer than ``keep_s`` seconds; null: as configured.

    ``after``: ``next`` of the answer before. ``dry_run``: only count them.
    """

    keep_s: KeepS | None = None
    dry_run: bool = False
    after: Count = 0


class BandwidthRequest(Struct):
    """How fast an open pivot may copy from now on; 0 means no limit."""

    bandwidth_bytes_per_s: Bandwidth


class CopyDisk(Struct):
    """One disk and the image that it moves to; ``format`` null means the source's format.

    In a directory that exists, or whose name ends with a slash, the image gets the file name of the source.
    """

    disk: DiskName
    image: Destination
    format: Literal["qcow2", "raw"] | None = None


class CommitDisk(Struct):
    """One disk and the layers to commit, by file name.

    ``top`` null means the active layer, ``base`` null the lowest one.
    """

    disk: DiskName
    top: Path | None = None
    base: Path | None = None


class PullDisk(Struct):
    """One disk and the layer that stays below its image, by file name; null: no layer stays."""

    disk: DiskName
    base: Path | None = None


class SnapshotDisk(Struct):
    """One disk and its new overlay; in a directory it gets the file name of the image below."""

    disk: DiskName
    image: Path


class AdoptDisk(Struct):
    """One disk with a block job, named by the disk or by the id of the job.

    ``image`` is the image that a mirror writes to; leave it out for a commit, and for a job of libvirt's.
    """

    disk: DiskName | None = None
    job: DiskName | None = None
    image: Path | None = None
    format: Literal["qcow2", "raw"] | None = None


class NewImage(Struct):
    """Options of the images that pivotd creates; the daemon checks them against the format."""

    cluster_size: Annotated[int, msgspec.Meta(ge=512, le=2 << 20)] | None = None
    extended_l2: bool | None = None
    preallocation: Literal["off", "metadata", "falloc", "full"] | None = None
    lazy_refcounts: bool | None = None
    version: Literal["v2", "v3"] | None = None
    refcount_bits: Literal[1, 2, 4, 8, 16, 32, 64] | None = None
    compression_type: Literal["zlib", "zstd"] | None = None
    luks_iter_ms: Annotated[int, msgspec.Meta(ge=1, le=limits.LUKS_ITER_MS_MAX)] | None = None


class NewPivot(Struct):
    """The fields that every request for a pivot may have: bounds for the guest's pause, and ``force``."""

    max_pause_ms: Pause | None = None
    attempts: Attempts | None = None
    force: bool = False
    """Continue where pivotd would refuse with a warning."""
    plain: bool = False
    """Let data of encrypted images land in images that are not encrypted."""

    verb: ClassVar[str]
    """The last part of the path of its route."""


class CopyRequest(NewPivot, kw_only=True):
    """Copies disks of one domain and switches them as one pivot."""

    disks: Annotated[list[CopyDisk], DISKS]
    sync: Sync = "full"
    reuse: bool = False
    image_options: NewImage | None = None
    secret_file: Path | None = None
    discard: Discard = "unmap"
    aio: Aio | None = None
    cache: Cache | None = None
    bandwidth_bytes_per_s: Bandwidth = 0
    copy_mode: CopyMode = "auto"
    granularity_bytes: Granularity | None = None
    """A power of two: how much is copied again for the smallest write of the guest. Null: QEMU's choice."""
    throttle: bool = True
    pivot: bool = True
    keep_synced: bool = False
    keep_synced_s: WindowLength | None = None
    resumable: bool = False
    drop_internal_snapshots: bool = False

    verb = "copy"


class CommitRequest(NewPivot, kw_only=True):
    """Commits layers of disks into layers below them, as one pivot; with the active layer it is a switch."""

    disks: Annotated[list[CommitDisk], DISKS]
    bandwidth_bytes_per_s: Bandwidth = 0
    throttle: bool = True
    pivot: bool = True
    drop_internal_snapshots: bool = False

    verb = "commit"


class PullRequest(NewPivot, kw_only=True):
    """Pulls lower layers into the active images: no disk is switched, but the guest is paused for the merge."""

    disks: Annotated[list[PullDisk], DISKS]
    bandwidth_bytes_per_s: Bandwidth = 0
    pivot: bool = True
    drop_internal_snapshots: bool = False

    verb = "pull"


class SnapshotRequest(NewPivot, kw_only=True):
    """Puts new overlays on disks of one domain, all at one instant."""

    disks: Annotated[list[SnapshotDisk], DISKS]
    image_options: NewImage | None = None
    secret_file: Path | None = None
    discard: Discard = "unmap"
    aio: Aio | None = None
    cache: Cache | None = None

    verb = "snapshot"


class AdoptRequest(NewPivot, kw_only=True):
    """Makes one pivot of block jobs of other clients. ``sync`` is the value with which the mirrors were started."""

    disks: Annotated[list[AdoptDisk], DISKS]
    sync: Sync | None = None
    abort: bool = False
    """End libvirt's jobs without a switch, in a guarded pause; only for guests of libvirt's."""
    throttle: bool = True
    pivot: bool = True
    drop_internal_snapshots: bool = False

    verb = "adopt"
