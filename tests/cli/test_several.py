"""`wait`, `complete` and `cancel` of several pivots and of all, with the real daemon and a real QEMU."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from pivotd.cli.context import App
from pivotd.cli.main import cli
from pivotd.cli.several import Answers
from pivotd.client import Client, Pivot, UnknownError, shown
from pivotd.client.patience import PATIENCE_S
from pivotd.core.pivot import Outcome, Phase
from pivotd.errors import EXIT_UNREACHABLE, PhaseConflictError
from tests.cli.conftest import Bench
from tests.cli.ctl import complaint, ctl, interrupt, start
from tests.cli.test_restart import await_loss
from tests.engine.test_copy import qemu_io_name
from tests.journal.samples import make_pivot

pytestmark = pytest.mark.qemu


@pytest.fixture
def two(bench: Bench) -> Iterator[list[str]]:
    """Two pivots that wait at ready, disk0's first."""
    pivots = [
        str(bench.json("copy", "web1", f"{disk}={bench.image()}", "--no-pivot").json["id"])
        for disk in ("disk0", "disk1")
    ]
    yield pivots
    bench.ctl("cancel", "--all")
    bench.ctl("wait", "--all")


def states(bench: Bench, pivots: list[str]) -> list[tuple[str, str | None]]:
    shown = [bench.json("pivot", "show", pivot).json for pivot in pivots]
    return [(pivot["phase"], pivot["outcome"]) for pivot in shown]


def test_complete_several(bench: Bench, two: list[str]) -> None:
    """Each switches; one JSON document with the answers in the order of the names."""
    answer = bench.json("complete", *reversed(two))
    assert (answer.status, answer.stderr) == (0, "")
    assert [(row["id"], row["outcome"]) for row in answer.json] == [(pivot, "switched") for pivot in reversed(two)]


def test_what_has_merged_is_not_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cancel that comes during the switch of a commit or a pull is answered with its outcome: there is no source."""
    kept = make_pivot(1)
    disks = tuple(replace(disk, outcome=Outcome.MERGED) for disk in kept.disks)
    merged = replace(kept, disks=disks, phase=Phase.CLOSED, decided_at=kept.created_at, closed_at=kept.created_at)
    monkeypatch.setattr(Client, "cancel", lambda _client, _name: shown.pivot(merged))
    with pytest.raises(PhaseConflictError, match="has merged its layers already"):
        cli.main(["cancel", "0" * 26], standalone_mode=False, obj=App("none"))


@pytest.mark.parametrize(("kind", "asks"), [("unanswered", ["A", "B"]), ("unreachable", ["A"])])
def test_only_without_a_daemon_the_others_are_not_asked(
    kind: str, asks: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """One pivot that waits for its QEMU or the journal keeps no other from being asked; all are told of."""
    asked: list[str] = []

    def ask(name: str) -> Pivot:
        asked.append(name)
        raise UnknownError(kind, f"pivot {name} does not answer", EXIT_UNREACHABLE)

    app = App("none")
    answers = Answers(app, ["A", "B"])
    assert list(answers.asked(["A", "B"], ask)) == []
    answers.end()
    assert (asked, app.status) == (asks, EXIT_UNREACHABLE)
    assert len(capsys.readouterr().err.splitlines()) == 2


def slow_copy(bench: Bench) -> str:
    """Return the id of a copy of disk0 that takes long."""
    write = 'qemu-io -d /machine/peripheral/disk0/virtio-backend "write -P 7 0 48M"'
    bench.qemu.spy("human-monitor-command", {"command-line": write})
    return str(bench.json("copy", "web1", f"disk0={bench.image()}", "--bandwidth", "64K", "--detach").json["id"])


def slow_copy_of_disk1(bench: Bench) -> str:
    """Return the id of a copy of disk1 that takes long."""
    write = 'qemu-io -d /machine/peripheral/disk1/virtio-backend "write -P 7 0 48M"'
    bench.qemu.spy("human-monitor-command", {"command-line": write})
    return str(bench.json("copy", "web1", f"disk1={bench.image()}", "--bandwidth", "64K", "--detach").json["id"])


def test_complete_all_leaves_alone_what_does_not_wait(bench: Bench, two: list[str]) -> None:
    """--all is the pivots at ready that wait to be completed; one that copies is not among them."""
    bench.ctl("cancel", two[0])
    bench.ctl("wait", two[0])
    slow = slow_copy(bench)
    answer = bench.ctl("pivot", "complete", "--all")
    assert (answer.status, answer.stderr.count("phase")) == (0, 0)
    assert f"pivot {two[1]}: the guest was paused for" in answer.stdout
    assert slow not in answer.stdout
    assert [phase for phase, _ in states(bench, [slow, two[1]])] == ["copying", "closed"]


def test_cancel_all(bench: Bench, two: list[str]) -> None:
    """Every open pivot keeps its source; asked again there is none, which is no error."""
    answer = bench.ctl("cancel", "--all", "--domain", "web1")
    assert answer.status == 0
    assert [line.split()[:4] for line in answer.stdout.splitlines()] == [
        ["pivot", one, "is", "cancelled:"] for one in two
    ]
    assert bench.json("wait", *two).status == 5
    again = bench.json("cancel", "--all")
    assert (again.status, again.json) == (0, [])
    assert complaint(bench.ctl("cancel", "--all")) == "no such pivot is open"


def test_all_of_another_domain(bench: Bench, two: list[str]) -> None:
    """--domain is minded: nothing else is cancelled."""
    assert bench.ctl("domain", "add", "web2", "--qmp", bench.directory / "web2.qmp").status == 0
    assert complaint(bench.ctl("cancel", "--all", "--domain", "web2")) == "no such pivot of web2 is open"
    assert states(bench, two) == [("ready", None)] * 2


def test_one_that_fails_does_not_hold_up_the_others(bench: Bench, two: list[str]) -> None:
    """An unknown pivot is told with its name, the others are cancelled, and the status is that of the failure."""
    answer = bench.ctl("cancel", "nobody", *two)
    assert answer.status == 4
    assert "nobody" in complaint(answer)
    bench.ctl("wait", *two)
    assert states(bench, two) == [("closed", "kept")] * 2


def test_the_error_of_one_stands_in_its_place(bench: Bench, two: list[str]) -> None:
    """With --json the failure is an object among the pivots, and what has switched is not cancelled."""
    assert bench.ctl("complete", two[0]).status == 0
    answer = bench.json("cancel", two[1], two[0])
    assert answer.status == 4
    cancelled, refused = answer.json
    assert cancelled["id"] == two[1]
    assert (refused["pivot"], refused["error"]["kind"]) == (two[0], "phase-conflict")


def test_wait_has_the_gravest_status(bench: Bench, two: list[str]) -> None:
    """A pivot that switched and one that kept: 5, and both ends are told."""
    bench.ctl("complete", two[0])
    bench.ctl("cancel", two[1])
    answer = bench.ctl("wait", *two)
    assert answer.status == 5
    assert "disk0: switched" in answer.stdout
    assert "disk1: kept" in answer.stdout
    assert f"pivot {two[1]} kept the source" in complaint(answer)


def last_word(said: str) -> str:
    """Return the last line of pivotctl's own: an interrupt may leave a socket open, of which Python warns in tests."""
    return [line for line in said.splitlines() if line.startswith("pivotctl: ")][-1]


def interrupted(bench: Bench, *words: str, first: str = "stderr") -> str:
    """Return the last line of a command that is interrupted once it has said something."""
    with start("--socket", bench.daemon.socket, *words) as process:
        try:
            getattr(process, first).readline()
            said = interrupt(process)
        finally:
            process.kill()
    assert process.returncode == 130
    return last_word(said)


@pytest.mark.parametrize("form", ["--all", "--all --domain web1", "{ids}"])
def test_ctrl_c_says_what_to_type(bench: Bench, form: str) -> None:
    """In the form in which it was typed, and what is said can be typed."""
    slow = [slow_copy(bench), slow_copy_of_disk1(bench)]
    typed = form.format(ids=" ".join(slow))
    try:
        said = interrupted(bench, "wait", *typed.split())
    finally:
        cancelled = bench.ctl("cancel", *typed.split())
        ends = bench.json("wait", *slow)
    assert said == (
        f"pivotctl: interrupted; the pivots continue: follow them with `pivotctl wait {typed}`, "
        f"cancel them with `pivotctl cancel {typed}`"
    )
    assert (cancelled.status, ends.status) == (0, 5)


@contextmanager
def hung(bench: Bench) -> Iterator[None]:
    """The daemon takes requests and answers none."""
    os.kill(bench.daemon.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(bench.daemon.pid, signal.SIGCONT)


def test_ctrl_c_before_an_answer(bench: Bench, two: list[str]) -> None:
    """A daemon that hangs is told of; what may have been taken is said, with what to type."""
    silent = "pivotctl: pivotd has not answered for 5 s; waiting for up to 55 s more: see `systemctl status pivotd`"
    with hung(bench):
        commands = [
            start("--socket", bench.daemon.socket, *words)
            for words in (("cancel", *two), ("complete", two[0]), ("wait", "--all"), ("pivot", "undo", two[0]))
        ]
        said = []
        for process in commands:
            assert process.stderr is not None
            assert process.stderr.readline().rstrip() == silent
            said.append(last_word(interrupt(process)))
            assert process.returncode == 130
    taken = "pivotctl: interrupted; pivotd may have taken the request: "
    assert said == [
        f"{taken}`pivotctl cancel {' '.join(two)}` goes on",
        f"{taken}see `pivotctl pivot show {two[0]}`",
        "pivotctl: interrupted; the pivots continue: follow them with `pivotctl wait --all`, "
        "cancel them with `pivotctl cancel --all`",
        f"{taken}`pivotctl pivot undo {two[0]}` goes on",
    ]
    bench.ctl("wait", *two)


def test_a_daemon_that_hangs_is_waited_for(bench: Bench) -> None:
    """One line says so, and then comes the answer."""
    with hung(bench):
        process = start("--socket", bench.daemon.socket, "domain", "ls", "-q")
        assert process.stderr is not None
        said = process.stderr.readline()
    answer, more = process.communicate(timeout=60)
    assert (process.returncode, answer.split()[0], more) == (0, "web1", "")
    assert said.startswith("pivotctl: pivotd has not answered for 5 s;")


def test_ctrl_c_names_what_is_left(bench: Bench) -> None:
    """Status 130, and a command that waits for the rest; both pivots continue."""
    done = bench.json("copy", "web1", f"disk1={bench.image()}", "--no-pivot").json["id"]
    slow = slow_copy(bench)
    with start("--socket", bench.daemon.socket, "wait", done, slow) as process:
        assert process.stdout is not None
        process.stdout.readline()
        said = interrupt(process)
    assert process.returncode == 130
    assert f"`pivotctl wait {slow}`" in said
    assert states(bench, [slow])[0][0] == "copying"
    assert bench.ctl("cancel", "--all").status == 0


def test_wait_goes_on_across_a_restart(bench: Bench) -> None:
    """A daemon that is killed while several pivots are waited for is waited for, too."""
    pivots = []
    for disk in ("disk0", "disk1"):
        name = qemu_io_name(bench.qemu, disk)
        bench.qemu.spy("human-monitor-command", {"command-line": f'qemu-io {name} "write -q 0 48M"'})
        answer = bench.json("copy", "web1", f"{disk}={bench.image()}", "--no-pivot", "--detach", "--bandwidth", "1M")
        pivots.append(str(answer.json["id"]))
    with start("--socket", bench.daemon.socket, "wait", *pivots) as process:
        assert process.stderr is not None
        first = process.stderr.readline()
        bench.daemon.kill()
        await_loss(process.stderr)
        bench.daemon.start()
        for pivot in pivots:
            assert bench.ctl("pivot", "set", pivot, "--bandwidth", "0").status == 0
        said, told = process.communicate(timeout=60)
    assert process.returncode == 0, (said, first, told)
    assert said.count("it waits at ready") == 2
    assert "pivotd answers again" in told
    bench.ctl("cancel", *pivots)
    bench.ctl("wait", *pivots)


def test_without_a_daemon(bench: Bench) -> None:
    """Each has the same answer, and the status says that nothing was reached."""
    answer = bench.json("--socket", "/nowhere.sock", "cancel", "a", "b")
    assert answer.status == 3
    assert [row["pivot"] for row in answer.json] == ["a", "b"]


@pytest.mark.parametrize(
    "arguments",
    [["wait"], ["pivot", "complete"], ["cancel", "--all", "x"], ["wait", "x", "--domain", "web1"]],
)
def test_wrong_arguments(bench: Bench, arguments: list[str]) -> None:
    """Ids or --all, and --domain only with --all: a usage error, nothing is asked."""
    answer = bench.ctl(*arguments)
    assert answer.status == 2
    assert "--all" in complaint(answer)


def test_no_daemon_is_told_at_once(tmp_path: Path):
    """Of several as of one: only a daemon that was there is waited for."""
    began_s = time.monotonic()
    answer = ctl("--socket", tmp_path / "none.sock", "wait", "one", "two")
    assert answer.status == 3, answer
    assert time.monotonic() - began_s < PATIENCE_S
