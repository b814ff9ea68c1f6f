"""libvirtd killed at every point of a guarded pivot, alone, with pivotd, or with QEMU too, and started again.

While the guest is paused both images are complete at every point. With the hook each case ends with QEMU, both
definitions and the verdict on one image, and the guest runs. Without it libvirt may not know its own disk: then the
guest stays paused, and pivotd says what to do.
"""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from pivotd import limits
from pivotd.core import names
from tests.libvirt.domain import ABORT_POINTS, PIVOT_POINTS, SNAPSHOT_POINTS, Domain
from tests.libvirt.guarding import Guarded, guard, until
from tests.libvirt.libvirtd import Libvirtd, Point

pytestmark = [pytest.mark.qemu, pytest.mark.chaos, pytest.mark.long, pytest.mark.timeout(600)]
SETTLED_S = 60.0
SAYS = ("libvirt does not know that: restart libvirtd", "libvirt says that it does not run: restart libvirtd")


def die(guarded: Guarded, point: Point, end: str = "pivot", *, pivotd: bool, qemu: bool) -> None:
    """Let libvirtd die at a point of the guarded end of its job, and others right after it; start what was killed."""
    domain, libvirtd = guarded.domain, guarded.libvirtd
    libvirtd.kill_at(point)
    guarded.begin("libvirt", end, domain.name, "vda")
    end_with(guarded, pivotd=pivotd, qemu=qemu)


def end_with(guarded: Guarded, *, pivotd: bool, qemu: bool = False) -> None:
    """Wait for libvirtd's death, let others die right after it, and start what was killed."""
    guarded.libvirtd.await_death()
    if pivotd:
        guarded.daemon.kill()
    if qemu:
        guarded.domain.kill_qemu()
    guarded.libvirtd.never_kill()
    guarded.libvirtd.start()
    if pivotd:
        guarded.daemon.start()


@pytest.fixture(params=[False, True], ids=["pivotd lives", "pivotd dead too"])
def pivotd_dies(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.mark.parametrize("hook", [False, True], ids=["no hook", "hook"])
@pytest.mark.parametrize("point", PIVOT_POINTS)
def test_libvirtd_killed_in_a_guarded_pivot(
    libvirtd: Libvirtd, tmp_path: Path, point: str, pivotd_dies: bool, hook: bool
):
    """Everything names one image and the guest runs; without the hook it may stay paused, and the reason is told."""
    if hook:
        libvirtd.install_hook()
    libvirtd.start()
    domain = Domain(libvirtd, guest=False).define().boot()
    with guard(tmp_path, libvirtd) as daemon, Guarded(domain, daemon) as guarded:
        guarded.await_domain()
        domain.copy()
        die(guarded, PIVOT_POINTS[point], pivotd=pivotd_dies, qemu=False)
        if guarded.settled(SETTLED_S)["phase"] == "closed":
            guarded.assert_right()
            return
        end = guarded.ended()
        assert not hook, end
        assert end.run_state == "paused", end
        assert any(text in " ".join(end.detail.split()) for text in SAYS), end
        assert daemon.ctl("image", "web1", "vda").status == 6, end
        assert "pivot.guest-waits" in daemon.log_path.read_text(), end


ENDS = [
    *(("copy", "abort", point) for point in ("K0", "K1", "K2", "K3", "K4", "K5", "K5b", "K6")),
    *(("commit", "pivot", point) for point in ("K0", "K1", "K2", "K3", "K4", "K5", "K6")),
    *(("commit", "abort", point) for point in ("K1", "K2", "K3", "K4", "K5")),
]


@pytest.mark.parametrize(("job", "end", "point"), ENDS)
def test_libvirtd_killed_in_another_guarded_end(
    libvirtd: Libvirtd, tmp_path: Path, job: str, end: str, point: str, pivotd_dies: bool
):
    """An abort of a copy, and both ends of an active commit, with the hook: right, and no image in use is deleted."""
    libvirtd.install_hook()
    libvirtd.start()
    domain = Domain(libvirtd, guest=False).define().boot()
    source = 0
    with guard(tmp_path, libvirtd) as daemon, Guarded(domain, daemon) as guarded:
        guarded.await_domain()
        if job == "copy":
            domain.copy()
        else:
            source = 1
            domain.snapshot()
            domain.commit()
        die(guarded, (PIVOT_POINTS if end == "pivot" else ABORT_POINTS)[point], end, pivotd=pivotd_dies, qemu=False)
        assert guarded.settled(SETTLED_S)["phase"] == "closed", guarded.ended()
        guarded.assert_right(source=source)
        assert domain.image("vda", source).exists()


@pytest.mark.parametrize("hook", [False, True], ids=["no hook", "hook"])
@pytest.mark.parametrize("point", SNAPSHOT_POINTS)
def test_libvirtd_killed_in_a_guarded_snapshot(
    libvirtd: Libvirtd, tmp_path: Path, point: str, pivotd_dies: bool, hook: bool
):
    """No job stands for it in libvirt's files, and no hook helps: it is taken back where libvirt has not noted it."""
    if hook:
        libvirtd.install_hook()
    libvirtd.start()
    domain = Domain(libvirtd, guest=False, disks=2).define().boot()
    with guard(tmp_path, libvirtd) as daemon, Guarded(domain, daemon) as guarded:
        guarded.await_domain()
        libvirtd.kill_at(SNAPSHOT_POINTS[point])
        guarded.begin("snapshot", "web1", *(f"{target}={domain.image(target, 1)}" for target in domain.targets))
        end_with(guarded, pivotd=pivotd_dies)
        guarded.await_end()
        outcome = guarded.pivot()["outcome"]
        if point in {"live", "next"}:
            assert outcome == "switched"
        else:  # libvirt is asked again if nobody could note that the call has failed, or if it never arrived
            assert outcome in {"kept", "switched"}
        for target in domain.targets:
            guarded.assert_right(target)


def test_pivotd_killed_in_a_guarded_snapshot(libvirtd: Libvirtd, tmp_path: Path):
    """Nobody waits for the call any more, and libvirtd carries it out to its end."""
    libvirtd.start()
    domain = Domain(libvirtd, guest=False).define().boot()
    with guard(tmp_path, libvirtd) as daemon, Guarded(domain, daemon) as guarded:
        guarded.await_domain()
        libvirtd.kill_at(replace(SNAPSHOT_POINTS["begun"], action="stop"))
        guarded.begin("snapshot", "web1", f"vda={domain.image('vda', 1)}")
        until(lambda: state(libvirtd.pid) == "T", "the stop of libvirtd")
        daemon.kill()
        assert libvirtd.pid is not None
        os.kill(libvirtd.pid, signal.SIGCONT)
        daemon.start()
        guarded.await_end()
        assert guarded.pivot()["outcome"] == "switched"
        guarded.assert_right()


@pytest.mark.parametrize("point", PIVOT_POINTS)
def test_qemu_killed_too(libvirtd: Libvirtd, tmp_path: Path, point: str, pivotd_dies: bool):
    """The verdict is the image of the next boot, certain and recorded."""
    libvirtd.start()
    domain = Domain(libvirtd, guest=False).define().boot()
    with guard(tmp_path, libvirtd) as daemon, Guarded(domain, daemon) as guarded:
        guarded.await_domain()
        domain.copy()
        die(guarded, PIVOT_POINTS[point], pivotd=pivotd_dies, qemu=True)
        guarded.await_end()
        verdict = daemon.ctl("verdict", "web1", "vda").json
        assert verdict["certain"], verdict
        assert Path(verdict["image"]).name == domain.believe().next_boot, verdict
        assert domain.image().exists()


def test_a_libvirtd_that_hangs_in_the_pivot(libvirtd: Libvirtd, tmp_path: Path):
    """Its answer is lost; the guest stays paused for so long, and once libvirtd goes on everything ends right."""
    libvirtd.start()
    domain = Domain(libvirtd, guest=False).define().boot()
    with guard(tmp_path, libvirtd) as daemon, Guarded(domain, daemon) as guarded:
        guarded.await_domain()
        domain.copy()
        libvirtd.kill_at(replace(PIVOT_POINTS["K2"], action="stop"))
        asking = guarded.begin("libvirt", "pivot", "web1", "vda")
        assert libvirtd.pid is not None
        until(lambda: state(libvirtd.pid) == "T", "the stop of libvirtd")
        until(lambda: "keepalive" in daemon.log_path.read_text() or "hangs" in daemon.log_path.read_text(), "the loss")
        spy = domain.spy()
        assert spy.execute("query-status")["status"] == "paused"
        spy.close()
        os.kill(libvirtd.pid, signal.SIGCONT)
        assert asking.wait(120) == 0
        guarded.assert_right()


def test_a_snapshot_goes_on_once_another_libvirtd_answers(libvirtd: Libvirtd, tmp_path: Path):
    """It cannot carry out the call that the one before has lost: the guest is not kept for as long as a call may last."""
    libvirtd.start()
    domain = Domain(libvirtd, guest=False).define().boot()
    with guard(tmp_path, libvirtd) as daemon, Guarded(domain, daemon) as guarded:
        guarded.await_domain()
        libvirtd.kill_at(Point("before", "command", '"transaction"'))
        guarded.begin("snapshot", "web1", f"vda={domain.image('vda', 1)}")
        libvirtd.await_death()
        libvirtd.never_kill()
        libvirtd.start()
        guarded.await_end()
        assert guarded.ended().run_state == "running"
        assert guarded.pivot()["pause_ms"] < limits.LIBVIRT_DOUBT_S * 1000


def state(pid: int | None) -> str:
    """Return the state letter of a process."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_a_mirror_back_that_a_killed_pivotd_has_left_is_ended(libvirtd: Libvirtd, tmp_path: Path):
    """The next one sees it, cancels it, and takes the disk back with one of its own; nothing of both is left."""
    libvirtd.start()
    domain = Domain(libvirtd, guest=False).define().boot()
    with guard(tmp_path, libvirtd) as daemon, Guarded(domain, daemon) as guarded:
        guarded.await_domain()
        domain.copy()
        spy = domain.spy()
        (source,) = (block["inserted"]["node-name"] for block in spy.execute("query-block") if "inserted" in block)
        libvirtd.kill_at(PIVOT_POINTS["K4"])
        guarded.begin("libvirt", "pivot", domain.name, "vda")
        libvirtd.await_death()
        daemon.kill()
        libvirtd.never_kill()
        pivot = daemon.ctl("pivot", "ls", offline=True).json[0]["id"]
        (root,) = (block["inserted"]["node-name"] for block in spy.execute("query-block") if "inserted" in block)
        assert root != source
        back = {"job-id": names.reverse_job(pivot, 0), "device": root, "target": source}
        spy.execute("blockdev-mirror", {**back, "sync": "none", "auto-dismiss": False})
        spy.close()
        libvirtd.start()
        daemon.start()
        guarded.await_end()
        end = guarded.ended()
        assert (end.outcome, end.run_state, end.images[0]) == ("kept", "running", "web1-vda-0.qcow2"), end
        assert end.verdict["certain"], end
        spy = domain.spy()
        assert spy.execute("query-jobs") == []
        spy.close()
