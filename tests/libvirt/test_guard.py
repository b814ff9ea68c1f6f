"""pivotd guards libvirt's own pivots: each kind, one job of another tool, and the worst moments of libvirtd and pivotd."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pivotd import limits
from tests.libvirt.domain import PIVOT_POINTS, Domain
from tests.libvirt.guarding import PROGRAM, Guarded, guard, until
from tests.libvirt.libvirtd import Libvirtd, Point
from tests.libvirt.test_meddling import state
from tests.support.qemu import create_image

pytestmark = [pytest.mark.qemu, pytest.mark.timeout(180)]


@pytest.fixture
def guarded(libvirtd: Libvirtd, tmp_path: Path) -> Iterator[Guarded]:
    """A running domain with two disks and no guest system, and pivotd beside it."""
    libvirtd.start()
    domain = Domain(libvirtd, guest=False, disks=2).define().boot()
    with guard(tmp_path, libvirtd) as daemon, Guarded(domain, daemon) as found:
        found.await_domain()
        yield found


def names(guarded: Guarded, target: str = "vda") -> set[str | None]:
    believed = guarded.domain.believe(target)
    return {guarded.domain.root(target), believed.live, believed.next_boot}


def test_two_disks_are_copied_and_switched_in_one_pause(guarded: Guarded):
    """Root, live and next boot of both agree; the record says that libvirt was asked before it was."""
    domain = guarded.domain
    targets = [f"{target}={domain.image(target, 1)}" for target in domain.targets]
    answer = guarded.daemon.ctl("copy", "web1", *targets)
    assert (answer.status, answer.json["outcome"]) == (0, "switched"), answer
    assert (names(guarded, "vda"), names(guarded, "vdb")) == ({"web1-vda-1.qcow2"}, {"web1-vdb-1.qcow2"})
    shown = guarded.pivot()
    assert shown["manager"] == "libvirt"
    assert len(shown["pauses"]) == 1
    events = " ".join(record["event"] for record in shown["records"])
    assert events == "accepted copying ready pausing asking writes-counted switched resumed closed"
    assert guarded.ended().run_state == "running"


def test_a_later_qemu_of_a_guest_while_libvirtd_is_down(guarded: Guarded):
    """Somebody may have moved its disk: nothing is certain, with the daemon and without it, before that QEMU has ended."""
    domain, daemon, libvirtd = guarded.domain, guarded.daemon, guarded.libvirtd
    new = domain.image("vda", 1)
    assert daemon.ctl("copy", "web1", f"vda={new}").status == 0
    guarded.await_end()
    libvirtd.ask("destroy", "web1")
    domain.boot()
    assert daemon.terminate() == 0
    libvirtd.kill()
    daemon.start()

    def image(*where: str | Path) -> tuple[int, str, str]:
        command = libvirtd.inside(
            str(PROGRAM.with_name("pivotctl")), *map(str, where), "image", "web1", "vda", "--wait=0"
        )
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        return done.returncode, done.stdout, done.stderr

    running = f"its QEMU runs (process {domain.qemu_pid()})"
    asked, offline = ("--socket", daemon.socket), ("--offline", daemon.state_dir)
    status, shown, why = image(*asked)
    assert (status, shown, running in why, "no libvirt daemon listens" in why) == (6, "", True, True), why
    assert daemon.terminate() == 0
    status, shown, why = image(*offline)
    assert (status, shown, running in why) == (6, "", True), why
    domain.kill_qemu()
    assert image(*offline) == (0, f"{new}\n", "")
    daemon.start()
    assert image(*asked) == (0, f"{new}\n", "")


def test_overlays_and_back(guarded: Guarded):
    """A snapshot of both disks, and a commit of one: each agrees, and no image is deleted."""
    domain = guarded.domain
    answer = guarded.daemon.ctl("snapshot", "web1", *(f"{name}={domain.image(name, 2)}" for name in domain.targets))
    assert (answer.status, answer.json["outcome"]) == (0, "switched"), answer
    assert (names(guarded, "vda"), names(guarded, "vdb")) == ({"web1-vda-2.qcow2"}, {"web1-vdb-2.qcow2"})
    answer = guarded.daemon.ctl("commit", "web1", "vdb")
    assert (answer.status, answer.json["outcome"]) == (0, "switched"), answer
    assert names(guarded, "vdb") == {"web1-vdb-0.qcow2"}
    assert domain.image("vdb", 2).exists()


def test_a_job_of_another_tool_is_guarded_to_either_end(guarded: Guarded):
    """`libvirt pivot` and `libvirt abort` in place of `virsh blockjob`: status 0 for what was asked."""
    domain = guarded.domain
    domain.copy("vda", 1)
    (job,) = guarded.daemon.ctl("domain", "show", "web1").json["jobs"]
    assert (job["disk"], job["adoptable"]) == ("vda", True), job
    answer = guarded.daemon.ctl("libvirt", "pivot", "web1", "vda")
    assert (answer.status, answer.json["outcome"], names(guarded)) == (0, "switched", {"web1-vda-1.qcow2"}), answer
    domain.copy("vda", 2)
    answer = guarded.daemon.ctl("libvirt", "abort", "web1", "vda")
    assert (answer.status, answer.json["outcome"], names(guarded)) == (0, "kept", {"web1-vda-1.qcow2"}), answer
    assert domain.believe().mirror is None


REFUSED = (
    (("pull", "web1", "vda"), "pull with `virsh blockpull`"),
    (("copy", "web1", "vda=/x", "--keep-synced"), "--keep-synced: libvirt does not know a mirror back"),
    (("copy", "web1", "vda=/x", "--option", "cluster_size=64K"), "make it, and --reuse"),
    (("copy", "web1", "vda=nbd://h/x", "--format", "raw", "--reuse"), "to files and block devices alone"),
    (("copy", "web1", "hda=/x"), "web1 has no disk hda; its disks are: vda, vdb"),
    (("libvirt", "pivot", "web1", "vda"), "there is nothing to adopt"),
)


def test_what_libvirt_cannot_do_is_refused_in_one_line(guarded: Guarded):
    """Before anything is recorded."""
    for arguments, why in REFUSED:
        answer = guarded.daemon.ctl(*arguments)
        assert answer.status == 4, answer
        assert why in answer.json["error"]["message"]
    assert guarded.daemon.ctl("pivot", "ls").json == []


def test_libvirtd_that_dies_before_its_last_save_is_set_right(guarded: Guarded):
    """K6: the next boot would be from the old image; pivotd defines it, and only then the guest runs."""
    domain, libvirtd = guarded.domain, guarded.libvirtd
    domain.copy()
    libvirtd.kill_at(PIVOT_POINTS["K6"])
    asking = guarded.begin("libvirt", "pivot", "web1", "vda")
    libvirtd.await_death()
    libvirtd.start()
    guarded.await_end()
    assert asking.wait(60) == 0
    guarded.assert_right()


def test_a_switch_of_which_libvirtd_does_not_learn_is_taken_back(guarded: Guarded):
    """K2 without the hook, pivotd dead too: QEMU is on the new image, libvirt on the old one; the guest goes on there."""
    domain, libvirtd = guarded.domain, guarded.libvirtd
    domain.copy()
    libvirtd.kill_at(PIVOT_POINTS["K2"])
    guarded.begin("libvirt", "pivot", "web1", "vda")
    libvirtd.await_death()
    guarded.daemon.kill()
    answer = guarded.daemon.ctl("verdict", "web1", "vda", offline=True)
    assert (answer.json["certain"], "both images are complete" in answer.json["reason"]) == (False, True), answer
    libvirtd.start()
    guarded.daemon.start()
    guarded.await_end()
    assert guarded.ended().images == ("web1-vda-0.qcow2",) * 3
    guarded.assert_right()


@pytest.mark.long
def test_pivotd_follows_a_disk_that_another_tool_moves(guarded: Guarded):
    """Another tool moves it on without pivotd: the verdict goes along, also after the guest's end, and pivotd moves it again."""
    domain, daemon = guarded.domain, guarded.daemon
    assert daemon.ctl("copy", "web1", f"vda={domain.image('vda', 1)}").status == 0
    domain.copy("vda", 2)
    guarded.libvirtd.ask("blockjob", "web1", "vda", "--pivot")

    def verdict() -> tuple[str, bool]:
        found = daemon.ctl("verdict", "web1", "vda").json
        return Path(found["image"] or "").name, found["certain"]

    until(lambda: verdict() == ("web1-vda-2.qcow2", True), "the verdict")
    answer = daemon.ctl("copy", "web1", f"vda={domain.image('vda', 3)}")
    assert (answer.status, answer.json.get("outcome")) == (0, "switched"), answer
    domain.copy("vda", 4)
    guarded.libvirtd.ask("blockjob", "web1", "vda", "--pivot")
    until(lambda: verdict() == ("web1-vda-4.qcow2", True), "the verdict")
    domain.snapshot("vda", 5)
    guarded.libvirtd.ask("suspend", "web1")  # libvirt tells nothing of a snapshot: the next look sees it
    guarded.libvirtd.ask("resume", "web1")
    until(lambda: verdict() == ("web1-vda-5.qcow2", True), "the verdict after a snapshot")
    guarded.libvirtd.ask("destroy", "web1")
    until(lambda: verdict() == ("web1-vda-5.qcow2", True), "the verdict of the guest that has ended")


def test_pivotd_does_not_follow_an_image_that_somebody_plugs_in(libvirtd: Libvirtd, tmp_path: Path):
    """QEMU and both definitions name it, but nothing has put the disk's data there: in doubt, also after a new look."""
    libvirtd.start()
    domain = Domain(libvirtd, guest=False)
    create_image(domain.image("sda"))
    create_image(domain.image("sda", 2))
    controller, disk = libvirtd.directory / "controller.xml", libvirtd.directory / "disk.xml"
    controller.write_text("<controller type='scsi' index='0' model='virtio-scsi'/>")
    disk.write_text(
        "<disk type='file' device='disk'><driver name='qemu' type='qcow2'/>"
        f"<source file='{domain.image('sda')}'/><target dev='sda' bus='scsi'/></disk>"
    )
    domain.define()
    for element in (controller, disk):
        libvirtd.ask("attach-device", "web1", str(element), "--config")
    domain.boot()
    with guard(tmp_path, libvirtd) as daemon, Guarded(domain, daemon) as found:
        found.await_domain()
        assert daemon.ctl("copy", "web1", f"sda={domain.image('sda', 1)}").status == 0
        libvirtd.ask("detach-disk", "web1", "sda", "--live", "--config")
        disk.write_text(disk.read_text().replace("sda-0", "sda-2"))
        libvirtd.ask("attach-device", "web1", str(disk), "--live", "--config")
        for _ in range(2):
            libvirtd.ask("suspend", "web1")
            libvirtd.ask("resume", "web1")
            time.sleep(2 * limits.LIBVIRT_MOVE_S)
            assert daemon.ctl("verdict", "web1", "sda").status == 6
            # The same over a new connection, which has been told nothing.
            libvirtd.kill()
            libvirtd.start()
            found.await_domain()


def test_a_next_boot_that_stays_behind_is_told_at_the_terminal(guarded: Guarded):
    """Somebody has defined another image for it: with --force pivotd switches, leaves that alone, and says so."""
    domain, libvirtd = guarded.domain, guarded.libvirtd
    definition = libvirtd.directory / "next.xml"
    definition.write_text(libvirtd.ask("dumpxml", "--inactive", "web1").replace("vda-0", "vda-8"))
    libvirtd.ask("define", str(definition))
    asked = guarded.begin("copy", "web1", f"vda={domain.image('vda', 1)}", "--force", told=True)
    out, said = asked.communicate(timeout=60)
    assert asked.returncode == 0, said
    assert b"vda: switched" in out
    assert b"has switched, but: the data of vda is in" in said
    assert f"the next boot names {domain.image('vda', 8)}".encode() in said
    assert domain.believe().next_boot == "web1-vda-8.qcow2"


@pytest.mark.long
def test_an_open_pivot_ends_without_its_libvirt_in_the_configuration(guarded: Guarded):
    """The domain is there for that pivot alone, and gone with it."""
    domain, daemon = guarded.domain, guarded.daemon
    daemon.ctl("copy", "web1", f"vda={domain.image('vda', 1)}", "--no-pivot")
    daemon.kill()
    file = daemon.directory / "pivotd.toml"
    text = file.read_text()
    file.write_text(text[: text.index("[libvirt]")] + text[text.index("[log]") :])
    daemon.start()
    guarded.await_domain()
    assert daemon.ctl("pivot", "complete", guarded.pivot()["id"]).json["outcome"] == "switched"
    until(lambda: daemon.ctl("domain", "ls").json == [], "the end of the domain")
    verdict = daemon.ctl("verdict", "web1", "vda").json
    assert (Path(verdict["image"]).name, verdict["certain"], verdict["pending"]) == ("web1-vda-1.qcow2", False, False)
    assert (
        "pivotd has no domain web1 to ask: add the domain, or ask again once that QEMU has ended" in verdict["reason"]
    )
    guarded.libvirtd.ask("destroy", "web1")
    assert daemon.ctl("verdict", "web1", "vda").json["certain"]


def test_a_pause_that_a_hanging_libvirtd_makes_long_is_told_at_once_and_counted(guarded: Guarded):
    """After max_pause the domain and health say why; the record of that stands before the end of the pause."""
    domain, libvirtd = guarded.domain, guarded.libvirtd
    domain.copy()
    libvirtd.kill_at(replace(PIVOT_POINTS["K2"], action="stop"))
    # Long enough for all that comes before libvirt is asked, else the attempt gives up.
    asking = guarded.begin("libvirt", "pivot", "web1", "vda", "--max-pause", "2s")

    def waits() -> list[dict[str, Any]]:
        return [record["facts"] for record in guarded.pivot()["records"] if record["event"] == "guest-waits"]

    until(lambda: list(guarded.client.pivots(limit=1)) and waits(), "the record")
    # In this process: 8 s after it has begun to hang, libvirt is given up.
    (row,) = guarded.client.domains()
    assert "libvirt has not answered" in (row.detail or "")
    assert libvirtd.pid is not None
    os.kill(libvirtd.pid, signal.SIGCONT)
    assert asking.wait(60) == 0
    guarded.await_end()
    (facts,) = waits()
    shown = guarded.pivot()
    assert facts["reason"].startswith("libvirt has not answered")
    assert 2000 <= facts["pause_ms"] < shown["pause_ms"]
    events = [record["event"] for record in shown["records"]]
    end = next(event for event in events if event in {"resumed", "resume-not-needed"})  # libvirt's answer may be late
    assert events.index("guest-waits") < events.index("switched") < events.index(end)
    assert len(shown["pauses"]) == 1


@pytest.mark.long
@pytest.mark.timeout(400)
@pytest.mark.parametrize("libvirt_place", [None], indirect=True, ids=["installed"])
def test_a_long_pause_is_told_by_the_next_pivotd_too(guarded: Guarded):
    """The outcome is recorded, libvirtd hangs in the resume, and pivotd dies: max_pause counts from its start."""
    domain, daemon, libvirtd = guarded.domain, guarded.daemon, guarded.libvirtd
    domain.copy()
    libvirtd.kill_at(Point("before", "command", '"cont"', action="stop"))
    guarded.begin("libvirt", "pivot", "web1", "vda", "--max-pause", "300ms")
    until(lambda: state(libvirtd.pid) == "T", "the hang")
    daemon.kill()
    daemon.log_path.write_text("")
    daemon.start(wait=False)
    until(lambda: "pivot.guest-waits" in daemon.log_path.read_text(), "the word on the pause")
    assert libvirtd.pid is not None
    os.kill(libvirtd.pid, signal.SIGCONT)
    daemon.await_ready(timeout_s=120)
    guarded.await_end()
    events = [record["event"] for record in guarded.pivot()["records"]]
    assert events[-4:-2] == ["switched", "guest-waits"]


def test_a_pivot_of_a_transient_guest_ends_with_its_guest(guarded: Guarded):
    """Libvirt then knows nothing of the domain any more, not even a definition; pivotd keeps no connection for it."""
    domain = guarded.domain
    answer = guarded.daemon.ctl("copy", "web1", f"vda={domain.image('vda', 1)}", "--no-pivot")
    assert answer.status == 0, answer
    domain.libvirtd.ask("undefine", "web1")
    domain.libvirtd.ask("destroy", "web1")
    until(lambda: guarded.pivot()["phase"] == "closed", "the end")
    assert guarded.pivot()["outcome"] == "kept"

    def connections() -> list[str]:
        logged = [json.loads(line)["event"] for line in guarded.daemon.log_path.read_text().splitlines()]
        return [event for event in logged if event in {"domain.connected", "domain.disconnected", "domain.removed"}]

    until(lambda: connections()[-1] != "domain.connected", "the end of the connection")
    assert "domain.disconnected" in connections()[-2:], connections()  # not only once the domains are listed again
    word = guarded.daemon.ctl("verdict", "web1", "vda").json
    assert (word["image"], word["certain"]) == (str(domain.image("vda", 0)), True), word
    assert "domain.failed" not in guarded.daemon.log_path.read_text()
