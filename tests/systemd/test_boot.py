"""The guest unit of docs/next-boot.md under a real systemd: crashes of the host, the gate, the end of a guest, who may look."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.seeds import rng
from tests.support.waiting import WAIT_S, until
from tests.systemd.boot_host import PIVOTCTL, UNIT, BootHost, install_guest
from tests.systemd.container import Container, wait_for_exit
from tests.systemd.crashes import Crash, Crashes

pytestmark = [pytest.mark.systemd, pytest.mark.qemu, pytest.mark.chaos, pytest.mark.timeout(400)]

CRASHES = int(os.environ.get("PIVOTD_HOST_CRASHES", "1"))
STATE = "/var/lib/pivotd"
OFFLINE = (PIVOTCTL, "--offline", STATE)


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BootHost]:
    if os.geteuid() != 0:
        pytest.skip("booting a container needs root")
    if os.environ.get("PIVOTD_CHROOT"):
        pytest.skip("no container boots in a chroot")
    if shutil.which("systemd-nspawn") is None:
        pytest.skip("systemd-nspawn is not installed (Debian: systemd-container)")
    with Container(Path("/")) as container:
        side_by_side = "PYTEST_XDIST_WORKER" in os.environ
        # The same as in test_systemd.py: the program of this tree, which one test process installs for all.
        install_guest(container, tmp_path_factory.getbasetemp().parent / "opt-0" if side_by_side else None)
        booted = BootHost(container)
        booted.boot()
        booted.first_start()
        yield booted
        booted.spy.close()


def test_a_crashed_host_starts_its_guest_from_the_right_images(host: BootHost) -> None:
    """By itself, with pivotd or from the journal alone; no write that the guest was told is on disk is missing."""
    crashes = Crashes(host)
    draw = rng("host crashes")
    for _ in range(CRASHES):
        seen = crashes.run(Crash.drawn(draw))
        print(seen)  # noqa: T201
        assert not seen.problem


def test_a_qemu_that_dies_starts_again_from_the_new_images(host: BootHost) -> None:
    """Without a reboot: the unit looks at the journal again, while pivotd lives."""
    targets = moved(host)
    pid = int(host.container.property_of(UNIT, "MainPID"))
    host.spy.close()
    host.new_life()
    os.kill(host.container.host_pid(pid), signal.SIGKILL)
    assert until(lambda: host.container.property_of(UNIT, "MainPID") not in {"0", str(pid)})
    host.await_guest()
    assert host.images() == targets
    assert host.await_connected()["alarms"] == []


def test_the_gate_refuses_a_wrong_image(host: BootHost) -> None:
    """Whatever has written the file with the images: no QEMU is started, and one line has the right image."""
    targets = moved(host)
    stop(host)
    drop_in = host.container.inside / f"run/systemd/system/{UNIT}.service.d/wrong.conf"
    drop_in.parent.mkdir()
    wrong = f"/bin/sed -i s,{targets['disk0']},/srv/images/old0.qcow2, /run/vm/web1.env"
    guard = f"{GUEST} guard %i"
    steps = [f"ExecStartPre={step}\n" for step in ("", f"{GUEST} images %i", wrong, guard)]
    drop_in.write_text("[Service]\nRestart=no\n" + "".join(steps))
    host.container.run("systemctl", "daemon-reload")
    try:
        done = host.container.run("systemctl", "start", UNIT, check=False)
        assert done.returncode != 0
        right = f"web1 must start with disk0={targets['disk0']}, not with disk0=/srv/images/old0.qcow2"
        assert until(lambda: right in host.said()), host.said()  # the journal has it a moment later
        assert host.container.property_of(UNIT, "ExecMainPID") == "0"
    finally:
        shutil.rmtree(drop_in.parent)
        host.container.run("systemctl", "daemon-reload")
        host.container.run("systemctl", "reset-failed", UNIT)
    start(host)
    assert host.images() == targets


def test_no_guest_without_a_certain_image(host: BootHost) -> None:
    """An image that is gone: the start fails with the reason, and no file of images of an earlier start is left."""
    targets = moved(host)
    stop(host)
    image = host.container.root / targets["disk1"].lstrip("/")
    image.rename(image.with_suffix(".kept"))
    done = host.container.run("systemctl", "start", UNIT, check=False)
    host.container.run("systemctl", "stop", UNIT)
    assert done.returncode != 0
    assert until(lambda: "it is not there any more" in host.said()), host.said()
    assert not (host.container.inside / "run/vm/web1.env").exists()
    image.with_suffix(".kept").rename(image)
    start(host)


@pytest.mark.parametrize("shuts_down", [pytest.param(True, marks=pytest.mark.long), False])
def test_stop_presses_the_power_button_and_loses_nothing(host: BootHost, shuts_down: bool) -> None:
    """QEMU ends when the guest has shut down, and after VM_STOP_S all the same; the unit is not failed, and stays down."""
    told = "after its power button was pressed"
    before = host.said().count(told)
    asking = host.container.start("systemctl", "stop", UNIT)
    host.spy.await_event("POWERDOWN")
    if shuts_down:  # what a guest does that has heard the button: this one has no operating system
        host.spy.execute("quit")
    else:
        host.spy.await_event("SHUTDOWN")
    host.spy.close()
    assert asking.wait(WAIT_S) == 0
    asking.communicate()
    assert host.container.property_of(UNIT, "Result") == "success"
    assert host.container.property_of(UNIT, "ActiveState") == "inactive"
    assert shuts_down or until(lambda: host.said().count(told) > before), host.said()
    assert (host.said().count(told) > before) is not shuts_down
    for image in host.ctl("verdict", "web1")[1]:
        assert host.missing(image["image"]) == []
    start(host)


def test_guests_do_not_notice_what_becomes_of_pivotd(host: BootHost) -> None:
    """It is restarted, killed, stopped: the same QEMU goes on."""
    pid = host.container.property_of(UNIT, "MainPID")
    host.container.run("systemctl", "restart", "pivotd")
    daemon = host.container.host_pid(int(host.container.property_of("pivotd", "MainPID")))
    os.kill(daemon, signal.SIGKILL)
    wait_for_exit(daemon, 30)
    host.container.run("systemctl", "stop", "pivotd.socket", "pivotd")
    assert host.container.property_of(UNIT, "MainPID") == pid
    host.judge.await_acks(more_than=host.judge.last_ack())
    host.container.run("systemctl", "start", "pivotd.socket", "pivotd")
    host.await_connected()


def test_an_older_state_directory_is_handed_over(host: BootHost) -> None:
    """One that belonged to pivotd:pivotd, as before: after the start those who may look can read it."""
    with pivotd_stopped(host):
        host.container.run("chown", "-R", "pivotd:pivotd", STATE)
    owners = host.container.run("sh", "-c", f"stat -c '%U:%G %a %n' {STATE} {STATE}/*").stdout.splitlines()
    assert {line.split()[0] for line in owners} == {"pivotd:pivotd-ro"}
    assert {line.split()[1] for line in owners} == {"750", "640"}
    assert host.container.run(*OFFLINE, "verdict", user="bob").returncode == 0


@pytest.mark.parametrize("state", ["lives", pytest.param("stopped", marks=pytest.mark.long), "killed"])
@pytest.mark.thinned(2)
def test_who_may_look_reads_the_journal(host: BootHost, state: str) -> None:
    """Neither root nor pivotd: beside the daemon, after its orderly end, after its death with records only in the WAL."""
    images = moved(host)
    with contextlib.ExitStack() as stack:
        if state != "lives":
            stack.enter_context(pivotd_stopped(host, kill=state == "killed"))
        before = files(host)
        done = host.container.run(*OFFLINE, "--json", "verdict", "web1", user="bob", check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        for image in images.values():
            assert image in done.stdout
        if state != "lives":  # a daemon that lives writes at any time
            assert files(host) == before
        refused = host.container.run(*OFFLINE, "verdict", "web1", user="mallory", check=False)
        assert refused.returncode != 0
        assert len(refused.stderr.splitlines()) == 1


def test_who_may_look_cannot_write(host: BootHost) -> None:
    """No file of the journal, no file beside them, no monitor of a guest; nor may they ask pivotd for a change."""
    names = " ".join(Path(line.split()[-1]).name for line in files(host))
    script = f"cd {STATE}; for name in . {names}; do test -r $name && ! test -w $name || echo $name; done; ! touch x"
    assert host.container.run("sh", "-c", script, user="bob").stdout == ""
    connect = "import socket; socket.socket(socket.AF_UNIX).connect('/run/qemu/web1.qmp')"
    assert "Permission" in host.container.run("python3", "-c", connect, user="bob", check=False).stderr
    assert host.ctl("domain", "ls", user="bob")[0] == 0
    assert host.ctl("domain", "rm", "web1", user="bob")[0] == 4
    assert host.ctl("domain", "ls", user="mallory")[0] == 4
    assert host.ctl("domain", "add", "web2", "--qmp", "/run/qemu/web2.qmp", user="alice")[0] == 0
    assert host.ctl("domain", "rm", "web2", user="alice")[0] == 0


GUEST = "/usr/local/libexec/vm-guest"


def moved(host: BootHost) -> dict[str, str]:
    """Copy every disk to a new image; return these."""
    targets = host.targets("copy")
    asking = host.move("copy", targets)
    said = asking.communicate(timeout=60)
    assert asking.returncode == 0, said
    return targets


def stop(host: BootHost) -> None:
    """Stop the guest."""
    host.spy.close()
    host.container.run("systemctl", "stop", UNIT)


def start(host: BootHost) -> None:
    """Start the guest for a new life."""
    host.new_life()
    host.container.run("systemctl", "start", UNIT)
    host.await_guest()
    host.await_connected()


def files(host: BootHost) -> list[str]:
    """Return what the state directory holds, with owners, modes and sizes."""
    script = f"for f in {STATE}/*; do stat -c '%U:%G %a %s %Y %n' $f; done"
    return host.container.run("sh", "-c", script).stdout.splitlines()


@contextlib.contextmanager
def pivotd_stopped(host: BootHost, *, kill: bool = False) -> Iterator[None]:
    """Stop or kill pivotd for a while."""
    if kill:
        host.pivotd_is_away(away=True)
        host.container.run("systemctl", "daemon-reload")
        daemon = host.container.host_pid(int(host.container.property_of("pivotd", "MainPID")))
        host.container.run("systemctl", "stop", "pivotd.socket")
        os.kill(daemon, signal.SIGKILL)
        wait_for_exit(daemon, 30)
    host.container.run("systemctl", "stop", "pivotd.socket", "pivotd")
    try:
        yield
    finally:
        host.start_pivotd()
        host.await_connected()
