"""Commands without ids: the reply to each is its own, or the connection ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from pivotd.errors import QmpUnknownError, QmpUnsentError
from pivotd.qmp.monitor import Monitor, command, yank
from tests.support.cancel import replies_due
from tests.wire.server import FakeQemu, Json, line

FIRST, SECOND, THIRD = (command(name) for name in ("first", "second", "third"))
TIMEOUT_S = 5.0
SHORT_S = 0.02


@pytest.fixture
async def monitor(fake: FakeQemu) -> AsyncIterator[Monitor]:
    monitor = await Monitor.connect(fake.path)
    yield monitor
    await monitor.close()


def named(fake: FakeQemu, *silent: str) -> None:
    """Answer each command with its name, some not at all."""

    async def answer(asked: Json) -> Json | None:
        name = asked.get("execute") or asked["exec-oob"]
        return None if name in silent else {"return": name}

    fake.answer = answer


async def test_each_reply_is_its_own(fake: FakeQemu, monitor: Monitor):
    """With and without ids, asked at once."""
    named(fake)
    bursts = [
        monitor.burst([FIRST, SECOND], TIMEOUT_S, bare=True),
        monitor.burst([THIRD, FIRST], TIMEOUT_S),
        monitor.burst([SECOND], TIMEOUT_S, bare=True),
        monitor.burst([THIRD], TIMEOUT_S, bare=True),
    ]
    assert await asyncio.gather(*bursts) == [["first", "second"], ["third", "first"], ["second"], ["third"]]
    assert replies_due(monitor) == 0


async def test_they_leave_without_ids(fake: FakeQemu, monitor: Monitor):
    """That is what they are for: QEMU reads them byte by byte."""
    asked: list[Json] = []

    async def answer(one: Json) -> Json:
        asked.append(one)
        return {"return": {}}

    fake.answer = answer
    await monitor.burst([FIRST], TIMEOUT_S, bare=True)
    await monitor.burst([FIRST], TIMEOUT_S)
    assert ["id" in one for one in asked] == [False, True]


async def test_a_late_reply_is_not_taken_for_the_next(fake: FakeQemu, monitor: Monitor):
    """Nobody waits for it any more; it is counted all the same."""
    named(fake)
    fake.gate.clear()
    with pytest.raises(QmpUnknownError, match="no answer within"):
        await monitor.burst([FIRST, SECOND], SHORT_S, bare=True)
    again = asyncio.ensure_future(monitor.burst([THIRD], TIMEOUT_S, bare=True))
    await asyncio.sleep(SHORT_S)
    fake.gate.set()
    assert await again == ["third"]
    assert await monitor.execute(FIRST) == "first"
    assert monitor.connected


async def test_a_reply_that_never_comes_ends_the_connection(fake: FakeQemu, monitor: Monitor):
    """What came after it may have been taken for it: that shows at the first reply with an id."""
    named(fake, "first")
    with pytest.raises(QmpUnknownError, match="no answer within"):
        await monitor.burst([FIRST, SECOND], SHORT_S, bare=True)
    with pytest.raises(QmpUnknownError, match="closed before the answer"):
        await monitor.execute(THIRD)
    assert not monitor.connected


@pytest.mark.parametrize("reply", [{"return": {}}, {"error": {"class": "GenericError", "desc": "no"}}])
async def test_a_reply_too_many_ends_the_connection(fake: FakeQemu, monitor: Monitor, reply: Json):
    """It was taken for the next command's, whose own reply then came without anybody who waits."""
    named(fake)
    fake.gate.clear()
    waiting = asyncio.ensure_future(monitor.burst([FIRST, SECOND], TIMEOUT_S, bare=True))
    while len(fake.received) < 2:
        await asyncio.sleep(0)
    fake.push(line(reply))
    fake.gate.set()
    await waiting
    with pytest.raises((QmpUnknownError, QmpUnsentError)):  # it may have ended already
        await monitor.execute(THIRD)
    assert not monitor.connected


async def test_a_command_out_of_band_may_overtake_them(fake: FakeQemu, monitor: Monitor):
    """Its reply says nothing of theirs."""
    fake.gate.clear()
    named(fake)
    waiting = asyncio.ensure_future(monitor.burst([FIRST], TIMEOUT_S, bare=True))
    cut = asyncio.ensure_future(monitor.burst([yank("node")], TIMEOUT_S))
    while len(fake.received) < 2:
        await asyncio.sleep(0)
    fake.push(line({"return": "cut", "id": fake.asked[-1]["id"]}))
    assert await cut == ["cut"]
    assert not waiting.done()
    fake.gate.set()
    assert await waiting == ["first"]
    assert monitor.connected
