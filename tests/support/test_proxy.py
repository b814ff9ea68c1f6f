"""The proxy: invisible to both ends, and exact about the moment at which it stops the world."""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.proxy import Cut, Direction, KillAt, Message, Proxy, Recorder, When
from tests.support.qemu import Qemu
from tests.support.qmp_spy import Spy
from tests.support.stream import CommandSplitter, LineSplitter

TEXT = st.text(st.sampled_from('"\\{}[]: é\n') | st.characters(codec="utf-8"), max_size=8)
JSON = st.dictionaries(TEXT, TEXT | st.integers() | st.lists(TEXT, max_size=3), max_size=4)


def _in_chunks(data: bytes, size: int) -> list[bytes]:
    return [data[start : start + size] for start in range(0, len(data), size)]


@given(st.lists(JSON, max_size=5), st.sampled_from(["", "\n", "\r\n  "]), st.integers(1, 60))
def test_a_stream_of_commands_is_cut_between_them(objects: list[object], space: str, size: int) -> None:
    """Pipelined JSON objects come out one by one and unchanged, whatever the chunks in which they arrive."""
    data = b"".join(json.dumps(one, ensure_ascii=False).encode() + space.encode() for one in objects)
    splitter = CommandSplitter()
    pieces = [piece for chunk in _in_chunks(data, size) for piece in splitter.feed(chunk)]
    assert (b"".join(pieces), splitter.rest) == (data, b"")
    assert [json.loads(piece) for piece in pieces if piece.strip()] == objects


@given(st.lists(JSON, max_size=5), st.integers(1, 60))
def test_a_stream_of_replies_is_cut_at_line_ends(objects: list[object], size: int) -> None:
    """A message from QEMU is whole only with its end of line, which belongs to it."""
    lines = [json.dumps(one).encode() + b"\r\n" for one in objects]
    splitter = LineSplitter()
    pieces = [piece for chunk in _in_chunks(b"".join(lines), size) for piece in splitter.feed(chunk)]
    assert (pieces, splitter.rest) == (lines, b"")


@pytest.fixture
def qemu(tmp_path: Path) -> Iterator[Qemu]:
    with Qemu(tmp_path, proxy=Qemu.proxy_for(tmp_path, log=tmp_path / "messages.jsonl"), paused=True) as started:
        yield started


@pytest.fixture
def proxy(qemu: Qemu) -> Proxy:
    assert qemu.proxy is not None
    return qemu.proxy


@pytest.fixture
def client(qemu: Qemu) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as connected:
        connected.settimeout(60)
        connected.connect(str(qemu.qmp))
        yield connected


def _read(client: socket.socket, lines: int) -> list[dict[str, object]]:
    data = b""
    while data.count(b"\n") < lines:
        more = client.recv(65536)
        if not more:
            raise EOFError
        data += more
    return [json.loads(line) for line in data.splitlines()]


def _handshake(client: socket.socket) -> None:
    _read(client, 1)
    client.sendall(b'{"execute": "qmp_capabilities"}')
    _read(client, 1)


@pytest.mark.qemu
def test_the_peer_is_qemu(qemu: Qemu, client: socket.socket) -> None:
    """SO_PEERCRED through the proxy shows QEMU's own pid."""
    pid, _, _ = struct.unpack("3i", client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    assert pid == qemu.pid


@pytest.mark.qemu
def test_pipelined_commands_are_shown_one_by_one(proxy: Proxy, client: socket.socket) -> None:
    """Two commands in one write are two messages, in order, each answered."""
    _handshake(client)
    recorder = proxy.on_message = Recorder.new()
    client.sendall(b'{"execute":"query-status","id":1}{"execute":"query-name","id":2}')
    _read(client, 2)
    labels = [label for _, label, _ in recorder.labels()]
    assert sorted(labels) == ["command:query-name", "command:query-status", "return:query-name", "return:query-status"]


@pytest.mark.qemu
def test_a_run_is_recorded_as_json_lines(qemu: Qemu, client: socket.socket, tmp_path: Path) -> None:
    """The log has one line per message with its direction and its label."""
    _handshake(client)
    lines = [json.loads(line) for line in (tmp_path / "messages.jsonl").read_text().splitlines()]
    assert [(line["direction"], line["label"]) for line in lines] == [
        ("from-qemu", "greeting"),
        ("to-qemu", "command:qmp_capabilities"),
        ("from-qemu", "return:qmp_capabilities"),
    ]


@pytest.mark.qemu
def test_a_command_cut_before_never_reaches_qemu(qemu: Qemu, proxy: Proxy, client: socket.socket) -> None:
    """Cut before forwarding: both ends are closed and QEMU has not executed the command."""
    _handshake(client)
    proxy.on_message = KillAt(list, When.BEFORE, "command:object-add")
    client.sendall(b'{"execute":"object-add","arguments":{"qom-type":"secret","id":"x","data":"a"}}')
    with pytest.raises((EOFError, ConnectionError)):
        _read(client, 1)
    assert "x" not in [one["name"] for one in qemu.spy("qom-list", path="/objects")]


@pytest.mark.qemu
def test_a_reply_cut_before_was_executed(qemu: Qemu, proxy: Proxy, client: socket.socket) -> None:
    """Cut before the reply: the client hears nothing of a command that QEMU has executed."""
    _handshake(client)
    proxy.on_message = KillAt(list, When.BEFORE, "return:object-add")
    client.sendall(b'{"execute":"object-add","arguments":{"qom-type":"secret","id":"x","data":"a"}}')
    with pytest.raises((EOFError, ConnectionError)):
        _read(client, 1)
    assert "x" in [one["name"] for one in qemu.spy("qom-list", path="/objects")]


@pytest.mark.qemu
def test_the_next_client_is_served_after_a_cut(qemu: Qemu, proxy: Proxy) -> None:
    """After a cut a new connection is greeted, and counted as the second one."""
    proxy.on_message = KillAt(list, When.AFTER, "greeting")
    with pytest.raises(ConnectionError):
        Spy(qemu.qmp)
    recorder = proxy.on_message = Recorder.new()
    Spy(qemu.qmp).close()
    assert {message.connection for message in recorder.messages} == {1}


@pytest.mark.qemu
def test_a_kill_is_over_before_anything_moves_on(qemu: Qemu, proxy: Proxy, client: socket.socket) -> None:
    """The victim has ended when the connection is cut."""
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as victim:
        proxy.on_message = KillAt(lambda: [victim.pid], When.BEFORE, "command:qmp_capabilities")
        client.sendall(b'{"execute": "qmp_capabilities"}')
        with pytest.raises((EOFError, ConnectionError)):
            _read(client, 2)
        assert victim.poll() == -signal.SIGKILL


@pytest.mark.qemu
def test_a_dead_qemu_refuses_connections(qemu: Qemu, proxy: Proxy) -> None:
    """When QEMU is gone the proxy's socket refuses, like QEMU's own would."""
    spy = Spy(qemu.qmp)
    qemu.kill()
    with pytest.raises(ConnectionError):
        spy.execute("query-status")
    spy.close()
    assert proxy.await_end()
    with pytest.raises(ConnectionRefusedError):
        Spy(qemu.qmp)


@pytest.mark.qemu
def test_a_second_client_waits_without_a_greeting(qemu: Qemu, client: socket.socket) -> None:
    """Like QEMU the proxy accepts a second connection and serves it after the first."""
    _handshake(client)
    with socket.socket(socket.AF_UNIX) as second:
        second.connect(str(qemu.qmp))
        second.settimeout(0.05)
        with pytest.raises(TimeoutError):
            second.recv(1)
        second.settimeout(60)
        client.close()
        assert b"QMP" in second.recv(65536)


@pytest.mark.qemu
def test_a_disconnect_reaches_qemu(qemu: Qemu, client: socket.socket) -> None:
    """When the client closes, QEMU frees its monitor for the next one."""
    _handshake(client)
    client.close()
    Spy(qemu.directory / "web1.real.qmp").close()


@pytest.mark.qemu
def test_a_mistake_in_a_hook_is_not_swallowed(tmp_path: Path) -> None:
    """An exception of a hook, other than Cut, is raised when the proxy stops."""

    def broken(direction: Direction, index: int, message: Message, when: When) -> None:
        raise ZeroDivisionError

    qemu = Qemu(tmp_path, proxy=Qemu.proxy_for(tmp_path, on_message=broken)).start()
    with pytest.raises((OSError, EOFError)):
        Spy(qemu.qmp)
    with pytest.raises(ZeroDivisionError):
        qemu.stop()


@pytest.mark.qemu
def test_a_hook_may_only_cut(qemu: Qemu, proxy: Proxy) -> None:
    """Cut is no failure of the proxy: it goes on and stop() raises nothing."""

    def cut(direction: Direction, index: int, message: Message, when: When) -> None:
        raise Cut

    proxy.on_message = cut
    with pytest.raises((OSError, EOFError)):
        Spy(qemu.qmp)
    proxy.stop()
    assert os.path.exists(qemu.qmp)  # noqa: PTH110 - the socket file stays, as after a kill of QEMU
