"""`pivotctl journal`: with a daemon, without one, and with wrong input."""

from __future__ import annotations

import asyncio
import os
import pty
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from pivotd.cli.context import App
from pivotd.cli.main import cli
from pivotd.client import UnsentError
from pivotd.config import Config
from pivotd.journal.journal import Journal
from tests.cli.ctl import COMMAND, complaint, ctl, environment
from tests.journal.old_pivots import OLD_AT, back_and_forth, run
from tests.support.daemon import Daemon

FILE = "archive-2021.db"


async def _fill(state_dir: Path) -> None:
    journal = Journal.open(state_dir)
    await back_and_forth(journal, 6)
    await run(journal, 9, disk="disk1", closed_at=None)
    await journal.close()


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    with tempfile.TemporaryDirectory(prefix="pj") as name:
        made = Daemon(Path(name), {})
        asyncio.run(_fill(made.state_dir))
        yield made
        made.kill()


def test_old_pivots_are_archived_and_still_shown(daemon: Daemon) -> None:
    """Counted first, then moved, then nothing is left to move; every command shows them as before."""
    with daemon:
        shown = daemon.ctl("pivot", "show", "request-1").json
        listed = [pivot["id"] for pivot in daemon.ctl("pivot", "ls").json]
        last = daemon.ctl("events").stdout.splitlines()
        count = daemon.ctl("journal", "archive", "--dry-run", "--keep", "400d")
        assert count.json == {"pivots": 5, "records": 15, "archives": [], "obstacles": [], "dry_run": True}
        assert not (daemon.state_dir / FILE).exists()
        done = ctl("--socket", daemon.socket, "journal", "archive", "--keep", "400d")
        assert (done.status, done.stdout) == (0, f"moved 5 pivots with 15 records to {FILE}\n")
        again = ctl("--socket", daemon.socket, "journal", "archive", "--keep", "400d")
        assert (again.status, again.stdout) == (0, "moved 0 pivots with 0 records\n")
        for offline in (False, True):
            assert daemon.ctl("pivot", "show", "request-1", offline=offline).json == shown
            assert [one["id"] for one in daemon.ctl("pivot", "ls", offline=offline).json] == listed
            assert daemon.ctl("events", offline=offline).stdout.splitlines()[: len(last)] == last
            assert daemon.ctl("events", "--after", "14", offline=offline).stdout.splitlines()[0] == last[14]
        stats = daemon.ctl("journal", "stats").json
        assert daemon.ctl("journal", "stats", offline=True).json == stats
    assert daemon.ctl("pivot", "show", "request-1", offline=True).json == shown
    assert stats["archives"][0].items() >= {"pivots": 5, "records": 15, "first_closed": OLD_AT, "fault": None}.items()
    assert stats["open_pivots"] == 0


def test_names_of_archives(daemon: Daemon) -> None:
    """With -q or -o name: the archives that got pivots, one on each line, and nothing if none moved."""
    with daemon:
        for words, expected in (("-q", "--dry-run"), ""), (("-q",), f"{FILE}\n"), (("-o", "name"), ""):
            done = ctl("--socket", daemon.socket, "journal", "archive", "--keep", "400d", *words)
            assert (done.status, done.stdout, done.stderr) == (0, expected, ""), done


def test_figures_for_people(daemon: Daemon) -> None:
    """Each archive is a row; one that is missing is a status and a reason, and all else is shown."""
    with daemon:
        ctl("--socket", daemon.socket, "journal", "archive", "--keep", "0d")
        good = ctl("--socket", daemon.socket, "journal", "stats")
        assert good.status == 0
        assert [line.split()[0] for line in good.stdout.splitlines() if line.startswith("archive-")] == [FILE]
        assert "2, 0 of them open" in good.stdout
        (daemon.state_dir / FILE).unlink()
        bad = ctl("--socket", daemon.socket, "journal", "stats")
        assert (bad.status, "is missing: restore it" in bad.stdout) == (4, True)
        refused = ctl("--socket", daemon.socket, "pivot", "show", "request-1")
        assert refused.status == 4
        assert f"{FILE} is missing: restore it from a backup" in complaint(refused)
        assert ctl("--socket", daemon.socket, "pivot", "ls", "--limit", "1").status == 0


WRONG = [
    (["journal", "archive"], 4, "give --keep, or set keep in [journal]"),
    (["journal", "archive", "--keep", "400"], 2, "'400' is no length of time: give days, weeks or years, like 400d"),
    (["journal", "archive", "--keep", "5min"], 2, "is no length of time"),
    (["journal", "archive", "--keep", "101y"], 2, "is no length of time"),
    (["journal", "backup"], 2, "DIRECTORY"),
    (["journal", "backup", "/proc/version"], 4, "/proc/version is not a directory"),
    (["journal", "backup", "/no/such/place"], 4, "/no/such is no directory: make it first"),
    (["journal", "shrink"], 2, "shrink"),
]


def test_wrong_input_is_one_line(daemon: Daemon) -> None:
    """With what to give instead."""
    with daemon:
        answers = [ctl("--socket", daemon.socket, *arguments) for arguments, _, _ in WRONG]
    for answer, (_, status, said) in zip(answers, WRONG, strict=True):
        assert (answer.status, answer.stdout) == (status, "")
        assert said in complaint(answer)


def test_archiving_needs_the_daemon(daemon: Daemon) -> None:
    """--offline changes nothing, ever."""
    answer = ctl("--offline", daemon.state_dir, "journal", "archive", "--keep", "1d")
    assert (answer.status, complaint(answer)) == (2, "`journal archive` needs the daemon: leave --offline out")


def test_backup_with_and_without_a_daemon(daemon: Daemon) -> None:
    """The daemon says where its journal is; without one --offline does. A second one is refused without --force."""
    one, two = daemon.directory / "one", daemon.directory / "two"
    with daemon:
        ctl("--socket", daemon.socket, "journal", "archive", "--keep", "0d")
        made = daemon.ctl("journal", "backup", str(one)).json
        assert (made["path"], made["archives"], made["obstacles"]) == (str(one), [FILE], [])
        refused = ctl("--socket", daemon.socket, "journal", "backup", one)
        assert (refused.status, complaint(refused)) == (
            4, f"{one} holds a backup already: name another directory, or give --force",
        )  # fmt: skip
        assert ctl("--socket", daemon.socket, "journal", "backup", "--force", one).status == 0
    assert daemon.ctl("journal", "backup", str(two), offline=True).status == 0
    pivots = daemon.ctl("pivot", "ls", offline=True).stdout
    for place in (one, two):
        assert ctl("--offline", place, "--json", "pivot", "ls").stdout == pivots
        assert ctl("--offline", place, "verdict").status == 6


def test_backup_with_stdin_closed(daemon: Daemon) -> None:
    """Nobody can be asked."""
    one = daemon.directory / "one"
    command = [*COMMAND, "--offline", str(daemon.state_dir), "journal", "backup", str(one)]
    assert ctl(*command[len(COMMAND) :]).status == 0
    closed = ["sh", "-c", 'exec "$@" <&-', "sh", *command]
    done = subprocess.run(closed, capture_output=True, text=True, env=environment(), check=False)
    said = f"pivotctl: {one} holds a backup already: name another directory, or give --force\n"
    assert (done.returncode, done.stderr) == (4, said)


def test_backup_without_a_daemon_and_a_configuration(daemon: Daemon) -> None:
    """The daemon cannot be reached, which is status 3: both reasons are told, and what to give. Nothing is copied."""
    target = daemon.directory / "one"
    answer = ctl("--socket", daemon.socket, "journal", "backup", target)
    assert answer.status == 3
    said = complaint(answer)
    assert said.startswith(f"there is no {daemon.socket}: is pivotd running?")
    assert said.endswith(": give --offline STATE_DIR")
    assert ctl("--socket", daemon.socket, "--json", "journal", "backup", target).json["error"]["kind"] == "unreachable"
    assert not target.exists()


@pytest.mark.parametrize("same", [True, False])
def test_backup_of_the_daemon_that_was_named(daemon: Daemon, monkeypatch: pytest.MonkeyPatch, *, same: bool) -> None:
    """Without a daemon, the configuration says where its journal is, unless it is that of another daemon."""
    target, socket = daemon.directory / "one", str(daemon.socket)
    of = Config(state_dir=daemon.state_dir, socket=daemon.socket if same else Path("/run/other.sock"))
    monkeypatch.setattr("pivotd.cli.host_journal.load", lambda: of)
    words = ["--socket", socket, "journal", "backup", str(target)]
    if same:
        cli.main(words, standalone_mode=False, obj=App(socket))
    else:
        with pytest.raises(UnsentError) as away:
            cli.main(words, standalone_mode=False, obj=App(socket))
        assert away.value.message.endswith("is of a pivotd at /run/other.sock: give --offline STATE_DIR")
    assert target.exists() == same


@pytest.mark.parametrize(("answer", "status"), [("y", 0), ("n", 4)])
def test_a_person_is_asked(daemon: Daemon, answer: str, status: int) -> None:
    """On a terminal, before a backup is replaced."""
    target = daemon.directory / "one"
    assert ctl("--offline", daemon.state_dir, "journal", "backup", target).status == 0
    number = (target / "journal.db").stat().st_ino
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [*COMMAND, "--offline", str(daemon.state_dir), "journal", "backup", str(target)],
        stdin=follower, stdout=subprocess.PIPE, stderr=follower, env=environment(),
    )  # fmt: skip
    os.close(follower)
    os.write(leader, f"{answer}\n".encode())
    assert process.communicate(timeout=60)[0].decode().startswith(str(target)) == (status == 0)
    os.close(leader)
    assert process.returncode == status
    assert ((target / "journal.db").stat().st_ino == number) == (status != 0)


def test_a_configured_time_takes_effect_with_a_reload(daemon: Daemon) -> None:
    """At once, and the journal says so; a wrong one is refused and changes nothing."""
    daemon.start()
    file = daemon.directory / "pivotd.toml"
    before = file.read_text()

    def reload() -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "pivotd.daemon", "--reload", str(daemon.pid)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    file.write_text(f'{before}\n[journal]\nkeep = "400"\n')
    refused = reload()
    assert refused.returncode == 4
    assert 'journal.keep: found "400", expected a length of time in days, weeks or years' in refused.stderr
    file.write_text(f'{before}\n[journal]\nkeep = "57w"\n')
    done = reload()
    assert (done.returncode, done.stdout) == (0, "reloaded: journal\n")
    after = 0
    while True:
        events = [row for row in daemon.ctl("events", "--after", str(after)).stdout.splitlines() if "archived" in row]
        if events:
            break
    assert '"pivots": 5' in events[0]
    assert (daemon.state_dir / FILE).exists()
