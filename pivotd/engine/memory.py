"""What one process remembers of its own last moments under one intent; after a restart it does not know."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime

from pivotd.core.dirty_bitmaps import Bitmaps
from pivotd.core.observation import Observation
from pivotd.core.pivot import Pause, Pivot
from pivotd.core.undo import Undo


@dataclass(slots=True)
class Memory:
    """Facts that QEMU cannot show. Times are of the monotonic clock, in seconds.

    ``stop_sent`` and ``completing`` None: an earlier process may have.
    """

    stop_sent: bool | None = False
    completing: frozenset[str] | None = frozenset()
    deadline: float | None = None
    paused_at: float | None = None
    resumed_at: float | None = None
    resumes: int = 0
    """RESUME events up to the last full look."""
    still_unmoved: tuple[object, int] | None = None
    """The connection over which the guest was stopped before any job had ended, and its RESUME events then."""
    unwritten: bool = False
    """Whether at the end of the last look there was no other RESUME event on it."""
    quick: bool = False
    not_ours: str | None = None
    """The run state in which ``stop`` found the guest, where that was no state of ours to end; until it is recorded."""
    rollback_failed: bool = False
    clean_up_failed: bool = False
    cancel_requested: bool = False
    switch_in_doubt: bool = False
    """A ``switched`` could not be written and may be on disk all the same; no record has been written since."""
    lost: str | None = None
    carried: Bitmaps | None = None
    carry_refused: str | None = None
    rolled_back: str | None = None
    at_intent: tuple[object, int] | None = None
    """The connection over which the intent was recorded, and its RESUME events then."""
    back_started: bool = False
    back_failed: str | None = None
    release_requested: bool = False
    undo: Undo | None = None
    """Who asks for the undo, and the names of the pivot that it will be."""

    @classmethod
    def of_earlier_process(cls) -> Memory:
        """Return what is remembered of a pause that another process began."""
        return cls(stop_sent=None, completing=None)

    def begin(self, *, quick: bool) -> None:
        """Forget the last intent: a new one is about to be recorded."""
        self.stop_sent, self.completing, self.rollback_failed, self.quick = False, frozenset(), False, quick
        self.back_started = self.unwritten = False
        self.still_unmoved = None
        self.back_failed = self.carried = self.carry_refused = self.rolled_back = None

    def add_to(self, seen: Observation, now: float, *, window_over: bool) -> Observation:
        """Return the observation with what is remembered, and what the clock says of the undo window."""
        return replace(
            seen,
            window_over=window_over,
            stop_sent=self.stop_sent,
            unwritten=self.unwritten,
            completing=self.completing,
            deadline_passed=self.deadline is not None and now >= self.deadline,
            cancel_requested=self.cancel_requested,
            rollback_failed=self.rollback_failed,
            clean_up_failed=self.clean_up_failed,
            lost=self.lost,
            carried=self.carried,
            carry_refused=self.carry_refused,
            rolled_back=self.rolled_back,
            back_started=self.back_started,
            back_failed=self.back_failed,
            release_requested=self.release_requested,
            undo_requested=self.undo is not None,
            quick=self.quick,
        )

    def pause(self, pivot: Pivot, now: float, utc_now: str) -> Pause:
        """Return the pause that ends now; one that outlived its process is measured from its record."""
        self.resumed_at = self.resumed_at or now
        if self.paused_at is not None:
            pause_ms = (self.resumed_at - self.paused_at) * 1000
        elif pivot.pausing_since is not None:
            began, ended = datetime.fromisoformat(pivot.pausing_since), datetime.fromisoformat(utc_now)
            pause_ms = max(0.0, (ended - began).total_seconds() * 1000)
        else:
            pause_ms = 0.0
        return Pause(pivot.attempt, round(pause_ms, 3), pivot.outcome or pivot.phase.value)
