"""`pivotctl events --exec` against a real daemon and a real QEMU: each decided pivot, in order, and never skipped."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pivotd.cli.hook import Hook
from tests.cli.conftest import Bench
from tests.cli.ctl import complaint, ctl
from tests.cli.following import Following, decisions, end, is_alive
from tests.support.waiting import until

pytestmark = pytest.mark.qemu
FAILS_TWICE = 'echo >>"$DIRECTORY/tries"; test $(wc -l <"$DIRECTORY/tries") -gt 2 || exit 7; cat >>"$LOG"'
HANGS_ONCE = (
    'test -e "$DIRECTORY/hung" || { trap "" TERM; sleep 1000 & echo $! >"$DIRECTORY/child"; '
    'echo $$ >"$DIRECTORY/hung"; while :; do sleep 1000; done; }; cat >>"$LOG"'
)
WAITS = 'echo $$ >"$DIRECTORY/runs"; while ! test -e "$DIRECTORY/go"; do sleep 0.01; done; cat >>"$LOG"'


@pytest.fixture
def directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="pivotd-") as name:
        yield Path(name)


def following(bench: Bench, directory: Path, *command: str) -> Following:
    return Following(directory, bench.daemon.socket, *command)


def copied(bench: Bench, disk: str = "disk0") -> dict[str, Any]:
    answer = bench.json("copy", "web1", f"{disk}={bench.image()}")
    assert answer.status == 0, answer
    return dict(answer.json)


def test_the_document_says_what_was_decided(bench: Bench, directory: Path) -> None:
    """Who asked, when, what became of each disk, and which image is right: the same as ``pivot show``."""
    follower = following(bench, directory)
    with follower.running():
        pivot = copied(bench)
        assert until(lambda: len(follower.documents()) == 1), follower.said()
    (document,) = follower.documents()
    (disk,) = pivot["disks"]
    same = ("id", "request_id", "undo_of", "domain", "kind", "outcome", "requested_by", "created", "decided")
    assert {key: document[key] for key in same} == {key: pivot[key] for key in same}
    assert document["disks"] == [
        {key: disk[key] for key in ("disk", "outcome", "source", "source_format", "destination", "destination_format")}
        | {"image": disk["destination"], "format": disk["destination_format"]}
    ]
    record = next(row for row in bench.json("pivot", "show", pivot["id"]).json["records"] if row["event"] == "switched")
    assert (document["seq"], document["reason"]) == (record["seq"], record["facts"]["reason"])


def test_every_kind_of_decision_comes_in_its_turn(bench: Bench, directory: Path) -> None:
    """Switched, kept, merged, and an undo, which is a pivot of its own."""
    follower = following(bench, directory)
    with follower.running():
        began = follower.place()
        cancelled = bench.at_ready()
        bench.ctl("pivot", "cancel", cancelled)
        bench.ctl("pivot", "wait", cancelled)
        overlay = bench.image()
        assert bench.ctl("snapshot", "web1", f"disk0={overlay}").status == 0
        assert bench.ctl("snapshot", "web1", f"disk0={bench.image()}").status == 0
        assert bench.ctl("commit", "web1", "disk0", "--top", overlay).status == 0
        kept_synced = bench.json("copy", "web1", f"disk0={bench.image()}", "--keep-synced", "--for", "1h").json["id"]
        undone = bench.json("pivot", "undo", kept_synced)
        assert undone.status == 0, undone
        bench.ctl("pivot", "wait", undone.json["id"])
        expected = decisions(bench.daemon, began)
        assert until(lambda: len(follower.ids()) == len(expected)), follower.said()
    assert follower.ids() == expected
    found = [(document["kind"], document["outcome"]) for document in follower.documents()]
    assert found == [
        ("copy", "kept"),
        ("snapshot", "switched"),
        ("snapshot", "switched"),
        ("commit", "merged"),
        ("copy", "switched"),
        ("copy", "switched"),
    ]
    there, back = follower.documents()[-2:]
    assert (back["undo_of"], back["disks"][0]["image"]) == (there["id"], there["disks"][0]["source"])
    for document in follower.documents():
        (disk,) = document["disks"]
        assert disk["image"] == disk["destination" if disk["outcome"] == "switched" else "source"]


def test_the_first_start_begins_with_the_next_pivot(bench: Bench, directory: Path) -> None:
    """What was decided before is history; what is decided while the follower is dead is not."""
    copied(bench)
    follower = following(bench, directory)
    with follower.running():
        pass
    pivot = copied(bench)
    assert follower.to_the_end().returncode == 0
    assert follower.ids() == [pivot["id"]]


def test_after_begins_where_it_says_and_the_cursor_wins(bench: Bench, directory: Path) -> None:
    """``--after 0`` runs the whole history, once: it may stand in a unit."""
    copied(bench)
    follower = following(bench, directory)
    for _ in range(2):
        done = follower.to_the_end("--after", "0")
        assert done.returncode == 0, done.stderr
        assert follower.ids() == decisions(bench.daemon)


def test_a_failing_command_runs_again_and_holds_up_the_next_pivot(bench: Bench, directory: Path) -> None:
    """The exit status and the wait are said; nothing is skipped and nothing overtakes."""
    follower = following(bench, directory, FAILS_TWICE)
    with follower.running():
        pivots = [copied(bench)["id"] for _ in range(2)]
        assert until(lambda: len(follower.ids()) == 2), follower.said()
    assert follower.ids() == pivots
    first = f"for pivot {pivots[0]} of web1 (switched)"
    assert f"pivotctl: sh failed with exit status 7 {first}; trying again in 1 s\n" in follower.said()
    assert f"pivotctl: sh failed with exit status 7 {first}; trying again in 2 s\n" in follower.said()


def test_a_command_that_a_signal_ends_runs_again(bench: Bench, directory: Path) -> None:
    """Whichever signal, also one without a name."""
    follower = following(
        bench, directory, 'test -e "$DIRECTORY/hit" || { touch "$DIRECTORY/hit"; kill -40 $$; }; cat >>"$LOG"'
    )
    with follower.running():
        pivot = copied(bench)["id"]
        assert until(lambda: follower.ids() == [pivot]), follower.said()
    assert "sh was ended by signal 40 (Real-time signal 6) for pivot" in follower.said()


def test_a_command_that_hangs_is_killed_with_its_children(bench: Bench, directory: Path) -> None:
    """Also where it ignores SIGTERM; then it runs again."""
    follower = following(bench, directory, HANGS_ONCE)
    with follower.running("--timeout", "1s"):
        pivot = copied(bench)["id"]
        assert until(lambda: follower.ids() == [pivot]), follower.said()
    assert f"sh was killed after 1 s for pivot {pivot} of web1 (switched); trying again in 1 s" in follower.said()
    for name in ("hung", "child"):
        assert not is_alive(int((directory / name).read_text()))


def test_a_program_that_vanishes_is_waited_for(bench: Bench, directory: Path) -> None:
    """An upgrade may replace it at any moment."""
    program = directory / "hook"
    program.write_text('#!/bin/sh\ncat >>"$LOG"\n')
    program.chmod(0o755)
    follower = Following(directory, bench.daemon.socket, line=str(program))
    with follower.running():
        program.rename(directory / "away")
        pivot = copied(bench)["id"]
        assert until(lambda: "cannot be started (No such file or directory)" in follower.said()), follower.said()
        (directory / "away").rename(program)
        assert until(lambda: follower.ids() == [pivot]), follower.said()


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, -signal.SIGTERM), (signal.SIGINT, 130)])
def test_ended_in_the_middle_it_ends_its_command_and_runs_it_again(
    bench: Bench, directory: Path, number: int, status: int
) -> None:
    """Its sender sees the end that it asked for; nothing is left running."""
    follower = following(bench, directory, WAITS)
    with follower.running() as process:
        pivot = copied(bench)["id"]
        assert until(lambda: (directory / "runs").exists() and (directory / "runs").read_text().endswith("\n"))
        assert end(process, number) == status
    assert not is_alive(int((directory / "runs").read_text()))
    assert follower.ids() == []
    (directory / "go").touch()
    assert follower.to_the_end().returncode == 0
    assert follower.ids() == [pivot]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_the_command_starts_leaves_nothing_running(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes when the child is there and Popen has not returned yet."""
    started: list[int] = []
    real = subprocess.Popen

    def popen(*words: Any, **options: Any) -> subprocess.Popen[bytes]:
        process: subprocess.Popen[bytes] = real(*words, **options)
        started.append(process.pid)
        os.kill(os.getpid(), number)
        return process

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess, "Popen", popen)
    before = signal.signal(number, stop)
    try:
        with (tmp_path / "lock").open("w") as lock, pytest.raises(KeyboardInterrupt):
            Hook("sleep 600", 60, print).run(b"{}", lock.fileno())
        assert signal.getsignal(number) is stop
    finally:
        signal.signal(number, before)
    assert len(started) == 1
    assert not is_alive(started[0])


def test_a_second_follower_is_refused_under_any_name(bench: Bench, directory: Path) -> None:
    """One line, status 4, and the first one goes on."""
    follower = following(bench, directory)
    with follower.running() as process:
        second = following(bench, directory)
        link = directory / "link"
        link.symlink_to(follower.cursor)
        for name in (follower.cursor, link):
            second.cursor = name
            done = second.to_the_end()
            assert done.returncode == 4
            assert f"{name} is in use by another follower" in done.stderr
            assert len(done.stderr.splitlines()) == 1
        assert process.poll() is None


def test_a_command_that_outlives_its_follower_keeps_the_next_one_out(bench: Bench, directory: Path) -> None:
    """Two commands at once could leave the older definition: the next follower is refused until the first has ended."""
    follower = following(bench, directory, WAITS)
    with follower.running() as process:
        pivot = copied(bench)["id"]
        assert until((directory / "runs").exists)
        end(process, signal.SIGKILL)
        assert "a command that one has started and that still runs" in follower.to_the_end().stderr
        (directory / "go").touch()
        assert until(lambda: follower.to_the_end().returncode == 0)
    assert follower.ids() == [pivot, pivot]


def test_a_cursor_that_cannot_be_written_does_not_run_the_command_again(bench: Bench, directory: Path) -> None:
    """The command has ended with 0; only the cursor is tried again, and what is wrong is said."""
    follower = following(bench, directory)
    with follower.running():
        follower.cursor.unlink()
        follower.cursor.mkdir()
        pivots = [copied(bench)["id"]]
        assert until(lambda: "cannot write the cursor" in follower.said()), follower.said()
        follower.cursor.rmdir()
        pivots.append(copied(bench)["id"])
        assert until(lambda: len(follower.ids()) == 2), follower.said()
    assert follower.ids() == pivots


def refusal(follower: Following, *options: str) -> str:
    """Return the one line with which a follower ends, with status 4 and without having run anything."""
    done = follower.to_the_end(*options)
    lines = done.stderr.splitlines()
    assert (done.returncode, len(lines)) == (4, 1), done
    assert follower.documents() == []
    return lines[0]


def test_a_cursor_of_another_journal_is_refused(bench: Bench, directory: Path) -> None:
    """One that is ahead, one whose record is another, one that is none; each with what to do."""
    copied(bench)
    follower = following(bench, directory)
    follower.cursor.write_text('{"seq":1000000,"at":"2026-01-01T00:00:00.000000Z"}\n')
    ahead = refusal(follower)
    assert "stands at record 1000000 of 2026-01-01T00:00:00.000000Z, and this journal ends before it" in ahead
    assert f"remove {follower.cursor} to go on from now" in ahead
    follower.cursor.write_text('{"seq":2,"at":"2026-01-01T00:00:00.000000Z"}\n')
    assert "this journal has a record 2 of 20" in refusal(follower)
    for damaged in (
        "",
        "{}",
        "12",
        '{"seq":1,"at":null,"x":' + "[" * 4000,
        '{"seq":99999999999999999999,"at":null}',
        '{"seq":-1,"at":null}',
        "\x00" * 30,
    ):
        follower.cursor.write_text(damaged)
        assert "is no cursor of `pivotctl events`" in refusal(follower)
        assert follower.cursor.read_text() == damaged
    follower.cursor.unlink()
    assert "the journal ends at record" in refusal(follower, "--after", "1000000")
    assert not follower.cursor.exists()
    follower.cursor = directory / "missing" / "cursor"
    assert "cannot lock the cursor" in refusal(follower)


def test_a_journal_that_is_restored_under_a_follower_is_noticed(bench: Bench, directory: Path) -> None:
    """It ends instead of waiting for numbers that it has seen already."""
    copied(bench)
    follower = following(bench, directory)
    state_dir, saved = bench.daemon.state_dir, directory / "saved"
    bench.daemon.kill()
    shutil.copytree(state_dir, saved)
    bench.daemon.start()
    with follower.running() as process:
        pivot = copied(bench)["id"]
        assert until(lambda: follower.ids() == [pivot]), follower.said()
        assert until(lambda: follower.place() > 0)
        bench.daemon.kill()
        shutil.rmtree(state_dir)
        shutil.copytree(saved, state_dir)
        bench.daemon.start()
        assert process.wait(60) == 4
    assert "was restored from a backup" in follower.said()


@pytest.mark.parametrize(
    ("arguments", "needle"),
    [
        (["--follow", "--exec", "true"], "give both, --exec COMMAND and --cursor FILE"),
        (["--cursor", "/nowhere/cursor"], "give both, --exec COMMAND and --cursor FILE"),
        (["--timeout", "5s"], "give both, --exec COMMAND and --cursor FILE"),
        (["--exec", "/nowhere/hook", "--cursor", "/tmp/c"], "there is no program '/nowhere/hook'"),
        (["--exec", "/etc/passwd", "--cursor", "/tmp/c"], "'/etc/passwd', or it must not be executed"),
        (["--exec", "", "--cursor", "/tmp/c"], "there is no program ''"),
        (["--exec", "sh -c 'true", "--cursor", "/tmp/c"], "no closing quotation"),
        (["--exec", "true", "--cursor", "/tmp/c", "--timeout", "0"], "give 1s to 1d"),
    ],
)
def test_usage(arguments: list[str], needle: str) -> None:
    """Status 2 and one line before anything is opened."""
    answer = ctl("events", *arguments)
    assert answer.status == 2
    assert needle in complaint(answer)


def test_without_a_daemon_it_ends(directory: Path) -> None:
    """At its start the follower does not wait for a daemon that may never have been there; offline is refused."""
    follower = Following(directory, directory / "nothing.sock")
    done = follower.to_the_end()
    assert (done.returncode, follower.cursor.exists()) == (3, False), done
    answer = ctl("--offline", directory, "events", "--exec", "true", "--cursor", follower.cursor)
    assert answer.status == 2
    assert "needs the daemon" in complaint(answer)


def test_a_name_beyond_ascii_is_delivered(bench: Bench, directory: Path) -> None:
    """The document is JSON in ASCII, whatever an image is called."""
    follower = following(bench, directory)
    with follower.running():
        image = bench.directory / "new-ü.qcow2"
        assert bench.ctl("copy", "web1", f"disk1={image}").status == 0
        assert until(lambda: len(follower.documents()) == 1), follower.said()
    raw = follower.log.read_bytes()
    assert raw.isascii()
    assert json.loads(raw)["disks"][0]["image"] == str(image)
