"""How fast a copy is and how fast the guest dirties it, from successive looks; pure except for its memory.

The length of a mirror job is what it has copied plus what is left, so it grows by what the guest dirties.
"""

from __future__ import annotations

from dataclasses import dataclass

from pivotd import limits
from pivotd.core.observation import Observation
from pivotd.core.pivot import Phase, Pivot


@dataclass(frozen=True, slots=True)
class Sample:
    """One look: its time, and the bytes left and copied by all jobs of the pivot together."""

    at_s: float
    backlog_bytes: int
    copied_bytes: int
    counted: bool
    """Whether every job knows how much there is to copy."""

    @property
    def begun(self) -> bool:
        """Whether the jobs report any work yet."""
        return self.backlog_bytes + self.copied_bytes > 0


def busy_bytes(pivot: Pivot) -> int:
    """Return one unit of the mirrors' bitmaps: with no more left, a copy waits for the guest, not for its storage."""
    return pivot.options.granularity_bytes or limits.BUSY_BACKLOG_BYTES


def stalls_after_s(pivot: Pivot) -> float:
    """Return how long a copy may be without progress: under a limit QEMU copies a piece at once, and then waits."""
    limit = pivot.options.bandwidth_bytes_per_s if pivot.phase is Phase.COPYING else 0
    return limits.STALL_S + (limits.LIMITED_PIECE_BYTES / limit if limit else 0.0)


class Pace:
    """Measures one pivot. Rates are None until there are two looks far enough apart."""

    def __init__(self) -> None:
        self.dirty_bytes_per_s: int | None = None
        self.copy_bytes_per_s: int | None = None
        """The rate of the destination, measured only while there was always something to copy."""
        self._last: Sample | None = None
        self._began: Sample | None = None
        self._lowest_backlog_bytes = 0
        self._ready = False
        self._progress_at_s = 0.0

    @property
    def backlog_bytes(self) -> int | None:
        """What is left to copy; None until the jobs know it."""
        return self._last.backlog_bytes if self._last is not None and self._last.counted else None

    @property
    def copied_bytes(self) -> int | None:
        """What has been copied; None until the jobs know how much there is."""
        return self._last.copied_bytes if self._last is not None and self._last.counted else None

    @property
    def expected_pause_ms(self) -> float | None:
        """How long a pause would last if it began now: QEMU's own part, then the backlog at the measured rate."""
        if self._last is None or not self._ready:
            return None
        rate = self.copy_bytes_per_s or limits.PAUSE_BYTES_PER_S
        return round(limits.PAUSE_FIXED_MS + 1000 * self._last.backlog_bytes / rate, 1)

    @property
    def share(self) -> float:
        """The share of its writes that the guest may make to leave half of the destination's rate to the backlog."""
        if not self.dirty_bytes_per_s or not self.copy_bytes_per_s:
            return 0.5
        return 0.5 * self.copy_bytes_per_s / self.dirty_bytes_per_s

    def note(self, pivot: Pivot, seen: Observation, now_s: float) -> None:
        """Take one look into account; a look without figures changes nothing."""
        jobs = [seen.job(disk.job) for disk in pivot.movers]
        left, copied = [job.backlog_bytes for job in jobs], [job.copied_bytes for job in jobs]
        if None in left or None in copied:
            return
        counted = all(job.counted for job in jobs)
        sample = Sample(now_s, sum(number or 0 for number in left), sum(number or 0 for number in copied), counted)
        ready = pivot.phase is not Phase.COPYING
        self._note_progress(sample, busy_bytes(pivot), ready=ready)
        self._last = sample
        if not counted:
            # What a job counts later is no write of the guest's.
            return
        if ready and not self._ready:
            # A limit of the bandwidth holds no longer: what was measured under it says nothing.
            self.copy_bytes_per_s, self._began = None, None
        self._ready = ready
        began = self._began
        if began is None or sample.copied_bytes < began.copied_bytes:
            self._began = sample
            return
        seconds = now_s - began.at_s
        if seconds < limits.RATE_INTERVAL_S:
            return
        copied_bytes = sample.copied_bytes - began.copied_bytes
        dirtied = copied_bytes + sample.backlog_bytes - began.backlog_bytes
        self.dirty_bytes_per_s = max(0, round(dirtied / seconds))
        if min(began.backlog_bytes, sample.backlog_bytes) > busy_bytes(pivot) and copied_bytes:
            self.copy_bytes_per_s = round(copied_bytes / seconds)
        self._began = sample

    def _note_progress(self, sample: Sample, busy: int, *, ready: bool) -> None:
        """Progress is a backlog smaller than ever before; once ready, any small backlog.

        A job that has not begun to work reports no bytes at all; this is not a small backlog.
        """
        last = self._last
        begins = last is None or (sample.begun, sample.counted) > (last.begun, last.counted)
        lower = sample.backlog_bytes < self._lowest_backlog_bytes
        small = ready and sample.backlog_bytes <= busy
        if begins or lower or small:
            self._progress_at_s = sample.at_s
            self._lowest_backlog_bytes = sample.backlog_bytes

    def begin_again(self, now_s: float) -> None:
        """Something changed that may help: stalled() counts from here."""
        self._progress_at_s = now_s
        self._lowest_backlog_bytes = self._last.backlog_bytes if self._last is not None else 0

    def stalled_s(self, now_s: float) -> float:
        """Return how long there was no progress; 0 if nothing was measured yet."""
        return 0.0 if self._last is None else max(0.0, now_s - self._progress_at_s)
