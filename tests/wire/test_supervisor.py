"""A supervisor outlives whatever its QEMU says, and is there again when it makes sense."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from pivotd import limits
from pivotd.core.request import Manager
from pivotd.engine.processes import Processes
from pivotd.engine.supervisor import MonitorConnector, Supervisor
from pivotd.qmp.session import Session
from tests.support.cancel import Leftovers
from tests.wire.server import FakeQemu, greeting
from tests.wire.test_greeting import NO_GREETINGS
from tests.wire.test_stream import BROKEN

WAIT_S = 30.0


def _supervisor(
    fake: FakeQemu,
    connector: type[MonitorConnector] = MonitorConnector,
    name: str = "web1",
    processes: Processes | None = None,
) -> Supervisor:
    def make(*_: object) -> None:
        raise AssertionError("there is no pivot")

    return Supervisor(name, connector(fake.path), "config", make, processes=processes)  # type: ignore[arg-type]


async def _until(supervisor: Supervisor, connection: str) -> None:
    async with asyncio.timeout(WAIT_S):
        while supervisor.connection != connection:
            await supervisor.tried()
            await asyncio.sleep(0.001)


@pytest.mark.parametrize("said", NO_GREETINGS.values(), ids=NO_GREETINGS.keys())
async def test_a_socket_that_is_no_monitor_ends_no_supervisor(fake: FakeQemu, said: bytes):
    """It is unreachable until it greets; an error here would end the daemon."""
    left = Leftovers()
    fake.greeting = said
    supervisor = _supervisor(fake)
    running = asyncio.ensure_future(supervisor.run([]))
    await _until(supervisor, "unreachable")
    fake.greeting = greeting()
    await _until(supervisor, "connected")
    assert not running.done()
    supervisor.end()
    await running
    await left.nothing()


@pytest.mark.parametrize("said", BROKEN.values(), ids=BROKEN.keys())
async def test_a_broken_message_ends_no_supervisor(fake: FakeQemu, said: bytes):
    """The connection is made again."""
    left = Leftovers()
    supervisor = _supervisor(fake)
    running = asyncio.ensure_future(supervisor.run([]))
    await _until(supervisor, "connected")
    clients = fake.clients
    fake.push(said)
    async with asyncio.timeout(WAIT_S):
        while fake.clients == clients or supervisor.connection != "connected":
            await supervisor.tried()
            await asyncio.sleep(0.001)
            assert not running.done(), running
    supervisor.end()
    await running
    await left.nothing()


async def test_a_try_that_is_asked_for_during_another_one(fake: FakeQemu, tmp_path: Path):
    """It is the next one, which begins as soon as that has ended; of QEMU, nothing was known meanwhile."""
    fake.path = str(tmp_path / "nobody")
    begun, go_on = asyncio.Event(), asyncio.Event()
    tries = 0

    class Slow(MonitorConnector):
        async def connect(self, *, wanted: bool) -> Session:
            nonlocal tries
            tries += 1
            begun.set()
            await go_on.wait()
            go_on.clear()
            return await super().connect(wanted=wanted)

    supervisor = _supervisor(fake, Slow)
    running = asyncio.ensure_future(supervisor.run([]))
    await begun.wait()
    asked = [asyncio.ensure_future(supervisor.tried()) for _ in range(3)]
    begun.clear()
    go_on.set()
    await begun.wait()
    await asyncio.sleep(0.01)
    assert not any(one.done() for one in asked)
    go_on.set()
    assert await asyncio.gather(*asked) == [True] * 3
    assert tries == 2
    supervisor.end()
    await running


async def test_a_qemu_that_does_not_read_does_not_hold_up_the_end(
    fake: FakeQemu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """SIGTERM ends the daemon although a monitor is stuck."""
    monkeypatch.setattr(limits, "UNSENT_BYTES_MAX", 8 << 20)
    supervisor = _supervisor(fake)
    running = asyncio.ensure_future(supervisor.run([]))
    await _until(supervisor, "connected")
    assert supervisor.session is not None
    fake.hearing.clear()
    monitor = supervisor.session._monitor
    burst = monitor._client.send_burst([{"execute": "x", "arguments": {"text": "x" * (4 << 20)}}])
    assert monitor._client._writer is not None
    assert monitor._client._writer.transport.get_write_buffer_size() > 0
    supervisor.end()
    async with asyncio.timeout(WAIT_S):
        await running
    monitor._client.forget(burst)
    fake.hearing.set()


async def test_while_a_lost_connection_is_being_closed_nobody_reads_of_the_old_one(
    fake: FakeQemu, monkeypatch: pytest.MonkeyPatch
):
    """A request in that moment was refused with QEMU's version as the reason."""
    supervisor = _supervisor(fake)
    running = asyncio.ensure_future(supervisor.run([]))
    await _until(supervisor, "connected")
    seen: list[str] = []
    session = supervisor.session
    assert session is not None
    close = session.close

    async def closing() -> None:
        seen.append(f"{supervisor.connection}: {supervisor.detail}")
        await close()

    monkeypatch.setattr(session, "close", closing)
    fake.hang_up()
    async with asyncio.timeout(WAIT_S):
        while not seen:
            await asyncio.sleep(0)
    assert seen == ["connecting: QEMU closed the monitor"]
    supervisor.end()
    await running


class Libvirts(MonitorConnector):
    """Stands for a domain of libvirt."""

    manager = Manager.LIBVIRT


@pytest.mark.parametrize("first", [MonitorConnector, Libvirts])
async def test_two_domains_of_one_process(fake: FakeQemu, tmp_path: Path, first: type[MonitorConnector]):
    """The older one has it, and libvirt's before that, whichever has connected first; once it is gone the other one has."""
    left = Leftovers()
    of_host: dict[str, Supervisor] = {}
    processes = Processes(of_host)
    async with FakeQemu(tmp_path / "r") as second:
        one, other = _supervisor(fake, first, "one", processes), _supervisor(second, name="other", processes=processes)
        of_host |= {"one": one, "other": other} if first is MonitorConnector else {"other": other, "one": one}
        running = [asyncio.ensure_future(other.run([]))]
        await _until(other, "connected")
        running.append(asyncio.ensure_future(one.run([])))
        await _until(one, "connected")
        await _until(other, "refused")
        assert "leads to the QEMU of domain one" in other.detail
        for _ in range(3):
            await other.tried()
            assert (one.connection, other.connection) == ("connected", "refused")
        of_host.pop("one").end()
        await _until(other, "connected")
        other.end()
        await asyncio.gather(*running)
        assert processes._in == {}
    await left.nothing()
