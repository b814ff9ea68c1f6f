"""The hook's repair on a real QEMU, with a status file as libvirt would have left it; no libvirtd."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pivotd import libvirt_hook
from tests.libvirt.status_text import DEVICE, NAME, status_text
from tests.support.qemu import Disk, Qemu, create_image
from tests.support.waiting import until

pytestmark = pytest.mark.qemu

BOUND_S = 4.0
"""Long enough for a repair on a busy machine."""
SLACK_S = 10.0
"""What a busy machine may add to a bound."""
LOOKS = 20
"""So often the hook finds a copy that goes on, before that may end."""


class Host:
    """A QEMU whose disk was copied by a job of libvirt's, and the directory of status files."""

    def __init__(self, directory: Path, qemu: Qemu) -> None:
        self.qemu, self.status_dir = qemu, directory / "status"
        self.status_dir.mkdir()
        self.file = self.status_dir / "web1.xml"
        new = create_image(directory / "new.qcow2")
        qemu.spy("object-add", {"qom-type": "throttle-group", "id": "slow", "limits": {}})
        file = {"driver": "throttle", "throttle-group": "slow", "file": {"driver": "file", "filename": str(new)}}
        qemu.spy("blockdev-add", {"driver": "qcow2", "node-name": "new", "file": file})
        qemu.spy(
            "blockdev-mirror",
            {"job-id": NAME, "device": "src0", "target": "new", "sync": "full", "auto-dismiss": False},
        )  # fmt: skip
        self.until("ready")

    def until(self, status: str) -> None:
        assert until(lambda: self.qemu.jobs()[NAME]["status"] == status)

    def take_at_most(self, bytes_per_s: int) -> None:
        """Let the new image take no more than this; 0: whatever comes."""
        limits = {"path": "/objects/slow", "property": "limits", "value": {"bps-write": bytes_per_s}}
        self.qemu.spy("qom-set", limits)

    def pivot(self, *, dismiss: bool) -> None:
        self.qemu.spy("job-complete", {"id": NAME})
        self.until("concluded")
        if dismiss:
            self.qemu.spy("job-dismiss", {"id": NAME})

    def note(self, state: str = "ready", **options: str) -> str:
        """Write the status file and return it."""
        text = status_text(
            state=state, pid=self.qemu.pid, monitor=self.qemu.qmp, source="src0", target="new", **options
        )
        self.file.write_text(text)
        return text

    def repair(self, *, dry_run: bool = False) -> None:
        libvirt_hook.repair_all(self.status_dir, dry_run=dry_run)

    def noted(self) -> tuple[str, str | None]:
        (job,) = libvirt_hook.read_status(self.file.read_bytes()).jobs
        return job.state, job.ready


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    monkeypatch.setattr(libvirt_hook, "parent_release", lambda: (9, 0, 0))
    monkeypatch.setattr(libvirt_hook.Caller, "program", None)
    with Qemu(tmp_path, [Disk(create_image(tmp_path / "old.qcow2"))]) as qemu:
        yield Host(tmp_path, qemu)


def test_a_pivot_that_libvirt_has_not_noted(host: Host, capsys: pytest.CaptureFixture[str]) -> None:
    """QEMU has switched and keeps the job: the file alone is changed, and that is said once."""
    host.pivot(dismiss=False)
    host.note()
    mode = host.file.stat().st_mode
    host.repair()
    assert host.noted() == ("pivoting", "pivot")
    assert host.file.stat().st_mode == mode
    assert [path.name for path in host.status_dir.iterdir()] == ["web1.xml"]
    assert "web1 vda: QEMU has the node new, so libvirt is to finish the pivot" in capsys.readouterr().err
    host.repair()
    assert capsys.readouterr().err == ""


def test_a_job_that_libvirt_has_dismissed_is_there_again(host: Host) -> None:
    """It has ended without an error, its disk stays as it is, and no node is left over."""
    host.pivot(dismiss=True)
    host.note("pivoting", mirror="type='file' job='copy' ready='pivot'")
    before = host.qemu.nodes().keys()
    host.repair()
    job = host.qemu.jobs()[NAME]
    assert (job["status"], job.get("error")) == ("concluded", None)
    assert host.qemu.root().node == "new"
    assert host.qemu.nodes().keys() == before


def test_an_earlier_run_that_was_killed_is_finished(host: Host) -> None:
    """Killed between any two of its commands, the next run comes to the same end."""
    host.pivot(dismiss=True)
    host.note("pivoting", mirror="type='file' job='copy' ready='pivot'")
    for node in libvirt_hook.nodes_of(NAME):
        host.qemu.spy("blockdev-add", {"driver": "null-co", "node-name": node, "size": libvirt_hook.SIZE_BYTES})
    host.repair()
    host.until("concluded")
    host.qemu.spy("job-dismiss", {"id": NAME})
    for node in libvirt_hook.nodes_of(NAME):
        host.qemu.spy("blockdev-add", {"driver": "null-co", "node-name": node, "size": libvirt_hook.SIZE_BYTES})
    first, second = libvirt_hook.nodes_of(NAME)
    host.qemu.spy(
        "blockdev-mirror",
        {"job-id": NAME, "device": first, "target": second, "sync": "none", "auto-dismiss": False},
    )  # fmt: skip
    host.until("ready")
    host.repair()
    host.until("concluded")
    assert not set(libvirt_hook.nodes_of(NAME)) & host.qemu.nodes().keys()


def test_a_copy_that_waits_beside_a_half_made_job_is_left_alone(host: Host, capsys: pytest.CaptureFixture[str]) -> None:
    """What an earlier run has left over was of another disk's job."""
    text = host.note()
    for node in libvirt_hook.nodes_of(NAME):
        host.qemu.spy("blockdev-add", {"driver": "null-co", "node-name": node, "size": libvirt_hook.SIZE_BYTES})
    host.repair()
    assert (host.file.read_text(), capsys.readouterr().err) == (text, "")
    assert host.qemu.jobs()[NAME]["status"] == "ready"


@pytest.mark.parametrize("dry_run", [False, True])
def test_a_copy_that_waits_is_left_alone(host: Host, dry_run: bool, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is written, nothing is said, and the job still waits."""
    text = host.note()
    inode = host.file.stat().st_ino
    host.repair(dry_run=dry_run)
    assert (host.file.read_text(), host.file.stat().st_ino) == (text, inode)
    assert host.qemu.jobs()[NAME]["status"] == "ready"
    assert capsys.readouterr().err == ""


def test_a_pivot_under_way_is_waited_for(host: Host) -> None:
    """Libvirtd died with its request in the socket: the hook looks until QEMU has switched."""
    host.note()
    host.qemu.spy("job-complete", {"id": NAME})
    host.repair()
    assert host.noted() == ("pivoting", "pivot")


def test_a_dry_run_says_it_and_changes_nothing(host: Host, capsys: pytest.CaptureFixture[str]) -> None:
    """The line of the repair, with `nothing was changed`."""
    host.pivot(dismiss=True)
    text = host.note()
    host.repair(dry_run=True)
    assert "finish the pivot of copy-vda-old; nothing was changed (dry run)" in capsys.readouterr().err
    assert host.file.read_text() == text
    assert NAME not in host.qemu.jobs()


def test_an_unknown_release_is_left_alone(
    host: Host, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A repair that a release might not understand is said and not made."""
    monkeypatch.setattr(libvirt_hook, "parent_release", lambda: (99, 0, 0))
    host.pivot(dismiss=True)
    text = host.note()
    host.repair()
    assert (
        "web1: left alone: libvirt 99.0.0 is not known to this hook, and vda needs a repair" in capsys.readouterr().err
    )
    assert host.file.read_text() == text


@pytest.mark.parametrize("hangs", ["before it answers", "never was there"])
def test_a_qemu_that_does_not_answer_is_left_alone(
    host: Host, hangs: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Libvirtd waits for no more than the bound, and the other domains are repaired."""
    monkeypatch.setattr(libvirt_hook, "DOMAIN_BOUND_S", BOUND_S)
    host.pivot(dismiss=False)
    host.note()
    other = host.status_dir / "a-other.xml"
    if hangs == "before it answers":
        directory = host.status_dir.parent / "hung"
        directory.mkdir()
        with Qemu(directory, name="other") as hung:
            other.write_text(status_text(pid=hung.pid, monitor=hung.qmp))
            hung.kill(signal.SIGSTOP)
            started_s = time.monotonic()
            host.repair()
            took_s = time.monotonic() - started_s
            hung.kill(signal.SIGCONT)
    else:
        other.write_text(status_text(monitor=host.status_dir / "no.sock"))
        started_s = time.monotonic()
        host.repair()
        took_s = time.monotonic() - started_s
    assert took_s < BOUND_S + SLACK_S
    assert "a-other: left alone: " in capsys.readouterr().err
    assert host.noted() == ("pivoting", "pivot")


def test_a_monitor_of_another_process_is_left_alone(host: Host, capsys: pytest.CaptureFixture[str]) -> None:
    """The process of the status file is not the one that listens: it is not this domain's QEMU."""
    host.pivot(dismiss=False)
    host.file.write_text(status_text(pid=1, monitor=host.qemu.qmp, source="src0", target="new"))
    host.repair()
    assert f"its monitor belongs to process {host.qemu.pid}, not to 1" in capsys.readouterr().err
    assert host.noted() == ("ready", "yes")


def test_only_the_daemon_with_the_qemu_driver_repairs(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """Libvirt's other daemons run the same hook when they start, beside a virtqemud at work."""
    host.pivot(dismiss=False)
    host.note()
    monkeypatch.setattr(libvirt_hook, "STATUS_DIR", host.status_dir)
    monkeypatch.setattr(libvirt_hook.os, "geteuid", lambda: 0)
    monkeypatch.setattr(libvirt_hook, "parent_program", lambda: "/usr/sbin/virtnetworkd")
    assert libvirt_hook.main(["daemon", "-", "start", "-", "start"]) == 0
    assert host.noted() == ("ready", "yes")
    monkeypatch.setattr(libvirt_hook, "parent_program", lambda: "/usr/sbin/virtqemud")
    for operation in ("shutdown", "reload"):
        assert libvirt_hook.main(["daemon", "-", operation, "-", operation]) == 0
    assert host.noted() == ("ready", "yes")
    assert libvirt_hook.main(["daemon", "-", "start", "-", "start"]) == 0
    assert host.noted() == ("pivoting", "pivot")


def test_a_pivot_that_is_still_writing_is_waited_for(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """QEMU shows the same job as for one that waits for its end, but it has something left to copy."""
    host.note()
    look, seen = libvirt_hook.look, []

    def then_it_goes_on(*facts: Any) -> libvirt_hook.Seen:
        seen.append(look(*facts))
        if len(seen) == LOOKS:
            host.take_at_most(0)
        return seen[-1]

    monkeypatch.setattr(libvirt_hook, "look", then_it_goes_on)
    monkeypatch.setattr(libvirt_hook, "SETTLE_BOUND_S", 60.0)
    monkeypatch.setattr(libvirt_hook, "START_BOUND_S", 60.0)
    monkeypatch.setattr(libvirt_hook, "DOMAIN_BOUND_S", 60.0)
    host.take_at_most(64 << 10)
    assert host.qemu.spy("human-monitor-command", {"command-line": f'qemu-io -d {DEVICE} "write 0 3M"'}) == ""
    host.qemu.spy("job-complete", {"id": NAME})
    assert host.qemu.jobs()[NAME]["status"] == "ready"
    host.repair()
    assert [one.job and one.job["status"] for one in seen[:LOOKS]] == ["ready"] * LOOKS
    assert host.noted() == ("pivoting", "pivot")


def test_a_hook_that_has_outlived_its_libvirtd_changes_nothing(
    host: Host, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The next libvirtd runs the hook again, and may be reading the file already."""
    monkeypatch.setattr(libvirt_hook.Caller, "program", "/usr/sbin/libvirtd")
    monkeypatch.setattr(libvirt_hook, "parent_program", lambda: "")
    host.pivot(dismiss=True)
    text = host.note()
    host.repair()
    assert "the libvirtd that has run this hook has ended" in capsys.readouterr().err
    assert host.file.read_text() == text
    assert NAME not in host.qemu.jobs()
