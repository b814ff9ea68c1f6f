"""One monitor connection: what each kind of failure says, against a real QEMU and against servers that misbehave."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from pivotd import limits
from pivotd.errors import (
    DomainUnreachableError,
    MonitorBusyError,
    QmpRefusedError,
    QmpUnknownError,
    QmpUnsentError,
    UnsupportedQemuError,
)
from pivotd.qmp.monitor import Monitor, command
from tests.conftest import QemuFactory
from tests.support.waiting import end_of

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Coroutine[Any, Any, None]]


def greeting(major: int = 8, minor: int = 2) -> bytes:
    version = {"qemu": {"major": major, "minor": minor, "micro": 0}, "package": ""}
    return json.dumps({"QMP": {"version": version, "capabilities": []}}).encode() + b"\r\n"


@asynccontextmanager
async def fake(path: Path, serve: Serve) -> AsyncIterator[str]:
    """Serve a made-up QMP server; each connection ends with the test."""
    writers: list[asyncio.StreamWriter] = []

    async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        try:
            await serve(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            return

    server = await asyncio.start_unix_server(one, path)
    try:
        yield str(path)
    finally:
        await end_of(server)
        for writer in writers:
            writer.close()


async def read_command(reader: asyncio.StreamReader, pending: bytearray) -> dict[str, Any]:
    """Return the next command; commands come as a stream, perhaps without newlines."""
    decoder = json.JSONDecoder()
    while True:
        text = pending.decode().lstrip()
        try:
            value, end = decoder.raw_decode(text)
        except ValueError:
            data = await reader.read(4096)
            if not data:
                raise ConnectionError from None
            pending += data
            continue
        pending[:] = text[end:].encode()
        return dict(value)


# -- connecting ---------------------------------------------------------------------------------------------------


async def test_no_socket_says_so(tmp_path: Path):
    """Nothing at that path."""
    with pytest.raises(DomainUnreachableError, match="no such socket"):
        await Monitor.connect(str(tmp_path / "none.qmp"))


@pytest.mark.qemu
async def test_a_dead_qemu_leaves_a_socket_that_nobody_listens_on(qemu_factory: QemuFactory):
    """The path remains after SIGKILL."""
    qemu = qemu_factory()
    qemu.kill()
    with pytest.raises(DomainUnreachableError, match="no process listens"):
        await Monitor.connect(str(qemu.qmp))


@pytest.mark.qemu
async def test_a_second_client_is_told_that_the_monitor_is_busy(
    qemu_factory: QemuFactory, monkeypatch: pytest.MonkeyPatch
):
    """QEMU accepts it but greets only one client at a time."""
    qemu = qemu_factory()
    first = await Monitor.connect(str(qemu.qmp))
    monkeypatch.setattr(limits, "GREETING_TIMEOUT_S", 0.2)
    with pytest.raises(MonitorBusyError, match="another client"):
        await Monitor.connect(str(qemu.qmp))
    await first.close()


@pytest.mark.qemu
async def test_the_pid_and_version_are_those_of_qemu(qemu_factory: QemuFactory):
    """SO_PEERCRED and the greeting."""
    qemu = qemu_factory()
    monitor = await Monitor.connect(str(qemu.qmp))
    assert monitor.pid == qemu.pid
    assert monitor.version >= (6, 2, 0)
    await monitor.close()


@pytest.mark.parametrize("version", [(5, 2), (6, 1), (6, 2), (7, 0)], ids=str)
async def test_an_old_qemu_is_refused_with_the_reason(tmp_path: Path, version: tuple[int, int]):
    """One before 6.2 can abort in the middle of a switch."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(greeting(*version))
        asked = await read_command(reader, bytearray())
        writer.write(json.dumps({"return": {}, "id": asked.get("id")}).encode() + b"\r\n")
        await reader.read()

    async with fake(tmp_path / "q", serve) as path:
        if version < (6, 2):
            with pytest.raises(UnsupportedQemuError, match=rf"QEMU {version[0]}\.{version[1]}\.0 is too old"):
                await Monitor.connect(path)
        else:
            monitor = await Monitor.connect(path)
            assert monitor.version[:2] == version
            await monitor.close()


async def test_a_qemu_that_greets_but_does_not_answer_is_named_as_stuck(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Its main loop is blocked."""
    monkeypatch.setattr(limits, "GREETING_TIMEOUT_S", 1.0)  # the greeting has come by then, also on a busy machine

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(greeting())
        await reader.read()

    async with fake(tmp_path / "q", serve) as path:
        with pytest.raises(DomainUnreachableError, match="main loop is blocked"):
            await Monitor.connect(path)


@pytest.mark.parametrize("garbage", [b"hello\r\n", b"{}\r\n", b"", b"[1]\r\n", b'{"QMP": 3}\r\n'])
async def test_something_else_behind_the_socket_is_an_error_in_one_line(tmp_path: Path, garbage: bytes):
    """Not every socket is a monitor."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(garbage)
        writer.close()

    async with fake(tmp_path / "q", serve) as path:
        with pytest.raises(DomainUnreachableError) as caught:
            await Monitor.connect(path)
    assert "\n" not in caught.value.message


# -- commands -----------------------------------------------------------------------------------------------------


@pytest.fixture
async def monitor(qemu_factory: QemuFactory) -> AsyncIterator[Monitor]:
    monitor = await Monitor.connect(str(qemu_factory().qmp))
    yield monitor
    await monitor.close()


@pytest.mark.qemu
async def test_a_refusal_carries_the_words_of_qemu(monitor: Monitor):
    """QEMU said no: there was no effect."""
    with pytest.raises(QmpRefusedError, match="Job not found"):
        await monitor.execute(command("job-complete", id="none"))


@pytest.mark.qemu
async def test_a_burst_gives_values_and_refusals_in_order(monitor: Monitor):
    """One write, many commands, one answer for each."""
    status, refused, again = await monitor.burst(
        [command("query-status"), command("job-complete", id="none"), command("query-status")], 5
    )
    assert status["running"]
    assert isinstance(refused, QmpRefusedError)
    assert again == status


@pytest.mark.qemu
async def test_an_empty_burst_is_answered_at_once(monitor: Monitor):
    """There may be nothing to delete."""
    assert await monitor.burst([], 0.1) == []


@pytest.mark.qemu
async def test_no_answer_in_time_means_unknown(qemu_factory: QemuFactory):
    """The command may or may not run later."""
    qemu = qemu_factory()
    monitor = await Monitor.connect(str(qemu.qmp))
    os.kill(qemu.pid, signal.SIGSTOP)
    try:
        with pytest.raises(QmpUnknownError, match="no answer within"):
            await monitor.execute(command("query-status"), 0.1)
    finally:
        os.kill(qemu.pid, signal.SIGCONT)
    assert (await monitor.execute(command("query-status")))["running"], "the late answer disturbs nobody"
    await monitor.close()


async def test_a_connection_lost_before_the_answer_means_unknown(tmp_path: Path):
    """It may have run."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        pending = bytearray()
        writer.write(greeting())
        asked = await read_command(reader, pending)
        writer.write(json.dumps({"return": {}, "id": asked.get("id")}).encode() + b"\r\n")
        await read_command(reader, pending)
        writer.close()

    async with fake(tmp_path / "q", serve) as path:
        monitor = await Monitor.connect(path)
        with pytest.raises(QmpUnknownError, match="closed before the answer"):
            await monitor.execute(command("stop"))
        await monitor.close()


@pytest.mark.qemu
async def test_after_the_connection_is_lost_nothing_is_sent(qemu_factory: QemuFactory):
    """A retry is safe."""
    qemu = qemu_factory()
    monitor = await Monitor.connect(str(qemu.qmp))
    qemu.kill()
    await monitor.closed()
    with pytest.raises(QmpUnsentError):
        await monitor.execute(command("stop"))
    await monitor.close()


async def test_answers_that_come_split_and_joined_are_understood(tmp_path: Path):
    """The stream has no message boundaries."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        pending = bytearray()
        writer.write(greeting())
        asked = await read_command(reader, pending)
        writer.write(json.dumps({"return": {}, "id": asked.get("id")}).encode() + b"\r\n")
        first, second = [await read_command(reader, pending) for _ in range(2)]
        event = {
            "event": "JOB_STATUS_CHANGE",
            "data": {"id": "j", "status": "ready"},
            "timestamp": {"seconds": 1, "microseconds": 2},
        }
        text = "".join(
            json.dumps(m) + "\r\n" for m in [event, {"return": 2, "id": second["id"]}, {"return": 1, "id": first["id"]}]
        )
        for byte in text.encode():
            writer.write(bytes([byte]))
            await writer.drain()
        await reader.read()

    async with fake(tmp_path / "q", serve) as path:
        monitor = await Monitor.connect(path)
        assert await monitor.burst([command("query-status"), command("query-jobs")], 5) == [1, 2]
        assert monitor.job_status == {"j": "ready"}
        await monitor.close()


async def test_a_flood_of_events_is_held_in_bounded_memory(tmp_path: Path):
    """Events are reduced to the last status of each job; nothing queues up."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        pending = bytearray()
        writer.write(greeting())
        asked = await read_command(reader, pending)
        writer.write(json.dumps({"return": {}, "id": asked.get("id")}).encode() + b"\r\n")
        asked = await read_command(reader, pending)
        stamp = {"seconds": 1, "microseconds": 2}
        for number in range(10_000):
            data = {"id": f"j{number}", "status": "running"}
            writer.write(
                json.dumps({"event": "JOB_STATUS_CHANGE", "data": data, "timestamp": stamp}).encode() + b"\r\n"
            )
        writer.write(json.dumps({"return": {}, "id": asked["id"]}).encode() + b"\r\n")
        await reader.read()

    async with fake(tmp_path / "q", serve) as path:
        monitor = await Monitor.connect(path)
        await monitor.execute(command("query-status"), 30)
        assert len(monitor.job_status) <= 4096
        assert monitor._client.events.empty()
        assert monitor._client.events.history == ()
        await monitor.close()
