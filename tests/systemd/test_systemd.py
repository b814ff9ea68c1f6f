"""The real unit under a real systemd: restarts at the worst moments, and who gets in. One boot serves all tests."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pivotd import log_kinds
from tests.support.waiting import until
from tests.systemd.container import Container, wait_for_exit
from tests.systemd.host import REPOSITORY, WAIT_S, Host, install

pytestmark = [pytest.mark.systemd, pytest.mark.qemu, pytest.mark.chaos, pytest.mark.timeout(400)]

TRIXIE = Path(os.environ.get("PIVOTD_TRIXIE", REPOSITORY / ".cache" / "trixie"))
KILLS = 5
RESUMED_S_MAX = 0.5
"""What is promised from the kill to the guest running again, on a processor that the daemon does not have to share."""
WATCHDOG_S = 2
KILLS_IN_A_ROW = 10
CLIENTS = 10
REFUSED = 4
PYTHON = "/opt/pivotd/bin/python"
UNREACHABLE = 3
TOLD_S_MAX = 20
"""From a question to the reason why the daemon cannot start, on a processor that it does not have to share."""


@pytest.fixture(scope="module", params=[Path("/"), TRIXIE], ids=["host", "trixie"])
def host(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    tree: Path = request.param
    if os.geteuid() != 0:
        pytest.skip("booting a container needs root")
    if os.environ.get("PIVOTD_CHROOT"):
        pytest.skip("no container boots in a chroot: on its host, `pytest tests/systemd` boots this tree")
    if shutil.which("systemd-nspawn") is None:
        pytest.skip("systemd-nspawn is not installed (Debian: systemd-container)")
    if not (tree / "usr/lib/systemd/systemd").exists():
        pytest.skip(f"{tree} has no systemd; for Debian 13: make trixie")
    with Container(tree) as container:
        side_by_side = "PYTEST_XDIST_WORKER" in os.environ
        install(
            container, tmp_path_factory.getbasetemp().parent / f"opt-{request.param_index}" if side_by_side else None
        )
        container.boot()
        booted = Host(container)
        yield booted
        booted.spy.close()


def slowdown() -> float:
    """Return how much longer a process takes here, now, than on processors that it has for itself."""
    began_s = time.monotonic()
    pid = os.posix_spawn(
        "/usr/bin/python3", ["python3", "-c", "import asyncio, sqlite3, json, http.client"], os.environ
    )
    used = os.wait4(pid, 0)[2]
    return max(1.0, (time.monotonic() - began_s) / (used.ru_utime + used.ru_stime))


def in_ms(times_s: list[float]) -> str:
    return f"{[round(time_s * 1000) for time_s in times_s]} ms"


def waiting(host: Host) -> int:
    """Return how many connections the daemon's socket has, beside the listening end."""
    rows = host.container.run("cat", "/proc/net/unix").stdout.splitlines()
    return sum(row.endswith("/run/pivotd/pivotd.sock") for row in rows) - 1


@pytest.mark.thinned(2)
def test_kill_in_the_pause_gives_the_guest_back_in_time(host: Host) -> None:
    """Kill -9 of the main process while the guest is paused: it runs again within 500 ms, in the same QEMU."""
    took_s, limits_s = [], []
    for _ in range(KILLS):
        struck_s = host.strike_in_the_pause(signal.SIGKILL)
        assert host.run_state() in {"paused", "running"}
        assert until(lambda: host.run_state() == "running")
        took_s.append(time.monotonic() - struck_s)
        limits_s.append(RESUMED_S_MAX * slowdown())
        assert host.closed(host.pivot)["outcome"] in {"switched", "kept"}
        assert host.verdicts() == host.images()
    said = f"from the kill to running again: {in_ms(took_s)}, allowed on this machine now: {in_ms(limits_s)}"
    print(said)  # noqa: T201
    assert any(took <= limit for took, limit in zip(took_s, limits_s, strict=True)), said
    assert host.is_untouched()


def test_stuck_daemon_is_restarted_by_the_watchdog(host: Host) -> None:
    """A daemon that stops turning in the middle of a pause is ended by systemd, and its successor frees the guest."""
    drop_in = host.container.inside / "run/systemd/system/pivotd.service.d"
    drop_in.mkdir(parents=True)
    (drop_in / "test.conf").write_text(f"[Service]\nWatchdogSec={WATCHDOG_S}s\n")
    host.container.run("systemctl", "daemon-reload")
    host.container.run("systemctl", "restart", "pivotd")
    before = host.restarts()
    host.strike_in_the_pause(signal.SIGSTOP)
    # Nobody else has let it go: where it runs already, the watchdog was quicker than this look.
    assert host.run_state() == "paused" or host.restarts() > before
    assert until(lambda: host.run_state() == "running")
    assert host.restarts() == before + 1
    assert host.closed(host.pivot)["outcome"] in {"switched", "kept"}
    assert host.verdicts() == host.images()
    shutil.rmtree(drop_in)
    host.container.run("systemctl", "daemon-reload")
    host.container.run("systemctl", "restart", "pivotd")


def test_restart_in_the_pause_finishes_it_first(host: Host) -> None:
    """``systemctl restart`` in a pause: the guest is let go before the daemon ends, and the pivot closes."""
    host.strike_in_the_pause(signal.SIGSTOP)
    assert host.run_state() == "paused"
    # systemd sends SIGCONT right behind its SIGTERM: the daemon wakes up in the pause, with both.
    host.container.run("systemctl", "restart", "pivotd")
    assert host.run_state() == "running"
    assert host.closed(host.pivot)["outcome"] in {"switched", "kept"}
    assert host.verdicts() == host.images()
    assert host.is_untouched()


def test_restart_in_the_middle_of_a_copy_loses_nothing_of_it(host: Host) -> None:
    """The copy goes on in QEMU while the daemon restarts, and the next daemon switches."""
    pivot = host.copy("--bandwidth", "16K")
    assert until(lambda: host.phase(pivot) == "copying")
    host.container.run("systemctl", "restart", "pivotd")
    assert host.phase(pivot) == "copying"
    host.full_speed()
    assert host.closed(pivot)["outcome"] == "switched"
    assert host.is_untouched()


def test_no_number_of_kills_makes_systemd_give_up(host: Host) -> None:
    """Ten kills in a row, each as soon as there is a process to kill, and the daemon is there."""
    before = host.restarts()
    for _ in range(KILLS_IN_A_ROW):
        assert until(lambda: host.main_pid() != 0)
        pid = host.main_pid()
        host.container.run("sh", "-c", f"kill -9 {pid}", check=False)
        assert until(lambda pid=pid: host.main_pid() != pid)  # type: ignore[misc]
    assert until(lambda: host.domain()["connection"] == "connected")
    assert host.container.property_of("pivotd", "ActiveState") == "active"
    assert host.restarts() >= before + KILLS_IN_A_ROW
    assert host.is_untouched()


def test_clients_wait_while_the_daemon_restarts(host: Host) -> None:
    """Whoever asks while there is no daemon gets an answer, not an error: systemd holds the socket."""
    daemon = host.container.host_pid(host.main_pid())
    os.kill(daemon, signal.SIGSTOP)
    clients = [host.container.start("/usr/local/bin/pivotctl", "--json", "domain", "ls") for _ in range(CLIENTS)]
    # On a slow machine the watchdog may be faster than the clients: the daemon dies all the same.
    assert until(lambda: waiting(host) >= CLIENTS or wait_for_exit(daemon, 0))
    with contextlib.suppress(ProcessLookupError):
        os.kill(daemon, signal.SIGKILL)
    answers = [client.communicate(timeout=WAIT_S) for client in clients]
    assert [client.returncode for client in clients] == [0] * CLIENTS, answers


def test_only_those_named_in_the_configuration_get_in(host: Host) -> None:
    """A stranger is refused, a reader may look and not change, an operator may; all by what the kernel says of them."""
    assert until(lambda: host.domain()["connection"] == "connected")  # the test before may have killed the daemon
    assert host.ctl("domain", "ls", user="mallory")[0] == REFUSED
    assert host.ctl("domain", "ls", user="bob")[0] == 0
    assert host.ctl("domain", "add", "web2", "--qmp", "/run/qemu/web2.qmp", user="bob")[0] == REFUSED
    assert host.ctl("domain", "add", "web2", "--qmp", "/run/qemu/web2.qmp", user="alice")[0] == 0
    assert host.ctl("domain", "rm", "web2", user="alice")[0] == 0


def test_reload_takes_a_changed_file_and_says_so(host: Host) -> None:
    """``systemctl reload`` in the sandbox of the unit: the same process has another domain."""
    assert until(lambda: host.domain()["connection"] == "connected")
    extra = host.container.inside / "etc/pivotd/pivotd.toml.d/more.toml"
    pid = host.main_pid()
    extra.write_text('[domains.web3]\nqmp = "/run/qemu/web3.sock"\n')
    host.container.run("systemctl", "reload", "pivotd")
    assert {row["name"]: row["origin"] for row in host.ctl("domain", "ls")[1]}["web3"] == "config"
    extra.unlink()
    host.container.run("systemctl", "reload", "pivotd")
    assert "web3" not in [row["name"] for row in host.ctl("domain", "ls")[1]]
    assert host.main_pid() == pid


def test_reload_of_a_bad_file_fails_and_changes_nothing(host: Host) -> None:
    """The command fails, the status and the log of the unit say why, and the daemon goes on."""
    extra = host.container.inside / "etc/pivotd/pivotd.toml.d/bad.toml"
    pid = host.main_pid()
    extra.write_text("nonsense = 1\n")
    done = host.container.run("systemctl", "reload", "pivotd", check=False)
    extra.unlink()
    assert done.returncode != 0
    assert "nonsense: found an unknown key" in host.container.property_of("pivotd", "StatusText")
    why = "reload refused, nothing has changed: /etc/pivotd/pivotd.toml.d/bad.toml: nonsense"
    assert until(lambda: why in host.container.run("journalctl", "--no-pager", "-u", "pivotd").stdout)
    assert host.container.property_of("pivotd", "ActiveState") == "active"
    assert host.main_pid() == pid
    assert host.domain()["connection"] == "connected"


def test_journalctl_finds_what_concerns_a_domain(host: Host) -> None:
    """With the fields of the native protocol: who, what, how long; from the unit in its sandbox, as its own messages."""
    assert until(lambda: host.domain()["connection"] == "connected")
    pivot = host.copy()
    host.closed(pivot)
    wanted = {"pivot.accepted", "pivot.switched", "pivot.paused"}
    assert until(lambda: wanted <= {entry["PIVOTD_EVENT"] for entry in entries(host, f"PIVOTD_PIVOT={pivot}")})
    told = {entry["PIVOTD_EVENT"]: entry for entry in entries(host, "PIVOTD_DOMAIN=web1", f"PIVOTD_PIVOT={pivot}")}
    assert set(told) == wanted
    for name, entry in told.items():
        assert (entry["PRIORITY"], entry["MESSAGE_ID"]) == ("6", log_kinds.KINDS[name].message_id)
        assert (entry["_SYSTEMD_UNIT"], entry["SYSLOG_IDENTIFIER"]) == ("pivotd.service", "pivotd")
        assert (entry["PIVOTD_UID"], entry["PIVOTD_USER"]) == ("0", "root")
    assert told["pivot.switched"]["MESSAGE"].startswith("web1: switched to the new images, disk0: /srv/images/new")
    assert float(told["pivot.paused"]["PIVOTD_PAUSE_MS"]) > 0
    (found,) = entries(host, "-n1", f"MESSAGE_ID={log_kinds.KINDS['daemon.serving'].message_id}")
    assert "QEMUs found: web1 (QEMU " in found["MESSAGE"]
    assert host.container.property_of("pivotd", "StatusText").startswith("supervising 1 domain, 1 connected")


def test_journald_takes_a_large_message_out_of_the_sandbox(host: Host) -> None:
    """As a sealed file, under the unit's filter of system calls; it arrives whole."""
    program = "from pivotd import log; log.setup(); log.get_logger().error('library.message', message='x' * 400_000)"
    unit = (REPOSITORY / "systemd/pivotd.service").read_text()
    sandbox = unit[unit.index("NoNewPrivileges=") : unit.index("[Install]")].splitlines()
    settings = [f"--property={line}" for line in ["User=pivotd", *sandbox] if line and not line.startswith("#")]
    host.container.run("systemd-run", "--quiet", "--wait", *settings, "/opt/pivotd/bin/python", "-c", program)
    match = f"MESSAGE_ID={log_kinds.KINDS['library.message'].message_id}"
    assert until(lambda: entries(host, match))  # journald takes it a moment later
    (entry,) = entries(host, match)
    assert entry["PIVOTD_MESSAGE"] == "x" * 400_000
    assert entry["PRIORITY"] == "3"


def entries(host: Host, *matches: str) -> list[dict[str, str]]:
    """Return what journalctl finds."""
    done = host.container.run("journalctl", "--no-pager", "--all", "--output=json", *matches)
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_bad_configuration_waits_for_a_person_and_is_then_started_as_documented(host: Host) -> None:
    """With a key that nobody knows the daemon ends with 2, and whoever asks is told why; mended, it starts."""
    extra = host.container.inside / "etc/pivotd/pivotd.toml.d/bad.toml"
    extra.write_text("nonsense = 1\n")
    host.container.run("systemctl", "restart", "pivotd", check=False)
    assert until(lambda: host.container.property_of("pivotd", "ActiveState") == "failed")
    assert host.container.property_of("pivotd", "ExecMainStatus") == "2"
    for user in (None, "alice", "mallory"):
        began_s = time.monotonic()
        done = host.container.run("/usr/local/bin/pivotctl", "domain", "ls", user=user, check=False)
        assert (done.returncode, done.stdout) == (UNREACHABLE, "")
        assert "pivotd cannot start: " in done.stderr
        assert "nonsense" in done.stderr
        assert "then `systemctl restart pivotd`" in done.stderr
        took_s = time.monotonic() - began_s
        assert took_s < TOLD_S_MAX * slowdown()
    # What a file says that is closed to the caller is not quoted to them. The last daemon still waits for clients.
    assert until(lambda: host.container.property_of("pivotd", "ActiveState") == "failed")
    extra.chmod(0o640)
    host.container.run("chgrp", "pivotd", "/etc/pivotd/pivotd.toml.d/bad.toml")
    for user, quoted in ((None, True), ("mallory", False)):
        done = host.container.run("/usr/local/bin/pivotctl", "domain", "ls", user=user, check=False)
        assert "/etc/pivotd/pivotd.toml.d/bad.toml" in done.stderr
        assert ("nonsense" in done.stderr) is quoted
    # The daemon that answered the last one ends first.
    assert until(lambda: host.container.property_of("pivotd", "ActiveState") == "failed")
    extra.unlink()
    host.container.run("systemctl", "start", "pivotd.socket", "pivotd")
    assert until(lambda: host.domain()["connection"] == "connected")
    assert host.is_untouched()


HIDDEN = [("/tmp", "PrivateTmp"), ("/var/tmp", "PrivateTmp"), ("/home", "ProtectHome"), ("/root", "ProtectHome")]


@pytest.mark.parametrize(("place", "setting"), [*HIDDEN, ("/run/user", "ProtectHome")])
@pytest.mark.parametrize("verb", ["copy", "snapshot"])
def test_a_destination_that_the_sandbox_hides_is_refused(host: Host, verb: str, place: str, setting: str) -> None:
    """Before a byte is copied, with the setting and two ways out; QEMU has made nothing there."""
    images = host.container.inside / place.lstrip("/") / "images"
    images.mkdir(exist_ok=True)
    images.chmod(0o777)
    status, answer = host.ctl(verb, "web1", f"disk0={place}/images/")
    assert (status, answer["error"]["kind"]) == (REFUSED, "bad-request")
    message = answer["error"]["message"]
    assert f"pivotd's sandbox hides {place} ({setting}=): use another place, or `systemctl edit pivotd`" in message
    assert ("ProtectHome=no" if setting == "ProtectHome" else f"BindPaths={place}/images") in message
    assert not list(images.iterdir())


def test_a_device_that_the_sandbox_hides_is_refused(host: Host) -> None:
    """It is not called missing: the unit has a /dev of its own."""
    status, answer = host.ctl("copy", "web1", "disk0=/dev/vg0/web1", "--format", "raw", "--reuse")
    assert (status, answer["error"]["kind"]) == (REFUSED, "bad-request")
    assert "pivotd's sandbox hides /dev (PrivateDevices=)" in answer["error"]["message"]
    assert "PrivateDevices=no" in answer["error"]["message"]


def test_a_pattern_that_the_sandbox_hides_is_told(host: Host) -> None:
    """Nothing will ever be discovered there: the health says why."""
    extra = host.container.inside / "etc/pivotd/pivotd.toml.d/x.toml"
    extra.write_text('discover = ["/run/qemu/*.qmp", "/tmp/*.qmp"]\n')
    skipped = "from pivotd.client import Client; print(Client().health().domains.skipped)"
    host.container.run("systemctl", "reload", "pivotd")
    try:
        assert until(lambda: "hides /tmp (PrivateTmp=)" in host.container.run(PYTHON, "-c", skipped).stdout)
    finally:
        extra.unlink()
        host.container.run("systemctl", "reload", "pivotd")


@pytest.mark.parametrize(("place", "setting"), [("/tmp", "PrivateTmp"), ("/run/user", "ProtectHome")])
def test_a_monitor_that_the_sandbox_hides_is_told(host: Host, place: str, setting: str) -> None:
    """It may well be there: nobody is asked whether the guest runs."""
    host.ctl("domain", "add", "hidden", "--qmp", f"{place}/hidden.qmp")
    try:
        assert until(lambda: host.ctl("domain", "show", "hidden")[1]["connection"] == "unreachable")
        found = host.ctl("domain", "show", "hidden")[1]
        assert f"sandbox hides {place} ({setting}=)" in found["detail"]
        assert "is the guest running" not in found["detail"]
    finally:
        host.ctl("domain", "rm", "hidden")


def test_with_force_a_hidden_destination_is_never_called_deleted(host: Host) -> None:
    """No look is made: the verdict says that nobody could look, and the guest comes back from there."""
    for name in ("away", "back"):
        path = {"away": "/var/tmp/away0.qcow2", "back": "/srv/images/back0.qcow2"}[name]
        status, pivot = host.ctl("copy", "web1", f"disk0={path}", "--force")
        assert (status, pivot["outcome"]) == (0, "switched"), pivot
        status, verdict = host.ctl("verdict", "web1", "disk0")
        assert (status, verdict["image"], verdict["certain"]) == (0, path, True)
        assert verdict["file"] == ("unseen" if name == "away" else "there")
    assert (host.container.inside / "var/tmp/away0.qcow2").exists()
    assert host.is_untouched()


APART_UNIT = """
[Service]
User=qemuuser
UMask=0007
TemporaryFileSystem=/srv/apart:mode=1777
ExecStart=/usr/bin/qemu-system-x86_64 -accel tcg -M q35 -m 64 -display none -nodefaults -no-user-config -name apart \
 -chardev socket,id=pivotd,path=/run/qemu/apart.qmp,server=on,wait=off -mon chardev=pivotd,mode=control \
 -blockdev driver=file,node-name=file0,filename=/srv/images/apart.qcow2 \
 -blockdev driver=qcow2,node-name=src0,file=file0 -device virtio-blk-pci,id=disk0,drive=src0
"""


def test_a_qemu_with_another_directory_is_found_out_before_the_copy(host: Host) -> None:
    """The daemon may not look at QEMU's process here: it claims no more than it knows, and the source stays right."""
    host.container.run("mkdir", "-p", "/srv/apart")
    host.container.run("qemu-img", "create", "-q", "-f", "qcow2", "/srv/images/apart.qcow2", "64M")
    host.container.run("chown", "qemuuser", "/srv/images/apart.qcow2")
    (host.container.inside / "etc/systemd/system/qemu-apart.service").write_text(APART_UNIT)
    host.container.run("systemctl", "daemon-reload")
    host.container.run("systemctl", "start", "qemu-apart")
    try:
        assert until(lambda: host.ctl("disk", "ls", "apart")[0] == 0)
        status, pivot = host.ctl("copy", "apart", "disk0=/srv/apart/new.qcow2")
        assert (status, pivot["outcome"]) == (5, "kept")
        assert "or QEMU has another /srv/apart than pivotd, in a mount namespace of its own" in pivot["error"]
        assert pivot["pauses"] == []
        status, verdict = host.ctl("verdict", "apart", "disk0")
        assert (status, verdict["image"]) == (0, "/srv/images/apart.qcow2")
        assert host.ctl("copy", "apart", "disk0=/srv/images/apart-new.qcow2")[0] == 0
    finally:
        host.container.run("systemctl", "stop", "qemu-apart")


def test_the_drop_in_lets_the_unit_reach_etcd(host: Host) -> None:
    """In the unit's sandbox, as pivotd's user, over loopback: not without the drop-in, and the line says so."""
    inside = host.container.inside
    if not (inside / "usr/bin/etcd").exists():
        pytest.skip("etcd-server is not installed")
    etcd = ["systemd-run", "--unit=etcd-test", "--property=PrivateTmp=yes", "etcd", "--data-dir=/tmp/etcd"]
    host.container.run(*etcd)
    unit = inside / "etc/systemd/system/pivotd-fleet-check.service"
    text = (REPOSITORY / "systemd/pivotd.service").read_text().replace("Type=notify", "Type=oneshot")
    text = text.replace("Restart=always", "Restart=no").replace("RuntimeDirectory=", "#").replace("Also=", "#")
    unit.write_text(text.replace("/etc/pivotd/pivotd.toml", "/etc/pivotd/fleet.toml --check"))
    (inside / "etc/pivotd/fleet.toml").write_text(
        '[fleet]\nendpoints = ["http://127.0.0.1:2379"]\nhost = "h1"\ntimeout_ms = 20000\n'
    )
    drop_in = inside / "etc/systemd/system/pivotd-fleet-check.service.d/fleet.conf"

    def status() -> str:
        host.container.run("systemctl", "daemon-reload")
        host.container.run("systemctl", "start", "pivotd-fleet-check", check=False)
        return host.container.property_of("pivotd-fleet-check", "ExecMainStatus")

    def log() -> str:
        return host.container.run("journalctl", "-u", "pivotd-fleet-check", "-o", "cat", "--no-pager").stdout

    try:
        assert status() == "3"
        assert until(lambda: "pivotd-fleet.conf has to allow this address" in log()), log()
        drop_in.parent.mkdir()
        drop_in.write_text((REPOSITORY / "systemd/pivotd-fleet.conf").read_text())
        assert until(lambda: status() == "0"), log()
        assert until(lambda: "http://127.0.0.1:2379: ok, etcd 3." in log()), log()
    finally:
        host.container.run("systemctl", "stop", "etcd-test")
        unit.unlink()
        shutil.rmtree(drop_in.parent, ignore_errors=True)


def test_figures_for_prometheus(host: Host):
    """The unit of docs/metrics.md writes them in its sandbox, readable for the node exporter."""
    directory = "/var/lib/prometheus/node-exporter"
    units = "/srv/source/systemd/pivotd-metrics.service /srv/source/systemd/pivotd-metrics.timer"
    host.container.run("sh", "-euc", f"mkdir -p {directory}; cp {units} /etc/systemd/system/; systemctl daemon-reload")
    host.container.run("systemctl", "start", "pivotd-metrics.service")
    written = host.container.inside / f"{directory.lstrip('/')}/pivotd.prom"
    assert "\npivotd_up 1.0\n" in written.read_text()
    assert written.stat().st_mode & 0o777 == 0o644
