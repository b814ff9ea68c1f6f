"""Many who ask at once share an answer; nobody gets one that was begun before they asked."""

from __future__ import annotations

import asyncio

import pytest

from pivotd import limits
from pivotd.app.shared_answer import SharedAnswer
from pivotd.errors import TooBusyError


class Maker:
    """Makes the numbers 1, 2, …, each when it is let go."""

    def __init__(self) -> None:
        self.made = 0
        self.go = asyncio.Semaphore(0)

    async def make(self) -> int:
        self.made += 1
        number = self.made
        await self.go.acquire()
        return number


async def test_who_waits_shares_the_next() -> None:
    """The first makes one; all who ask meanwhile share the second; who asks later gets a third."""
    maker = Maker()
    shared = SharedAnswer(maker.make)
    first = asyncio.create_task(shared.get())
    await asyncio.sleep(0)
    others = [asyncio.create_task(shared.get()) for _ in range(5)]
    await asyncio.sleep(0)
    maker.go.release()
    assert await first == 1
    await asyncio.sleep(0)
    late = asyncio.create_task(shared.get())
    maker.go.release()
    assert await asyncio.gather(*others) == [2] * 5
    maker.go.release()
    assert await late == 3
    assert maker.made == 3


async def test_one_that_fails_or_leaves_takes_nobody_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next one who waits makes an answer; too many are refused."""
    maker = Maker()
    shared = SharedAnswer(maker.make)
    monkeypatch.setattr(limits, "READS_WAITING_MAX", 2)
    first, second = asyncio.create_task(shared.get()), asyncio.create_task(shared.get())
    await asyncio.sleep(0)
    with pytest.raises(TooBusyError, match="2 readers already wait"):
        await shared.get()
    first.cancel()
    maker.go.release()
    assert await second == 2
