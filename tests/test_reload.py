"""A running daemon takes another configuration: all of it, or nothing and one line that says why."""

from __future__ import annotations

import os
import pwd
import resource
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pivotd.journal.reader import Reader
from tests.chaos.rounds import call
from tests.conftest import QemuFactory
from tests.support.daemon import Daemon
from tests.support.hung_storage import HungStorage
from tests.support.qemu import Disk, create_image
from tests.support.waiting import until

NOBODY = "nobody"


class Reloaded:
    """A daemon, its configuration file, and the program that asks it to read that again."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon
        self.file = daemon.directory / "pivotd.toml"
        self._base = self.file.read_text()

    def configure(self, more: str = "", *, base: str | None = None) -> None:
        self.file.write_text((self._base if base is None else base) + more)

    def reload(self) -> subprocess.CompletedProcess[str]:
        """Ask, and wait for the answer, as the unit's ExecReload= does."""
        command = [sys.executable, "-m", "pivotd.daemon", "--reload", str(self.daemon.pid)]
        return subprocess.run(command, capture_output=True, text=True, timeout=90, check=False)

    def domains(self) -> dict[str, tuple[str, str]]:
        """Return name -> (monitor, origin)."""
        return {row["name"]: (row["qmp"], row["origin"]) for row in self.daemon.ctl("domain", "ls").json}

    def notes(self) -> list[tuple[str, dict[str, Any]]]:
        """Return what the journal says of reloading, oldest first."""
        reader = Reader.offline(self.daemon.state_dir)
        try:
            records = reader.events(0)
        finally:
            reader.close()
        return [(record.event, dict(record.facts)) for record in records if record.event.startswith("reload")]


@pytest.fixture
def running() -> Iterator[Reloaded]:
    """No domain is configured. Other users may enter the directory: below pytest's own they may not."""
    with tempfile.TemporaryDirectory(prefix="pv") as name:
        Path(name).chmod(0o755)
        with Daemon(Path(name), {}) as daemon:
            yield Reloaded(daemon)


def refused(done: subprocess.CompletedProcess[str]) -> str:
    """Return the line of a reload that was refused."""
    assert (done.returncode, done.stdout) == (4, "")
    assert done.stderr.count("\n") == 1
    return done.stderr


def domain(name: str, path: Path | str) -> str:
    return f'[domains.{name}]\nqmp = "{path}"\n'


def test_sighup_reloads(running: Reloaded) -> None:
    """The signal alone is enough; the daemon lives, and the journal says that it was a signal."""
    running.configure(domain("web1", "/run/qemu/web1.qmp"))
    os.kill(running.daemon.pid, signal.SIGHUP)
    assert until(lambda: bool(running.notes()), look_s=0.05)
    assert running.domains() == {"web1": ("/run/qemu/web1.qmp", "config")}
    assert running.notes()[0] == ("reloaded", {"by": "SIGHUP", "changed": ["domain web1 added"]})


def test_a_signal_at_the_very_start_is_no_end(tmp_path: Path) -> None:
    """Sent as soon as there is a process, before its event loop turns."""
    with Daemon(tmp_path, {}) as daemon:
        daemon.kill()
        daemon.start(wait=False)
        # The journal's lock is taken early: the interpreter is up by then, and nothing is served yet.
        lock = daemon.state_dir / "journal.lock"
        while lock.read_text().strip() != str(daemon.pid):
            assert daemon._process is not None
            assert daemon._process.poll() is None
        os.kill(daemon.pid, signal.SIGHUP)
        daemon.await_ready()


def test_a_request_without_a_free_file_descriptor_waits(running: Reloaded) -> None:
    """The daemon lives on, and answers once it can open files again."""
    assert running.domains() == {}
    command = [sys.executable, "-m", "pivotd.daemon", "--reload", str(running.daemon.pid)]
    limits = resource.prlimit(running.daemon.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(running.daemon.pid, resource.RLIMIT_NOFILE, (4, limits[1]))
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as asking:
        assert until(lambda: "reload-delayed" in running.daemon.log_path.read_text())
        resource.prlimit(running.daemon.pid, resource.RLIMIT_NOFILE, limits)
        assert asking.communicate(timeout=90)[0] == "reloaded: nothing had changed\n"
    assert running.domains() == {}


def test_an_answer_says_what_has_changed(running: Reloaded) -> None:
    """Domains come, go and get other monitors; who asked and what changed is in the journal."""
    running.configure(domain("web1", "/a") + domain("web2", "/b"))
    assert running.reload().stdout == "reloaded: domain web1 added, domain web2 added\n"
    running.configure(domain("web2", "/c"))
    assert running.reload().stdout == "reloaded: domain web1 removed, domain web2 has another monitor\n"
    assert running.domains() == {"web2": ("/c", "config")}
    (_, first), (_, second) = running.notes()
    assert second["changed"] == ["domain web1 removed", "domain web2 has another monitor"]
    assert first["by"]["uid"] == os.geteuid()
    assert running.reload().stdout == "reloaded: nothing had changed\n"


def test_a_configured_domain_goes_as_the_refusal_says(running: Reloaded) -> None:
    """`domain rm` refuses it, and names what removes it."""
    running.configure(domain("web1", "/a"))
    running.reload()
    refusal = running.daemon.ctl("domain", "rm", "web1")
    assert refusal.status == 4
    assert "remove it there and reload pivotd" in refusal.json["error"]["message"]
    running.configure()
    running.reload()
    assert running.domains() == {}


def test_pause_defaults_count_for_the_next_request(qemu_factory: QemuFactory, tmp_path: Path) -> None:
    """What a request does not say comes from the new file."""
    qemu = qemu_factory([Disk(create_image(tmp_path / "old.qcow2"))])
    with Daemon(tmp_path, {"web1": qemu.qmp}) as daemon:
        running = Reloaded(daemon)
        running.configure("[pause]\nmax_ms = 321\nattempts = 3\n")
        assert running.reload().stdout == "reloaded: pause\n"
        body = {"disks": [{"disk": "disk0", "image": str(tmp_path / "new.qcow2")}], "pivot": False}
        options = call(daemon, "POST", "/v1/domains/web1/copy", body)["options"]
        assert (options["max_pause_ms"], options["attempts"]) == (321, 3)


@pytest.mark.skipif(os.geteuid() != 0, reason="acting as another user needs root")
def test_access_counts_for_the_next_request(running: Reloaded) -> None:
    """Somebody who may look and then may not any more."""

    def as_nobody() -> bytes:
        user = pwd.getpwnam(NOBODY)
        program = (
            f"import os, socket; os.setgroups([]); os.setgid({user.pw_gid}); os.setuid({user.pw_uid});"
            f"s = socket.socket(socket.AF_UNIX); s.connect({str(running.daemon.socket)!r});"
            "s.sendall(b'GET /v1/domains HTTP/1.1\\r\\nHost: x\\r\\nConnection: close\\r\\n\\r\\n');"
            "print(s.recv(12).decode())"
        )
        return subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, check=True).stdout[9:12]

    assert as_nobody() == b"403"
    running.configure(f'[access]\nreaders = ["{NOBODY}"]\n')
    assert running.reload().stdout == "reloaded: access\n"
    assert as_nobody() == b"200"
    running.configure()
    running.reload()
    assert as_nobody() == b"403"


def test_discovery_follows_its_patterns(qemu_factory: QemuFactory, tmp_path: Path) -> None:
    """A new pattern is looked at before the answer; what no pattern matches any more goes, though it is connected."""
    qemu_factory(name="found")
    (tmp_path / "d").mkdir()
    with Daemon(tmp_path / "d", {}) as daemon:
        running = Reloaded(daemon)
        base = running.file.read_text()
        running.configure(base=f'discover = ["{tmp_path}/foun?.qmp"]\n{base}')
        assert running.reload().stdout == "reloaded: discover\n"
        assert running.domains() == {"found": (str(tmp_path / "found.qmp"), "discovered")}
        running.configure()
        assert running.reload().stdout == "reloaded: discover, domain found removed\n"
        assert running.domains() == {}


def test_a_configured_name_takes_a_discovered_monitor_over(qemu_factory: QemuFactory, tmp_path: Path) -> None:
    """As after a restart: a monitor has one owner, and the configuration goes before discovery."""
    qemu_factory(name="found")
    (tmp_path / "d").mkdir()
    path = tmp_path / "found.qmp"
    with Daemon(tmp_path / "d", {}, configuration=f'discover = ["{path}"]') as daemon:
        running = Reloaded(daemon)
        running.configure(domain("web1", path))
        assert running.reload().returncode == 0
        assert running.domains() == {"web1": (str(path), "config")}


def test_a_second_monitor_of_a_qemu_that_has_a_domain(qemu_factory: QemuFactory, tmp_path: Path) -> None:
    """It is taken, as one of a QEMU that does not run yet is, and refused as soon as its QEMU is known."""
    qemu = qemu_factory(extra=["-qmp", f"unix:{tmp_path}/web2.qmp,server=on,wait=off"])
    (tmp_path / "d").mkdir()
    with Daemon(tmp_path / "d", {"web1": qemu.qmp}) as daemon:
        running = Reloaded(daemon)
        running.configure(domain("web2", tmp_path / "web2.qmp"))
        assert running.reload().stdout == "reloaded: domain web2 added\n"
        assert until(lambda: [row["connection"] for row in daemon.ctl("domain", "ls").json] == ["connected", "refused"])
        assert "leads to the QEMU of domain web1" in daemon.ctl("domain", "ls").json[1]["detail"]


def test_a_fleet_takes_a_restart(running: Reloaded) -> None:
    """Pivots rest on the fleet that they began with: the change is refused, and nothing else is taken either."""
    running.configure('[fleet]\nendpoints = ["http://127.0.0.1:1"]\nhost = "h1"\n' + domain("web1", "/a"))
    assert "[fleet] stays as it is while pivotd runs: restart it for the change" in refused(running.reload())
    assert running.domains() == {}


def test_a_domain_that_was_added_by_hand_stays(running: Reloaded) -> None:
    """Removed from the configuration, it is again what the journal says that it is."""
    assert running.daemon.ctl("domain", "add", "web1", "--qmp", "/a").status == 0
    running.configure(domain("web1", "/b"))
    assert running.reload().stdout == "reloaded: domain web1 has another monitor\n"
    assert running.domains() == {"web1": ("/b", "config")}
    running.configure()
    assert running.reload().returncode == 0
    assert running.domains() == {"web1": ("/a", "runtime")}


# -- refused: nothing changes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("x = [", "not TOML"),
        ("[pause]\nmax_ms = 0\n", "pause.max_ms: found 0"),
        ('[access]\nreaders = ["no-such-user"]\n', "no-such-user"),
    ],
)
def test_a_bad_file_leaves_everything_as_it_was(running: Reloaded, text: str, named: str) -> None:
    """One line with file, place and reason, as at a start; in the journal, too."""
    running.configure(domain("web1", "/a"))
    assert running.reload().returncode == 0
    running.configure(domain("web2", "/b") + text)
    said = refused(running.reload())
    assert named in said
    assert running.domains() == {"web1": ("/a", "config")}
    event, facts = running.notes()[-1]
    assert (event, facts["reason"] in said) == ("reload-refused", True)


@pytest.mark.parametrize("key", ["state_dir", "socket"])
def test_what_cannot_change_while_it_runs_is_refused_by_name(running: Reloaded, key: str) -> None:
    """And nothing else of that file is taken."""
    old = running.daemon.state_dir if key == "state_dir" else running.daemon.socket
    base = running.file.read_text().replace(f'{key} = "{old}"', f'{key} = "/elsewhere"')
    running.configure(domain("web1", "/a"), base=base)
    assert f"{key} stays {old} while pivotd runs: restart it for /elsewhere" in refused(running.reload())
    assert running.domains() == {}


def test_a_domain_with_an_open_pivot_stays(qemu_factory: QemuFactory, tmp_path: Path) -> None:
    """Neither removed nor given another monitor; once the pivot is closed, it is."""
    qemu = qemu_factory([Disk(create_image(tmp_path / "old.qcow2"))])
    with Daemon(tmp_path, {"web1": qemu.qmp}) as daemon:
        running = Reloaded(daemon)
        body = {"disks": [{"disk": "disk0", "image": str(tmp_path / "new.qcow2")}], "pivot": False}
        pivot = call(daemon, "POST", "/v1/domains/web1/copy", body)["id"]
        base = running.file.read_text().split("[domains")[0]
        for more in ("", domain("web1", "/elsewhere")):
            running.configure(more + domain("web2", "/b"), base=base)
            assert f"domain web1 has an open pivot, {pivot}: cancel it or wait for it" in refused(running.reload())
            assert running.domains() == {"web1": (str(qemu.qmp), "config")}
        call(daemon, "POST", f"/v1/pivots/{pivot}/cancel")
        call(daemon, "GET", f"/v1/pivots/{pivot}/wait?timeout_s=20")
        assert running.reload().returncode == 0
        assert set(running.domains()) == {"web1", "web2"}


def test_a_monitor_has_one_owner(running: Reloaded) -> None:
    """A new name for the monitor of a domain that was added by hand."""
    running.daemon.ctl("domain", "add", "web1", "--qmp", "/a")
    running.configure(domain("web2", "/a"))
    assert "/a belongs to domain web1 already: remove that first" in refused(running.reload())


# -- who asks, and when -------------------------------------------------------------------------------------------


def test_two_reloads_at_once_are_both_answered(running: Reloaded) -> None:
    """One after the other; both for a file that was read after they had asked."""
    running.configure(domain("web1", "/a"))
    command = [sys.executable, "-m", "pivotd.daemon", "--reload", str(running.daemon.pid)]
    askers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    said = sorted(asker.communicate(timeout=90)[0] for asker in askers)
    assert said == ["reloaded: domain web1 added\n", *["reloaded: nothing had changed\n"] * 3]


def test_no_daemon_is_one_line_and_status_3() -> None:
    """A process that is no pivotd."""
    command = [sys.executable, "-m", "pivotd.daemon", "--reload", str(os.getpid())]
    done = subprocess.run(command, capture_output=True, text=True, timeout=90, check=False)
    assert done.returncode == 3
    assert done.stderr == f"pivotd: process {os.getpid()} takes no reload: it is no pivotd, or one that is starting\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="acting as another user needs root")
def test_a_stranger_is_refused(running: Reloaded) -> None:
    """Only root and the daemon's own user may ask."""
    user = pwd.getpwnam(NOBODY)
    name = next(
        line.split()[-1]
        for line in Path("/proc/net/unix").read_text().splitlines()
        if line.endswith(f"-{running.daemon.pid}") and "pivotd-reload" in line
    )
    program = (
        f"import os, socket; os.setgid({user.pw_gid}); os.setuid({user.pw_uid});"
        f"s = socket.socket(socket.AF_UNIX); s.connect(chr(0) + {name[1:]!r}); print(s.recv(1000).decode())"
    )
    done = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True, check=True)
    assert "only root and pivotd's own user may reload it" in done.stdout
    assert running.notes() == []


def test_a_client_that_does_not_listen_holds_up_nobody(running: Reloaded) -> None:
    """It connects and stays; the next one is answered."""
    name = next(
        line.split()[-1]
        for line in Path("/proc/net/unix").read_text().splitlines()
        if line.endswith(f"-{running.daemon.pid}") and "pivotd-reload" in line
    )
    with socket.socket(socket.AF_UNIX) as silent:
        silent.connect("\0" + name[1:])
        assert running.reload().returncode == 0


@pytest.mark.long
def test_a_configuration_on_storage_that_hangs_is_refused(running: Reloaded) -> None:
    """With one line, each time; it keeps pivotd neither from its work nor from its end."""
    drop_ins = running.file.with_name("pivotd.toml.d")
    drop_ins.mkdir()
    with HungStorage(drop_ins):
        refused = [running.reload() for _ in range(2)]
        assert [one.returncode for one in refused] == [4, 4]
        for one in refused:
            said = "reload refused, nothing has changed: the configuration cannot be read: the storage of"
            assert said in one.stderr
            assert one.stderr.count("\n") == 1
        assert running.daemon.ctl("domain", "ls").status == 0
        assert running.daemon.terminate() == 0


def test_another_libvirt_needs_a_restart(running: Reloaded) -> None:
    """Its domains would come and go in the middle of their pivots."""
    base = running.file.read_text() + '\n[libvirt]\nuri = "qemu:///system"\n'
    running.configure("", base=base)
    assert "[libvirt] stays as it is while pivotd runs: restart it for the change" in refused(running.reload())
