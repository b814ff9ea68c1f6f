"""What one process remembers of a pivot and QEMU cannot show. Frozen: the pivot's driver replaces it as a whole."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime

from pivotd import limits
from pivotd.core.dirty_bitmaps import Bitmaps
from pivotd.core.fleet import FleetView
from pivotd.core.observation import Root
from pivotd.core.pivot import Pause, Phase, Pivot
from pivotd.core.request import Requester
from pivotd.core.undo import Undo, window_left_s

Moment = tuple[object, int]
"""A connection and its count of RESUME events: between equal moments the guest was not resumed."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """Facts of the present intent, and users' requests. Times are from the monotonic clock, in seconds.

    A process that finds the intent of an earlier process does not know what that one had sent: ``stop_sent``,
    ``completing`` and ``snapshot_sent`` are then None.
    """

    stop_sent: bool | None = False
    """Whether ``stop`` was sent under this intent."""
    completing: frozenset[str] | None = frozenset()
    """Jobs to which ``job-complete`` was sent under this intent."""
    snapshot_sent: bool | None = False
    """Whether the transaction that puts the overlays on the disks was sent under this intent."""
    quick: bool = False
    """Whether the flush right before the intent was quick, so that ``stop`` will return long before the deadline."""
    deadline: float | None = None
    deadline_passed: bool = False
    paused_at: float | None = None
    resumed_at: float | None = None
    """When this process resumed the guest; None once it is recorded. A later stop is not pivotd's pause."""
    retry_at: float = 0.0
    """When the next attempt may begin."""
    looked: Moment | None = None
    """When the last full look began."""
    intended: Moment | None = None
    """When the intent was recorded."""
    unmoved: Moment | None = None
    """The moment at which the guest was stopped and no job had ended."""
    unwritten: bool = False
    """No RESUME was missed since ``unmoved``: if a job has moved a disk since, the guest has written nothing there."""
    not_ours: str | None = None
    """The run state in which ``stop`` found a guest that another client had paused; None once it is recorded."""
    ours: str | None = None
    """The run state in which ``stop`` found a guest that the intent had found paused; None once it is recorded."""
    switch_in_doubt: bool = False
    """The write of ``switched`` failed but may be on disk; no record has been written since."""
    lost: str | None = None
    """What happened to the file of a destination whose name no longer leads to it."""
    carried: Bitmaps | None = None
    """The bitmaps that were copied to the destinations."""
    carry_refused: str | None = None
    rolled_back: str | None = None
    """Why a finished switch was taken back."""
    rollback_failed: bool = False
    """A reverse mirror has ended in an error."""
    back_started: bool = False
    """The mirrors back were started before the guest could write."""
    back_failed: str | None = None
    """Why the mirrors back to the sources cannot be started."""
    clean_up_failed: bool = False
    """QEMU has refused to remove something of pivotd's; the last record names it."""
    started: frozenset[int] = frozenset()
    """The disks, by index, whose jobs libvirt has started for this process."""
    ask_in_doubt: bool = False
    """libvirt may still act on a call to switch: its answer was lost, and no job has been seen to end since."""
    ask_refused: str | None = None
    """How libvirt has refused the last call to switch; it has then changed nothing."""
    agreed: frozenset[tuple[str, Root]] = frozenset()
    """The images, by disk, that libvirt has written in this pause into the definition for the next boot, durably."""
    agree_refused: str | None = None
    """Why libvirt would not write that definition."""
    may_have_written: bool = False
    """The guest may have written since libvirt was asked: a switch of which libvirt has not learnt must stay."""
    define_raced: bool = False
    """Somebody else has defined the guest at the same moment; what pivotd has written may have replaced that."""
    in_fleet: bool = False
    """This host belongs to a fleet, whether or not that answers."""
    fleet_view: FleetView | None = None
    """What the fleet held when it last answered; None: that is not known, or may have changed since by this process."""
    fleet_asked_at: float | None = None
    """When the fleet last answered that the guest may be paused."""
    fleet_told: bool = False
    """The fleet knows the outcome; not recorded yet."""
    fleet_silent: str | None = None
    """Why the fleet did not take the last message about the outcome."""
    fleet_silent_at: float | None = None
    """When that was; None: this process may have stood still for so long that it says nothing about now."""
    fleet_silence_stale: bool = False
    """The fleet was silent, and has to be asked again before anything is decided by that."""
    fleet_retry_at: float = 0.0
    """When the fleet may be told again."""
    fleet_due: bool = True
    fleet_since: float | None = None
    """When a paused guest began to wait for the fleet."""
    window_over: bool = False
    """The undo window has expired."""
    cancelled_by: Requester | None = None
    released_by: Requester | None = None
    undo: Undo | None = None
    """The undo request: its requester, and the names of the pivot that will carry it out."""

    @classmethod
    def at_start(cls, pivot: Pivot, *, in_fleet: bool = False) -> Attempt:
        """Return the attempt of a process that has just read the pivot from the journal."""
        if pivot.phase is not Phase.PAUSING:
            return cls(ask_in_doubt=pivot.asking, in_fleet=in_fleet)
        return cls(stop_sent=None, completing=None, snapshot_sent=None, ask_in_doubt=pivot.asking, in_fleet=in_fleet)

    def begin(self, *, quick: bool, moment: Moment) -> Attempt:
        """Return the attempt of a new intent, which is about to be recorded; only requests survive the last one."""
        return Attempt(
            quick=quick,
            looked=moment,
            intended=moment,
            clean_up_failed=self.clean_up_failed,
            cancelled_by=self.cancelled_by,
            released_by=self.released_by,
            undo=self.undo,
            in_fleet=self.in_fleet,
            fleet_view=self.fleet_view,
        )

    def at(self, pivot: Pivot, now: float, utc_now: str) -> Attempt:
        """Return the attempt with its time limits checked against the clocks."""
        return replace(
            self,
            deadline_passed=self.deadline is not None and now >= self.deadline,
            window_over=window_left_s(pivot, utc_now) <= 0,
            fleet_due=now >= self.fleet_retry_at,
            fleet_silence_stale=self.fleet_silent is not None and not self._is_silent(now),
        )

    def _is_silent(self, now: float) -> bool:
        return self.fleet_silent_at is not None and now - self.fleet_silent_at <= limits.FLEET_WOKEN_S

    def paused(self, pivot: Pivot, now: float) -> Attempt:
        """Return the attempt with a pause that begins now."""
        return replace(self, paused_at=now, deadline=now + pivot.options.max_pause_ms / 1000)

    def pause(self, pivot: Pivot, now: float, utc_now: str) -> Pause:
        """Return the pause that ends now; a pause that outlived its process is measured from its record."""
        ended = self.resumed_at or now
        if self.paused_at is not None:
            pause_ms = (ended - self.paused_at) * 1000
        elif pivot.pausing_since is not None:
            began = datetime.fromisoformat(pivot.pausing_since)
            pause_ms = max(0.0, (datetime.fromisoformat(utc_now) - began).total_seconds() * 1000)
        else:
            pause_ms = 0.0
        fleet_ms = None if self.fleet_since is None else round((ended - self.fleet_since) * 1000, 3)
        return Pause(pivot.attempt, round(pause_ms, 3), pivot.outcome or pivot.phase.value, fleet_ms)
