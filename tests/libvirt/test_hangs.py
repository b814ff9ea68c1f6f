"""A libvirtd that hangs while the guest stands still: a monitor of pivotd's own lets the guest run, where that is safe."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.libvirt.domain import Domain
from tests.libvirt.guarding import Guarded, guard, until
from tests.libvirt.libvirtd import Libvirtd, Point
from tests.libvirt.test_meddling import state

pytestmark = [pytest.mark.qemu, pytest.mark.long, pytest.mark.timeout(300)]
READY_S = 120.0
"""Recovery tries libvirt a few times before the API is served."""


@pytest.fixture
def hanging(libvirtd: Libvirtd, tmp_path: Path) -> Iterator[Guarded]:
    """A domain that has a monitor for pivotd, and a copy that is ready."""
    libvirtd.start()
    domain = Domain(libvirtd, guest=False, pivotds_monitor=True).define().boot()
    with guard(tmp_path, libvirtd) as daemon, Guarded(domain, daemon) as found:
        found.await_domain()
        domain.copy()
        yield found


def hang(guarded: Guarded, when: str, command: str) -> None:
    """Let pivotd end the copy, and libvirtd hang at a command of that."""
    libvirtd = guarded.libvirtd
    libvirtd.kill_at(Point(when, "command", f'"{command}"', action="stop", delay_ms=100 if when == "after" else 0))
    guarded.begin("libvirt", "pivot", "web1", "vda", "--max-pause", "500")
    until(lambda: state(libvirtd.pid) == "T", "the hang")


def go_on(guarded: Guarded) -> None:
    assert guarded.libvirtd.pid is not None
    os.kill(guarded.libvirtd.pid, signal.SIGCONT)


def run_state(guarded: Guarded) -> str:
    spy = guarded.domain.spy()
    try:
        return str(spy.execute("query-status")["status"])
    finally:
        spy.close()


def events(guarded: Guarded) -> list[str]:
    return [record["event"] for record in guarded.pivot()["records"]]


@pytest.mark.parametrize("pivotd_dies", [False, True], ids=["pivotd lives", "pivotd dead too"])
@pytest.mark.parametrize("command", ["stop", "job-complete", "cont"])
def test_the_guest_runs_on_while_libvirtd_hangs(hanging: Guarded, command: str, pivotd_dies: bool):
    """Before libvirt was asked: on the source, and the copy stays; asked: its job is cancelled; decided: as recorded."""
    hang(hanging, "after" if command == "stop" else "before", command)
    if pivotd_dies:
        hanging.daemon.kill()
        hanging.daemon.start(wait=False)
    until(lambda: run_state(hanging) == "running", "the resume")
    hanging.daemon.await_ready(timeout_s=READY_S)
    assert hanging.domain.root() == ("web1-vda-1.qcow2" if command == "cont" else "web1-vda-0.qcow2")
    if command == "job-complete":
        until(lambda: hanging.pivot()["outcome"] == "kept", "the record")
        verdict = hanging.daemon.ctl("verdict", "web1", "vda").json
        assert Path(verdict["image"]).name == "web1-vda-0.qcow2", verdict
        assert verdict["certain"] or verdict["pending"], "it runs, and can be asked by no other way"
    go_on(hanging)
    hanging.await_end()
    assert hanging.pivot()["outcome"] == ("kept" if command == "job-complete" else "switched"), hanging.ended()
    hanging.assert_right()


def test_in_the_middle_of_the_switch_the_guest_waits_for_libvirtd(hanging: Guarded):
    """Only libvirt can define its next boot then; what to do is told, and all ends right once libvirtd goes on."""
    hang(hanging, "after", "job-complete")

    pivot = hanging.pivot()["id"]
    until(lambda: "libvirt does not answer in the middle of the switch" in hanging.told(pivot), "the reason")
    assert run_state(hanging) == "paused"
    assert "pivot.guest-waits" in hanging.daemon.log_path.read_text()
    go_on(hanging)
    hanging.await_end()
    # Not needed: libvirtd has carried out a resume whose answer came too late.
    assert events(hanging)[-3:] in [["switched", resumed, "closed"] for resumed in ("resumed", "resume-not-needed")]
    hanging.assert_right()
