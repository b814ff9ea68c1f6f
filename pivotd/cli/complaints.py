"""Errors of pivotctl itself, besides those of the daemon and the journal, and their exit statuses."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Self

from pivotd.client import NewImage
from pivotd.errors import EXIT_REFUSED, EXIT_USAGE, PivotdError

EXIT_OUTPUT = 1
"""The answer could not be written."""
EXIT_INTERRUPTED = 130
"""128 + SIGINT, as a shell shows it."""
EXIT_BROKEN_PIPE = 141
"""128 + SIGPIPE."""


class UsageError(PivotdError):
    """The command line is wrong; no request was sent."""

    kind = "usage"
    exit_status = EXIT_USAGE


class TemplateError(UsageError):
    """The template of --format cannot print the answer, which was there."""


class AmbiguousIdError(PivotdError):
    """The ids of several pivots begin with what was given."""

    kind = "ambiguous"
    exit_status = EXIT_REFUSED


class WrongImageError(PivotdError):
    """The image is not the one that holds the disk's data."""

    kind = "wrong-image"
    exit_status = EXIT_REFUSED


class OutputError(PivotdError):
    """The answer cannot be written."""

    kind = "output"
    exit_status = EXIT_OUTPUT


class UnusableFileError(PivotdError):
    """A file or directory on this host cannot be used."""

    kind = "file"
    exit_status = EXIT_REFUSED

    @classmethod
    def of(cls, error: OSError) -> Self:
        """Return the error for one of the operating system that names a file."""
        name = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else str(error.filename)
        return cls(f"{name}: {error.strerror or error}; check the path and your permissions", path=name)


class NoRoomError(PivotdError):
    """A place has too little room for what is to be copied there."""

    kind = "no-room"
    exit_status = EXIT_REFUSED


class InterruptError(PivotdError):
    """Ctrl-C: the requested operation may continue."""

    kind = "interrupted"
    exit_status = EXIT_INTERRUPTED


@contextmanager
def perhaps_taken(again: str, **fields: Any) -> Iterator[None]:
    """Around a request that changes something: after Ctrl-C nobody knows whether pivotd has it.

    ``again``: what to type. Raises: InterruptError.
    """
    try:
        yield
    except KeyboardInterrupt:
        raise InterruptError(f"interrupted; pivotd may have taken the request: {again}", **fields) from None


OPTIONS = {
    "Idempotency-Key": "--id",
    "name": "DOMAIN",
    "disk": "DISK",
    "image": "IMAGE",
    "job": "--job",
    "max_pause_ms": "--max-pause",
    "keep_synced_s": "--for",
    "bandwidth_bytes_per_s": "--bandwidth",
    "granularity_bytes": "--granularity",
    "qmp": "--qmp",
    **{name: f"--{name.replace('_', '-')}" for name in ("format", "base", "top", "reason", "secret_file", "attempts")},
    **{name: f"--option {name.replace('_', '-')}" for name in NewImage.__struct_fields__},
}
"""Fields of requests, by which the daemon names what is wrong -> what was typed."""


def as_typed(error: PivotdError) -> str:
    """Return the message with the name of the option in the place of the field with which it starts."""
    field = error.fields.get("field")
    if isinstance(field, str) and field in OPTIONS and error.message.startswith(field):
        return OPTIONS[field] + error.message.removeprefix(field)
    return error.message
