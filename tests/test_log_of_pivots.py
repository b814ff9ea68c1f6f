"""The log of a running daemon: it tells every pivot, every refusal and every start, and nothing during a pause."""

from __future__ import annotations

import json
import os
import pwd
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pivotd import __version__, limits
from tests.chaos.rounds import call
from tests.conftest import QemuFactory
from tests.support.daemon import Daemon
from tests.support.manager import Manager
from tests.support.proxy import Direction, Message, When
from tests.support.qemu import Disk, Qemu, create_image
from tests.support.waiting import until

pytestmark = pytest.mark.qemu
DEBUG = '[log]\nlevel = "debug"'
PAUSE_MS = 60_000
"""Long enough for what a test does while the guest is paused, and that one try of a switch is enough."""


def events(daemon: Daemon, *names: str) -> list[dict[str, Any]]:
    """Return the lines of the log, of these events or of all."""
    lines = [json.loads(line) for line in daemon.log_path.read_text().splitlines() if line.startswith("{")]
    return [line for line in lines if not names or line["event"] in names]


def copied(daemon: Daemon, image: Path, **body: Any) -> dict[str, Any]:
    """Copy a disk and wait until its pivot rests."""
    body = {"disks": [{"disk": "disk0", "image": str(image)}], **body}
    pivot = call(daemon, "POST", "/v1/domains/web1/copy", body)["id"]
    return dict(call(daemon, "GET", f"/v1/pivots/{pivot}/wait?timeout_s=30"))


@pytest.fixture
def qemu(qemu_factory: QemuFactory, tmp_path: Path) -> Qemu:
    return qemu_factory([Disk(create_image(tmp_path / "old.qcow2"))])


# -- pivots -------------------------------------------------------------------------------------------------------


def test_a_pivot_is_told_from_the_request_to_the_outcome(qemu: Qemu, tmp_path: Path) -> None:
    """Who asked and for what, the outcome, and the length of the pause, all with domain and pivot."""
    with Daemon(tmp_path, {"web1": qemu.qmp}) as daemon:
        pivot = copied(daemon, tmp_path / "new.qcow2", max_pause_ms=PAUSE_MS)
        assert daemon.terminate() == 0
        told = [event for event in events(daemon) if event["event"].startswith("pivot.")]
    assert [event["event"] for event in told] == ["pivot.accepted", "pivot.switched", "pivot.paused"]
    user = pwd.getpwuid(os.geteuid())
    assert {(event["domain"], event["pivot"], event["uid"], event["user"]) for event in told} == {
        ("web1", pivot["id"], user.pw_uid, user.pw_name)
    }
    accepted, switched, paused = told
    assert accepted["kind"] == "copy"
    assert accepted["disks"] == [f"disk0: {tmp_path}/old.qcow2 -> {tmp_path}/new.qcow2"]
    assert switched["disks"] == [f"disk0: {tmp_path}/new.qcow2"]
    assert paused["pause_ms"] == pytest.approx(pivot["pause_ms"], abs=0.001)


def test_a_cancelled_pivot_is_told(qemu: Qemu, tmp_path: Path) -> None:
    """Who cancelled it; that it stays on the old image is no warning then."""
    with Daemon(tmp_path, {"web1": qemu.qmp}) as daemon:
        pivot = copied(daemon, tmp_path / "new.qcow2", pivot=False)["id"]
        call(daemon, "POST", f"/v1/pivots/{pivot}/cancel")
        call(daemon, "GET", f"/v1/pivots/{pivot}/wait?timeout_s=20")
        assert daemon.terminate() == 0
        asked, kept = events(daemon, "pivot.cancel-requested", "pivot.kept")
    assert (asked["event"], asked["uid"], asked["pivot"]) == ("pivot.cancel-requested", os.geteuid(), pivot)
    assert (kept["event"], kept["level"], kept["reason"]) == ("pivot.kept", "info", "cancelled")


def test_every_request_to_a_pivot_and_its_undo_are_told(qemu: Qemu, tmp_path: Path) -> None:
    """Bandwidth, complete, undo: the pivot that undoes is accepted like any other."""
    with Daemon(tmp_path, {"web1": qemu.qmp}) as daemon:
        first = copied(daemon, tmp_path / "new.qcow2", pivot=False, keep_synced=True, max_pause_ms=PAUSE_MS)["id"]
        call(daemon, "POST", f"/v1/pivots/{first}/bandwidth", {"bandwidth_bytes_per_s": 1 << 30})
        call(daemon, "POST", f"/v1/pivots/{first}/complete")
        assert until(lambda: bool(call(daemon, "GET", f"/v1/pivots/{first}")["undo_until"]))
        undo = call(daemon, "POST", f"/v1/pivots/{first}/undo")["id"]
        call(daemon, "GET", f"/v1/pivots/{undo}/wait?timeout_s=20")
        assert daemon.terminate() == 0
        told = [(e["event"], e["pivot"]) for e in events(daemon) if e["event"].startswith("pivot.")]
        (accepted,) = [e for e in events(daemon, "pivot.accepted") if e["pivot"] == undo]
    assert told == [
        ("pivot.accepted", first),
        ("pivot.bandwidth-requested", first),
        ("pivot.complete-requested", first),
        ("pivot.switched", first),
        ("pivot.paused", first),
        ("pivot.accepted", undo),
        ("pivot.switched", undo),
        ("pivot.paused", undo),
    ]
    assert accepted["undo_of"] == first


def test_a_merge_is_told(qemu: Qemu, tmp_path: Path) -> None:
    """The image stays, on a shorter chain."""
    with Daemon(tmp_path, {"web1": qemu.qmp}) as daemon:
        body = {"disks": [{"disk": "disk0", "image": str(tmp_path / "layer.qcow2")}]}
        for verb, request in (("snapshot", body), ("pull", {"disks": [{"disk": "disk0"}]})):
            pivot = call(daemon, "POST", f"/v1/domains/web1/{verb}", request)["id"]
            call(daemon, "GET", f"/v1/pivots/{pivot}/wait?timeout_s=20")
        assert daemon.terminate() == 0
        (merged,) = events(daemon, "pivot.merged")
    assert (merged["level"], merged["disks"]) == ("info", [f"disk0: {tmp_path}/layer.qcow2"])


def test_an_unknown_outcome_is_an_error_with_its_reason(qemu_factory: QemuFactory, tmp_path: Path) -> None:
    """Another QEMU runs the copy of a pivot that never switched."""
    qemu = qemu_factory([Disk(create_image(tmp_path / "old.qcow2"))])
    with Daemon(tmp_path, {"web1": qemu.qmp}) as daemon:
        pivot = copied(daemon, tmp_path / "new.qcow2", pivot=False)["id"]
        daemon.kill()
        qemu.stop()
        qemu_factory([Disk(tmp_path / "new.qcow2")])
        daemon.start()
        call(daemon, "GET", f"/v1/pivots/{pivot}/wait?timeout_s=20")
        assert daemon.terminate() == 0
        taken_up, unknown = events(daemon, "pivot.taken-up", "pivot.unknown")
        assert (taken_up["event"], taken_up["pivot"], taken_up["phase"]) == ("pivot.taken-up", pivot, "ready")
        assert (unknown["level"], unknown["reason"]) == ("error", call_error(daemon, pivot))
        assert unknown["disks"] == [f"disk0: {tmp_path}/old.qcow2 or {tmp_path}/new.qcow2"]


def call_error(daemon: Daemon, pivot: str) -> str:
    daemon.start()
    return str(call(daemon, "GET", f"/v1/pivots/{pivot}")["error"])


def test_an_outcome_is_told_though_the_daemon_died_with_it(qemu_factory: QemuFactory, tmp_path: Path) -> None:
    """Killed between the record of the switch and `cont`, with the line still held: the next process tells it."""
    strike = Strike("command:cont", When.BEFORE, signal.SIGKILL)
    proxy = Qemu.proxy_for(tmp_path, on_message=strike)
    qemu = qemu_factory([Disk(create_image(tmp_path / "old.qcow2"))], proxy=proxy)
    with Daemon(tmp_path, {"web1": qemu.qmp}) as daemon:
        strike.daemon = daemon
        disks = [{"disk": "disk0", "image": f"{tmp_path}/new.qcow2"}]
        call(daemon, "POST", "/v1/domains/web1/copy", {"disks": disks, "max_pause_ms": PAUSE_MS})
        assert daemon.wait() == -signal.SIGKILL
        assert events(daemon, "pivot.switched", "pivot.paused") == []
        daemon.start()
        assert until(lambda: len(events(daemon, "pivot.switched", "pivot.paused")) == 2)


# -- the pause ----------------------------------------------------------------------------------------------------


class Strike:
    """Sends the daemon a signal at the first message with this label."""

    def __init__(self, label: str, when: When, number: int) -> None:
        self.label, self.when, self.number = label, when, number
        self.daemon: Daemon | None = None

    def __call__(self, direction: Direction, index: int, message: Message, when: When) -> None:
        if self.daemon is not None and message.label == self.label and when is self.when:
            daemon, self.daemon = self.daemon, None
            os.kill(daemon.pid, self.number)
            daemon.wait()


class Watcher:
    """Notes the size of the log at every message of a pause, and meanwhile sends requests that the log tells."""

    def __init__(self) -> None:
        self.daemon: Daemon | None = None
        self.manager: Manager | None = None
        self.sizes: list[tuple[str, int]] = []
        self.told = 0

    def __call__(self, direction: Direction, index: int, message: Message, when: When) -> None:
        daemon, label = self.daemon, message.label
        if daemon is None or direction is not Direction.TO_QEMU or when is not When.BEFORE:
            return
        if label == "command:stop" or (self.sizes and self.sizes[-1][0] != "command:cont"):
            if label == "command:job-finalize":
                for name in ("nobody", "web1"):
                    refused = daemon.ctl("copy", name, "disk0=relative", "--format", "raw")
                    assert refused.status == 4, refused
                    assert daemon.ctl("domain", "add", name, "--qmp", f"/run/{name}.qmp").status in {0, 4}
                    self.told += 1
            self.sizes.append((label, daemon.log_path.stat().st_size))


def test_nothing_is_written_between_stop_and_cont(qemu_factory: QemuFactory, tmp_path: Path) -> None:
    """Not of the pivot, nor of the requests that come meanwhile; afterwards all of it, in the order of the events."""
    watcher = Watcher()
    proxy = Qemu.proxy_for(tmp_path, on_message=watcher)
    qemu = qemu_factory([Disk(create_image(tmp_path / "old.qcow2"))], proxy=proxy)
    manager = Manager(tmp_path / "notify")
    environment = {"NOTIFY_SOCKET": str(manager.path)}
    with Daemon(tmp_path, {"web1": qemu.qmp}, configuration=DEBUG, environment=environment) as daemon:
        assert until(lambda: len(events(daemon, "daemon.serving")) == 1)
        watcher.daemon = daemon
        pivot = copied(daemon, tmp_path / "new.qcow2", max_pause_ms=PAUSE_MS)
        assert pivot["outcome"] == "switched", pivot
        assert daemon.terminate() == 0
    proxy.check()
    assert watcher.told == 2
    labels = [label for label, _ in watcher.sizes]
    assert (labels[0], labels[-1]) == ("command:stop", "command:cont")
    assert "command:job-finalize" in labels
    assert len({size for _, size in watcher.sizes}) == 1, watcher.sizes
    told = [event["event"] for event in events(daemon)]
    held = [
        event for event in events(daemon) if event["event"] in {"request.refused", "domain.added", "pivot.switched"}
    ]
    assert [event["event"] for event in held][-1] == "pivot.switched"
    assert told.index("pivot.switched") < told.index("pivot.paused")
    stamps = [event["timestamp"] for event in events(daemon)]
    assert stamps == sorted(stamps)
    manager.end()


def test_a_guest_that_stays_paused_does_not_silence_the_log(qemu_factory: QemuFactory, tmp_path: Path) -> None:
    """QEMU hangs in the pause: after max_pause the log goes on, with what came before."""
    freeze = Freeze("command:job-finalize")
    proxy = Qemu.proxy_for(tmp_path, on_message=freeze)
    qemu = qemu_factory([Disk(create_image(tmp_path / "old.qcow2"))], proxy=proxy)
    freeze.pid = qemu.pid
    with Daemon(tmp_path, {"web1": qemu.qmp}) as daemon:
        call(daemon, "POST", "/v1/domains/web1/copy", {"disks": [{"disk": "disk0", "image": f"{tmp_path}/new.qcow2"}]})
        assert until(lambda: freeze.done)
        assert daemon.ctl("domain", "add", "web2", "--qmp", "/run/web2.qmp").status == 0
        assert until(lambda: len([e for e in events(daemon, "domain.added") if e["domain"] == "web2"]) == 1)
        os.kill(qemu.pid, signal.SIGCONT)
        assert until(lambda: len(events(daemon, "pivot.paused")) == 1)


class Freeze:
    """Stops QEMU's process right before a message reaches it."""

    def __init__(self, label: str) -> None:
        self.label, self.pid, self.done = label, 0, False

    def __call__(self, direction: Direction, index: int, message: Message, when: When) -> None:
        if message.label == self.label and when is When.BEFORE and not self.done:
            os.kill(self.pid, signal.SIGSTOP)
            self.done = True


# -- start, refusals, levels --------------------------------------------------------------------------------------


def test_a_start_says_what_it_starts_from_and_what_it_found(qemu: Qemu, tmp_path: Path) -> None:
    """Version, files of the configuration, places, and each QEMU; what is not connected, too."""
    with Daemon(tmp_path, {"web1": qemu.qmp, "web2": tmp_path / "none.qmp"}) as daemon:
        assert until(lambda: len(events(daemon, "daemon.serving")) == 1)
        (started,) = events(daemon, "daemon.started")
        (serving,) = events(daemon, "daemon.serving")
        assert daemon.terminate() == 0
        assert [event["event"] for event in events(daemon)][-2:] == ["daemon.stopping", "daemon.stopped"]
    assert started["version"] == __version__
    assert started["configuration"] == [str(tmp_path / "pivotd.toml")]
    assert (started["socket"], started["state_dir"]) == (str(tmp_path / "pivotd.sock"), str(tmp_path / "state"))
    assert started["journal"] == str(tmp_path / "state" / "journal.db")
    (found,) = serving["qemus"]
    assert found.startswith("web1 (QEMU ")
    assert f"process {qemu.pid})" in found
    assert (serving["domains"], serving["not_connected"]) == (2, ["web2"])


@pytest.fixture
def alone() -> Iterator[Daemon]:
    """A daemon without domains; other users may enter its directory."""
    with tempfile.TemporaryDirectory(prefix="pv") as name:
        Path(name).chmod(0o755)
        with Daemon(Path(name), {}) as daemon:
            yield daemon


def test_a_refused_request_is_told_with_who_and_why(alone: Daemon) -> None:
    """What would have changed something; a look at what does not exist is nobody's concern."""
    assert alone.ctl("copy", "web1", "disk0=/new.qcow2").status == 4
    assert alone.ctl("domain", "show", "web1").status == 4
    (refused,) = events(alone, "request.refused")
    user = pwd.getpwuid(os.geteuid())
    assert (refused["uid"], refused["user"], refused["level"]) == (user.pw_uid, user.pw_name, "info")
    assert (refused["method"], refused["path"], refused["domain"]) == ("POST", "/v1/domains/web1/copy", "web1")
    assert (refused["kind"], "there is no domain web1" in refused["reason"]) == ("not-found", True)


@pytest.mark.skipif(os.geteuid() != 0, reason="acting as another user needs root")
def test_a_stranger_in_a_loop_cannot_flood_the_log(alone: Daemon) -> None:
    """Its first refusals are warnings; the others are counted, and the count is told; another user's are still told."""
    user = pwd.getpwnam("nobody")
    asked = limits.REFUSALS_LOGGED_PER_UID + 30
    request = "GET /v1/domains HTTP/1.1\\r\\nHost: x\\r\\nConnection: close\\r\\n\\r\\n"
    program = (
        f"import os, socket; os.setgroups([]); os.setgid({user.pw_gid}); os.setuid({user.pw_uid})\n"
        f"for _ in range({asked}):\n"
        f"    s = socket.socket(socket.AF_UNIX); s.connect({str(alone.socket)!r}); s.sendall(b'{request}')\n"
        "    while s.recv(4096): pass\n"
    )
    subprocess.run([sys.executable, "-I", "-c", program], check=True)
    told = events(alone, "request.refused")
    assert {(event["uid"], event["user"], event["level"]) for event in told} == {(user.pw_uid, user.pw_name, "warning")}
    assert len(told) == limits.REFUSALS_LOGGED_PER_UID
    assert alone.ctl("domain", "rm", "web1").status == 4
    assert events(alone, "request.refused")[-1]["uid"] == 0
    assert alone.terminate() == 0
    (left_out,) = events(alone, "request.left-out")
    assert (left_out["uid"], left_out["left_out"]) == (user.pw_uid, 30)


def test_a_reload_changes_the_level(alone: Daemon) -> None:
    """To `warning` and back, by `--reload`; a wrong level changes nothing."""

    def reload(more: str) -> subprocess.CompletedProcess[str]:
        file.write_text(f"{base}{more}")
        command = [sys.executable, "-m", "pivotd.daemon", "--reload", str(alone.pid)]
        return subprocess.run(command, capture_output=True, text=True, timeout=90, check=False)

    def add(name: str) -> None:
        assert alone.ctl("domain", "add", name, "--qmp", f"/run/{name}.qmp").status == 0

    file = alone.directory / "pivotd.toml"
    base = file.read_text()
    add("a")
    assert reload('[log]\nlevel = "warning"\n').stdout == "reloaded: log\n"
    add("b")
    assert 'log.level: found "loud", expected one of' in reload('[log]\nlevel = "loud"\n').stderr
    add("c")
    assert reload("").stdout == "reloaded: log\n"
    add("d")
    assert [event["domain"] for event in events(alone, "domain.added")] == ["a", "d"]


# -- systemctl status ---------------------------------------------------------------------------------------------


def test_the_status_stays_true(qemu: Qemu, tmp_path: Path) -> None:
    """After a start, with domains added and removed, discovered and gone, and with a pivot open."""
    manager = Manager(tmp_path / "notify")
    (tmp_path / "found").mkdir()
    environment = {"NOTIFY_SOCKET": str(manager.path)}
    configuration = f'discover = ["{tmp_path}/found/web3.qmp"]\n[domains.web1]\nqmp = "{qemu.qmp}"'
    with Daemon(tmp_path, {}, configuration=configuration, environment=environment) as daemon:
        manager.await_message(b"STATUS=supervising 1 domain, 1 connected, 0 open pivots")
        assert daemon.ctl("domain", "add", "web2", "--qmp", "/run/none.qmp").status == 0
        manager.await_message(b"STATUS=supervising 2 domains, 1 connected, 0 open pivots")
        assert daemon.ctl("domain", "rm", "web2").status == 0
        manager.await_message(b"STATUS=supervising 1 domain, 1 connected, 0 open pivots")
        with Qemu(tmp_path / "found", [Disk(create_image(tmp_path / "found.qcow2"))], name="web3"):
            manager.await_message(b"STATUS=supervising 2 domains, 2 connected, 0 open pivots")
        (tmp_path / "found" / "web3.qmp").unlink(missing_ok=True)
        manager.await_message(b"STATUS=supervising 1 domain, 1 connected, 0 open pivots")
        pivot = copied(daemon, tmp_path / "new.qcow2", pivot=False)["id"]
        manager.await_message(b"STATUS=supervising 1 domain, 1 connected, 1 open pivot")
        call(daemon, "POST", f"/v1/pivots/{pivot}/cancel")
        manager.await_message(b"STATUS=supervising 1 domain, 1 connected, 0 open pivots")
        qemu.stop()
        manager.await_message(b"STATUS=supervising 1 domain, 0 connected, 0 open pivots")
        assert daemon.terminate() == 0
    assert b"finishing" in manager.end()[-1]
