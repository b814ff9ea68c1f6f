"""What one process remembers of a pivot and QEMU cannot show: frozen, and replaced as a whole by the pivot's driver."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime

from pivotd.core.dirty_bitmaps import Bitmaps
from pivotd.core.pivot import Pause, Phase, Pivot
from pivotd.core.request import Requester
from pivotd.core.undo import Undo, window_left_s

Moment = tuple[object, int]
"""A connection, and the RESUME events that had come over it: equal moments mean that nobody resumed in between."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """Facts of the present intent, and what people have asked for. Times are of the monotonic clock, in seconds.

    A process that finds an intent of an earlier one does not know what that one had sent: ``stop_sent`` and
    ``completing`` are None then.
    """

    stop_sent: bool | None = False
    """Whether ``stop`` was sent under this intent."""
    completing: frozenset[str] | None = frozenset()
    """Jobs to which ``job-complete`` was sent under this intent."""
    quick: bool = False
    """Whether the flush right before the intent was quick, so that ``stop`` will return long before the deadline."""
    deadline: float | None = None
    deadline_passed: bool = False
    paused_at: float | None = None
    resumed_at: float | None = None
    """When this process let the guest run; until that is recorded. What stops it from then on is no pause of ours."""
    retry_at: float = 0.0
    """When the next attempt may begin."""
    looked: Moment | None = None
    """When the last full look began."""
    intended: Moment | None = None
    """When the intent was recorded."""
    unmoved: Moment | None = None
    """When the guest had been stopped and no job had ended."""
    unwritten: bool = False
    """No RESUME was missed since then: whatever a job has moved, the guest has written nothing there."""
    not_ours: str | None = None
    """The run state in which ``stop`` found a guest that somebody else had paused; until it is recorded."""
    ours: str | None = None
    """The run state in which ``stop`` found a guest that the intent had found paused; until it is recorded."""
    switch_in_doubt: bool = False
    """A ``switched`` could not be written and may be on disk all the same; no record has been written since."""
    lost: str | None = None
    """What has become of the file of a destination whose name no longer leads there."""
    carried: Bitmaps | None = None
    """The bitmaps that were copied to the destinations."""
    carry_refused: str | None = None
    rolled_back: str | None = None
    """Why a finished switch was taken back."""
    rollback_failed: bool = False
    """A reverse mirror has ended in an error."""
    back_started: bool = False
    """The mirrors back were started before anybody could write."""
    back_failed: str | None = None
    """Why the mirrors back to the sources cannot be started."""
    clean_up_failed: bool = False
    """QEMU has refused to let go of something of ours; the last record names it."""
    window_over: bool = False
    """The time of the undo window has passed."""
    cancelled_by: Requester | None = None
    released_by: Requester | None = None
    undo: Undo | None = None
    """Who asks for the undo, and the names of the pivot that it will be."""

    @classmethod
    def at_start(cls, pivot: Pivot) -> Attempt:
        """Return what a process knows that has just read a pivot from the journal."""
        return cls(stop_sent=None, completing=None) if pivot.phase is Phase.PAUSING else cls()

    def begin(self, *, quick: bool, moment: Moment) -> Attempt:
        """Return the attempt of a new intent, which is about to be recorded: only requests outlive the last one."""
        return Attempt(
            quick=quick,
            looked=moment,
            intended=moment,
            clean_up_failed=self.clean_up_failed,
            cancelled_by=self.cancelled_by,
            released_by=self.released_by,
            undo=self.undo,
        )

    def at(self, pivot: Pivot, now: float, utc_now: str) -> Attempt:
        """Return the attempt with what the clocks say."""
        return replace(
            self,
            deadline_passed=self.deadline is not None and now >= self.deadline,
            window_over=window_left_s(pivot, utc_now) <= 0,
        )

    def paused(self, pivot: Pivot, now: float) -> Attempt:
        """Return the attempt with a pause that begins now."""
        return replace(self, paused_at=now, deadline=now + pivot.options.max_pause_ms / 1000)

    def pause(self, pivot: Pivot, now: float, utc_now: str) -> Pause:
        """Return the pause that ends now; one that outlived its process is measured from its record."""
        ended = self.resumed_at or now
        if self.paused_at is not None:
            pause_ms = (ended - self.paused_at) * 1000
        elif pivot.pausing_since is not None:
            began = datetime.fromisoformat(pivot.pausing_since)
            pause_ms = max(0.0, (datetime.fromisoformat(utc_now) - began).total_seconds() * 1000)
        else:
            pause_ms = 0.0
        return Pause(pivot.attempt, round(pause_ms, 3), pivot.outcome or pivot.phase.value)
