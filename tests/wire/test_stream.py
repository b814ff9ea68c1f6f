"""The byte stream: cut anywhere, joined, out of order, and broken."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from pivotd.errors import QmpRefusedError, QmpUnknownError, QmpUnsentError
from pivotd.qmp.monitor import Monitor, command
from tests.support.cancel import Leftovers
from tests.wire.server import FakeQemu, Json, event, line

TOO_LONG_BYTES = 11 << 20
"""qemu.qmp reads messages up to 10 MiB."""
LONG_BYTES = 9 << 20

BROKEN = {
    "no JSON": b"{nothing}\r\n",
    "no text": b'{"return": "\xff\xfe"}\r\n',
    "a list": b"[]\r\n",
    "null": b"null\r\n",
    "an empty line": b"\r\n",
    "nested too deep": b'{"return": ' + b"[" * 100_000 + b"\r\n",
    "too long": b'{"return": "' + b"x" * TOO_LONG_BYTES + b'"}\r\n',
    "an error without an id": line({"error": {"class": "GenericError", "desc": "Invalid JSON syntax"}}),
    "an id that is a list": line({"return": {}, "id": [1]}),
    "a number that is too long": b'{"return": ' + b"9" * 5000 + b"}\r\n",
}
IGNORED = {
    "an event without a name": line({"event": None}),
    "an answer to nobody": line({"return": {}, "id": "nobody"}),
    "an answer without an id": line({"return": {}}),
    "a refusal to nobody": line({"error": {"class": "C", "desc": "d"}, "id": "nobody"}),
    "an unknown event": event("NEWS", any=1),
    "an event with data of another shape": line({"event": "JOB_STATUS_CHANGE", "data": [1]}),
    "an event without data": line({"event": "JOB_STATUS_CHANGE"}),
    "an event of a job without a name": event("JOB_STATUS_CHANGE", id=None, status="ready"),
    "an event of a job with a status of another shape": event("JOB_STATUS_CHANGE", id="j", status=["ready"]),
    "a long event": event("NEWS", text="x" * LONG_BYTES),
}


async def test_an_answer_may_be_cut_at_any_byte(fake: FakeQemu):
    """In two pieces, with the cut at every place."""
    longest = len(line({"id": "0", "return": {}})) + 1
    for cut in range(1, longest):
        fake.chunks = lambda data, cut=cut: iter([data[:cut], data[cut:]])
        monitor = await Monitor.connect(fake.path)
        assert await monitor.execute(command("query-status"), 5) == {}
        await monitor.close()


async def test_answers_and_events_may_come_in_one_piece(fake: FakeQemu):
    """A whole burst's answers with events between them, and the first bytes of what follows."""
    kept: list[Json] = []

    async def keep(asked: Json) -> None:
        kept.append(asked)

    fake.answer = keep
    monitor = await Monitor.connect(fake.path)
    asked = [command("query-status"), command("query-jobs"), command("query-block")]
    waiting = asyncio.ensure_future(monitor.burst(asked, 5))
    while len(kept) < 3:
        await asyncio.sleep(0)
    ready = event("JOB_STATUS_CHANGE", id="j", status="ready")
    texts = b"".join(ready + line({"return": number, "id": one["id"]}) for number, one in enumerate(kept))
    fake.push(texts + ready[:20])
    assert await waiting == [0, 1, 2]
    assert monitor.job_status == {"j": "ready"}
    await monitor.close()


async def test_answers_in_another_order_reach_those_who_asked(fake: FakeQemu):
    """Out-of-band commands may overtake others."""
    kept: list[Json] = []

    async def keep(asked: Json) -> None:
        kept.append(asked)

    fake.answer = keep
    monitor = await Monitor.connect(fake.path)
    waiting = [asyncio.ensure_future(monitor.execute(command(name), 5)) for name in ("a", "b", "c")]
    while len(kept) < 3:
        await asyncio.sleep(0)
    for one in reversed(kept):
        fake.push(line({"return": one["execute"], "id": one["id"]}))
    assert await asyncio.gather(*waiting) == ["a", "b", "c"]
    await monitor.close()


async def test_the_second_answer_to_one_command_is_ignored(fake: FakeQemu):
    """Also while the rest of its burst is awaited."""
    kept: list[Json] = []

    async def keep(asked: Json) -> None:
        kept.append(asked)

    fake.answer = keep
    monitor = await Monitor.connect(fake.path)
    waiting = asyncio.ensure_future(monitor.burst([command("a"), command("b")], 5))
    while len(kept) < 2:
        await asyncio.sleep(0)
    first, second = kept
    for number, one in ((1, first), (2, first), (3, second), (4, second)):
        fake.push(line({"return": number, "id": one["id"]}))
    assert await waiting == [1, 3]
    assert monitor.connected
    await monitor.close()


async def test_a_late_answer_is_not_taken_for_the_next(fake: FakeQemu):
    """Nobody waits for it any more."""

    async def echo(asked: Json) -> Json:
        return {"return": asked["execute"]}

    fake.answer = echo
    monitor = await Monitor.connect(fake.path)
    fake.gate.clear()
    with pytest.raises(QmpUnknownError, match="no answer within"):
        await monitor.burst([command("a"), command("b")], 0.02)
    again = asyncio.ensure_future(monitor.execute(command("c"), 5))
    while len(fake.received) < 3:
        await asyncio.sleep(0)
    fake.gate.set()
    assert await again == "c"
    assert monitor.connected
    await monitor.close()


@pytest.mark.parametrize("said", BROKEN.values(), ids=BROKEN.keys())
async def test_what_is_no_message_ends_this_connection_and_no_more(fake: FakeQemu, said: bytes):
    """The command is unknown, the next is unsent, closing is quiet, nothing stays, a new connection works."""
    left = Leftovers()
    monitor = await Monitor.connect(fake.path)
    fake.gate.clear()
    waiting = asyncio.ensure_future(monitor.execute(command("stop"), 10))
    while not fake.received:
        await asyncio.sleep(0)
    fake.push(said)
    with pytest.raises(QmpUnknownError):
        await waiting
    await monitor.closed()
    with pytest.raises(QmpUnsentError):
        await monitor.execute(command("cont"))
    await monitor.close()
    assert not monitor._client._pending
    await left.nothing()
    fake.gate.set()
    again = await Monitor.connect(fake.path)
    assert await again.execute(command("query-status")) == {}
    await again.close()
    assert fake.received == ["stop", "query-status"]


@pytest.mark.parametrize("said", IGNORED.values(), ids=IGNORED.keys())
async def test_what_means_nothing_to_us_disturbs_nobody(fake: FakeQemu, said: bytes):
    """The connection lives, and nothing is noted."""
    monitor = await Monitor.connect(fake.path)
    fake.push(said)
    assert await monitor.execute(command("query-status"), 10) == {}
    assert not monitor.job_status
    await monitor.close()


@pytest.mark.parametrize("reply", [{}, {"error": None}, {"error": "no"}, {"error": 5, "return": {}}, {"value": 1}])
async def test_an_answer_that_is_neither_value_nor_error_means_unknown(fake: FakeQemu, reply: Json):
    """It may have run; and whoever reads the value must not find nothing there."""

    async def answer(asked: Json) -> Json:
        return reply

    fake.answer = answer
    monitor = await Monitor.connect(fake.path)
    with pytest.raises(QmpUnknownError):
        await monitor.execute(command("stop"), 5)
    await monitor.close()


@pytest.mark.parametrize("error", [{}, {"desc": 7}, {"class": None, "desc": None}, {"desc": "a\nb"}])
async def test_a_refusal_is_one_whatever_its_words_are(fake: FakeQemu, error: Json):
    """QEMU said no."""

    async def answer(asked: Json) -> Json:
        return {"error": error}

    fake.answer = answer
    monitor = await Monitor.connect(fake.path)
    with pytest.raises(QmpRefusedError):
        await monitor.execute(command("stop"), 5)
    await monitor.close()


async def test_every_byte_alone(fake: FakeQemu):
    """Greeting, negotiation, answers: one byte at a time."""

    def bytewise(data: bytes) -> Iterator[bytes]:
        return (data[at : at + 1] for at in range(len(data)))

    fake.chunks = bytewise
    monitor = await Monitor.connect(fake.path)
    assert await monitor.burst([command("a"), command("b")], 10) == [{}, {}]
    await monitor.close()
