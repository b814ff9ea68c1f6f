"""The daemon as a process: start, signals, refusals, and what it must not import before recovery."""

from __future__ import annotations

import json
import os
import re
import socket
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from pivotd import limits
from pivotd.client import Client, ClientError, UnsentError
from pivotd.journal.reader import Reader
from tests.chaos.rounds import call
from tests.conftest import QemuFactory
from tests.support.daemon import Daemon
from tests.support.proxy import Direction, KillAt, Message, When
from tests.support.qemu import Disk, Qemu, create_image
from tests.support.waiting import until

HEAVY = {"sqlite_utils", "starlette", "uvicorn", "click", "rich", "structlog", "msgspec", "httptools", "ulid"}


def run(*arguments: str, **more: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pivotd.daemon", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=90, check=False, **more)


def test_the_start_up_path_imports_nothing_heavy():
    """Recovery waits for no library that it does not need."""
    code = "import sys, pivotd.daemon; print(' '.join({m.split('.')[0] for m in sys.modules}))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not HEAVY & set(found)


def test_check_accepts_a_good_configuration(tmp_path: Path):
    """--check says ok and starts nothing."""
    config = tmp_path / "pivotd.toml"
    config.write_text(f'state_dir = "{tmp_path}"\n')
    done = run("--config", str(config), "--check")
    assert (done.returncode, done.stderr) == (0, "")
    assert "ok" in done.stdout
    assert not (tmp_path / "journal.db").exists()


@pytest.mark.parametrize(
    ("text", "named"), [("x = [", "line 1"), ("stat_dir = 1", "state_dir"), ("[pause]\nmax_ms = 0", "pause.max_ms")]
)
def test_a_bad_configuration_is_one_line_and_status_2(tmp_path: Path, text: str, named: str):
    """What, where, and what was expected."""
    config = tmp_path / "pivotd.toml"
    config.write_text(text)
    done = run("--config", str(config))
    assert done.returncode == 2
    assert named in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_missing_state_directory_is_one_line_and_status_4(tmp_path: Path):
    """The daemon does not make its directory up."""
    config = tmp_path / "pivotd.toml"
    config.write_text(f'state_dir = "{tmp_path}/none"\nsocket = "{tmp_path}/s"\n')
    done = run("--config", str(config))
    assert done.returncode == 4
    assert f"{tmp_path}/none" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_second_daemon_on_the_journal_is_refused(tmp_path: Path):
    """One line with the pid of the first; the first goes on."""
    with Daemon(tmp_path, {}) as first:
        done = run("--config", str(tmp_path / "pivotd.toml"))
        assert done.returncode == 4
        assert str(first.pid) in done.stderr
        assert first.ctl("domain", "ls").status == 0


def test_a_damaged_journal_is_one_line_and_left_as_it_is(tmp_path: Path):
    """Status 4, not a byte changed."""
    with Daemon(tmp_path, {}) as daemon:
        daemon.terminate()
    journal = tmp_path / "state" / "journal.db"
    broken = b"not a journal" + journal.read_bytes()[13:]
    journal.write_bytes(broken)
    done = run("--config", str(tmp_path / "pivotd.toml"))
    assert done.returncode == 4
    assert "journal.db" in done.stderr
    assert journal.read_bytes() == broken


def test_sigterm_ends_it_with_status_0(tmp_path: Path):
    """And the log has no error."""
    with Daemon(tmp_path, {}) as daemon:
        assert daemon.terminate() == 0
        assert "error" not in daemon.log_path.read_text()


def test_the_socket_and_the_journal_have_modes(tmp_path: Path):
    """Anybody may connect, access goes by credentials; the journal is for its group."""
    with Daemon(tmp_path, {}) as daemon:
        assert stat.S_IMODE(daemon.socket.stat().st_mode) == 0o666
        assert stat.S_IMODE((daemon.state_dir / "journal.db").stat().st_mode) == 0o640


def test_a_stale_socket_is_replaced(tmp_path: Path):
    """What a killed daemon leaves behind."""
    with Daemon(tmp_path, {}) as daemon:
        daemon.kill()
        assert daemon.socket.exists()
        daemon.start()
        assert daemon.ctl("domain", "ls").json == []


def test_a_handed_over_socket_is_served_and_kept(tmp_path: Path):
    """LISTEN_FDS: clients queue while nobody serves, and the path outlives the daemon."""
    path = tmp_path / "activated.sock"
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as waiting:
        listener.bind(str(path))
        listener.listen(5)
        waiting.connect(str(path))
        waiting.sendall(b"GET /v1/health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        (tmp_path / "state").mkdir()
        config = tmp_path / "pivotd.toml"
        config.write_text(f'state_dir = "{tmp_path}/state"\nsocket = "{path}"\n')
        shell = 'exec 3<&"$0"; export LISTEN_PID=$$ LISTEN_FDS=1; exec "$@"'
        command = [
            "bash",
            "-c",
            shell,
            str(listener.fileno()),
            sys.executable,
            "-m",
            "pivotd.daemon",
            "--config",
            str(config),
        ]
        with subprocess.Popen(command, pass_fds=[listener.fileno()], stderr=subprocess.DEVNULL) as daemon:
            try:
                waiting.settimeout(60)
                assert waiting.recv(12) == b"HTTP/1.1 200"
            finally:
                daemon.terminate()
                daemon.wait()
        assert path.exists()


@pytest.mark.parametrize("trouble", ["configuration", "journal", "no state directory"])
def test_clients_of_a_daemon_that_cannot_start_are_told_why(tmp_path: Path, trouble: str):
    """All who wait at the socket of systemd, each at once; nothing was carried out, so a retry is safe."""
    path, state, config = tmp_path / "activated.sock", tmp_path / "state", tmp_path / "pivotd.toml"
    if trouble != "no state directory":
        state.mkdir()
    if trouble == "journal":
        (state / "journal.db").write_bytes(b"no journal")
    bad = "nonsense = 1\n" if trouble == "configuration" else ""
    config.write_text(f'state_dir = "{state}"\nsocket = "{path}"\n{bad}')
    shell = 'exec 3<&"$0"; export LISTEN_PID=$$ LISTEN_FDS=1; exec "$@"'
    daemon = [sys.executable, "-m", "pivotd.daemon", "--config", str(config)]
    with socket.socket(socket.AF_UNIX) as listener, ThreadPoolExecutor() as pool:
        listener.bind(str(path))
        listener.listen(5)
        asked = [pool.submit(_health, path) for _ in range(3)]
        assert until(lambda: _queued(path) == 3)
        done = subprocess.run(
            ["bash", "-c", shell, str(listener.fileno()), *daemon],
            pass_fds=[listener.fileno()], capture_output=True, text=True, timeout=90, check=False,
        )  # fmt: skip
        errors = [one.result(15) for one in asked]  # it has told them before its own end
    assert done.returncode == (2 if trouble == "configuration" else 4)
    why = done.stderr.strip().removeprefix("pivotd: ")
    for error in errors:
        assert isinstance(error, UnsentError)
        assert (error.kind, error.exit_status) == ("unreachable", 3)
        assert error.message.startswith(f"pivotd cannot start: {why}")
    assert trouble != "configuration" or "`systemctl restart pivotd`" in errors[0].message


def _health(path: Path) -> ClientError | None:
    try:
        Client(str(path)).health()
    except ClientError as error:
        return error
    return None


def _queued(path: Path) -> int:
    """Return how many connections a listening socket has that nobody has accepted."""
    rows = Path("/proc/net/unix").read_text().splitlines()
    return sum(row.endswith(str(path)) for row in rows) - 1


def test_as_many_files_may_be_open_as_the_host_permits(tmp_path: Path):
    """The soft limit that a shell or a supervisor hands down would end with the thousandth monitor."""
    limited = ["bash", "-c", 'ulimit -Sn 100; exec "$0" "$@"', str(Path(sys.executable).parent / "pivotd")]
    with Daemon(tmp_path, {}, command=limited) as daemon:
        row = next(row for row in Path(f"/proc/{daemon.pid}/limits").read_text().splitlines() if "open files" in row)
        soft, hard = row.split()[3:5]
        assert int(soft) == min(int(hard), limits.OPEN_FILES)


# -- with a guest in its hands ------------------------------------------------------------------------------------


class Freeze:
    """Sends a signal to a process when a message passes."""

    def __init__(self, label: str, number: int) -> None:
        self.label, self.number, self.pid, self.done = label, number, 0, False

    def __call__(self, direction: Direction, index: int, message: Message, when: When) -> None:
        if message.label == self.label and when is When.BEFORE and not self.done:
            self.done = True
            os.kill(self.pid, self.number)


def copied(daemon: Daemon, image: Path, **body: Any) -> dict[str, Any]:
    return dict(
        call(daemon, "POST", "/v1/domains/web1/copy", {"disks": [{"disk": "disk0", "image": str(image)}], **body})
    )


@pytest.mark.qemu
@pytest.mark.parametrize("message", ["command:stop", "command:job-complete", "command:job-finalize", "command:cont"])
@pytest.mark.thinned(2)
def test_sigterm_in_the_pause_leaves_no_guest_paused(qemu_factory: QemuFactory, tmp_path: Path, message: str):
    """The pause is finished or given up, then the daemon exits with status 0."""
    freeze = Freeze(message, 15)
    proxy = Qemu.proxy_for(tmp_path, on_message=freeze)
    qemu = qemu_factory([Disk(create_image(tmp_path / "old.qcow2"))], proxy=proxy)
    with Daemon(tmp_path, {"web1": qemu.qmp}) as daemon:
        freeze.pid = daemon.pid
        copied(daemon, tmp_path / "new.qcow2")
        assert daemon._process is not None
        assert daemon._process.wait(15) == 0
        assert freeze.done
        assert qemu.run_state() == "running"
        (verdict,) = daemon.ctl("verdict", "web1", offline=True).json
        assert verdict["image"] == qemu.root("disk0").filename
        daemon.start()
        (pivot,) = call(daemon, "GET", "/v1/pivots")
        assert call(daemon, "GET", f"/v1/pivots/{pivot['id']}/wait?timeout_s=20")["outcome"] == "switched"


@pytest.mark.qemu
def test_a_second_start_continues_the_copies(qemu_factory: QemuFactory, tmp_path: Path):
    """SIGTERM while a copy waits at ready: it waits on after the restart, and completes when told."""
    qemu = qemu_factory([Disk(create_image(tmp_path / "old.qcow2"))])
    with Daemon(tmp_path, {"web1": qemu.qmp}) as daemon:
        pivot = copied(daemon, tmp_path / "new.qcow2", pivot=False)["id"]
        call(daemon, "GET", f"/v1/pivots/{pivot}/wait?timeout_s=20")
        assert daemon.terminate() == 0
        daemon.start()
        assert call(daemon, "POST", f"/v1/pivots/{pivot}/complete")["hold"] is False
        assert call(daemon, "GET", f"/v1/pivots/{pivot}/wait?timeout_s=20")["outcome"] == "switched"


@pytest.mark.qemu
def test_an_open_pivot_is_recovered_though_its_domain_was_forgotten(qemu_factory: QemuFactory, tmp_path: Path):
    """The journal knows the monitor: a guest is not left alone because a configuration changed."""
    qemu = qemu_factory([Disk(create_image(tmp_path / "old.qcow2"))])
    with Daemon(tmp_path, {"web1": qemu.qmp}) as daemon:
        pivot = copied(daemon, tmp_path / "new.qcow2", pivot=False)["id"]
        call(daemon, "GET", f"/v1/pivots/{pivot}/wait?timeout_s=20")
        daemon.kill()
        config = tmp_path / "pivotd.toml"
        config.write_text(config.read_text().split("[domains")[0])
        daemon.start()
        call(daemon, "POST", f"/v1/pivots/{pivot}/cancel")
        assert call(daemon, "GET", f"/v1/pivots/{pivot}/wait?timeout_s=20")["outcome"] == "kept"


@pytest.mark.qemu
@pytest.mark.parametrize("socket_moved", [False, True])
def test_a_guest_is_not_left_paused_though_its_monitor_has_another_path_in_the_configuration(
    qemu_factory: QemuFactory, tmp_path: Path, *, socket_moved: bool
):
    """Pivotd ends the pivot at the old path, unless that has gone, and then has the domain where it is configured."""
    proxy = Qemu.proxy_for(tmp_path)
    qemu = qemu_factory([Disk(create_image(tmp_path / "old.qcow2"))], proxy=proxy)
    config, elsewhere = tmp_path / "pivotd.toml", tmp_path / "elsewhere.qmp"
    with Daemon(tmp_path, {"web1": qemu.qmp}) as daemon:
        proxy.on_message = strike = KillAt(lambda: [daemon.pid], When.BEFORE, label="return:job-finalize")
        pivot = copied(daemon, tmp_path / "new.qcow2")["id"]
        assert strike.struck.wait(60)
        daemon.kill()
        assert qemu.spy("query-status")["status"] == "paused"
        config.write_text(config.read_text().replace(str(qemu.qmp), str(elsewhere)))
        if socket_moved:
            qemu.qmp.rename(elsewhere)
        daemon.start()
        assert until(lambda: qemu.spy("query-status")["status"] == "running")
        assert call(daemon, "GET", f"/v1/pivots/{pivot}/wait?timeout_s=20")["outcome"] == "switched"
        assert until(lambda: [row["qmp"] for row in daemon.ctl("domain", "ls").json] == [str(elsewhere)])
        assert daemon.ctl("domain", "ls").json[0]["origin"] == "config"
        assert call(daemon, "GET", "/v1/health")["domains"]["skipped"] == []


@pytest.mark.qemu
def test_a_pivot_is_undone_though_its_monitor_has_another_path_in_the_configuration(
    qemu_factory: QemuFactory, tmp_path: Path
):
    """The undo is a pivot of its own, which begins as the first one ends: the domain stays there until it has ended."""
    qemu = qemu_factory([Disk(create_image(tmp_path / "old.qcow2"))])
    config, elsewhere = tmp_path / "pivotd.toml", tmp_path / "elsewhere.qmp"
    with Daemon(tmp_path, {"web1": qemu.qmp}) as daemon:
        pivot = copied(daemon, tmp_path / "new.qcow2", keep_synced=True)["id"]
        assert until(lambda: call(daemon, "GET", f"/v1/pivots/{pivot}")["outcome"] == "switched")
        daemon.kill()
        config.write_text(config.read_text().replace(str(qemu.qmp), str(elsewhere)))
        daemon.start()
        assert until(lambda: daemon.ctl("domain", "ls").json[0]["connection"] == "connected")
        undo = call(daemon, "POST", f"/v1/pivots/{pivot}/undo")["id"]
        assert call(daemon, "GET", f"/v1/pivots/{undo}/wait?timeout_s=20")["outcome"] == "switched"
        assert qemu.spy("query-block")[0]["inserted"]["file"] == str(tmp_path / "old.qcow2")
        assert until(lambda: [row["qmp"] for row in daemon.ctl("domain", "ls").json] == [str(elsewhere)])


@pytest.mark.qemu
@pytest.mark.long
def test_two_domains_whose_monitors_were_exchanged_in_the_configuration(qemu_factory: QemuFactory, tmp_path: Path):
    """Each ends its pivot where that began, and then is where it is configured, also the one that had to wait for that."""
    for name in ("web1", "web2"):
        qemu_factory([Disk(create_image(tmp_path / f"{name}.qcow2"))], name=name)
    paths = {name: tmp_path / f"{name}.qmp" for name in ("web1", "web2")}
    with Daemon(tmp_path, paths) as daemon:
        for name in paths:
            target = f"disk0={tmp_path / name}.new"
            assert daemon.ctl("copy", name, target, "--no-pivot", "--id", f"p-{name}").status == 0
        config, swapped = tmp_path / "pivotd.toml", {"web1.qmp": "web2.qmp", "web2.qmp": "web1.qmp"}
        config.write_text(re.sub(r"web\d\.qmp", lambda found: swapped[found[0]], config.read_text()))
        daemon.kill()
        daemon.start()
        assert {row["name"]: row["qmp"] for row in daemon.ctl("domain", "ls").json} == {
            n: str(p) for n, p in paths.items()
        }
        for name in paths:
            assert daemon.ctl("pivot", "complete", f"p-{name}").json["outcome"] == "switched"
        wanted = [("web1", str(paths["web2"]), "connected"), ("web2", str(paths["web1"]), "connected")]
        assert until(
            lambda: [(row["name"], row["qmp"], row["connection"]) for row in daemon.ctl("domain", "ls").json] == wanted
        )
        assert call(daemon, "GET", "/v1/health")["domains"]["skipped"] == []


@pytest.mark.qemu
def test_a_discovered_socket_becomes_a_domain(qemu_factory: QemuFactory, tmp_path: Path):
    """By its file name without the suffix."""
    qemu_factory([Disk(create_image(tmp_path / "old.qcow2"))], name="found")
    (tmp_path / "d").mkdir()
    with Daemon(tmp_path / "d", {}, configuration=f"discover = [{json.dumps(str(tmp_path / 'found.qmp'))}]") as daemon:
        (domain,) = daemon.ctl("domain", "ls").json
        assert (domain["name"], domain["origin"]) == ("found", "discovered")


@pytest.mark.qemu
def test_a_domain_added_at_run_time_survives_a_restart(qemu_factory: QemuFactory, tmp_path: Path):
    """It is in the journal."""
    qemu = qemu_factory()
    with Daemon(tmp_path, {}) as daemon:
        assert daemon.ctl("domain", "add", "web1", "--qmp", str(qemu.qmp)).status == 0
        daemon.kill()
        daemon.start()
        assert [d["name"] for d in daemon.ctl("domain", "ls").json] == ["web1"]


@pytest.mark.qemu
def test_a_verdict_without_any_pivot_is_what_qemu_uses(qemu_factory: QemuFactory, tmp_path: Path):
    """Outcome null, certain true."""
    qemu = qemu_factory([Disk(create_image(tmp_path / "old.qcow2"))])
    with Daemon(tmp_path, {"web1": qemu.qmp}) as daemon:
        verdict = daemon.ctl("verdict", "web1", "disk0").json
        assert (verdict["outcome"], verdict["image"]) == (None, str(tmp_path / "old.qcow2"))


@pytest.mark.qemu
def test_the_stale_image_started_again_is_unknown(qemu_factory: QemuFactory, tmp_path: Path):
    """After a switch another QEMU on the old image contradicts the journal: a person must look."""
    qemu = qemu_factory([Disk(create_image(tmp_path / "old.qcow2"))])
    with Daemon(tmp_path, {"web1": qemu.qmp}) as daemon:
        pivot = copied(daemon, tmp_path / "new.qcow2")["id"]
        call(daemon, "GET", f"/v1/pivots/{pivot}/wait?timeout_s=20")
        daemon.kill()
        qemu.stop()
        qemu_factory([Disk(tmp_path / "old.qcow2")])
        daemon.start()
        answer = daemon.ctl("verdict", "web1", "disk0")
        assert (answer.status, answer.json["outcome"], answer.json["certain"]) == (6, "unknown", False)


@pytest.mark.qemu
def test_a_replaced_qemu_on_the_destination_ends_unknown(qemu_factory: QemuFactory, tmp_path: Path):
    """No switch was recorded, yet somebody started the copy: both facts are told."""
    qemu = qemu_factory([Disk(create_image(tmp_path / "old.qcow2"))])
    with Daemon(tmp_path, {"web1": qemu.qmp}) as daemon:
        pivot = copied(daemon, tmp_path / "new.qcow2", pivot=False)["id"]
        call(daemon, "GET", f"/v1/pivots/{pivot}/wait?timeout_s=20")
        daemon.kill()
        qemu.stop()
        qemu_factory([Disk(tmp_path / "new.qcow2")])
        daemon.start()
        assert call(daemon, "GET", f"/v1/pivots/{pivot}/wait?timeout_s=20")["outcome"] == "unknown"
    reader = Reader.offline(tmp_path / "state")
    assert "closed" in [record.event for record in reader.records(pivot)]  # the alarm may come after it
    reader.close()


@pytest.mark.qemu
def test_a_silent_qemu_decides_nothing_and_is_told(qemu_factory: QemuFactory, tmp_path: Path):
    """Stopped by a signal: the pivot stays open, progress says why, and it goes on when QEMU does."""
    qemu = qemu_factory([Disk(create_image(tmp_path / "old.qcow2"))])
    with Daemon(tmp_path, {"web1": qemu.qmp}) as daemon:
        pivot = copied(daemon, tmp_path / "new.qcow2", pivot=False)["id"]
        call(daemon, "GET", f"/v1/pivots/{pivot}/wait?timeout_s=20")
        daemon.kill()
        os.kill(qemu.pid, 19)
        daemon.start(wait=False)
        daemon.await_ready(timeout_s=60)
        assert call(daemon, "GET", "/v1/health")["status"] == "degraded"
        assert "decided" in call(daemon, "GET", f"/v1/pivots/{pivot}/progress")["detail"]
        os.kill(qemu.pid, 18)
        call(daemon, "POST", f"/v1/pivots/{pivot}/cancel")
        assert call(daemon, "GET", f"/v1/pivots/{pivot}/wait?timeout_s=30")["outcome"] == "kept"


@pytest.mark.qemu
def test_a_qemu_that_came_back_is_found_by_the_first_request(qemu_factory: QemuFactory, tmp_path: Path):
    """A domain that was unreachable is tried again at once when somebody asks for it."""
    with Daemon(tmp_path, {"web1": tmp_path / "web1.qmp"}) as daemon:
        assert daemon.ctl("disk", "ls", "web1").status == 4
        qemu_factory([Disk(create_image(tmp_path / "old.qcow2"))])
        assert daemon.ctl("copy", "web1", f"disk0={tmp_path}/new.qcow2").status == 0
