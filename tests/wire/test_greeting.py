"""What may come instead of a greeting, before it, after it, or never."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from pivotd import limits
from pivotd.errors import (
    DomainUnreachableError,
    MonitorBusyError,
    QmpUnknownError,
    QmpUnsentError,
    UnsupportedQemuError,
)
from pivotd.qmp.monitor import Monitor, command
from tests.support.cancel import Leftovers
from tests.wire.server import FakeQemu, event, greeting, line

HUGE_BYTES = 6 << 20
"""Below the 10 MiB that qemu.qmp reads as one message."""
NUMBER = {"major": 8, "minor": 2, "micro": 0}

NO_GREETINGS = {
    "no text": b"\xff\xfe\x00\r\n",
    "no JSON": b'{"QMP": \r\n',
    "no object": b"[]\r\n",
    "a number": b"7\r\n",
    "nested too deep": b"[" * 100_000 + b"\r\n",
    "endless": b"x" * (11 << 20),
    "no version": line({"QMP": {"capabilities": []}}),
    "no QEMU version": greeting({}),
    "a version that is text": greeting("8.2.0"),
    "a QEMU version that is a list": greeting({"qemu": [8, 2, 0]}),
    "no minor version": greeting({"qemu": {"major": 8}}),
    "a major version that is text": greeting({"qemu": {**NUMBER, "major": "eight"}}),
    "a major version that is null": greeting({"qemu": {**NUMBER, "major": None}}),
    "a version without end": greeting({"qemu": {**NUMBER, "micro": float("inf")}}),
    "capabilities that are a number": greeting(capabilities=5),
}


async def test_a_greeting_that_comes_late_but_in_time_is_taken(fake: FakeQemu):
    """A predecessor's connection ends at that moment."""
    fake.greet.clear()
    connecting = asyncio.ensure_future(Monitor.connect(fake.path))
    while not fake.clients:
        await asyncio.sleep(0)
    assert not connecting.done()
    fake.greet.set()
    monitor = await connecting
    assert await monitor.execute(command("query-status")) == {}
    await monitor.close()


async def test_a_greeting_that_never_comes_means_a_busy_monitor(fake: FakeQemu, monkeypatch: pytest.MonkeyPatch):
    """And leaves nothing behind."""
    monkeypatch.setattr(limits, "GREETING_TIMEOUT_S", 0.1)
    fake.greeting = None
    left = Leftovers()
    with pytest.raises(MonitorBusyError):
        await Monitor.connect(fake.path)
    await left.nothing()


async def test_a_client_that_waits_is_served_when_the_one_before_it_leaves(fake: FakeQemu):
    """QEMU greets one at a time."""
    first = await Monitor.connect(fake.path)
    second = asyncio.ensure_future(Monitor.connect(fake.path))
    assert await first.execute(command("query-status")) == {}
    assert not second.done()
    await first.close()
    monitor = await second
    assert await monitor.execute(command("query-status")) == {}
    await monitor.close()


@pytest.mark.parametrize("said", NO_GREETINGS.values(), ids=NO_GREETINGS.keys())
async def test_what_is_no_greeting_is_one_typed_error_and_nothing_stays(fake: FakeQemu, said: bytes):
    """Whatever a socket says, its domain is unreachable; the daemon and its other domains are not concerned."""
    fake.greeting = said
    left = Leftovers()
    with pytest.raises(DomainUnreachableError) as caught:
        await Monitor.connect(fake.path)
    assert "\n" not in caught.value.message
    assert len(caught.value.message) < 500
    await left.nothing()


async def test_a_version_of_an_unknown_shape_beside_an_old_one(fake: FakeQemu):
    """An old QEMU is named as such, and its connection is closed."""
    fake.greeting = greeting({"qemu": {"major": 6, "minor": 1, "micro": 99}})
    left = Leftovers()
    with pytest.raises(UnsupportedQemuError):
        await Monitor.connect(fake.path)
    await left.nothing()


async def test_a_huge_greeting_is_read(fake: FakeQemu):
    """Its package text may be long."""
    fake.greeting = greeting({"qemu": NUMBER, "package": "x" * HUGE_BYTES})
    monitor = await Monitor.connect(fake.path)
    assert monitor.version == (8, 2, 0)
    await monitor.close()


async def test_events_between_greeting_and_negotiation_are_one_typed_error(fake: FakeQemu):
    """QEMU sends none before capabilities are negotiated: what does is something else."""
    fake.greeting = greeting() + event("STOP")
    left = Leftovers()
    with pytest.raises(DomainUnreachableError):
        await Monitor.connect(fake.path)
    await left.nothing()


@pytest.mark.parametrize("reply", [{"error": {"class": "C", "desc": "no"}}, {}, {"return": 1, "error": 2}])
async def test_a_refused_negotiation_is_one_typed_error(tmp_path: Path, reply: dict[str, Any]):
    """There is no connection without it."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(greeting())
        await reader.read(1000)
        writer.write(line(reply))
        await reader.read()
        writer.close()

    server = await asyncio.start_unix_server(serve, tmp_path / "q")
    with pytest.raises(DomainUnreachableError) as caught:
        await Monitor.connect(str(tmp_path / "q"))
    assert "\n" not in caught.value.message
    server.close()


async def test_a_connection_that_is_closed_after_any_byte_is_a_typed_error(fake: FakeQemu):
    """At every byte of greeting, negotiation and answer."""
    monitor = await Monitor.connect(fake.path)
    connected_bytes = fake.sent_bytes
    await monitor.execute(command("stop"))
    total_bytes = fake.sent_bytes
    await monitor.close()
    for size in range(total_bytes + 1):
        fake.bytes_max = size
        left = Leftovers()
        await _use_until_closed(fake, size, connected_bytes, total_bytes)
        await left.nothing()


async def _use_until_closed(fake: FakeQemu, size: int, connected_bytes: int, total_bytes: int) -> None:
    # The last two bytes of a message are its line end, which the end of the stream stands for.
    try:
        monitor = await Monitor.connect(fake.path)
    except DomainUnreachableError:
        assert size < connected_bytes, size
        return
    assert size >= connected_bytes - 2, size
    where = f"closed after {size} of {total_bytes} bytes, connected after {connected_bytes}"
    try:
        answer = await monitor.execute(command("stop"), 5)
    except (QmpUnknownError, QmpUnsentError):
        assert size < total_bytes, where
    else:
        assert answer == {}, where
        assert size >= total_bytes - 2, where
    finally:
        await monitor.close()
