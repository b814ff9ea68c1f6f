"""Whatever is, or is not, behind the socket: one line and the right status."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from pivotd.client import transport
from pivotd.client.transport import not_connected
from pivotd.errors import EXIT_REFUSED, UnknownError
from tests.cli.ctl import complaint, ctl

PROBLEM = b'{"kind":"conflict","detail":"web1 is\\nbusy","exit_status":4,"pivot":"P1"}'


@contextmanager
def answering(path: Path, content: bytes) -> Iterator[None]:
    """Answer every request at the socket with these bytes, whatever they are."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    if content:
                        connection.recv(65536)
                        connection.sendall(content)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def http(status: str, media_type: str, body: bytes) -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Type: {media_type}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


def test_no_socket(tmp_path: Path) -> None:
    """No socket: status 3, and the line says what to check."""
    answer = ctl("--socket", tmp_path / "none.sock", "domain", "ls")
    assert answer.status == 3
    assert "is pivotd running? See `systemctl status pivotd`" in complaint(answer)


def test_environment(tmp_path: Path) -> None:
    """PIVOTCTL_SOCKET is the default, and ``--socket`` wins over it."""
    env = {"PIVOTCTL_SOCKET": str(tmp_path / "env.sock")}
    assert "env.sock" in complaint(ctl("domain", "ls", env=env))
    assert "option.sock" in complaint(ctl("--socket", tmp_path / "option.sock", "domain", "ls", env=env))


def test_dead_socket(tmp_path: Path) -> None:
    """A socket without listener: status 3."""
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "dead.sock"))
        answer = ctl("--socket", tmp_path / "dead.sock", "domain", "ls")
    assert answer.status == 3
    assert "no daemon listens" in complaint(answer)


def test_path_too_long(tmp_path: Path) -> None:
    """A path that no socket can have: status 3 in one line."""
    answer = ctl("--socket", tmp_path / ("x" * 120), "domain", "ls")
    assert answer.status == 3
    assert "too long" in complaint(answer)


def test_permission() -> None:
    """Permission denied is a refusal, and the line names the groups to ask for."""
    error = not_connected("/run/p.sock", PermissionError(13, "denied"))
    assert (error.kind, error.exit_status) == ("not-allowed", EXIT_REFUSED)
    assert "pivotd-ro" in error.message


@pytest.mark.parametrize(
    "content",
    [
        b'{"QMP": {"version": {}, "capabilities": []}}\r\n',
        b"\x00\xff garbage \xfe" * 99,
        http("200 OK", "text/html", b"<html>"),
        http("200 OK", "application/json", b"[1, 2]"),
        http("200 OK", "application/json", b'{"domains": [1]}'),
        http("404 Not Found", "application/json", b'{"message": "page not found"}'),
        http("500 Internal Server Error", "text/plain", b"oops"),
    ],
    ids=["qmp", "garbage", "html", "list", "wrong-rows", "another-api", "plain-error"],
)
def test_not_pivotd(tmp_path: Path, content: bytes) -> None:
    """Another server behind the socket is recognised: status 3, and the line says that it is not pivotd."""
    with answering(tmp_path / "s", content):
        answer = ctl("--socket", tmp_path / "s", "domain", "ls")
    assert answer.status == 3
    assert "is not pivotd" in complaint(answer)


@pytest.mark.parametrize("content", [b"", http("200 OK", "application/json", b"{}")[:-1]], ids=["nothing", "cut"])
def test_connection_lost(tmp_path: Path, content: bytes) -> None:
    """An answer that ends too early: status 3, and nothing is made of the half of it."""
    with answering(tmp_path / "s", content):
        answer = ctl("--socket", tmp_path / "s", "--json", "domain", "ls")
    assert answer.status == 3
    assert answer.json["error"]["kind"] == "connection-lost"


def test_problem(tmp_path: Path) -> None:
    """A problem document becomes one line on stderr and decides the exit status."""
    with answering(tmp_path / "s", http("409 Conflict", "application/problem+json", PROBLEM)):
        answer = ctl("--socket", tmp_path / "s", "domain", "ls")
    assert (answer.status, answer.stdout) == (4, "")
    assert complaint(answer) == "web1 is busy"


def test_problem_json(tmp_path: Path) -> None:
    """With ``--json`` a problem keeps its kind and its facts."""
    with answering(tmp_path / "s", http("409 Conflict", "application/problem+json", PROBLEM)):
        answer = ctl("--socket", tmp_path / "s", "--json", "domain", "ls")
    expected = {"kind": "conflict", "message": "web1 is busy", "exit_status": 4, "pivot": "P1"}
    assert answer.json == {"error": expected}


@contextmanager
def late(path: Path) -> Iterator[threading.Event]:
    """Answer one request with an empty list once the event is set, which it is at the end."""
    answers = threading.Event()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve() -> None:
            with suppress(OSError), listener.accept()[0] as connection:
                connection.recv(65536)
                answers.wait()
                connection.sendall(http("200 OK", "application/json", b"[]"))

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield answers
        finally:
            answers.set()
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def test_silence_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once, while the answer is waited for."""
    monkeypatch.setattr(transport, "SILENT_S", 0.2)
    told: list[str] = []
    with late(tmp_path / "late.sock") as answers:

        def tell(message: str) -> None:
            told.append(message)
            answers.set()

        assert transport.Transport(str(tmp_path / "late.sock"), tell=tell).request("GET", "/v1/domains") == []
    assert len(told) == 1


def test_an_answer_in_time_is_no_silence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes at once."""
    monkeypatch.setattr(transport, "SILENT_S", 30.0)
    told: list[str] = []
    with late(tmp_path / "late.sock") as answers:
        answers.set()
        asked = transport.Transport(str(tmp_path / "late.sock"), tell=told.append)
        assert asked.request("GET", "/v1/domains") == []
    assert told == []


def test_a_daemon_that_was_asked_to_wait_is_not_silent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its answer takes longer than that of another request."""
    monkeypatch.setattr(transport, "SILENT_S", 0.2)
    told: list[str] = []
    with late(tmp_path / "late.sock") as answers:
        threading.Timer(0.6, answers.set).start()
        asked = transport.Transport(str(tmp_path / "late.sock"), tell=told.append)
        assert asked.request("GET", "/v1/domains", takes_s=60.0) == []
    assert told == []


def test_an_answer_has_the_same_time_after_silence_was_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole is as long as without a word."""
    monkeypatch.setattr(transport, "SILENT_S", 0.2)
    told: list[str] = []
    with late(tmp_path / "late.sock"):  # no answer comes
        asked = transport.Transport(str(tmp_path / "late.sock"), 0.5, told.append)
        began = time.monotonic()
        with pytest.raises(UnknownError, match="does not answer"):
            asked.request("GET", "/v1/domains")
        assert 0.5 <= time.monotonic() - began < 30
    assert len(told) == 1
