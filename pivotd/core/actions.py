"""What decide() can ask for. Each action is carried out by the driver, which then looks again."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from pivotd.core.pivot import Outcome, Phase


class Step(StrEnum):
    """One command of the preparation of one disk; each leaves evidence in QEMU that it was done."""

    CREATE_FILE = "create-file"
    OPEN_FILE = "open-file"
    CREATE_FORMAT = "create-format"
    OPEN_FORMAT = "open-format"
    START_JOB = "start-job"
    """The mirror, commit or stream job."""


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing to do until something changes. ``reason`` is shown to people."""

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
    """Let these jobs, interrupted by an error of their destination, try again. ``reason`` is shown to people."""

    jobs: tuple[str, ...]
    reason: str


@dataclass(frozen=True, slots=True)
class Converge:
    """Get the backlog small, flush both images, record the intent (phase PAUSING)."""


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
    """Give the destinations the dirty bitmaps of the sources; every job is pending, so nothing is written to either."""


@dataclass(frozen=True, slots=True)
class Finalize:
    """Switch the disks of these jobs."""

    jobs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class KeepSynced:
    """Start the mirrors back to the sources; the guest is still paused, so both images hold the same."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Put every overlay on its disk in one transaction; the guest is paused."""


@dataclass(frozen=True, slots=True)
class RollBack:
    """Take these disks back to their sources; the guest is still paused."""

    disks: tuple[str, ...]
    reason: str | None = None
    """What is wrong with a finished switch."""


@dataclass(frozen=True, slots=True)
class Retreat:
    """Give up this pause, keep the mirrors: record READY, let the guest go on with the source."""

    reason: str
    hold: bool = False
    """True when this was the last attempt: the outcome so far, ``kept``, is recorded with it."""


@dataclass(frozen=True, slots=True)
class Abandon:
    """Record the decision to stay on the source (phase CANCELLING)."""

    reason: str


@dataclass(frozen=True, slots=True)
class CancelJobs:
    """Cancel these jobs; ``resume`` lets the guest go on in the same write."""

    jobs: tuple[str, ...]
    resume: bool


@dataclass(frozen=True, slots=True)
class RecordOutcome:
    """Make the outcome of every disk durable (phase DECIDED): the commit point."""

    outcomes: tuple[tuple[str, Outcome], ...]
    reason: str
    hold: bool = False
    """True: every source is kept in sync from here on, and the undo window is open."""


@dataclass(frozen=True, slots=True)
class Resume:
    """Let the guest go on: the pause was ours."""


@dataclass(frozen=True, slots=True)
class NoteResumed:
    """Record that no resume is owed any more, because the guest was found in this run state."""

    run_state: str


@dataclass(frozen=True, slots=True)
class EndWindow:
    """Record that the sources are kept in sync no longer."""

    reason: str


@dataclass(frozen=True, slots=True)
class HandOver:
    """Record, as one, that this pivot is closed and that the one which takes it back begins, with its mirrors."""


@dataclass(frozen=True, slots=True)
class SetBandwidth:
    """Tell the jobs the bandwidth that somebody has asked for since they were started."""


@dataclass(frozen=True, slots=True)
class RestoreLimits:
    """Put back the limits of the guest's writes that were there before pivotd slowed them."""


@dataclass(frozen=True, slots=True)
class CleanUp:
    """Dismiss jobs, remove nodes and the nonce."""


@dataclass(frozen=True, slots=True)
class Close:
    """Record that nothing is left to do."""


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
    | RollBack
    | Retreat
    | Abandon
    | CancelJobs
    | RecordOutcome
    | Resume
    | NoteResumed
    | EndWindow
    | HandOver
    | SetBandwidth
    | RestoreLimits
    | CleanUp
    | Close
    | Done
)
