"""What requests may say. msgspec checks types and bounds; what is left to check is in Body.request()."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

import msgspec

from pivotd import limits
from pivotd.api.ports import PivotRequest
from pivotd.core.creation import LUKS_ITER_MS_MAX, ImageOptions
from pivotd.core.names import DISKS_MAX, DOMAIN_NAME
from pivotd.core.request import CopyMode, CopyOptions, Discard, Kind, Sync, Target
from pivotd.errors import BadRequestError

# `$` alone would let a final newline through.
NAME_PATTERN = rf"^{DOMAIN_NAME}$(?!\n)"
PATH_PATTERN = r"^/[^\x00\n\r]*$(?!\n)"
DESTINATION_PATTERN = r"^(/|nbd://|nbd\+unix://)[^\x00\n\r]*$(?!\n)"
REQUEST_ID = re.compile(r"[!-.0-~]+")
"""Printable ASCII but the slash: the id is also a way to address the pivot."""
IMAGE_LENGTH_MAX = 4096
INTEGER_MAX = 2**63 - 1

Name = Annotated[str, msgspec.Meta(pattern=NAME_PATTERN, max_length=limits.NAME_LENGTH_MAX)]
Path = Annotated[str, msgspec.Meta(pattern=PATH_PATTERN, max_length=IMAGE_LENGTH_MAX)]
Destination = Annotated[str, msgspec.Meta(pattern=DESTINATION_PATTERN, max_length=IMAGE_LENGTH_MAX)]
DiskName = Annotated[str, msgspec.Meta(min_length=1, max_length=256)]


class DomainBody(msgspec.Struct, forbid_unknown_fields=True):
    """A domain to add."""

    name: Name
    qmp: Path


Pause = Annotated[int, msgspec.Meta(ge=limits.PAUSE_MS_MIN, le=limits.PAUSE_MS_LIMIT)]
Attempts = Annotated[int, msgspec.Meta(ge=1, le=limits.ATTEMPTS_MAX)]
Bandwidth = Annotated[int, msgspec.Meta(ge=0, le=INTEGER_MAX)]


WindowLength = Annotated[int, msgspec.Meta(ge=1, le=limits.KEEP_SYNCED_S_MAX)]


class CopyDisk(msgspec.Struct, forbid_unknown_fields=True):
    """One disk and the image that it moves to; ``format`` null means that of the source."""

    disk: DiskName
    image: Destination
    format: Literal["qcow2", "raw"] | None = None


class NewImage(msgspec.Struct, forbid_unknown_fields=True):
    """Options of the images that pivotd creates; what goes together is checked against their format."""

    cluster_size: Annotated[int, msgspec.Meta(ge=512, le=2 << 20)] | None = None
    extended_l2: bool | None = None
    preallocation: Literal["off", "metadata", "falloc", "full"] | None = None
    lazy_refcounts: bool | None = None
    version: Literal["v2", "v3"] | None = None
    refcount_bits: Literal[1, 2, 4, 8, 16, 32, 64] | None = None
    luks_iter_ms: Annotated[int, msgspec.Meta(ge=1, le=LUKS_ITER_MS_MAX)] | None = None


class CommitDisk(msgspec.Struct, forbid_unknown_fields=True):
    """One disk and the layers to commit, by file name.

    ``top`` null means the active layer, ``base`` null the lowest one.
    """

    disk: DiskName
    top: Path | None = None
    base: Path | None = None


class PullDisk(msgspec.Struct, forbid_unknown_fields=True):
    """One disk and the layer that stays below it, by file name; null: none stays."""

    disk: DiskName
    base: Path | None = None


class SnapshotDisk(msgspec.Struct, forbid_unknown_fields=True):
    """One disk and its new overlay."""

    disk: DiskName
    image: Path


class BandwidthBody(msgspec.Struct, forbid_unknown_fields=True):
    """How fast an open pivot may copy from now on; 0 means no limit."""

    bandwidth_bytes_per_s: Bandwidth


class Body(msgspec.Struct, forbid_unknown_fields=True):
    """What every request for a pivot may say."""

    force: bool = False

    kind: ClassVar[Kind]

    def request(self, domain: str, request_id: str | None, defaults: CopyOptions) -> PivotRequest:
        """Return the request; null leaves a number to the configuration. Raises: BadRequestError."""
        targets = tuple(Target(**{"disk": ""} | _given(disk)) for disk in self.disks)  # type: ignore[attr-defined]
        for what in ("disk", "job", "image"):
            named = [os.path.normpath(value) for target in targets if (value := getattr(target, what))]
            twice = next((value for value in named if named.count(value) > 1), None)
            if twice is not None:
                raise BadRequestError(f"{what} {twice} is named twice: name each once")
        return PivotRequest(
            domain=domain,
            kind=self.kind,
            targets=targets,
            options=replace(defaults, **self.options()),
            request_id=check_request_id(request_id),
            force=self.force,
        )

    def options(self) -> dict[str, Any]:
        """Return the options that the request sets."""
        given = _given(self)
        if "copy_mode" in given:
            given["copy_mode"] = CopyMode(given["copy_mode"])
        if "sync" in given:
            given["sync"] = Sync(given["sync"])
        if "discard" in given:
            given["discard"] = Discard(given["discard"])
        if "image_options" in given:
            given["image_options"] = ImageOptions(**_given(given["image_options"]))
        return {name: value for name, value in given.items() if name not in {"disks", "force"}}


class CopyBody(Body, forbid_unknown_fields=True, kw_only=True):
    """A copy of disks of one domain, switched as one pivot. ``null`` leaves a number to the configuration."""

    disks: Annotated[list[CopyDisk], msgspec.Meta(min_length=1, max_length=DISKS_MAX)]
    sync: Literal["full", "top"] = "full"
    reuse: bool = False
    image_options: NewImage | None = None
    secret_file: Path | None = None
    discard: Literal["unmap", "ignore"] = "unmap"
    bandwidth_bytes_per_s: Bandwidth = 0
    max_pause_ms: Pause | None = None
    attempts: Attempts | None = None
    copy_mode: Literal["auto", "background", "write-blocking"] = "auto"
    throttle: bool = True
    pivot: bool = True
    keep_synced: bool = False
    keep_synced_s: WindowLength | None = None
    resumable: bool = False

    kind = Kind.COPY


class CommitBody(Body, forbid_unknown_fields=True, kw_only=True):
    """A commit of layers of disks into layers below them; with the active layer a switch, as one pivot."""

    disks: Annotated[list[CommitDisk], msgspec.Meta(min_length=1, max_length=DISKS_MAX)]
    bandwidth_bytes_per_s: Bandwidth = 0
    max_pause_ms: Pause | None = None
    attempts: Attempts | None = None
    throttle: bool = True
    pivot: bool = True

    kind = Kind.COMMIT


class PullBody(Body, forbid_unknown_fields=True, kw_only=True):
    """A pull of what lies below into the active images; nothing is switched."""

    disks: Annotated[list[PullDisk], msgspec.Meta(min_length=1, max_length=DISKS_MAX)]
    bandwidth_bytes_per_s: Bandwidth = 0

    kind = Kind.PULL


class SnapshotBody(Body, forbid_unknown_fields=True, kw_only=True):
    """New overlays for disks of one domain, all at one instant."""

    disks: Annotated[list[SnapshotDisk], msgspec.Meta(min_length=1, max_length=DISKS_MAX)]
    image_options: NewImage | None = None
    secret_file: Path | None = None
    discard: Literal["unmap", "ignore"] = "unmap"
    max_pause_ms: Pause | None = None
    attempts: Attempts | None = None

    kind = Kind.SNAPSHOT


class AdoptDisk(msgspec.Struct, forbid_unknown_fields=True):
    """One disk with a block job, named by the disk or by the id of the job.

    ``image`` is what a mirror writes, and left out for a commit.
    """

    disk: DiskName | None = None
    job: DiskName | None = None
    image: Path | None = None
    format: Literal["qcow2", "raw"] | None = None


class AdoptBody(Body, forbid_unknown_fields=True, kw_only=True):
    """Block jobs of somebody else that become one pivot. ``sync`` is what mirrors were started with."""

    disks: Annotated[list[AdoptDisk], msgspec.Meta(min_length=1, max_length=DISKS_MAX)]
    sync: Literal["full", "top"] | None = None
    max_pause_ms: Pause | None = None
    attempts: Attempts | None = None
    throttle: bool = True
    pivot: bool = True

    kind = Kind.COPY

    def options(self) -> dict[str, Any]:
        """Return the options. Raises: BadRequestError: nobody says that a mirror copies everything, or which one."""
        if any((disk.disk is None) == (disk.job is None) for disk in self.disks):
            raise BadRequestError("name each block job by its disk or by its id: one of the two")
        if self.sync is None and any(disk.image for disk in self.disks):
            raise BadRequestError(
                "say with which sync the mirror was started, full or top: QEMU does not tell, and one with sync=none "
                "does not copy the disk"
            )
        given = super().options()
        return given | {"adopted": True} | ({"sync": Sync(given["sync"])} if "sync" in given else {})


def _given(struct: msgspec.Struct) -> dict[str, Any]:
    """Return the fields that say something."""
    return {name: value for name in struct.__struct_fields__ if (value := getattr(struct, name)) is not None}


def check_request_id(text: str | None) -> str | None:
    """Return a usable Idempotency-Key, None for none. Raises: BadRequestError."""
    if text is None:
        return None
    if len(text) > limits.REQUEST_ID_LENGTH_MAX or not REQUEST_ID.fullmatch(text):
        raise BadRequestError(
            f"Idempotency-Key must be 1 to {limits.REQUEST_ID_LENGTH_MAX} printable ASCII characters, "
            "without blanks and slashes"
        )
    return text
