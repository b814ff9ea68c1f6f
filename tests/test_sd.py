"""What pivotd and systemd say to each other."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pivotd import sd

ROOT = Path(__file__).parents[1]


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """A socket that stands for the service manager's."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(tmp_path / "notify"))
        receiver.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        yield receiver


def test_notify_sends_one_datagram(manager: socket.socket) -> None:
    """All assignments of a call arrive together, one per line."""
    assert sd.notify("READY=1", "STATUS=2 domains")
    assert manager.recv(1000) == b"READY=1\nSTATUS=2 domains"


def test_status_cannot_smuggle_in_another_assignment(manager: socket.socket) -> None:
    """A newline inside an assignment does not start a new one."""
    sd.notify("STATUS=a\nSTOPPING=1")
    assert manager.recv(1000) == b"STATUS=a STOPPING=1"


def test_extend_timeout_is_in_microseconds(manager: socket.socket) -> None:
    """Seconds become what systemd wants."""
    sd.extend_timeout(2.5)
    assert manager.recv(1000) == b"EXTEND_TIMEOUT_USEC=2500000"


def test_notify_reaches_an_abstract_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    """``@`` at the start of the address means the abstract namespace."""
    name = f"pivotd-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(f"\0{name}")
        receiver.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", f"@{name}")
        sd.notify("WATCHDOG=1")
        assert receiver.recv(100) == b"WATCHDOG=1"


def test_notify_without_manager_does_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the variable there is nobody to tell, and that is no failure."""
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert sd.notify("READY=1")


@pytest.mark.parametrize("address", ["/nonexistent/notify", "relative", "/" + "x" * 200, "@" + "x" * 200])
def test_notify_never_raises(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    """A manager that cannot be reached gives False and no exception."""
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    assert not sd.notify("READY=1")


def test_notify_does_not_wait_for_a_manager_that_does_not_read(manager: socket.socket) -> None:
    """A full queue gives False at once."""
    assert not all(sd.notify("WATCHDOG=1") for _ in range(10_000))


@pytest.mark.parametrize(
    ("usec", "pid", "interval_s"),
    [
        ("10000000", "self", 5.0),
        ("10000000", None, 5.0),
        ("10000000", "1", None),
        (None, None, None),
        ("0", None, None),
        ("soon", None, None),
    ],
)
def test_watchdog_interval(
    monkeypatch: pytest.MonkeyPatch, usec: str | None, pid: str | None, interval_s: float | None
) -> None:
    """Half of what the manager allows, and only if it is us whom it watches."""
    for name, value in (("WATCHDOG_USEC", usec), ("WATCHDOG_PID", str(os.getpid()) if pid == "self" else pid)):
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    assert sd.watchdog_interval_s() == interval_s


def run_activated(given: socket.socket | int | None, count: str = "1", pid: str = "$$") -> str:
    """Run listen_fds() in a process that got ``given`` as fd 3, as systemd passes it; return what it printed."""
    program = """
import os, pivotd.sd as sd
from pivotd.errors import ConfigError
try:
    found = sd.listen_fds()
    print([s.fileno() for s in found], [s.get_inheritable() for s in found], 'LISTEN_FDS' in os.environ)
except ConfigError as error:
    print(error.message)
"""
    number = os.open("/dev/null", os.O_RDONLY) if given is None else given if isinstance(given, int) else given.fileno()
    # The shell moves the descriptor to 3 and keeps its pid over exec, which is what LISTEN_PID must be.
    script = f'LISTEN_PID={pid} LISTEN_FDS={count} exec "$0" -c "$1" 3<&{number}'
    done = subprocess.run(
        ["/bin/bash", "-c", script, sys.executable, program],
        pass_fds=[number],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    if given is None:
        os.close(number)
    return done.stdout.strip()


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as given:
        given.bind(str(tmp_path / "s"))
        given.listen()
        yield given


def test_passed_socket_is_found_and_close_on_exec(listener: socket.socket) -> None:
    """The socket at fd 3 is ours, not inherited any further, and the variables are gone."""
    assert run_activated(listener) == "[3] [False] False"


def test_sockets_for_another_process_are_left_alone(listener: socket.socket) -> None:
    """Variables inherited from a parent that was activated mean nothing to us."""
    assert run_activated(listener, pid="1") == "[] [] False"


def test_socket_that_does_not_listen_is_refused() -> None:
    """A connected socket is not what clients connect to."""
    left, right = socket.socketpair()
    with left, right:
        assert run_activated(left).startswith("systemd passed fd 3, which is another kind of socket, expected")


def test_network_socket_is_refused() -> None:
    """A listening TCP socket has no peer credentials, so it is refused."""
    with socket.socket() as given:
        given.bind(("127.0.0.1", 0))
        given.listen()
        assert run_activated(given).startswith("systemd passed fd 3, which is another kind of socket, expected")


def test_file_is_refused() -> None:
    """What is no socket at all is refused by the same kind of error."""
    assert run_activated(None).startswith("systemd passed fd 3, which is no socket")


def test_absurd_count_is_refused(listener: socket.socket) -> None:
    """A broken count does not make us look at a thousand descriptors."""
    assert run_activated(listener, count="1000").startswith("systemd passed 1000 sockets")


def test_journald_is_recognised_by_what_stderr_is_now(monkeypatch: pytest.MonkeyPatch) -> None:
    """The variable counts only while it names the very file that stderr is."""
    stderr = os.fstat(sd.STDERR)
    monkeypatch.setenv("JOURNAL_STREAM", f"{stderr.st_dev}:{stderr.st_ino}")
    assert sd.under_journald()
    monkeypatch.setenv("JOURNAL_STREAM", f"{stderr.st_dev}:{stderr.st_ino + 1}")
    assert not sd.under_journald()
    monkeypatch.delenv("JOURNAL_STREAM")
    assert not sd.under_journald()
