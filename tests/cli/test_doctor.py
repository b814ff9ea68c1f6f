"""pivotctl doctor: each trouble is made for real; what cannot be looked at has not passed; a sound host has status 0."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pivotd.cli import doctor_daemon
from pivotd.client import checks
from tests.cli.ctl import REPOSITORY, Answer, ctl
from tests.support.daemon import Daemon
from tests.support.qemu import Disk, Qemu, create_image
from tests.support.waiting import until

pytestmark = pytest.mark.qemu
PAGE = REPOSITORY / "docs" / "doctor.md"
ROOM = ("--ignore", "storage-room", "--ignore", "state-dir-room")
"""Whatever room this machine has."""
FOUND = 8
NOBODY = (65534, 65534)
WAITS = (
    "import sys\nfrom pathlib import Path\nfrom pivotd.errors import JournalLockedError\nfrom pivotd.journal import lock\n"
    "while True:\n    try:\n        lock.acquire(Path(sys.argv[1]))\n    except JournalLockedError:\n        pass\n"
)
"""What a second daemon does as it starts, again and again."""


class Ward:
    """A sound host: one guest, one daemon; ``doctor()`` runs the command for it."""

    def __init__(self, directory: Path, daemon: Daemon) -> None:
        self.directory, self.daemon = directory, daemon
        self.config = directory / "pivotd.toml"

    def doctor(self, *arguments: str | Path, ids: tuple[int, int] | None = None) -> Answer:
        socket = ("--socket", self.daemon.socket)
        return ctl(*socket, "--json", "doctor", "--config", self.config, *ROOM, *arguments, ids=ids)

    def text(self, *arguments: str | Path) -> Answer:
        return ctl("--socket", self.daemon.socket, "doctor", "--config", self.config, *ROOM, *arguments)


def found(answer: Answer) -> set[str]:
    return {check for check, state in answer.json["checks"].items() if state == "found"}


def unseen(answer: Answer) -> set[str]:
    return {check for check, state in answer.json["checks"].items() if state == "unseen"}


def findings(answer: Answer, check: str) -> list[dict[str, Any]]:
    return [one for area in answer.json["areas"] for one in area["findings"] if one["check"] == check]


@pytest.fixture(scope="module")
def ward() -> Iterator[Ward]:
    with tempfile.TemporaryDirectory(prefix="pw") as name:
        directory = Path(name)
        directory.chmod(0o755)
        daemon = Daemon(directory, {"web1": directory / "web1.qmp"})
        with Qemu(directory, [Disk(create_image(directory / "web1.qcow2"))]), daemon:
            yield Ward(directory, daemon)


def test_a_sound_host(ward: Ward):
    """Status 0 and a short list: a line for each area, who has looked, and that nothing is wrong."""
    answer = ward.text()
    assert (answer.status, answer.stderr) == (0, "")
    lines = answer.stdout.splitlines()
    assert len(lines) < 20
    assert lines[-1].startswith("Nothing is wrong")
    for area in ("configuration", "daemon", "journal", "pivots", "verdicts", "guests", "disks"):
        assert any(re.match(rf"{area} +ok\b", line) for line in lines), answer.stdout
    assert "looked at by pivotd as uid 0, in its own namespace: " in answer.stdout


def test_every_check_of_a_sound_host_is_accounted_for(ward: Ward):
    """Each has passed, had nothing to look at, or was left out; the same names as in the documentation."""
    answer = ward.doctor()
    states = answer.json["checks"]
    assert answer.status == 0
    assert (answer.json["errors"], answer.json["warnings"]) == (0, 0)
    assert set(states) == set(checks.CHECKS)
    assert {state for check, state in states.items() if check not in ROOM} <= {"ok", "none"}
    assert {states[check] for check in ("guest-paused", "cache-unsafe", "journal-damaged", "two-daemons")} == {"ok"}
    assert {states[check] for check in ("unit-inactive", "libvirt-disagrees", "fleet-silent")} == {"none"}


def test_ignored_checks_do_not_count(ward: Ward):
    """A finding that was accepted once does not hide the next one: only the named check is left out."""
    ignored = ward.config.with_name("pivotd.toml.d")
    ignored.mkdir()
    try:
        (ignored / "more.conf").write_text("")
        assert (ward.doctor().status, found(ward.doctor())) == (FOUND, {"config-ignored"})
        answer = ward.doctor("--ignore", "config-ignored")
        assert (answer.status, answer.json["checks"]["config-ignored"]) == (0, "ignored")
    finally:
        shutil.rmtree(ignored)


@pytest.mark.parametrize(
    ("name", "content", "mode", "check"),
    [
        ("10-pause.toml", "[pause]\nmax_ms = 0\n", 0o644, "config-wrong"),
        ("10-broken.toml", "[pause\n", 0o644, "config-wrong"),
        ("10-open.toml", "", 0o666, "config-writable"),
    ],
)
def test_a_drop_in_that_is_wrong(ward: Ward, name: str, content: str, mode: int, check: str):
    """It is named, with what to do; the checks of the running daemon go on."""
    place = ward.config.with_name("pivotd.toml.d")
    place.mkdir()
    try:
        (place / name).write_text(content)
        (place / name).chmod(mode)
        answer = ward.doctor()
        assert answer.status == FOUND
        assert check in found(answer)
        assert findings(answer, check)[0]["subject"] == str(place / name)
        assert answer.json["checks"]["guest-paused"] == "ok"
    finally:
        shutil.rmtree(place)


def test_without_permission(ward: Ward):
    """A user whom the daemon refuses sees nothing, and is told that: no check of the daemon's has passed, status 8."""
    answer = ward.doctor(ids=NOBODY)
    assert answer.status == FOUND
    blind = {"guest-paused", "cache-unsafe", "journal-damaged", "pivot-fails", "verdict-unknown", "two-daemons"}
    assert blind <= unseen(answer)
    assert "ok" not in {answer.json["checks"][check] for check in checks.of_area("guests")}
    assert "[access]" in str(findings(answer, "daemon-hangs"))


def test_a_second_daemon(ward: Ward):
    """A daemon that waits for the journal is told with the process that has it, and is not kept waiting by the look."""
    journal = ward.daemon.state_dir / "journal.db"
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    with subprocess.Popen([sys.executable, "-c", WAITS, str(journal)], env=environment) as other:
        try:
            lock = journal.with_name("journal.lock")
            assert until(lambda: lock.stat().st_size > 32)
            answers: list[Answer] = []

            def is_told() -> bool:
                """Ask; a busy machine may keep the other one from its next try for longer than a daemon waits."""
                answers.append(ward.doctor())
                return "two-daemons" in found(answers[-1]) and "journal-damaged" in unseen(answers[-1])

            assert until(is_told), answers[-1]
        finally:
            other.kill()
    assert f"process {ward.daemon.pid}" in findings(answers[-1], "two-daemons")[0]["what"]


def test_two_daemons_with_one_configuration(ward: Ward):
    """Processes that were started as daemons with this file are counted, by their command lines."""
    script = ward.directory / "pivotd"
    script.write_text("#!/bin/sh\nread -r line\n")
    script.chmod(0o755)
    command = [script, "--config", ward.config]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as other:
        assert until(lambda: b"--config" in Path(f"/proc/{other.pid}/cmdline").read_bytes())
        answer = ward.doctor()
    assert found(answer) == {"two-daemons"}
    assert str(other.pid) in findings(answer, "two-daemons")[0]["what"]


def test_a_daemon_of_another_version(ward: Ward, monkeypatch: pytest.MonkeyPatch):
    """After an upgrade the old one runs on: both versions are named."""
    monkeypatch.setattr(doctor_daemon, "__version__", "9.9.9")
    asked = doctor_daemon.ask(str(ward.daemon.socket), "test")
    assert [one.check for one in asked.area.findings] == ["daemon-version"]
    assert asked.area.findings[0].what.endswith("this pivotctl 9.9.9")
    assert asked.report is not None


def test_a_daemon_that_hangs(ward: Ward):
    """It is told as that, in bounded time; what the journal says is still told."""
    os.kill(ward.daemon.pid, signal.SIGSTOP)
    try:
        began_s = time.monotonic()
        answer = ward.doctor()
        assert time.monotonic() - began_s < 60
    finally:
        os.kill(ward.daemon.pid, signal.SIGCONT)
    assert answer.status == FOUND
    assert found(answer) == {"daemon-hangs"}
    assert {"guest-paused", "config-not-loaded"} <= unseen(answer)
    assert answer.json["checks"]["journal-damaged"] == "ok"


def test_a_daemon_that_was_killed(ward: Ward):
    """Its socket is stale; the journal is read without it; nothing that only it could see has passed."""
    ward.daemon.kill()
    try:
        answer = ward.doctor()
        told = ward.text()
    finally:
        ward.daemon.start()
    assert (answer.status, told.status) == (FOUND, FOUND)
    assert found(answer) == {"daemon-down", "socket-stale"}
    assert {"guest-paused", "cache-unsafe", "config-not-loaded"} <= unseen(answer)
    assert answer.json["checks"]["verdict-unknown"] == "ok"
    assert "2 errors, 1 not seen" in told.stdout


def test_no_daemon_at_all(tmp_path: Path):
    """No socket, no journal, a configuration: each is said once, with status 8 and not 3."""
    config = tmp_path / "pivotd.toml"
    config.write_text(f'state_dir = "{tmp_path}/state"\n')
    answer = ctl("--socket", tmp_path / "none.sock", "--json", "doctor", "--config", config)
    assert answer.status == FOUND
    assert {"daemon-down", "journal-unusable"} <= found(answer)
    assert "socket-stale" not in found(answer)


@pytest.mark.parametrize("arguments", [("--ignore", "no-such-check"), ("extra",), ("--bundle", "")])
def test_wrong_arguments(arguments: tuple[str, ...]):
    """One line, status 2."""
    answer = ctl("doctor", *arguments)
    assert answer.status == 2
    assert len(answer.stderr.splitlines()) == 1


def test_a_check_that_is_not_there():
    """The name that may be meant, and not all sixty."""
    said = ctl("doctor", "--ignore", "image-unreadble").stderr
    assert "there is no check image-unreadble: do you mean image-unreadable?" in said


def test_the_table_of_the_documentation():
    """Each check once, with its severity, in the words of the code, and with what to do."""
    rows = re.findall(r"^\| `([a-z-]+)` \| (\w+) \| (.*?) \| (.+) \|$", PAGE.read_text(), re.MULTILINE)
    assert [row[:3] for row in rows] == [(one.id, one.severity, one.title) for one in checks.CHECKS.values()]
    assert all(len(row[3]) > 10 for row in rows)
