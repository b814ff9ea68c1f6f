"""Copies that a failing destination has interrupted: when to try again, and what need not be copied again."""

from __future__ import annotations

from dataclasses import dataclass, field

from pivotd import limits
from pivotd.core.observation import STATUS_READY, Observation
from pivotd.core.pivot import JsonObject, Pivot


@dataclass(slots=True)
class Interruptions:
    """What one process knows about the present interruption of one pivot. Times are monotonic, in seconds.

    ``copied``: job -> bytes copied when it was found interrupted. Several failures in short order count as one
    interruption, so that a destination that keeps failing does not fill the journal.
    """

    copied: dict[str, int] = field(default_factory=dict)
    _began: float = 0.0
    _next: float = 0.0
    _delay_s: float = limits.GO_ON_FIRST_S
    _sound_since: float | None = None

    def begin(self, pivot: Pivot, jobs: tuple[str, ...], seen: Observation, now: float) -> JsonObject | None:
        """Return the facts to record before these interrupted jobs are resumed; None: they are already recorded."""
        self._sound_since = None
        new = {job: seen.job(job).copied_bytes or 0 for job in jobs if job not in self.copied}
        if not new:
            return None
        if not self.copied:
            self._began, self._delay_s = now, limits.GO_ON_FIRST_S
            self._next = now + self._delay_s
        self.copied |= new
        return {
            "disks": {disk.disk: seen.job(disk.job).io_status for disk in pivot.disks if disk.job in new},
            "copied_bytes": sum(new.values()),
        }

    def wait_s(self, now: float) -> float:
        """Return how long to wait before the next try; zero or negative: try now, and wait longer after that."""
        wait_s = self._next - now
        if wait_s <= 0:
            self._delay_s = min(self._delay_s * 2, limits.GO_ON_MAX_S)
            self._next = now + self._delay_s
        return wait_s

    def end(self, pivot: Pivot, seen: Observation, now: float) -> JsonObject | None:
        """Return the facts to record once the copies have continued for long enough, None if there are none."""
        jobs = [seen.job(disk.job) for disk in pivot.disks]
        if not self.copied or any(job.interrupted for job in jobs):
            return None
        if not all(job.status == "running" or job.status in STATUS_READY for job in jobs):
            return None
        self._sound_since = now if self._sound_since is None else self._sound_since
        ready = all(job.status == "ready" for job in jobs)
        if not ready and now - self._sound_since < limits.GO_ON_SOUND_S:
            return None
        facts: JsonObject = {
            "saved_bytes": sum(self.copied.values()),
            "interrupted_s": round(self._sound_since - self._began, 3),
        }
        self.copied, self._sound_since = {}, None
        return facts
