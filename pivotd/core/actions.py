"""The actions that decide() can return. The driver carries one out, then looks again."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from pivotd.core.observation import Root
from pivotd.core.pivot import Outcome, Phase


class Step(StrEnum):
    """One command that prepares one disk; each leaves evidence in QEMU that it ran."""

    CREATE_FILE = "create-file"
    OPEN_FILE = "open-file"
    CREATE_FORMAT = "create-format"
    OPEN_FORMAT = "open-format"
    START_JOB = "start-job"
    """The mirror, commit or stream job."""


@dataclass(frozen=True, slots=True)
class Wait:
    """Do nothing until something changes. ``reason`` is shown to users."""

    reason: str


@dataclass(frozen=True, slots=True)
class AskAgain:
    """QEMU does not answer: connect and look again with back-off. Nothing is decided."""

    reason: str


@dataclass(frozen=True, slots=True)
class PlaceNonce:
    """Put the nonce object into the QEMU process."""


@dataclass(frozen=True, slots=True)
class Prepare:
    """Do one step of the preparation of the disk with this index."""

    index: int
    step: Step


@dataclass(frozen=True, slots=True)
class Advance:
    """Record the next phase and nothing else."""

    phase: Phase


@dataclass(frozen=True, slots=True)
class GoOn:
    """Resume these jobs, which an error of their destination has interrupted. ``reason`` is shown to users."""

    jobs: tuple[str, ...]
    reason: str


@dataclass(frozen=True, slots=True)
class Converge:
    """Wait for a small backlog, flush both images, and record the intent (phase PAUSING)."""


@dataclass(frozen=True, slots=True)
class Stop:
    """Pause the guest; ``complete`` names jobs whose ``job-complete`` may follow in the same write."""

    complete: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Complete:
    """Bring these jobs to pending."""

    jobs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class CarryBitmaps:
    """Copy the sources' dirty bitmaps to the destinations. Every job is pending, so nothing writes to either image."""


@dataclass(frozen=True, slots=True)
class Finalize:
    """Switch the disks of these jobs."""

    jobs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class KeepSynced:
    """Start the mirrors back to the sources; the guest is still paused, so both images are identical."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Put every overlay on its disk in one transaction; the guest is paused."""


@dataclass(frozen=True, slots=True)
class AskLibvirt:
    """Have libvirt end its jobs on these disks, one after the other: with the switch, or (``pivot`` False) without.

    For a snapshot: have it put the overlays on all disks.
    """

    disks: tuple[str, ...]
    pivot: bool


@dataclass(frozen=True, slots=True)
class Agree:
    """Make libvirt's definition for the next boot name these images, by disk, and make it durable.

    A disk for which it names neither image of the pivot is left alone: that is somebody's decision.
    """

    images: tuple[tuple[str, Root], ...]


@dataclass(frozen=True, slots=True)
class RollBack:
    """Take these disks back to their sources; the guest is still paused."""

    disks: tuple[str, ...]
    reason: str | None = None
    """Why a finished switch is taken back."""


@dataclass(frozen=True, slots=True)
class Retreat:
    """Give up this pause and keep the mirrors: record READY, and resume the guest on the source."""

    reason: str
    hold: bool = False
    """True when this was the last attempt: the outcome so far, ``kept``, is recorded with it."""


@dataclass(frozen=True, slots=True)
class Abandon:
    """Record the decision to stay on the source (phase CANCELLING)."""

    reason: str


@dataclass(frozen=True, slots=True)
class CancelJobs:
    """Cancel these jobs; ``resume`` also resumes the guest, in the same write."""

    jobs: tuple[str, ...]
    resume: bool


@dataclass(frozen=True, slots=True)
class RecordOutcome:
    """Make the outcome of every disk durable (phase DECIDED): the commit point."""

    outcomes: tuple[tuple[str, Outcome], ...]
    reason: str
    hold: bool = False
    """True: QEMU keeps every source in sync from here on, and the undo window is open."""
    warning: str | None = None
    """What a person has to know although the outcome is certain."""


@dataclass(frozen=True, slots=True)
class Resume:
    """Resume the guest: the pause was pivotd's."""

    owed: bool = False
    """The resume stays owed: a call whose answer was lost may pause the guest once more."""


@dataclass(frozen=True, slots=True)
class NoteResumed:
    """Record that pivotd no longer owes a resume, because the guest was found in this run state."""

    run_state: str


@dataclass(frozen=True, slots=True)
class TellFleet:
    """Tell the fleet the recorded outcome, or that there is none yet; read it first if it may have changed."""


@dataclass(frozen=True, slots=True)
class EndWindow:
    """Record that the sources are no longer kept in sync."""

    reason: str


@dataclass(frozen=True, slots=True)
class HandOver:
    """Record in one transaction that this pivot is closed and that its undo begins, with its mirrors."""


@dataclass(frozen=True, slots=True)
class SetBandwidth:
    """Set the bandwidth that a user has requested since the jobs started."""


@dataclass(frozen=True, slots=True)
class RestoreLimits:
    """Restore the limits on the guest's writes from before pivotd slowed them."""


@dataclass(frozen=True, slots=True)
class CleanUp:
    """Dismiss jobs, remove nodes and the nonce."""


@dataclass(frozen=True, slots=True)
class Close:
    """Record that the pivot has nothing left to do."""


@dataclass(frozen=True, slots=True)
class Done:
    """The pivot is closed."""


Action = (
    Wait
    | AskAgain
    | PlaceNonce
    | Prepare
    | Advance
    | GoOn
    | Converge
    | Stop
    | Complete
    | CarryBitmaps
    | Finalize
    | KeepSynced
    | Snapshot
    | AskLibvirt
    | Agree
    | RollBack
    | Retreat
    | Abandon
    | CancelJobs
    | RecordOutcome
    | Resume
    | NoteResumed
    | TellFleet
    | EndWindow
    | HandOver
    | SetBandwidth
    | RestoreLimits
    | CleanUp
    | Close
    | Done
)
