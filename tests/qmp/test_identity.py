"""Which process is behind a socket, and in which order it is looked at."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
import threading
from contextlib import ExitStack, suppress
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest

from pivotd import libvirt_hook
from pivotd.host import process
from pivotd.qmp.looking import LOOK

CLIENTS_MAX = 1000


def test_a_pid_that_was_given_to_another_process_is_gone():
    """The start time tells the two apart."""
    pid, boot = os.getpid(), process.boot_id()
    ticks = process.start_ticks(pid)
    assert ticks is not None
    assert not process.is_gone(pid, ticks, boot)
    assert process.is_gone(pid, ticks - 1, boot)


def test_a_process_of_another_boot_is_gone():
    """Whatever has its pid now."""
    pid = os.getpid()
    assert process.is_gone(pid, process.start_ticks(pid), "another boot")


def test_a_pid_that_a_thread_of_another_process_has_is_gone():
    """Threads and processes share their numbers; that of a thread is no process."""
    leave = threading.Event()
    thread = threading.Thread(target=leave.wait)
    thread.start()
    try:
        assert thread.native_id is not None
        assert process.is_gone(thread.native_id, 1, process.boot_id())
    finally:
        leave.set()
        thread.join()


def test_a_process_with_any_name():
    """QEMU takes its own from ``-name process=``, of which the kernel keeps 15 bytes: it may end within a character."""
    prctl = "import ctypes; ctypes.CDLL(None).prctl(15, b'a) \\xc3', 0, 0, 0); print(flush=True); input()"
    command = [sys.executable, "-c", prctl]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        ticks = process.start_ticks(other.pid)
        assert ticks is not None
        assert not process.is_gone(other.pid, ticks, process.boot_id())
        assert process.uptime_s(other.pid) is not None


def test_a_pid_that_nobody_can_look_at_is_not_known_to_be_gone(monkeypatch: pytest.MonkeyPatch):
    """As where no file descriptor is left; and a session with libvirt alone has no pid."""
    assert not process.is_gone(0, None, process.boot_id())
    failure = OSError(errno.EMFILE, "Too many open files")
    monkeypatch.setattr(os, "pidfd_open", Mock(side_effect=failure))
    assert not process.is_gone(1, None, process.boot_id())
    failure.errno = errno.EINVAL  # a thread, to kernels of some years ago
    assert process.is_gone(2, None, process.boot_id())


def test_who_listens_whatever_others_call_their_sockets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A name with a line break made every answer that needed this an unexpected error."""
    monkeypatch.chdir(tmp_path)  # a name that is no path is short
    names = ["plain", "sp ace", "line\nbreak", "\n", "form\x0cfeed", "re\rturn", "ffff: 00000002 0000", "\udcff"]
    with ExitStack() as stack:
        for name in names:
            listener = stack.enter_context(socket.socket(socket.AF_UNIX))
            listener.bind(os.fsencode(name))
            listener.listen()
        unheard = stack.enter_context(socket.socket(socket.AF_UNIX))
        unheard.bind("bound")
        found = process.listening()
        assert found >= {name for name in names if "\n" not in name}
        assert "bound" not in found
        assert not libvirt_hook.stays_connected(SimpleNamespace(pid=os.getpid(), monitor="plain"))  # type: ignore[arg-type]


def test_who_listens_while_many_clients_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The kernel counts them in hexadecimal, with capitals."""
    monkeypatch.chdir(tmp_path)

    def connect() -> None:
        with socket.socket(socket.AF_UNIX) as client, suppress(ConnectionError):
            client.connect("busy")

    def count() -> str:
        lines = Path("/proc/net/unix").read_text(errors="replace").splitlines()
        return next(line.split()[1] for line in lines if " 00010000 " in line and line.endswith(" busy"))

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("busy")
        listener.listen(0)
        waiting = []
        while not set(count()) & set("ABCDEF"):
            waiting.append(threading.Thread(target=connect))
            waiting[-1].start()
            assert len(waiting) < CLIENTS_MAX
        assert process.listens("busy"), count()
    for thread in waiting:
        thread.join()


def test_jobs_are_looked_at_before_the_graph():
    """A job seen as ended then has its final effect in the graph."""
    order = [message["execute"] for message in LOOK]
    graph = min(order.index("query-block"), order.index("x-debug-query-block-graph"))
    assert order.index("query-jobs") < graph
