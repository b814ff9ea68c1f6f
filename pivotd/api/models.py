"""What requests may say. msgspec checks types and bounds; what is left to check is in CopyBody.check()."""

from __future__ import annotations

import os
import re
from typing import Annotated, Literal

import msgspec

from pivotd import limits
from pivotd.api.ports import CopyRequest, DiskTarget
from pivotd.core.names import DISKS_MAX
from pivotd.core.words import CopyMode, CopyOptions
from pivotd.errors import BadRequestError

# `$` alone would let a final newline through.
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]*$(?!\n)"
PATH_PATTERN = r"^/[^\x00\n\r]*$(?!\n)"
REQUEST_ID = re.compile(r"[!-.0-~]+")
"""Printable ASCII but the slash: the id is also a way to address the pivot."""
IMAGE_LENGTH_MAX = 4096
INTEGER_MAX = 2**63 - 1

Name = Annotated[str, msgspec.Meta(pattern=NAME_PATTERN, max_length=limits.NAME_LENGTH_MAX)]
Path = Annotated[str, msgspec.Meta(pattern=PATH_PATTERN, max_length=IMAGE_LENGTH_MAX)]
DiskName = Annotated[str, msgspec.Meta(min_length=1, max_length=256)]


class DomainBody(msgspec.Struct, forbid_unknown_fields=True):
    """A domain to add."""

    name: Name
    qmp: Path


class DiskBody(msgspec.Struct, forbid_unknown_fields=True):
    """One disk and the image that it moves to; ``format`` null means that of the source."""

    disk: DiskName
    image: Path
    format: Literal["qcow2", "raw"] | None = None


class CopyBody(msgspec.Struct, forbid_unknown_fields=True):
    """A copy of disks of one domain, switched as one pivot. ``null`` leaves a number to the configuration."""

    disks: Annotated[list[DiskBody], msgspec.Meta(min_length=1, max_length=DISKS_MAX)]
    reuse: bool = False
    bandwidth_bytes_per_s: Annotated[int, msgspec.Meta(ge=0, le=INTEGER_MAX)] = 0
    max_pause_ms: Annotated[int, msgspec.Meta(ge=limits.PAUSE_MS_MIN, le=limits.PAUSE_MS_LIMIT)] | None = None
    attempts: Annotated[int, msgspec.Meta(ge=1, le=limits.ATTEMPTS_MAX)] | None = None
    copy_mode: Literal["auto", "background", "write-blocking"] = "auto"
    pivot: bool = True
    force: bool = False

    def request(self, domain: str, request_id: str | None, defaults: CopyOptions) -> CopyRequest:
        """Return the request. Raises: BadRequestError."""
        for what in ("disk", "image"):
            given = [os.path.normpath(getattr(disk, what)) for disk in self.disks]
            twice = next((value for value in given if given.count(value) > 1), None)
            if twice is not None:
                raise BadRequestError(f"{what} {twice} is named twice: name each once")
        return CopyRequest(
            domain=domain,
            targets=tuple(DiskTarget(disk.disk, disk.image, disk.format) for disk in self.disks),
            options=CopyOptions(
                reuse=self.reuse,
                bandwidth_bytes_per_s=self.bandwidth_bytes_per_s,
                max_pause_ms=defaults.max_pause_ms if self.max_pause_ms is None else self.max_pause_ms,
                attempts=defaults.attempts if self.attempts is None else self.attempts,
                copy_mode=CopyMode(self.copy_mode),
                pivot=self.pivot,
            ),
            request_id=check_request_id(request_id),
            force=self.force,
        )


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
