"""Paths that lead to no monitor, and listeners that take no connection: one typed error each, in one line."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from pivotd import limits
from pivotd.errors import DomainUnreachableError
from pivotd.qmp.monitor import Monitor, command
from tests.support.cancel import Leftovers
from tests.wire.server import FakeQemu, greeting


def bound(path: Path, kind: socket.SocketKind) -> None:
    with socket.socket(socket.AF_UNIX, kind) as listener:
        listener.bind(str(path))


def linked(path: Path) -> None:
    path.symlink_to(path)


PLACES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a file": (Path.touch, "this is no socket; name the one of QEMU's -qmp option"),
    "a directory": (Path.mkdir, "this is no socket; name the one of QEMU's -qmp option"),
    "a fifo": (os.mkfifo, "this is no socket; name the one of QEMU's -qmp option"),
    "a device": (lambda path: path.symlink_to("/dev/null"), "this is no socket; name the one of QEMU's -qmp option"),
    "a datagram socket": (
        lambda path: bound(path, socket.SOCK_DGRAM),
        "no process listens on this socket; the QEMU that made it has ended",
    ),
    "a dead socket": (
        lambda path: bound(path, socket.SOCK_STREAM),
        "no process listens on this socket; the QEMU that made it has ended",
    ),
    "nothing": (lambda path: None, "no such socket; is the guest running?"),
    "a circle of links": (linked, "Too many levels of symbolic links; is this the path of a QMP socket?"),
}


@pytest.mark.parametrize(("make", "why"), PLACES.values(), ids=PLACES.keys())
async def test_what_is_no_monitor(tmp_path: Path, make: Callable[[Path], object], why: str):
    """The error says what it is, and what to do."""
    path = tmp_path / "q"
    make(path)
    left = Leftovers()
    with pytest.raises(DomainUnreachableError) as caught:
        await Monitor.connect(str(path))
    assert caught.value.message == f"{path}: {why}"
    await left.nothing()


async def test_a_datagram_socket_that_lives(tmp_path: Path):
    """It takes no connection."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.bind(str(tmp_path / "q"))
        with pytest.raises(DomainUnreachableError, match="this is no stream socket; name the one"):
            await Monitor.connect(str(tmp_path / "q"))


async def test_a_path_that_is_too_long(tmp_path: Path):
    """QEMU could not have made it either."""
    with pytest.raises(DomainUnreachableError, match="at most 107 bytes: use a shorter one"):
        await Monitor.connect(str(tmp_path / ("q" * 108)))


@pytest.mark.parametrize("error", [errno.EINVAL, errno.EIO, errno.ENOTCONN])
async def test_a_listener_that_cannot_be_asked_for(fake: FakeQemu, monkeypatch: pytest.MonkeyPatch, error: int):
    """Whatever the kernel says: the error is typed, and the connection is closed."""

    def refuse(_sock: socket.socket) -> int:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr("pivotd.host.process.peer_pid", refuse)
    left = Leftovers()
    with pytest.raises(DomainUnreachableError, match=os.strerror(error)):
        await Monitor.connect(fake.path)
    await left.nothing()


async def test_a_listener_without_room_is_waited_for(tmp_path: Path):
    """A QEMU on a busy machine accepts late: the connection comes about as soon as it does."""
    path = tmp_path / "q"
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as first:
        listener.bind(str(path))
        listener.listen(0)
        first.connect(str(path))
        connecting = asyncio.ensure_future(Monitor.connect(str(path)))
        await asyncio.sleep(2 * limits.CONNECT_AGAIN_S)
        assert not connecting.done()
        listener.accept()[0].close()
        listener.setblocking(False)
        peer, _ = await asyncio.get_running_loop().sock_accept(listener)
        with peer:
            peer.sendall(greeting())
            assert await asyncio.get_running_loop().sock_recv(peer, 1000)
            peer.sendall(b'{"return": {}}\r\n')
            monitor = await connecting
            assert monitor.pid == os.getpid()
            await monitor.close()


async def test_a_listener_that_never_has_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The error says that others wait too."""
    monkeypatch.setattr(limits, "CONNECT_TIMEOUT_S", 0.1)
    path, left = tmp_path / "q", Leftovers()
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as first:
        listener.bind(str(path))
        listener.listen(0)
        first.connect(str(path))
        with pytest.raises(DomainUnreachableError, match="does not take connections: other clients are waiting"):
            await Monitor.connect(str(path))
    await left.nothing()


@pytest.mark.parametrize("error", [OSError(errno.EINVAL, "bad"), RuntimeError("odd"), ValueError("bad"), KeyError("x")])
async def test_whatever_qemu_qmp_raises_at_its_end(fake: FakeQemu, monkeypatch: pytest.MonkeyPatch, error: Exception):
    """Its connect() raises what its own disconnect() has raised, untranslated, if that fails after a failure."""

    async def fail(_client: object) -> None:
        raise error

    fake.greeting = b"7\r\n"
    monkeypatch.setattr("pivotd.qmp.burst.Client._bh_disconnect", fail)
    with pytest.raises(DomainUnreachableError) as caught:
        await Monitor.connect(fake.path)
    assert "\n" not in caught.value.message


async def test_an_end_that_fails_hides_no_cancellation(fake: FakeQemu, monkeypatch: pytest.MonkeyPatch):
    """Else the end of pivotd would wait for a task that has missed its own."""

    async def fail(_client: object) -> None:
        raise OSError(errno.EINVAL, "bad")

    fake.greet.clear()
    monkeypatch.setattr("pivotd.qmp.burst.Client._bh_disconnect", fail)
    connecting = asyncio.ensure_future(Monitor.connect(fake.path))
    while not fake.clients:
        await asyncio.sleep(0)
    connecting.cancel()
    await asyncio.wait([connecting])
    assert connecting.cancelled()


ENDINGS = {
    "closed": (b"", "the connection was closed before QEMU took commands"),
    "half a greeting": (greeting()[:40], "Did not understand Greeting"),
    "a line without end": (b"x" * (11 << 20), "what came is no JSON: its first line does not end"),
    "no text": (b"\xff\xfe\x00\r\n", "what came is no JSON"),
    "nested too deep": (b"[" * 100_000 + b"\r\n", "what came is no JSON"),
}


@pytest.mark.parametrize(("said", "why"), ENDINGS.values(), ids=ENDINGS.keys())
async def test_the_words_for_a_greeting_that_is_none(fake: FakeQemu, said: bytes, why: str):
    """What came, and not what Python's libraries call it."""
    fake.greeting, fake.bytes_max = said, len(said)
    with pytest.raises(DomainUnreachableError) as caught:
        await Monitor.connect(fake.path)
    assert why in caught.value.message
    assert caught.value.message.endswith("; is this a QMP socket?")


async def test_a_command_on_a_connection_that_was_reset(fake: FakeQemu):
    """The error is the monitor's own."""
    monitor = await Monitor.connect(fake.path)
    fake.hang_up()
    await monitor.closed()
    with pytest.raises(Exception, match="not connected") as caught:
        await monitor.execute(command("query-status"))
    assert caught.type.__name__ == "QmpUnsentError"
    await monitor.close()
