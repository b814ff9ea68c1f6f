"""One answer for all who ask at once: it is made once at a time, and begun after each of them has asked."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from pivotd import limits
from pivotd.errors import TooBusyError

T = TypeVar("T")


class SharedAnswer(Generic[T]):
    """Calls ``make`` for whoever asks; who waits while one is made shares the next."""

    def __init__(self, make: Callable[[], Awaitable[T]]) -> None:
        self._make = make
        self._one_at_a_time = asyncio.Lock()
        self._waiting, self._begun = 0, 0
        self._last: tuple[int, T] | None = None

    async def get(self) -> T:
        """Return an answer that was begun after this call.

        Raises: TooBusyError: limits.READS_WAITING_MAX wait already; whatever ``make`` raises.
        """
        if self._waiting >= limits.READS_WAITING_MAX:
            raise TooBusyError(f"{self._waiting} readers already wait for the next answer: ask again when it is made")
        begun = self._begun
        self._waiting += 1
        try:
            async with self._one_at_a_time:
                if self._last is None or self._last[0] <= begun:
                    self._begun += 1
                    number = self._begun
                    self._last = number, await self._make()
                return self._last[1]
        finally:
            self._waiting -= 1
            if not self._waiting:
                self._last = None  # nobody could take it any more
