"""What an evacuation does: disks that move as pivots, and what stays behind, with the reason."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import Struct

from pivotd.errors import EXIT_REFUSED

OWN = "evacuate-"
"""The request ids of evacuations begin so."""
BY_DEFAULT = {
    "keep_synced": False,
    "keep_synced_s": None,
    "secret_file": None,
    "discard": "unmap",
    "aio": None,
    "cache": None,
}
"""The options that say what becomes of images, and what each is if the command does not name it."""


class DiskMove(Struct, frozen=True):
    """One disk, where it is, and where it goes. ``copy_bytes``: how much there is to copy, at most."""

    disk: str
    image: str
    target: str
    size_bytes: int
    copy_bytes: int


class Move(Struct, frozen=True):
    """Disks of one domain that move as one pivot.

    ``series``: the request ids of its tries are ``SERIES-1``, ``SERIES-2`` and so on; the same disks on the same images
    have the same series in each run. ``pivot``: an open pivot that makes this very move already.
    """

    domain: str
    disks: tuple[DiskMove, ...]
    series: str
    pivot: str | None = None

    @property
    def copy_bytes(self) -> int:
        """How much there is to copy, at most."""
        return sum(disk.copy_bytes for disk in self.disks)

    @property
    def words(self) -> str:
        """The domain and its disks."""
        return f"{self.domain} {' '.join(disk.disk for disk in self.disks)}"


class Left(Struct, frozen=True):
    """What needs the old places, or may, and is not moved. ``disk`` None: all that is known is the domain."""

    domain: str
    disk: str | None
    image: str | None
    reason: str
    exit_status: int = EXIT_REFUSED


class Plan(Struct, frozen=True):
    """What is to be done now. ``arrived``: disks whose image is below the new place."""

    moves: tuple[Move, ...]
    left: tuple[Left, ...]
    arrived: tuple[tuple[str, str, str], ...]

    @property
    def copy_bytes(self) -> int:
        """How much there is to copy, at most."""
        return sum(move.copy_bytes for move in self.moves)


def made_with(options: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """Return what of a request says what becomes of images, without what is so by default.

    It is a part of the request ids: with other options it is another move. The ids of a command without options stay.
    """
    found = [(name, str(options[name])) for name, default in BY_DEFAULT.items() if options[name] != default]
    if (images := options["image_options"]) is not None:
        found += [(name, str(value)) for name, value in msgspec.structs.asdict(images).items() if value is not None]
    return tuple(found)


def allocated_bytes(image: str) -> int | None:
    """Return how much room an image takes, None if pivotctl cannot see that."""
    try:
        found = os.stat(image)  # noqa: PTH116 - one system call
    except (OSError, ValueError):
        return None
    return found.st_blocks * 512 if stat.S_ISREG(found.st_mode) else None
