"""What one driver knows: the pivot as the journal stores it, and its attempt. Only the driver's task changes either.

Every step of a driver gets this object. It is the only way to record, to wait, and to take a place in the queue of
pauses.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import replace
from typing import Any, TypeVar

from pivotd import limits, log
from pivotd.core import phases
from pivotd.core.attempt import Attempt, Moment
from pivotd.core.pivot import Phase, Pivot
from pivotd.core.undo import window_left_s
from pivotd.counts import COUNTS
from pivotd.engine import pivot_log
from pivotd.engine.converge import Converger
from pivotd.engine.inbox import Inbox
from pivotd.engine.ports import Clock, Domain, Fleet, Journal, Session
from pivotd.engine.retry_target import Interruptions
from pivotd.errors import JournalError

T = TypeVar("T")
GuestWrites = tuple[tuple[str, int], ...]
"""How often the guest has written, by disk."""
logger = log.get_logger()


def moment(session: Session) -> Moment:
    """Return this moment on a connection."""
    return session, session.resumes


class DriverState:
    """``pivot`` is always what the journal holds; ``attempt`` is what this process remembers in addition."""

    def __init__(  # noqa: PLR0913, PLR0917 - the ports of one pivot
        self,
        pivot: Pivot,
        domain: Domain,
        journal: Journal,
        clock: Clock,
        converger: Converger,
        fleet: Fleet | None = None,
    ) -> None:
        self.pivot = pivot
        self.fleet = fleet
        """None: this host belongs to no fleet."""
        asked = journal.asked_of(pivot.id)  # and answered: the end of that process does not end the request
        self.attempt = replace(
            Attempt.at_start(pivot, in_fleet=fleet is not None),
            cancelled_by=asked.get("cancel-requested"),
            released_by=asked.get("release-requested"),
        )
        self.successor: Pivot | None = None
        """The pivot that undoes this one."""
        self.inbox = Inbox()
        self.looked = asyncio.Event()
        """Set once QEMU has answered the first look, or its silence was reported."""
        self.advanced = asyncio.Event()
        """Set at each record, and then replaced by a new one."""
        self.waits_for = "its first look at QEMU"
        self.stalled = False
        self.guest_waits_for: str | None = None
        """Why a guest stays paused beyond the longest pause; None: it does not."""
        self.wait_recorded_of: int | None = None
        """The attempt of which it is recorded that its guest waits."""
        self.unrecorded = False
        """It was logged that a record cannot be written while the guest is paused; until the next record."""
        self.domain = domain
        self.journal = journal
        self.clock = clock
        self.converger = converger
        self.retry_target = Interruptions()
        self._silent_for_s = limits.RECONNECT_FIRST_S
        self._has_window = False
        self._window = contextlib.ExitStack()
        """Releases what is held meanwhile."""
        self._begun: tuple[str, dict[str, Any], Awaitable[Pivot]] | None = None
        """A record that is being written, and was not waited for yet."""
        self.counting: Awaitable[GuestWrites] | None = None
        """A count of the guest's writes that was begun when it was paused, and has not been waited for yet."""
        self._holds_until: float | None = None
        """How long checkpoints are held; None: they are not."""

    @property
    def has_window(self) -> bool:
        """Whether the domain's other pauses wait for this pivot."""
        return self._has_window

    @property
    def in_window(self) -> bool:
        """Whether the guest may be in a pause of this pivot."""
        return self.pivot.phase is Phase.PAUSING or self.pivot.owes_resume

    def remember(self, **changes: Any) -> None:
        """Replace fields of the attempt; what a step remembers before it sends a command survives its failure."""
        self.attempt = replace(self.attempt, **changes)

    # -- the journal --------------------------------------------------------------------------------------------

    async def record(self, event: str, facts: dict[str, Any], **changes: Any) -> None:
        """Record an event with changes of the pivot. Raises: PhaseConflictError, JournalError."""
        await self.finish_record()
        before = self.pivot
        assert phases.is_allowed(before.phase, changes.get("phase", before.phase)), (before.phase, changes)
        self.recorded(await self.journal.advance(before, event, facts, **changes))
        pivot_log.recorded(self.pivot, event, facts)

    def begin_record(self, event: str, facts: dict[str, Any], *, after_s: float = 0.0, **changes: Any) -> None:
        """Begin a record beside what comes next; nothing may rest on it before finish_record(), or the next record.

        ``after_s``: what comes next is to leave first.
        """
        assert self._begun is None, "one at a time"
        before = self.pivot

        async def advance() -> Pivot:
            if after_s:
                await asyncio.sleep(after_s)
            return await self.journal.advance(before, event, facts, **changes)

        self._begun = event, facts, self.beside(advance())

    @property
    def is_recording(self) -> bool:
        """Whether a record was begun and not waited for yet."""
        return self._begun is not None

    async def finish_record(self) -> None:
        """Wait for the record that was begun, if there is one. Raises: PhaseConflictError, JournalError."""
        if self._begun is not None:
            (event, facts, work), self._begun = self._begun, None
            self.recorded(await work)
            pivot_log.recorded(self.pivot, event, facts)

    def recorded(self, pivot: Pivot) -> None:
        """Continue with a pivot as it was just recorded, and answer the requests that wait for it."""
        pivot_log.changed(self.pivot, pivot)
        COUNTS.changed(self.pivot, pivot, lambda: self.converger.pace.copied_bytes)
        if pivot.phase is not self.pivot.phase:
            self.waits_for = "its next look at QEMU"  # no longer for what the phase before had to wait for
        self.pivot = pivot
        self.remember(switch_in_doubt=False)
        self.unrecorded = False
        advanced, self.advanced = self.advanced, asyncio.Event()
        advanced.set()
        self.inbox.settle(pivot, self.successor)
        if not self.in_window:
            self.leave_window()

    def read_again(self, pivot: Pivot) -> None:
        """Continue with what the journal holds; keep only requests, and what still has to be recorded."""
        self._begun = None
        known = self.attempt
        kept = ("cancelled_by", "released_by", "undo", "not_ours", "ours", "resumed_at")
        self.attempt = replace(
            Attempt.at_start(pivot, in_fleet=self.fleet is not None), **{name: getattr(known, name) for name in kept}
        )
        self.recorded(pivot)
        self.remember(switch_in_doubt=known.switch_in_doubt)

    async def note(self, event: str, facts: dict[str, Any]) -> None:
        """Append a record that changes no pivot. Raises: JournalError."""
        await self.journal.note(event, facts, domain=self.domain.name, pivot=self.pivot.id)
        pivot_log.recorded(self.pivot, event, facts)

    async def note_in_time(self, event: str, facts: dict[str, Any]) -> None:
        """Append a record on which no decision depends: the guest waits for it at most RECORD_PATIENCE_S."""
        with contextlib.suppress(JournalError, TimeoutError):
            async with asyncio.timeout(limits.RECORD_PATIENCE_S):
                await self.note(event, facts)

    # -- pauses, one at a time for each domain --------------------------------------------------------------------

    async def enter_window(self) -> None:
        """Wait until the other pauses of domain and QEMU have ended; hold checkpoints of the journal, and the log."""
        if not self._has_window:
            with contextlib.ExitStack() as held:
                for lock in (self.domain.window, self.domain.pause_of(self.pivot.identity)):
                    await lock.acquire()
                    held.callback(lock.release)
                self.journal.hold_checkpoints()
                self._window = held.pop_all()
            self._has_window = True
            self._holds_until = self.clock.monotonic() + self.pivot.options.max_pause_ms / 1000
            log.hold(self.pivot.options.max_pause_ms / 1000)

    def leave_window(self) -> None:
        """Let the next pause begin."""
        self.remember(deadline=None)
        if self._has_window:
            self._has_window = False
            self._end_hold()
            self._window.close()
            log.release()

    def _end_hold(self) -> None:
        if self._holds_until is not None:
            self._holds_until = None
            self.journal.release_checkpoints()

    def _end_long_hold(self) -> None:
        """Hold checkpoints in the first max_pause only: a guest can stay paused until a person helps."""
        if self._holds_until is not None and self.clock.monotonic() >= self._holds_until:
            self._end_hold()

    # -- waiting ------------------------------------------------------------------------------------------------

    async def wait(self, reason: str, timeout_s: float | None = None) -> None:
        """Wait for an event or a message, and report the reason; without a time, until another look is worthwhile."""
        self._end_long_hold()
        self.waits_for = reason
        if self.stalled:
            self.waits_for += f"; no progress for {self.converger.pace.stalled_s(self.clock.monotonic()):.0f} s"
        if timeout_s is None:
            idle = phases.is_resting(self.pivot)
            left_s = window_left_s(self.pivot, self.clock.utc_now())
            timeout_s = max(0.0, min(limits.HOLD_LOOK_S if idle else limits.LOOK_AGAIN_S, left_s))
        left_s = 0.0 if self.attempt.deadline is None else self.attempt.deadline - self.clock.monotonic()
        if left_s > 0:
            timeout_s = min(timeout_s, left_s)
        await self.sleep(timeout_s)

    async def telling(self, work: Awaitable[T], reason: str) -> T:
        """Return the result of work for which the guest has to wait; log the reason if it waits for too long.

        A timer costs the pause least, and here the journal, which takes no record then, is what the guest waits for.
        """
        left_s = 0.0 if self.attempt.deadline is None else self.attempt.deadline - self.clock.monotonic()
        patience_s = max(left_s, limits.RECORD_PATIENCE_S)
        late = asyncio.get_running_loop().call_later(patience_s, self._say_guest_waits, reason)
        try:
            return await work
        finally:
            late.cancel()

    def _say_guest_waits(self, reason: str | None) -> None:
        if reason is not None and self.guest_waits_for is None:
            logger.error("pivot.guest-waits", domain=self.pivot.domain, pivot=self.pivot.id, reason=reason)
        self.guest_waits_for = reason

    async def note_guest_waits(self, reason: str | None) -> None:
        """Log once why a guest stays paused beyond its longest pause; None: it need not.

        The record of that, one in each pause, stands before the one of its end, which may be long in coming.
        """
        late = self.in_window and self.attempt.deadline_passed
        now = reason if late and self.attempt.resumed_at is None else None
        self._say_guest_waits(now)
        if now is not None and self.wait_recorded_of != self.pivot.attempt:
            self.wait_recorded_of = self.pivot.attempt
            pause = self.attempt.pause(self.pivot, self.clock.monotonic(), self.clock.utc_now())
            await self.note_in_time("guest-waits", {"reason": now, "pause_ms": pause.pause_ms})

    async def ask_again(self, reason: str) -> None:
        """Wait before the next look at a QEMU that does not answer; each wait is longer."""
        self._end_long_hold()
        self.waits_for = f"{reason}; nothing is decided until QEMU answers"
        if self._silent_for_s >= 1:
            self.looked.set()
        left_s = 0.0 if self.attempt.deadline is None else self.attempt.deadline - self.clock.monotonic()
        await self.sleep(min(self._silent_for_s, left_s) if left_s > 0 else self._silent_for_s)
        self._silent_for_s = min(self._silent_for_s * 2, limits.RECONNECT_MAX_S)

    def heard(self) -> None:
        """QEMU has answered."""
        self._silent_for_s = limits.RECONNECT_FIRST_S

    async def sleep(self, timeout_s: float) -> None:
        """Sleep until something has changed since the last look began, at most timeout_s."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self.inbox.woken.wait()

    async def back_off(self, timeout_s: float) -> None:
        """Sleep after a failure, whatever QEMU does; a new message or the end of the daemon ends the sleep."""
        self._end_long_hold()
        until, posted, ending = self.clock.monotonic() + timeout_s, self.inbox.posted, self.inbox.ending
        while (left_s := until - self.clock.monotonic()) > limits.BACK_OFF_REST_S:
            if (self.inbox.posted, self.inbox.ending) != (posted, ending):
                return
            self.inbox.woken.clear()
            await self.sleep(left_s)

    def beside(self, work: Coroutine[Any, Any, T]) -> Awaitable[T]:
        """Begin work beside what comes next; its error is raised where its result is waited for, else nowhere."""
        task = asyncio.ensure_future(work)
        task.add_done_callback(lambda done: done.cancelled() or done.exception())  # counts as told
        return task

    async def unless_told(self, work: Coroutine[Any, Any, T]) -> T | None:
        """Return the result of work, None if the pivot is cancelled or the daemon ends meanwhile: flushes take long."""
        task = asyncio.ensure_future(work)
        try:
            while not task.done():
                if self.inbox.interrupts:
                    return None
                await asyncio.wait([task], timeout=limits.CONVERGE_CHECK_S)
            return task.result()
        finally:
            await _cancelled(task)

    async def unless_late(
        self, work: Coroutine[Any, Any, T], timeout_s: float, late: Callable[[], Awaitable[bool]]
    ) -> T:
        """Return the result of work; while it has not ended in time, call ``late`` until that returns True."""
        task = asyncio.get_running_loop().create_task(work, name=f"pivot {self.pivot.id}")
        try:
            await asyncio.wait([task], timeout=timeout_s)
            while not task.done() and not await late():
                await asyncio.wait([task], timeout=limits.CANCEL_AGAIN_S)
            return await task
        finally:
            await _cancelled(task)


async def _cancelled(task: asyncio.Task[Any]) -> None:
    """End a task whose result is no longer needed; the task releases what it holds before this returns."""
    if not task.done():
        task.cancel()
        await asyncio.wait([task])
