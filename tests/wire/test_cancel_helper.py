"""The one who cancels everywhere is judged itself: what it must notice, it notices."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from tests.support import cancel
from tests.support.cancel import everywhere


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cancel, "SETTLE_S", 0.1)


async def _turns(number: int) -> None:
    for _ in range(number):
        await asyncio.sleep(0)


async def test_it_counts_every_suspension_twice():
    """Once while what is awaited goes on, once after it has ended."""
    assert await everywhere(lambda: _turns(3)) == 6


async def test_it_sees_a_swallowed_cancellation():
    """A coroutine that goes on as if nothing had happened."""

    async def work() -> None:
        try:
            await asyncio.sleep(0)
        except asyncio.CancelledError:
            return

    with pytest.raises(AssertionError, match="swallowed"):
        await everywhere(work)


async def test_it_sees_a_descriptor_left_open():
    """Opened before the await, closed after it, and in no finally."""
    opened: list[int] = []

    async def work() -> None:
        opened.append(os.open("/dev/null", os.O_RDONLY))
        await asyncio.sleep(0)
        os.close(opened.pop())

    with pytest.raises(AssertionError, match=r"left behind: .*descriptor"):
        await everywhere(work)
    for descriptor in opened:
        os.close(descriptor)


async def test_it_sees_a_task_left_running():
    """Started beside the work, and not ended with it."""
    started: list[asyncio.Task[None]] = []

    async def work() -> None:
        started.append(asyncio.ensure_future(_turns(10**9)))
        await asyncio.sleep(0)
        started.pop().cancel()

    with pytest.raises(AssertionError, match=r"left behind: .*Task"):
        await everywhere(work)
    for task in started:
        task.cancel()


async def test_it_sees_a_result_that_gets_lost_on_the_way(tmp_path: Path):
    """The connection was made, the one who waits for it is cancelled before it learns that."""
    server = await asyncio.start_unix_server(lambda _reader, _writer: None, tmp_path / "q")

    async def work() -> None:
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_soon(lambda: future.set_result(os.open("/dev/null", os.O_RDONLY)))
        os.close(await future)

    with pytest.raises((AssertionError, asyncio.InvalidStateError)):
        await everywhere(work)
    server.close()
