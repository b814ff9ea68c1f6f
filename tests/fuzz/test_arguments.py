"""pivotctl with arguments that make no sense: one line, a known status, and nothing asked of anybody."""

from __future__ import annotations

import os
import random
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO

import pytest

from pivotd.cli import main as cli
from pivotd.cli.context import App
from tests.cli.ctl import ctl
from tests.fuzz.budget import SEED, examples

ROUNDS, PROCESS_ROUNDS = 1500, 5
STATUSES = {0, 2, 3, 4}
WORDS = (
    "domain", "ls", "add", "rm", "show", "disk", "copy", "pivot", "cancel", "complete", "wait", "verdict", "events", "web1",
    "disk0=/x", "disk0=", "=", "=x", "disk0=a=b", "--json", "--offline", "--socket", "--help", "-h", "--version", "--",
    "--format", "raw", "qcow2", "--bandwidth", "10M", "1e9", "-1", "99999999999999999999T", "--max-pause", "1s", "nan", "0.5",
    "--attempts", "--copy-mode", "auto", "--no-pivot", "-d", "--id", "--force", "--reuse", "--follow", "--after", "--timeout",
    "", " ", "\n", "ü", "\x1b[31m", "../..", "/", "%s", "{}", "x" * 5000, "-", "---", "--json=1", "\udcff",
)  # fmt: skip


@contextmanager
def _streams() -> Iterator[tuple[StringIO, StringIO]]:
    out, err = StringIO(), StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        yield out, err


def _line(rng: random.Random) -> list[str]:
    return [rng.choice(WORDS) for _ in range(rng.randint(0, 7))]


def test_no_arguments_make_a_traceback(monkeypatch: pytest.MonkeyPatch):
    """There is no daemon: what is understood ends as unreachable."""
    rng = random.Random(f"{SEED}/arguments")
    with tempfile.TemporaryDirectory(prefix="pl") as directory:
        monkeypatch.chdir(directory)
        for number in range(examples(ROUNDS)):
            arguments = _line(rng)
            what = f"PIVOTD_SEED={SEED}, arguments {number}: {arguments!a}"
            try:
                with _streams() as (out, err):
                    status = cli._run(App(f"{directory}/none.sock"), list(arguments))
            except BaseException as error:
                error.add_note(what)
                raise
            assert status in STATUSES, f"{what}: {status}"
            if status and err.getvalue() and arguments:
                assert err.getvalue().startswith(("pivotctl: ", "Usage: ")), f"{what}: {err.getvalue()}"
            if status and not err.getvalue():
                # Of several pivots each has an error of its own.
                assert out.getvalue().startswith(('{"error"', '[{"pivot"')), f"{what}: {out.getvalue()}"
        assert os.listdir(directory) == [], "nothing was written"  # noqa: PTH208 - names only


def test_the_program_says_one_line():
    """The same in a process of its own, with bytes that are no text."""
    rng = random.Random(f"{SEED}/arguments process")
    for number in range(examples(PROCESS_ROUNDS)):
        arguments = [word.encode("utf-8", "surrogateescape") for word in _line(rng)]
        answer = ctl(*arguments, env={"PIVOTCTL_SOCKET": "/nonexistent/pivotd.sock"})
        assert answer.status in STATUSES, f"PIVOTD_SEED={SEED}, process {number}: {arguments}: {answer}"
