"""What a fleet keeps of one domain, on any of its hosts: who may run the guest, and which image holds each disk. Pure.

A host's journal answers for that host alone. If the host is lost, another one learns from the fleet which image to
start. Every change replaces a whole ``FleetView``: it is written in one transaction, and only if nothing of the domain
has changed since that was read. So a message that arrives late, or twice, changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from pivotd.core.pivot import Outcome
from pivotd.core.request import Manager

ACCEPTED: Literal["accepted"] = "accepted"
"""The outcome of a disk whose image a person has chosen."""


class OnSilence(StrEnum):
    """What happens to a paused guest whose switch the fleet does not confirm within the longest pause."""

    WAIT = "wait"
    """It stays paused until the fleet answers: the fleet always knows the right image."""
    RESUME = "resume"
    """It runs on; until the fleet answers, the fleet calls the disk's image unknown."""


@dataclass(frozen=True, slots=True)
class Owner:
    """Who may run the guest. ``host`` None: it has left its host by a migration and waits to be claimed.

    ``epoch`` grows with each change of owner. ``boot_id`` is that of the owner's host, ``since`` is UTC, RFC 3339.
    """

    host: str | None
    epoch: int
    boot_id: str
    since: str


@dataclass(frozen=True, slots=True)
class FleetImage:
    """An image as another host can open it."""

    filename: str
    format: str


@dataclass(frozen=True, slots=True)
class FleetMove:
    """One disk of a pivot that has been announced."""

    disk: str
    source: FleetImage
    destination: FleetImage


@dataclass(frozen=True, slots=True)
class FleetIntent:
    """A pivot that is about to pause its guest, or has; the fleet does not know its outcome yet."""

    pivot: str
    host: str
    epoch: int
    on_silence: OnSilence
    manager: Manager
    moves: tuple[FleetMove, ...]


@dataclass(frozen=True, slots=True)
class FleetDisk:
    """What became of one disk: its image, and the other one of the pivot that decided it, None if nobody knows of one.

    ``outcome`` UNKNOWN: a person has to compare ``image``, which is then the source, with ``other``.
    ``epoch`` is that of the owner who wrote this, ``at`` is UTC, RFC 3339.
    """

    disk: str
    image: FleetImage
    other: FleetImage | None
    outcome: Outcome | Literal["accepted"]
    pivot: str
    epoch: int
    at: str


@dataclass(frozen=True, slots=True)
class FleetView:
    """All that the fleet keeps of one domain, read at one moment. ``disks`` is sorted by disk.

    ``revision`` grows with each change of anything in it; 0: the fleet has never known the domain.
    """

    domain: str
    owner: Owner | None = None
    intent: FleetIntent | None = None
    disks: tuple[FleetDisk, ...] = ()
    forgotten: int = 0
    """The epoch in which a person has last had the fleet forget the guest; 0: never."""
    revision: int = 0

    @property
    def known(self) -> bool:
        """Whether the fleet knows anything of the guest."""
        return self.owner is not None

    @property
    def epoch(self) -> int:
        """The epoch of the owner, or of the forgetting: what is written in a later one is written later; 0 at first."""
        return self.forgotten if self.owner is None else self.owner.epoch

    def disk(self, name: str) -> FleetDisk | None:
        """Return what is known of one disk."""
        return next((disk for disk in self.disks if disk.disk == name), None)

    def move(self, name: str) -> FleetMove | None:
        """Return how the announced pivot is to move a disk."""
        moves = () if self.intent is None else self.intent.moves
        return next((move for move in moves if move.disk == name), None)
