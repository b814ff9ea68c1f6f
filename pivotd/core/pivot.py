"""A pivot as the journal has it: phase, disks, images, outcome, pauses, and its records. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from pivotd.core.request import CopyOptions, Kind, Requester

JsonObject = dict[str, Any]


class Phase(StrEnum):
    """How far a pivot has come; each value is durable before anything is done under it."""

    PREPARING = "preparing"
    """The request and every node and job name is on disk; destinations are created and opened."""
    COPYING = "copying"
    """Every mirror job has been started; the guest runs on the source."""
    READY = "ready"
    """Every mirror follows the guest; the pivot may pause the guest from here."""
    PAUSING = "pausing"
    """The intent is on disk: from here on the guest may be paused and the root may move."""
    CANCELLING = "cancelling"
    """The decision to stay on the source is on disk; jobs are being cancelled."""
    DECIDED = "decided"
    """The outcome of every disk is on disk; the guest is resumed, nodes are cleaned up."""
    CLOSED = "closed"
    """Nothing is left to do."""


class Outcome(StrEnum):
    """Which image holds the data of one disk after a pivot."""

    SWITCHED = "switched"
    """The destination."""
    KEPT = "kept"
    """The source."""
    MERGED = "merged"
    """The same image as before, on a shorter backing chain: layers below it were merged, nothing was switched."""
    UNKNOWN = "unknown"
    """The evidence contradicts itself: a person must look."""


@dataclass(frozen=True, slots=True)
class Identity:
    """What tells one QEMU process from another behind the same socket.

    ``nonce`` is the id of an object that pivotd put into the process: it dies with the process.
    ``start_ticks`` is field 22 of /proc/PID/stat, None where /proc hides other users.
    """

    boot_id: str
    pid: int
    start_ticks: int | None
    nonce: str


@dataclass(frozen=True, slots=True)
class Image:
    """One side of a switch.

    ``filename`` is an absolute path, an NBD address, or what QEMU shows where it is neither.
    ``file_id`` is ``"DEV:INO"`` as stat shows it, ``"block:MAJOR:MINOR"``, None where pivotd cannot see the file.
    ``node`` is the QEMU block node, chosen by pivotd for a destination.
    """

    filename: str
    format: str
    node: str
    file_id: str | None = None


@dataclass(frozen=True, slots=True)
class PivotDisk:
    """One disk of a pivot. ``size_bytes`` is the guest-visible size of the disk."""

    disk: str
    index: int
    qdev: str
    size_bytes: int
    source: Image
    destination: Image
    job: str
    top: Image | None = None
    """The uppermost layer that goes out of the chain, where layers are merged."""
    base: Image | None = None
    """The layer that the chain goes on with below those; None: there is none."""
    between: tuple[str, ...] = ()
    """File names of the layers below ``top`` and above ``base``, which go out of the chain with it, nearest first."""
    backing_file: str | None = None
    """What the image above the merged layers is to name as its backing file, where QEMU would not find it itself."""
    cache_direct: bool = False
    """The source bypasses the host page cache; the destination is opened alike."""
    outcome: Outcome | None = None

    @property
    def switches(self) -> bool:
        """Whether the disk gets another image."""
        return self.destination.node != self.source.node


@dataclass(frozen=True, slots=True)
class Pause:
    """One pause of the guest: which attempt, how long, and how it ended (a phase name)."""

    attempt: int
    pause_ms: float
    ended: str


def outcome_of(disks: Iterable[PivotDisk]) -> str | None:
    """Return one word for all disks: an Outcome, ``split`` where disks differ, None while open.

    ``unknown`` wins over everything: one disk that needs a person makes the pivot need one.
    """
    seen = {disk.outcome for disk in disks}
    if Outcome.UNKNOWN in seen:
        return Outcome.UNKNOWN.value
    if None in seen:
        return None
    return seen.pop() if len(seen) == 1 else "split"


@dataclass(frozen=True, slots=True)
class Pivot:
    """The journal's current word on one pivot; changed only together with an appended record."""

    id: str
    request_id: str
    domain: str
    qmp: str
    """The domain's QMP socket when the pivot began: an open pivot is looked after also if the domain is forgotten."""
    kind: Kind
    phase: Phase
    requested_by: Requester
    options: CopyOptions
    disks: tuple[PivotDisk, ...]
    created_at: str
    identity: Identity
    revision: int = 0
    """Counts the changes; the next one is refused to whoever has not seen the last."""
    undo_of: str | None = None
    """The pivot that this one takes back, by the mirror that its window has kept running."""
    hold: bool = False
    """True: wait at READY until somebody completes or cancels, at DECIDED until the undo window ends."""
    attempt: int = 0
    """How many pauses were tried so far."""
    run_state_before: str | None = None
    """Run state right before the intent; None before the first intent."""
    owes_resume: bool = False
    """True from an intent over a running guest until the guest was seen or made to run again."""
    pausing_since: str | None = None
    """When the last intent became durable; a pause that outlived its daemon is measured from here."""
    error: str | None = None
    pauses: tuple[Pause, ...] = ()
    decided_at: str | None = None
    closed_at: str | None = None

    @property
    def switches(self) -> bool:
        """Whether the disks get another image; merging layers below an image switches nothing."""
        return any(disk.switches for disk in self.disks)

    @property
    def window_open(self) -> bool:
        """Whether the sources are kept in sync after the switch: the pivot can be taken back."""
        return self.phase is Phase.DECIDED and self.hold and self.options.keep_synced

    @property
    def family(self) -> tuple[str, ...]:
        """The ids that names in QEMU may carry: its own, and that of the pivot which it takes back."""
        return (self.id,) if self.undo_of is None else (self.id, self.undo_of)

    @property
    def outcome(self) -> str | None:
        """One word for all disks; see outcome_of."""
        return outcome_of(self.disks)

    @property
    def pause_ms(self) -> float | None:
        """Length of the last pause in milliseconds, None if the guest was never paused."""
        return self.pauses[-1].pause_ms if self.pauses else None


@dataclass(frozen=True, slots=True)
class Record:
    """One line of the journal. ``seq`` grows by one over all domains; ``at`` is UTC, RFC 3339."""

    seq: int
    at: str
    domain: str | None
    pivot: str | None
    event: str
    phase: Phase | None
    facts: JsonObject = field(default_factory=dict)
