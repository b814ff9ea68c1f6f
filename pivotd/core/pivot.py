"""A pivot as the journal stores it: phase, disks, images, outcome, pauses, and its records. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from pivotd.core.request import CopyOptions, Kind, Manager, Requester

JsonObject = dict[str, Any]


class Phase(StrEnum):
    """How far a pivot has come; each value is durable before pivotd acts on it."""

    PREPARING = "preparing"
    """The request and every node and job name are on disk; pivotd creates and opens the destinations."""
    COPYING = "copying"
    """Every mirror job has been started; the guest runs on the source."""
    READY = "ready"
    """Every mirror follows the guest; the pivot may pause the guest from here."""
    PAUSING = "pausing"
    """The intent is on disk: from here on the guest may be paused and the root may move."""
    CANCELLING = "cancelling"
    """The decision to stay on the source is on disk; pivotd cancels the jobs."""
    DECIDED = "decided"
    """The outcome of every disk is on disk; pivotd resumes the guest and cleans up."""
    CLOSED = "closed"
    """The pivot has nothing left to do."""


class Outcome(StrEnum):
    """Which image holds the data of one disk after a pivot."""

    SWITCHED = "switched"
    """The destination."""
    KEPT = "kept"
    """The source."""
    MERGED = "merged"
    """The same image as before, on a shorter backing chain: layers below it were merged, no disk was switched."""
    UNKNOWN = "unknown"
    """The evidence is contradictory: a person must look."""


class FleetStage(StrEnum):
    """What the fleet knows of a pivot; each value is durable before pivotd acts on it."""

    NONE = "none"
    """Nothing: there is no fleet, or it has not been asked, or the intent was withdrawn before the outcome."""
    ANNOUNCED = "announced"
    """It may have the intent, and may not know the outcome."""
    TOLD = "told"
    """It knows the outcome."""
    SUPERSEDED = "superseded"
    """The guest belongs to another host, or did meanwhile: what this pivot found is no longer of any use."""


Process = tuple[str, int, int | None]
"""One process of this host: boot id, pid, and start ticks as in Identity."""


@dataclass(frozen=True, slots=True)
class Identity:
    """What distinguishes one QEMU process from another behind the same socket.

    ``nonce`` is the id of an object that pivotd put into the process: it dies with the process.
    ``start_ticks`` is field 22 of /proc/PID/stat, None where /proc hides other users.
    """

    boot_id: str
    pid: int
    start_ticks: int | None
    nonce: str

    @property
    def process(self) -> Process:
        """The process alone."""
        return self.boot_id, self.pid, self.start_ticks


@dataclass(frozen=True, slots=True)
class Image:
    """One side of a switch.

    ``filename`` is an absolute path, an NBD address, or QEMU's own description if it is neither.
    ``file_id`` is ``"DEV:INO"`` as stat shows it, ``"block:MAJOR:MINOR"``, None where pivotd cannot see the file.
    ``node`` is the QEMU block node, chosen by pivotd for a destination.
    """

    filename: str
    format: str
    node: str
    file_id: str | None = None
    born: str | None = None
    """When the file that pivotd has seen at this name was made, UTC, RFC 3339; None also of a device."""


@dataclass(frozen=True, slots=True)
class Accepted:
    """A person's word on the image that holds a disk's data. ``at`` is UTC, RFC 3339."""

    filename: str
    format: str
    at: str
    uid: int
    reason: str


@dataclass(frozen=True, slots=True)
class RanOn:
    """The image on which pivotd has seen a guest run that the journal does not name. ``at`` is UTC, RFC 3339.

    Of the name that the journal has, it is another file, or the file in another format. ``by_fleet``: it is the one of
    the journal, and another host had moved the disk on.
    """

    filename: str
    format: str
    at: str
    by_fleet: bool = False


@dataclass(frozen=True, slots=True)
class FileSeen:
    """The file that QEMU was seen to have as an image. ``file_id`` counts within the boot, ``born`` for ever.

    ``born``: when it was made, UTC, RFC 3339; None where the file system does not tell.
    """

    filename: str
    file_id: str
    boot_id: str
    born: str | None


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
    """The uppermost layer that is removed from the chain, if layers are merged."""
    base: Image | None = None
    """The layer at which the chain continues below the removed layers; None: there is none."""
    between: tuple[str, ...] = ()
    """File names of the layers below ``top`` and above ``base``, which are removed too; nearest first."""
    backing_file: str | None = None
    """The backing file name for the image above the merged layers, if QEMU would not find it itself."""
    cache_direct: bool = False
    """The source bypasses the host page cache; pivotd opens the destination in the same way."""
    outcome: Outcome | None = None
    accepted: Accepted | None = None
    """What a person has said of the disk since the pivot ended; it overrules the outcome."""
    doubtful: bool = False
    """The journal was restored or upgraded since, and QEMU was not seen on the image yet: later pivots may be missing.

    Known only of the last pivot of a disk."""
    left_at: str | None = None
    """When the guest left its QEMU by a migration; another host may have moved the disk since. None: it did not, or it
    was seen here again.

    Known only of the last pivot of a disk. UTC, RFC 3339."""
    ran_on: RanOn | None = None
    """Another image, on which the guest has run since: it may have writes that the right one lacks. None: there is
    none, or the guest was seen on the right one again.

    Known only of the last pivot of a disk."""
    file_seen: FileSeen | None = None
    """The file that the guest's QEMU was last seen to have as the right image, if it has its name.

    Known only of the last pivot of a disk."""

    @property
    def switches(self) -> bool:
        """Whether the disk gets another image."""
        return self.destination.node != self.source.node

    @property
    def below(self) -> Image | None:
        """The image at which the chain goes on below what the pivot makes or merges; None: nothing is below."""
        return self.source if self.base is None and self.backing_file is not None else self.base


@dataclass(frozen=True, slots=True)
class Pause:
    """One pause of the guest: which attempt, how long, and how it ended (a phase name)."""

    attempt: int
    pause_ms: float
    ended: str
    fleet_ms: float | None = None
    """How much of it the guest waited for the fleet; None: it did not."""


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
    """The journal's current state of one pivot; it changes only together with an appended record."""

    id: str
    request_id: str
    domain: str
    qmp: str
    """The domain's QMP socket when the pivot began: pivotd finishes an open pivot even if the domain is forgotten."""
    kind: Kind
    phase: Phase
    requested_by: Requester
    options: CopyOptions
    disks: tuple[PivotDisk, ...]
    created_at: str
    identity: Identity
    manager: Manager = Manager.PIVOTD
    """Who carries out the steps; it never changes."""
    asking: bool = False
    """libvirt was asked to switch under the last intent: until the outcome is recorded, either image may be next."""
    fleet: FleetStage = FleetStage.NONE
    fleet_epoch: int | None = None
    """The epoch of the guest's owner when the pivot was accepted, then announced, then settled by a person's word.

    0: it had none; None: no fleet, or it did not answer.
    """
    revision: int = 0
    """Counts the changes; the journal refuses a change that is not based on the last one."""
    undo_of: str | None = None
    """The pivot that this one undoes, with the mirror that the window of that pivot has kept running."""
    hold: bool = False
    """True: wait at READY until a user completes or cancels, at DECIDED until the undo window ends."""
    attempt: int = 0
    """Number of pauses tried so far."""
    run_state_before: str | None = None
    """Run state right before the intent; None before the first intent."""
    owes_resume: bool = False
    """True from the intent to pause a running guest until the guest was seen running or was resumed."""
    pausing_since: str | None = None
    """When the last intent was written; pivotd measures a pause that outlived its daemon from here."""
    error: str | None = None
    pauses: tuple[Pause, ...] = ()
    decided_at: str | None = None
    closed_at: str | None = None

    @property
    def switches(self) -> bool:
        """Whether the disks get another image; merging layers below an image switches nothing."""
        return any(disk.switches for disk in self.disks)

    @property
    def movers(self) -> tuple[PivotDisk, ...]:
        """The disks, of those that are devices on one node only the first: what moves one moves them all."""
        found: dict[str, PivotDisk] = {}
        for disk in self.disks:
            found.setdefault(disk.source.node, disk)
        return tuple(found.values())

    @property
    def window_open(self) -> bool:
        """Whether QEMU keeps the sources in sync after the switch, so that the pivot can be undone."""
        return self.phase is Phase.DECIDED and self.hold and self.options.keep_synced

    @property
    def family(self) -> tuple[str, ...]:
        """The ids that names in QEMU may carry: its own, and that of the pivot which it undoes."""
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
    """One record of the journal. ``seq`` increases by one over all domains; ``at`` is UTC, RFC 3339."""

    seq: int
    at: str
    domain: str | None
    pivot: str | None
    event: str
    phase: Phase | None
    facts: JsonObject = field(default_factory=dict)
