"""QEMU dies while pivotd is about to record a switch: until the record is there, or never can be, no verdict is certain.

Whoever took the source for the answer would start the guest on it; the record that comes after would then name an image
without the guest's new writes.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.process import call, has_record
from tests.conftest import QemuFactory
from tests.support.daemon import Daemon
from tests.support.proxy import Cut, Direction, Message, When
from tests.support.qemu import Disk, Qemu, create_image, popen_tied

pytestmark = [pytest.mark.qemu, pytest.mark.chaos]

STRIKE_TIMEOUT_S = 60.0
SLOW_FLUSH = "inject=fdatasync:delay_enter=60s"
"""As long as strace lives: longer than a busy machine takes to answer."""


Hamper = Callable[[int], subprocess.Popen[bytes] | None]


def freeze(pid: int) -> None:
    """Stop pivotd where it is."""
    os.kill(pid, signal.SIGSTOP)


def slow_down(pid: int) -> subprocess.Popen[bytes]:
    """Delay every flush of pivotd from now on; the process that does it ends with pivotd."""
    command = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace=fdatasync", "-e", SLOW_FLUSH, "-p", str(pid)]
    strace = popen_tied(command, Path("/dev/null"), Path("/"))
    deadline_s = time.monotonic() + STRIKE_TIMEOUT_S
    while not all(is_traced(task) for task in Path(f"/proc/{pid}/task").iterdir()):
        assert time.monotonic() < deadline_s, "strace does not attach"
        os.sched_yield()
    return strace


def is_traced(task: Path) -> bool:
    """Return whether a thread is traced, or has ended."""
    try:
        return "TracerPid:\t0\n" not in (task / "status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True


class KillAfterSwitch:
    """Kills QEMU once pivotd has been sent the graph after job-finalize; right before, ``hamper`` gets pivotd's pid."""

    def __init__(self, hamper: Hamper) -> None:
        self.qemu: Qemu
        self.daemon: Daemon
        self.done = threading.Event()
        self.helper: subprocess.Popen[bytes] | None = None
        self._hamper = hamper
        self._finalized = False

    def __call__(self, direction: Direction, index: int, message: Message, when: When) -> None:
        self._finalized |= message.label == "command:job-finalize"
        if message.label != "return:query-block" or not self._finalized or self.done.is_set():
            return
        if when is When.BEFORE:
            self.helper = self._hamper(self.daemon.pid)
            return
        self.qemu.kill()
        self.done.set()
        raise Cut


@contextlib.contextmanager
def dead_qemu(factory: QemuFactory, directory: Path, hamper: Hamper) -> Iterator[tuple[Daemon, KillAfterSwitch]]:
    """Yield a pivotd that has seen the switch and not recorded it, and who has killed its QEMU."""
    strike = KillAfterSwitch(hamper)
    proxy = Qemu.proxy_for(directory, on_message=strike)
    strike.qemu = qemu = factory([Disk(create_image(directory / "old.qcow2"))], proxy=proxy)
    with Daemon(directory, {"web1": qemu.qmp}) as strike.daemon:
        body = {"disks": [{"disk": "disk0", "image": str(directory / "new.qcow2")}], "max_pause_ms": 20_000}
        call(strike.daemon, "POST", "/v1/domains/web1/copy", body, **{"Idempotency-Key": "move"})
        assert strike.done.wait(STRIKE_TIMEOUT_S), "the switch was not reached"
        yield strike.daemon, strike
    if strike.helper is not None:
        strike.helper.wait()


def certain(rows: Any) -> list[bool]:
    return [row["certain"] for row in (rows if isinstance(rows, list) else [rows])]


def test_offline_beside_a_frozen_pivotd(qemu_factory: QemuFactory, tmp_path: Path):
    """The journal alone is no certain answer while a process lives that may still record the switch."""
    with dead_qemu(qemu_factory, tmp_path, freeze) as (daemon, _):
        answer = daemon.ctl("verdict", "web1", offline=True)
        os.kill(daemon.pid, signal.SIGCONT)
        assert certain(answer.json) == [False]
        assert answer.status == 6
        assert call(daemon, "GET", "/v1/pivots/move/wait?timeout_s=60", timeout_s=90)["phase"] == "closed"
        assert certain(daemon.ctl("verdict", "web1", offline=True).json) == [True]


def test_offline_after_the_frozen_pivotd_was_killed(qemu_factory: QemuFactory, tmp_path: Path):
    """With the process gone the journal's word is final: the source."""
    with dead_qemu(qemu_factory, tmp_path, freeze) as (daemon, _):
        daemon.kill()
        answer = daemon.ctl("verdict", "web1", "disk0", offline=True)
        assert (answer.json["certain"], answer.json["image"]) == (True, str(tmp_path / "old.qcow2"))


def test_the_daemon_while_its_record_is_being_flushed(qemu_factory: QemuFactory, tmp_path: Path):
    """A slow flush of ``switched``: pivotd itself says that its answer is not certain yet, and then it is."""
    with dead_qemu(qemu_factory, tmp_path, slow_down) as (daemon, strike):
        told = call(daemon, "GET", "/v1/verdicts?domain=web1")
        assert not has_record(tmp_path / "state", "switched"), "too late to ask"
        assert certain(told) == [False]
        assert strike.helper is not None
        strike.helper.terminate()
        assert call(daemon, "GET", "/v1/pivots/move/wait?timeout_s=60", timeout_s=90)["phase"] == "closed"
        assert certain(call(daemon, "GET", "/v1/verdicts?domain=web1")) == [True]
