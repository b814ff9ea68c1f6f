"""Before a pause: get the backlog small and flush both images, so that little is left to do in the pause."""

from __future__ import annotations

from dataclasses import dataclass, field

from pivotd import limits
from pivotd.core.observation import Observation
from pivotd.core.pivot import JsonObject, Pivot
from pivotd.core.request import CopyMode, WriteLimit
from pivotd.engine.pace import Pace
from pivotd.engine.ports import Clock, Session
from pivotd.engine.slowing import Slowing
from pivotd.host.flush import Flusher


@dataclass(frozen=True, slots=True)
class Converged:
    """The pause may begin. ``quick``: the flush just before was so quick that ``stop`` will return early."""

    quick: bool
    facts: JsonObject = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class NotYet:
    """The guest has to keep running for a while."""

    reason: str
    wait_s: float


@dataclass(frozen=True, slots=True)
class Failed:
    """A flush of an image that the pivot writes to has failed: nobody can tell what the storage still has."""

    reason: str


@dataclass(frozen=True, slots=True)
class Slow:
    """The guest's writes must be slowed: record these limits, then set them."""

    write_limits: tuple[WriteLimit, ...]


class Converger:
    """Brings one pivot to a state in which its pause is short. Every look of the driver updates ``pace``."""

    def __init__(self, flusher: Flusher, clock: Clock) -> None:
        self.pace = Pace()
        self._flusher = flusher
        self._clock = clock
        self._large_since: float | None = None
        self._write_blocking: bool | None = None
        """Whether QEMU has accepted the change; None: it was not asked."""
        self._slowing = Slowing()

    async def step(self, session: Session, pivot: Pivot, seen: Observation) -> Converged | NotYet | Slow | Failed:
        """Return whether the pause may begin now."""
        backlog = _backlog(pivot, seen)
        if backlog > self._backlog_bytes_max(pivot):
            return await self._large(session, pivot)
        self._large_since = None
        # A name that is no path (a URI, json:) cannot be opened: the flush then says None.
        written = _written(pivot)
        paths = [*(disk.source.filename for disk in pivot.disks), *written]
        flush_ms: float | None = None
        for _ in range(limits.FLUSH_ROUNDS_MAX):
            failure: OSError | None = None
            try:
                flush_ms = await self._flusher.flush(paths)
            except OSError as error:
                failure = error
            for name in written:  # also what a flush has said that was given up
                if (why := self._flusher.failed.get(name)) is not None:
                    return Failed(
                        f"{name} failed to make durable what it had taken ({why}): check its storage, and begin anew"
                    )
            if failure is not None:
                what = f"a flush of {failure.filename} failed: {failure.strerror}"
                reason = f"the storage does not answer a flush: {failure}" if failure.errno is None else what
                return NotYet(reason, limits.RETRY_MAX_S)
            if flush_ms is None or flush_ms < limits.FLUSH_QUICK_MS:
                break
        seen = await session.look(pivot)
        backlog = _backlog(pivot, seen)
        if backlog > self._backlog_bytes_max(pivot):
            return await self._large(session, pivot)
        quick = (
            flush_ms is not None
            and flush_ms < limits.FLUSH_QUICK_MS
            and pivot.options.max_pause_ms >= limits.PIPELINE_PAUSE_MS_MIN
        )
        flushed = None if flush_ms is None else round(flush_ms, 3)
        return Converged(quick, {"backlog_bytes": backlog, "flush_ms": flushed})

    def _backlog_bytes_max(self, pivot: Pivot) -> int:
        """Return how much can be copied in half of the longest pause, at the measured rate if there is one."""
        rate = self.pace.copy_bytes_per_s
        most = max(limits.BACKLOG_BYTES_MAX, pivot.options.granularity_bytes or 0)  # a write costs no less
        if rate is None:
            return most
        in_half = rate * pivot.options.max_pause_ms // 2000
        return max(limits.BACKLOG_BYTES_MIN, min(most, in_half))

    async def _large(self, session: Session, pivot: Pivot) -> NotYet | Slow:
        now = self._clock.monotonic()
        if self._large_since is None:
            self._large_since = now
            await self._slowing.begin(session, pivot, now)
        if now - self._large_since >= limits.CONVERGE_PATIENCE_S and pivot.options.copy_mode is CopyMode.AUTO:
            self._large_since = now
            if self._write_blocking is None:
                self._write_blocking = await session.write_blocking(pivot)
                self.pace.begin_again(now)
            if not self._write_blocking and pivot.options.throttle:
                slower = await self._slowing.next(session, pivot, now, self.pace.share)
                if slower is not None:
                    self.pace.begin_again(now)
                    return Slow(slower)
        return NotYet(self._explain(pivot), limits.CONVERGE_CHECK_S)

    def _explain(self, pivot: Pivot) -> str:
        """Return why the guest has to keep running, and what helps; the figures stand in the answer on progress."""
        text = "too much is left to copy for the longest pause"
        if self._write_blocking or pivot.options.copy_mode is CopyMode.WRITE_BLOCKING:
            return f"{text}; the guest's writes wait for the destination (write-blocking)"
        if pivot.options.write_limits:
            return f"{text}; the guest's writes are slowed"
        if pivot.options.copy_mode is CopyMode.AUTO and pivot.options.throttle and self._write_blocking is None:
            return text
        return f"{text}; if it does not get less, cancel and copy with --copy-mode write-blocking from the start"


def _written(pivot: Pivot) -> list[str]:
    """Return the files that hold what the pivot has written: of a merge without a switch, the layers that stay."""
    merges = [disk for disk in pivot.disks if not disk.switches]
    images = [disk.destination for disk in pivot.disks] + [disk.source for disk in merges]
    return [image.filename for image in (*images, *(disk.base for disk in merges)) if image is not None]


def _backlog(pivot: Pivot, seen: Observation) -> int:
    return sum(seen.job(disk.job).backlog_bytes or 0 for disk in pivot.movers)
