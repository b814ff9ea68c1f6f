"""pivotctl doctor on a host as docs/install.md makes it: what pivotd's own user sees in the shipped sandbox, and the units."""

from __future__ import annotations

import os
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.waiting import until
from tests.systemd.container import Container
from tests.systemd.host import QEMU_UNIT, Host, install

pytestmark = [pytest.mark.systemd, pytest.mark.qemu, pytest.mark.timeout(400)]
FOUND = 8
ROOM = ("--ignore", "storage-room", "--ignore", "state-dir-room")
"""Whatever room this machine has."""
DISK = (
    "-blockdev driver=file,node-name=f,filename={0} -blockdev driver=qcow2,node-name=q,file=f"
    " -device virtio-blk-pci,id=disk0,drive=q"
)


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    if os.geteuid() != 0 or os.environ.get("PIVOTD_CHROOT") or shutil.which("systemd-nspawn") is None:
        pytest.skip("booting a container needs root and systemd-nspawn, and is not done in a chroot")
    with Container(Path("/")) as container:
        side_by_side = "PYTEST_XDIST_WORKER" in os.environ
        install(container, tmp_path_factory.getbasetemp().parent / "opt-0" if side_by_side else None)
        container.boot()
        booted = Host(container)
        yield booted
        booted.spy.close()


class Told:
    """One answer of doctor: its exit status, the state of each check, and the findings."""

    def __init__(self, host: Host, *arguments: str, user: str | None = None) -> None:
        self.status, answer = host.ctl("doctor", *ROOM, *arguments, user=user)
        assert isinstance(answer, dict), answer
        self.checks: dict[str, str] = answer["checks"]
        self.findings: list[dict[str, Any]] = [one for area in answer["areas"] for one in area["findings"]]
        self.areas: list[dict[str, Any]] = answer["areas"]

    @property
    def found(self) -> set[str]:
        return {check for check, state in self.checks.items() if state == "found"}

    def subjects(self, check: str) -> set[str]:
        """Return of what one check has found something."""
        return {one["subject"] for one in self.findings if one["check"] == check}

    def words(self, check: str, subject: str) -> str:
        """Return what one check has found of a subject."""
        (found,) = [one for one in self.findings if (one["check"], one["subject"]) == (check, subject)]
        return str(found["what"])


def start_qemu(host: Host, name: str, image: str, *, umask: str = "0007", monitors: str = "/run/qemu") -> None:
    """Start one more QEMU of the user qemuuser, on a new image."""
    run = host.container.run
    run("qemu-img", "create", "-q", "-f", "qcow2", image, "1M")
    run("chown", "qemuuser", image)
    unit = QEMU_UNIT.format(disks=DISK.format(image)).replace("web1", name).replace("UMask=0007", f"UMask={umask}")
    place = host.container.inside / f"run/systemd/system/qemu-{name}.service"
    place.write_text(unit.replace(f"/run/qemu/{name}.qmp", f"{monitors}/{name}.qmp"))
    run("systemctl", "daemon-reload")
    run("systemctl", "start", f"qemu-{name}")
    assert until((host.container.inside / monitors.lstrip("/") / f"{name}.qmp").exists)


def stop_qemu(host: Host, name: str) -> None:
    host.container.run("systemctl", "stop", f"qemu-{name}")
    (host.container.inside / f"run/systemd/system/qemu-{name}.service").unlink()
    host.container.run("systemctl", "daemon-reload")
    assert until(lambda: not any(row["name"] == name for row in host.ctl("domain", "ls")[1]))


def connected(host: Host, name: str) -> bool:
    return any(row["name"] == name and row["connection"] == "connected" for row in host.ctl("domain", "ls")[1])


def restart(host: Host) -> None:
    """Restart pivotd and wait for its guest; if it does not start, its log is the message."""
    done = host.container.run("systemctl", "restart", "pivotd", check=False)
    log = ("journalctl", "--unit=pivotd", "--lines=40", "--no-pager")
    assert done.returncode == 0, done.stderr + host.container.run(*log, check=False).stdout
    assert until(lambda: connected(host, "web1"))


def test_a_sound_host(host: Host):
    """As the page on installing makes it, nothing is wrong, and every check of units, guests and disks was made."""
    told = Told(host)
    assert (told.status, told.findings) == (0, [])
    for check in ("unit-inactive", "unit-sandbox", "monitor-closed", "image-unreadable", "image-hidden", "two-daemons"):
        assert told.checks[check] == "ok", check
    by = {area["by"] for area in told.areas if area["area"] == "disks"}
    uid = host.container.run("id", "-u", "pivotd").stdout.strip()
    assert by == {f"pivotd as uid {uid}, in its own namespace"}


def test_who_may_look_at_what(host: Host):
    """An operator without the journal's group, and a stranger: what they may not see has not passed."""
    operator = Told(host, user="alice")
    assert operator.checks["guest-paused"] == "ok"
    assert operator.checks["journal-damaged"] == "unseen"
    assert operator.status == FOUND
    reader = Told(host, user="bob")
    assert (reader.checks["guest-paused"], reader.checks["journal-damaged"]) == ("ok", "ok")
    stranger = Told(host, user="mallory")
    assert {stranger.checks[check] for check in ("guest-paused", "image-hidden", "journal-damaged")} == {"unseen"}
    assert stranger.status == FOUND


def test_images_that_pivotd_may_not_read(host: Host):
    """A closed file and a closed directory are told apart; what reading would have shown is not called sound."""
    run = host.container.run
    run("chmod", "0600", "/srv/images/old0.qcow2")
    try:
        told = Told(host)
        assert told.found == {"image-unreadable"}
        assert told.words("image-unreadable", "web1 disk0").startswith("/srv/images/old0.qcow2: pivotd may not read it")
        assert told.status == FOUND
        assert Told(host, "--ignore", "image-unreadable").found == set()
    finally:
        run("chmod", "0644", "/srv/images/old0.qcow2")
    run("chmod", "0700", "/srv/images")
    try:
        told = Told(host)
        assert told.found == {"image-unreadable"}
        assert told.words("image-unreadable", "web1 disk0").endswith("pivotd may not enter /srv/images")
        assert told.checks["image-astray"] == "unseen"
    finally:
        run("chmod", "0755", "/srv/images")


@pytest.mark.parametrize(
    ("place", "setting"),
    [("/home/vms", "ProtectHome"), pytest.param("/tmp/vms", "PrivateTmp", marks=pytest.mark.long)],
)
def test_images_that_the_sandbox_hides(host: Host, place: str, setting: str):
    """The daemon has another place of that name, or none: the setting is named; root, who runs doctor, sees the image."""
    run = host.container.run
    run("install", "-d", "-m", "0755", "-o", "qemuuser", place)
    start_qemu(host, "hidden", f"{place}/disk.qcow2")
    try:
        assert until(lambda: connected(host, "hidden"))
        told = Told(host)
        assert f"({setting}=)" in told.words("image-hidden", "hidden disk0")
        assert told.found == {"image-hidden"}
        assert {told.checks[check] for check in ("image-astray", "image-unreadable")} == {"unseen"}
    finally:
        stop_qemu(host, "hidden")


def test_a_monitor_that_pivotd_may_not_open(host: Host):
    """Made with the usual umask, only QEMU's user can connect: that is told, and not that the guest is off."""
    start_qemu(host, "closed", "/srv/images/closed.qcow2", umask="0022")
    try:
        assert until(lambda: "closed" in Told(host).subjects("monitor-closed"), look_s=1)
    finally:
        stop_qemu(host, "closed")


def test_units_with_drop_ins(host: Host):
    """Not read yet, then read and not in force, then what each setting costs; without the drop-in it is sound again."""
    run = host.container.run
    drop_in = host.container.inside / "run/systemd/system/pivotd.service.d"
    drop_in.mkdir()
    wrong = "KillMode=control-group\nRestartSec=5\nNoNewPrivileges=no\nPrivateUsers=yes\nProcSubset=pid\n"
    (drop_in / "wrong.conf").write_text(f"[Service]\n{wrong}")
    try:
        assert Told(host).found == {"unit-reload-needed"}
        run("systemctl", "daemon-reload")
        told = Told(host)
        assert told.found == {"unit-restart-needed", "unit-promise", "unit-sandbox", "unit-blind"}
        words = str([one["what"] for one in told.findings])
        for setting in (
            "KillMode=control-group",
            "RestartUSec=5s",
            "NoNewPrivileges=no",
            "PrivateUsers=",
            "ProcSubset=pid",
        ):
            assert setting in words
        (drop_in / "wrong.conf").write_text("[Service]\nWatchdogSec=0\n")
        run("systemctl", "daemon-reload")
        restart(host)
        assert Told(host).found == {"unit-watchdog"}
    finally:
        shutil.rmtree(drop_in)
        run("systemctl", "daemon-reload")
    restart(host)
    assert Told(host).found == set()


def test_a_daemon_that_died(host: Host):
    """Within an hour it is told how often systemd had to start it; a restart by a person ends that."""
    pid = host.main_pid()
    assert pid, "pivotd does not run"
    host.container.run("kill", "-9", str(pid))
    assert until(lambda: host.main_pid() not in {0, pid})
    assert until(lambda: connected(host, "web1"))
    assert Told(host).found == {"unit-restarts"}
    restart(host)
    assert Told(host).found == set()


def test_a_fleet_without_a_network(host: Host):
    """The unit as it comes has none: that is told beside the silence of etcd, with the drop-in that opens it."""
    drop_in = host.container.inside / "etc/pivotd/pivotd.toml.d/fleet.toml"
    drop_in.write_text('[fleet]\nendpoints = ["http://127.0.0.1:2379"]\nhost = "h1"\ntimeout_ms = 500\n')
    try:
        restart(host)
        assert Told(host).found == {"unit-network", "fleet-silent"}
    finally:
        drop_in.unlink()
    restart(host)


def test_a_bundle(host: Host):
    """Units, their drop-ins and the log are in it, with the findings."""
    host.container.run("/usr/local/bin/pivotctl", "doctor", *ROOM, "--bundle", "/root/bundle.tar.gz")
    with tarfile.open(host.container.inside / "root/bundle.tar.gz") as archive:
        held = {member.name.removeprefix("pivotd-doctor/"): member for member in archive}
        cat, log = (archive.extractfile(held[name]).read() for name in ("units/cat.txt", "log.txt"))  # type: ignore[union-attr]
    assert b"ExecStart=/opt/pivotd/bin/pivotd" in cat
    assert b"web1" in log
    assert {"units/show.txt", "units/status.txt", "journal.db", "configuration/etc_pivotd_pivotd.toml"} <= held.keys()


def test_a_daemon_that_was_stopped(host: Host):
    """Both units are told as inactive; nothing that only the daemon sees has passed; disabled units are told too."""
    run = host.container.run
    run("systemctl", "stop", "pivotd.socket", "pivotd")
    run("systemctl", "disable", "pivotd.service")
    try:
        told = Told(host)
        assert told.found >= {"unit-inactive", "unit-disabled", "daemon-down"}
        assert told.checks["guest-paused"] == "unseen"
        assert told.checks["journal-damaged"] == "ok"
    finally:
        run("systemctl", "enable", "--now", "pivotd.socket", "pivotd.service")
    assert until(lambda: connected(host, "web1"))
    assert Told(host).found == set()


def test_a_configuration_with_which_it_cannot_start(host: Host):
    """Before the restart it is told, and after it, with the same line that systemd has."""
    drop_in = host.container.inside / "etc/pivotd/pivotd.toml.d/wrong.toml"
    drop_in.write_text("[pause]\nmax_ms = 0\n")
    try:
        told = Told(host)
        assert told.found == {"config-wrong", "config-not-loaded"}
        host.container.run("systemctl", "restart", "pivotd", check=False)
        told = Told(host)
        assert told.found >= {"config-wrong", "daemon-down", "unit-inactive"}
        assert "pause.max_ms" in str([one for one in told.findings if one["check"] == "daemon-down"])
    finally:
        drop_in.unlink()
        # Not restart: systemd refuses a socket whose service it has just begun to start for a client.
        host.container.run("systemctl", "stop", "pivotd.socket", "pivotd.service", check=False)
        host.container.run("systemctl", "reset-failed", "pivotd.service", "pivotd.socket", check=False)
        host.container.run("systemctl", "start", "pivotd.socket", "pivotd.service")
    assert until(lambda: connected(host, "web1"))
