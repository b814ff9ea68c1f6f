"""What this process has counted since it started: app/metrics.py shows it to a monitoring system.

One object for the process, as the log is: those who count need no way to those who show it.
"""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Callable

from pivotd.core.pivot import Outcome, Pivot

PAUSE_S = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 20.0, 60.0)
COMMIT_S = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 2.0)
RECOVERY_S = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 20.0, 60.0, 600.0)
FLEET_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 2.0, 10.0)


class Histogram:
    """Counts times by their length in seconds; threads may share it."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._lock = threading.Lock()
        self._numbers = [0] * (len(bounds) + 1)
        self._total_s = 0.0

    def observe(self, seconds: float) -> None:
        """Count one."""
        with self._lock:
            self._numbers[bisect_left(self._bounds, seconds)] += 1
            self._total_s += seconds

    def shown(self) -> tuple[list[tuple[str, float]], float]:
        """Return, by upper bound as Prometheus spells it, how many were not longer, and the sum of all."""
        with self._lock:
            numbers, total_s = list(self._numbers), self._total_s
        names = [*(f"{bound:g}" for bound in self._bounds), "+Inf"]
        return [(name, float(sum(numbers[: index + 1]))) for index, name in enumerate(names)], total_s


class Counts:
    """Everything that is counted."""

    def __init__(self) -> None:
        self.started_s = time.time()
        self._began = time.monotonic()
        self.pauses: defaultdict[tuple[str, str], Histogram] = defaultdict(lambda: Histogram(PAUSE_S))
        """Pauses of guests by kind of pivot, and by what the pause has led to: an outcome, or the phase before."""
        self.pivots: Counter[tuple[str, str]] = Counter()
        """Pivots with an outcome, by kind and outcome."""
        self.copied_bytes: Counter[str] = Counter()
        """What their jobs have copied, by kind."""
        self.commits = Histogram(COMMIT_S)
        """Durable transactions of the journal."""
        self.commits_failed = 0
        self.recoveries = Histogram(RECOVERY_S)
        """From the start of this process until a guest ran that it had found in a pause of pivotd."""
        self.fleet = Histogram(FLEET_S)
        """Answers of etcd."""
        self.fleet_failed = 0
        """Requests without one."""
        self._found_paused: set[str] = set()

    def taken_up(self, pivot: Pivot) -> None:
        """An earlier process has left a pivot open."""
        if pivot.owes_resume:
            self._found_paused.add(pivot.id)

    def changed(self, before: Pivot, after: Pivot, copied_bytes: Callable[[], int | None]) -> None:
        """A pivot is durable in another state."""
        kind = after.kind.value
        for pause in after.pauses[len(before.pauses) :]:
            self.pauses[kind, pause.ended].observe(pause.pause_ms / 1000)
        if before.decided_at is None and after.decided_at is not None:
            self.pivots[kind, after.outcome or Outcome.UNKNOWN.value] += 1
            self.copied_bytes[kind] += copied_bytes() or 0
        if after.id in self._found_paused and not after.owes_resume:
            self._found_paused.discard(after.id)
            self.recoveries.observe(time.monotonic() - self._began)


COUNTS = Counts()
