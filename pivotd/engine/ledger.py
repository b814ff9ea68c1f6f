"""One pivot as the journal has it, its place in the queue of pauses, and waiting: what every step of a driver needs."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

from pivotd import limits
from pivotd.core import phases, undo
from pivotd.core.pivot import Phase, Pivot
from pivotd.engine.converge import Converger
from pivotd.engine.memory import Memory
from pivotd.engine.ports import Clock, Domain, Journal
from pivotd.errors import JournalError


class Ledger:
    """``pivot`` is always what the journal holds."""

    def __init__(self, pivot: Pivot, domain: Domain, journal: Journal, clock: Clock, converger: Converger) -> None:
        self.pivot = pivot
        self.looked = asyncio.Event()
        """Set after the first look that was not silent, or that was and was told."""
        self.advanced = asyncio.Event()
        """Set, and replaced by a new one, at each record."""
        self.waits_for = "its first look at QEMU"
        self.pace = converger.pace
        self.stalled = False
        self._domain = domain
        self._journal = journal
        self._clock = clock
        self._converger = converger
        self._woken = asyncio.Event()
        self._ending = False
        self._memory = Memory.of_earlier_process() if pivot.phase is Phase.PAUSING else Memory()
        self._retry_at = 0.0
        self._silent_for_s = limits.RECONNECT_FIRST_S
        self._has_window = False

    @property
    def _in_window(self) -> bool:
        return self.pivot.phase is Phase.PAUSING or self.pivot.owes_resume

    async def _record(self, before: Pivot, event: str, facts: dict[str, Any], **changes: Any) -> None:
        assert phases.is_allowed(before.phase, changes.get("phase", before.phase)), (before.phase, changes)
        self.pivot = await self._journal.advance(before, event, facts, **changes)
        self._memory.switch_in_doubt = False
        self._announce()
        if not self._in_window:
            self._leave_window()

    def _announce(self) -> None:
        advanced, self.advanced = self.advanced, asyncio.Event()
        advanced.set()

    async def _note(self, event: str, facts: dict[str, Any]) -> None:
        await self._journal.note(event, facts, domain=self._domain.name, pivot=self.pivot.id)

    async def _note_in_time(self, event: str, facts: dict[str, Any]) -> None:
        """Append a record that nothing rests on: the guest waits for it no longer than RECORD_PATIENCE_S."""
        with contextlib.suppress(JournalError, TimeoutError):
            async with asyncio.timeout(limits.RECORD_PATIENCE_S):
                await self._journal.note(event, facts, domain=self._domain.name, pivot=self.pivot.id)

    async def _enter_window(self) -> None:
        """One pause at a time per domain, and no checkpoint of the journal meanwhile."""
        if self._has_window:
            return
        await self._domain.window.acquire()
        self._journal.hold_checkpoints()
        self._has_window = True

    def _leave_window(self) -> None:
        self._memory.deadline = None
        if self._has_window:
            self._has_window = False
            self._journal.release_checkpoints()
            self._domain.window.release()

    async def _wait(self, reason: str, timeout_s: float | None = None) -> None:
        self.waits_for = reason
        if self.stalled:
            self.waits_for += f"; no progress for {self.pace.stalled_s(self._clock.monotonic()):.0f} s"
        if timeout_s is None:
            idle = phases.is_resting(self.pivot)
            left_s = undo.window_left_s(self.pivot, self._clock.utc_now())
            timeout_s = max(0.0, min(limits.HOLD_LOOK_S if idle else limits.LOOK_AGAIN_S, left_s))
        if self._memory.deadline is not None:
            timeout_s = min(timeout_s, max(0.0, self._memory.deadline - self._clock.monotonic()))
        await self._sleep(timeout_s)

    async def _ask_again(self, reason: str) -> None:
        self.waits_for = f"{reason}; nothing is decided until QEMU answers"
        if self._silent_for_s >= 1:
            self.looked.set()
        await self._sleep(self._silent_for_s)
        self._silent_for_s = min(self._silent_for_s * 2, limits.RECONNECT_MAX_S)

    async def _sleep(self, timeout_s: float) -> None:
        """Sleep until something has changed since the last look began, at most timeout_s."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._woken.wait()
