"""Queues for reads: in order, a few at a time, and none while a guest is in its pause."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import TypeVar, TypeVarTuple

from pivotd import limits
from pivotd.errors import TooBusyError
from pivotd.journal.reader import Reader

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class Door:
    """Admits one reader at a time, in order of arrival; ``calm`` returns once no guest is in its pause."""

    def __init__(self, calm: Callable[[], Awaitable[None]]) -> None:
        self._calm = calm
        self._lock = asyncio.Lock()
        self._waiting = 0

    async def __aenter__(self) -> None:
        """Wait for the turn. Raises: TooBusyError: limits.READS_WAITING_MAX readers already wait."""
        if self._waiting >= limits.READS_WAITING_MAX:
            raise TooBusyError(f"{self._waiting} readers already wait: ask again in a moment, and less often")
        self._waiting += 1
        try:
            await self._lock.acquire()
        finally:
            self._waiting -= 1
        try:
            await self._calm()
        except BaseException:
            self._lock.release()
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Admit the next reader."""
        self._lock.release()


class Lane:
    """One thread with a read-only connection of its own."""

    def __init__(self, reader: Reader, calm: Callable[[], Awaitable[None]]) -> None:
        self._reader = reader
        self._door = Door(calm)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="journal-reader")

    async def read(self, look: Callable[[Reader, *Ts], T], *arguments: *Ts) -> T:
        """Run ``look`` on the thread and return its result. Raises: TooBusyError, and what ``look`` raises."""
        async with self._door:
            return await asyncio.get_running_loop().run_in_executor(self._thread, look, self._reader, *arguments)

    def close(self) -> None:
        """Wait for the thread, and close the connection."""
        self._thread.shutdown()
        self._reader.close()
