"""Somebody acts through libvirt while pivotd guards a pivot: at ready, in the pause, and once libvirt was asked.

In the pause libvirtd and pivotd are stopped in turn, so that the other command comes at that place in each run.
"""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.libvirt.domain import Domain
from tests.libvirt.guarding import Guarded, guard, until
from tests.libvirt.libvirtd import Libvirtd, Point

pytestmark = [pytest.mark.qemu, pytest.mark.timeout(300)]
AFTER = {"paused": '"stop"', "asked": '"job-complete"'}
"""The last command of libvirtd before the other one comes."""


@dataclass(frozen=True, slots=True)
class Case:
    """A virsh command, what it is answered (None: it works), the outcome of the pivot, and the guest's state then.

    ``outcome``: None: whichever pivotd has seen first.
    """

    command: str
    refused: str | None = None
    outcome: str | None = "switched"
    run_state: str | None = "running"


ABORT = Case("blockjob web1 vda --abort", outcome="kept")
PIVOT = Case("blockjob web1 vda --pivot")
DETACH = Case("detach-disk web1 vda --live", "already in active block job")
SAVE = Case("managedsave web1", "has active block job")
COPY = Case("blockcopy web1 vda /x --transient-job", "already in active block job")
SNAPSHOT = "snapshot-create-as web1 --disk-only --no-metadata --diskspec vda,file={overlay} --diskspec vdb,snapshot=no"
OTHER = Case(
    "snapshot-create-as web1 --disk-only --no-metadata --diskspec vdb,file={overlay} --diskspec vda,snapshot=no"
)
OVERLAY = Case(SNAPSHOT, "already in active block job")
DESTROY = Case("destroy web1", outcome="kept", run_state=None)
UNDEFINE = Case("undefine web1")
MIGRATE = Case("migrate web1 qemu+unix:///system?socket=/nowhere --live", "/nowhere")
RESET = Case("reset web1")
AT_READY = (ABORT, PIVOT, DETACH, SAVE, COPY, OVERLAY, OTHER, DESTROY, UNDEFINE, MIGRATE, RESET)
PAUSED = (ABORT, PIVOT, DETACH, SAVE, OVERLAY, OTHER, DESTROY, UNDEFINE, MIGRATE, RESET)
ASKED = (
    Case("blockjob web1 vda --abort", "does not have an active block job"),
    # The saved guest is in its pause: `virsh resume` after its next start.
    Case("managedsave web1", run_state=None),
    # The root is neither image: nothing is resumed, and a person has to look.
    Case(SNAPSHOT, outcome="unknown", run_state="paused"),
    OTHER,
    # Both images are complete, and the next boot's is right: pivotd may have seen the switch before it was stopped.
    Case("destroy web1", outcome=None, run_state=None),
    UNDEFINE,
    MIGRATE,
    RESET,
)


def named(moment: str, case: Case) -> str:
    return f"{moment}-{case.command.split()[0]}{case.command.split()[-1]}"


CASES = [
    *(pytest.param("ready", case, id=named("ready", case), marks=pytest.mark.long) for case in AT_READY),
    *(
        pytest.param("paused", case, id=named("paused", case), marks=() if case is PIVOT else pytest.mark.long)
        for case in PAUSED
    ),
    *(pytest.param("asked", case, id=named("asked", case), marks=pytest.mark.long) for case in ASKED),
]


def state(pid: int | None) -> str:
    """Return the state letter of a process."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def meddle(guarded: Guarded, moment: str, command: str) -> str:
    """Let pivotd pivot to a copy and virsh run a command at a moment of that; return what virsh says."""
    libvirtd, daemon = guarded.libvirtd, guarded.daemon
    assert libvirtd.pid is not None
    if moment == "ready":
        daemon.ctl("copy", "web1", f"vda={guarded.domain.image('vda', 1)}", "--no-pivot")
        until(lambda: guarded.pivot()["phase"] == "ready", "the copy")
        done = libvirtd.virsh(*command.split())
        pivot = guarded.pivot()["id"]
        if "--abort" not in command and "--pivot" not in command and not command.startswith("destroy"):
            guarded.begin("pivot", "complete", pivot)
        return done.stderr
    guarded.domain.copy()
    virsh = libvirtd.virsh_session()
    libvirtd.kill_at(Point("after", "command", AFTER[moment], delay_ms=100, action="stop"))
    guarded.begin("libvirt", "pivot", "web1", "vda")
    until(lambda: state(libvirtd.pid) == "T", "the stop of libvirtd")
    os.kill(daemon.pid, signal.SIGSTOP)
    try:
        virsh.send(command)
        os.kill(libvirtd.pid, signal.SIGCONT)
        return virsh.end()
    finally:
        os.kill(daemon.pid, signal.SIGCONT)


@pytest.mark.parametrize(("moment", "case"), CASES)
def test_another_command_in_a_guarded_pivot(libvirtd: Libvirtd, tmp_path: Path, moment: str, case: Case):
    """Libvirt refuses it, or the pivot ends in accordance with it; what QEMU has, libvirt and the verdict name."""
    libvirtd.start()
    domain = Domain(libvirtd, guest=False, disks=2).define().boot()
    with guard(tmp_path, libvirtd) as daemon, Guarded(domain, daemon) as guarded:
        guarded.await_domain()
        said = meddle(guarded, moment, case.command.format(overlay=domain.image("vdb", 3)))
        assert (case.refused or "") in said, said
        assert case.refused is not None or "error" not in said, said
        guarded.await_end()
        shown = guarded.pivot()
        assert case.outcome in {None, shown["outcome"]}, shown["error"]

        def verdict() -> tuple[str, bool]:
            found = daemon.ctl("verdict", "web1", "vda").json
            return Path(found["image"] or "").name, found["certain"]

        if case.run_state is None:
            assert verdict() == (domain.believe().next_boot, True)
            return
        root, believed = domain.root(), domain.believe()
        assert {believed.live, believed.next_boot or root} == {root}
        until(lambda: verdict() == (root, True), "the verdict")
        spy = domain.spy()
        assert spy.execute("query-status")["status"] == case.run_state
        spy.close()
