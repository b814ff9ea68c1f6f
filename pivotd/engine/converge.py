"""Before a pause: a small backlog, both images flushed, so that what is left to do with the guest paused is little."""

from __future__ import annotations

from dataclasses import dataclass, field

from pivotd import limits
from pivotd.core.observation import Observation
from pivotd.core.words import CopyMode, JsonObject, Pivot
from pivotd.engine.flush import Flusher
from pivotd.engine.ports import Clock, Session


@dataclass(frozen=True, slots=True)
class Converged:
    """The pause may begin. ``quick``: the flush just before was so short that ``stop`` will return early."""

    quick: bool
    facts: JsonObject = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class NotYet:
    """The guest has to run on for a while."""

    reason: str
    wait_s: float


class Converger:
    """Brings one pivot to where a pause is short."""

    def __init__(self, flusher: Flusher, clock: Clock) -> None:
        self._flusher = flusher
        self._clock = clock
        self._large_since: float | None = None
        self._tried_write_blocking = False

    async def step(self, session: Session, pivot: Pivot, seen: Observation) -> Converged | NotYet:
        """Return whether the pause may begin now."""
        backlog = _backlog(pivot, seen)
        if backlog > limits.BACKLOG_BYTES_MAX:
            return await self._large(session, pivot, backlog)
        self._large_since = None
        # A source name that is no path (a URI, json:) cannot be opened: the flush then says None.
        paths = [image.filename for disk in pivot.disks for image in (disk.source, disk.destination)]
        flush_ms: float | None = None
        for _ in range(limits.FLUSH_ROUNDS_MAX):
            try:
                flush_ms = await self._flusher.flush(paths)
            except (TimeoutError, OSError) as error:
                return NotYet(f"the storage does not answer a flush: {error or 'no answer'}", limits.RETRY_MAX_S)
            if flush_ms is None or flush_ms < limits.FLUSH_QUICK_MS:
                break
        seen = await session.look(pivot)
        backlog = _backlog(pivot, seen)
        if backlog > limits.BACKLOG_BYTES_MAX:
            return await self._large(session, pivot, backlog)
        quick = (
            flush_ms is not None
            and flush_ms < limits.FLUSH_QUICK_MS
            and pivot.options.max_pause_ms >= limits.PIPELINE_PAUSE_MS_MIN
        )
        flushed = None if flush_ms is None else round(flush_ms, 3)
        return Converged(quick, {"backlog_bytes": backlog, "flush_ms": flushed})

    async def _large(self, session: Session, pivot: Pivot, backlog: int) -> NotYet:
        now = self._clock.monotonic()
        if self._large_since is None:
            self._large_since = now
        patient = now - self._large_since < limits.CONVERGE_PATIENCE_S
        if not patient and not self._tried_write_blocking and pivot.options.copy_mode is CopyMode.AUTO:
            self._tried_write_blocking = True
            await session.write_blocking(pivot)
        return NotYet(
            f"the guest writes as fast as the destination takes it: {backlog} bytes are left", limits.CONVERGE_CHECK_S
        )


def _backlog(pivot: Pivot, seen: Observation) -> int:
    return sum(seen.job(disk.job).backlog_bytes or 0 for disk in pivot.disks)
