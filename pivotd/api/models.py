"""Requests in the form that the daemon plans, with the checks that the types of client.requests cannot make."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from typing import Any

import msgspec

from pivotd import limits
from pivotd.client.requests import AdoptRequest, NewImage, NewPivot
from pivotd.core.creation import ImageOptions
from pivotd.core.request import (
    Aio,
    Cache,
    CopyMode,
    CopyOptions,
    Discard,
    Kind,
    PivotRequest,
    Sync,
    Target,
    is_granularity,
)
from pivotd.errors import BadRequestError

REQUEST_ID = re.compile(r"[!-.0-~]+")
"""Printable ASCII except the slash: the id also addresses the pivot in paths."""
WORDS = {"sync": Sync, "copy_mode": CopyMode, "discard": Discard, "aio": Aio, "cache": Cache}
"""Options with a fixed set of values."""


def pivot_request(body: NewPivot, domain: str, request_id: str | None, defaults: CopyOptions) -> PivotRequest:
    """Return the request; the configuration supplies numbers that are null. Raises: BadRequestError."""
    options = _given(body)
    targets = tuple(Target(**{"disk": ""} | _given(disk)) for disk in options.pop("disks"))
    # An image may be a directory, which several disks can have; planning looks.
    for what in ("disk", "job", "image") if isinstance(body, AdoptRequest) else ("disk",):
        named = [os.path.normpath(value) for target in targets if (value := getattr(target, what))]
        twice = next((value for value in named if named.count(value) > 1), None)
        if twice is not None:
            raise BadRequestError(f"{what} {twice} is named twice: name each once")
    if isinstance(body, AdoptRequest):
        _check_adopted(body)
        options["adopted"] = True
    size = options.get("granularity_bytes")
    if size is not None and not is_granularity(size):
        raise BadRequestError(
            f"granularity_bytes cannot be {size}: give a power of two from {limits.GRANULARITY_BYTES_MIN} to "
            f"{limits.GRANULARITY_BYTES_MAX}",
            field="granularity_bytes",
        )
    if isinstance(image := options.get("image_options"), NewImage):
        options["image_options"] = ImageOptions(**_given(image))
    options |= {name: WORDS[name](value) for name, value in options.items() if name in WORDS}
    return PivotRequest(
        domain=domain,
        kind=Kind.COPY if isinstance(body, AdoptRequest) else Kind(body.verb),
        targets=targets,
        options=replace(defaults, **options),
        request_id=check_request_id(request_id),
    )


def _check_adopted(body: AdoptRequest) -> None:
    """Raises: BadRequestError: the request does not say with which sync a mirror was started, or which job it is."""
    if any((disk.disk is None) == (disk.job is None) for disk in body.disks):
        raise BadRequestError("name each block job by its disk or by its id: one of the two")
    if body.sync is None and any(disk.image for disk in body.disks):
        raise BadRequestError(
            "say with which sync the mirror was started, full or top: QEMU does not tell, and one with sync=none "
            "does not copy the disk"
        )


def _given(struct: msgspec.Struct) -> dict[str, Any]:
    """Return the fields that are set."""
    return {name: value for name in struct.__struct_fields__ if (value := getattr(struct, name)) is not None}


def check_request_id(text: str | None) -> str | None:
    """Return a valid Idempotency-Key, None if there is none. Raises: BadRequestError."""
    if text is None:
        return None
    if len(text) > limits.REQUEST_ID_LENGTH_MAX or not REQUEST_ID.fullmatch(text):
        raise BadRequestError(
            f"Idempotency-Key must be 1 to {limits.REQUEST_ID_LENGTH_MAX} printable ASCII characters, "
            "without blanks and slashes",
            field="Idempotency-Key",
        )
    return text
