"""The real pivotctl in a process of its own."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "pivotd.cli.main"]
TIMEOUT_S = 60.0
SILENCE = "pivotctl: pivotd has not answered for "
"""So begins what pivotctl says after 5 s without an answer, which busy cores alone may take."""
WITH_CONFIGURATION = """
import sys
from pathlib import Path
from pivotd import config
config.load.__defaults__ = (Path(sys.argv.pop(1)),)
from pivotd.cli.main import main
main()
"""
"""A program: pivotctl on a host that has the configuration of the first argument at the usual place."""


@dataclass(frozen=True, slots=True)
class Answer:
    """How a call ended and what it said."""

    status: int
    stdout: str
    stderr: str

    @property
    def json(self) -> Any:
        return json.loads(self.stdout)

    @property
    def rows(self) -> list[Any]:
        """The documents of a stream, one per line."""
        return [json.loads(line) for line in self.stdout.splitlines()]


def environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name != "PIVOTCTL_SOCKET"}
    return {**kept, "PYTHONPATH": str(REPOSITORY), "PYTHONWARNINGS": "error", **(more or {})}


def on_a_host_with(configuration: Path, *arguments: str) -> Answer:
    """Run pivotctl on a host that has this configuration at the usual place."""
    done = subprocess.run(
        [sys.executable, "-c", WITH_CONFIGURATION, str(configuration), *arguments],
        capture_output=True, text=True, timeout=TIMEOUT_S, env=environment(), check=False,
    )  # fmt: skip
    return Answer(done.returncode, done.stdout, done.stderr)


def ctl(
    *arguments: str | Path | bytes,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    ids: tuple[int, int] | None = None,
) -> Answer:
    """Run pivotctl to its end, as another uid and gid if told so; a traceback is a failure whatever the test asks.

    That pivotd takes its time is not among the errors: tests of that word read it from the process itself.
    """
    who: dict[str, Any] = {} if ids is None else {"user": ids[0], "group": ids[1], "extra_groups": []}
    done = subprocess.run(
        [*COMMAND, *arguments],
        capture_output=True,
        timeout=TIMEOUT_S,
        env=environment(env),
        cwd=cwd,
        check=False,
        **who,
    )
    said = done.stderr.decode(errors="replace").splitlines(keepends=True)
    errors = "".join(line for line in said if not line.startswith(SILENCE))
    answer = Answer(done.returncode, done.stdout.decode(errors="replace"), errors)
    assert "Traceback" not in answer.stderr, answer.stderr
    return answer


def start(*arguments: str | Path) -> subprocess.Popen[str]:
    """Start pivotctl and leave it running, with pipes to read from."""
    # Whoever runs the tests in the background has SIGINT ignored, and every child would inherit that.
    return subprocess.Popen(
        ["env", "--default-signal=INT", *COMMAND, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )


def interrupt(process: subprocess.Popen[str]) -> str:
    """Press Ctrl-C until it counts, and return what is said on stderr then.

    Python sees a signal that comes right before a call that blocks only at the end of that call, or with the next one.
    """
    for _ in range(5):
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.communicate(timeout=20)[1]
    raise AssertionError("it does not heed an interrupt")


def complaint(answer: Answer) -> str:
    """Return the one line on stderr, without the program's name; progress of a pivot that takes long is none."""
    lines = [line for line in answer.stderr.splitlines() if not line.startswith("pivot ")]
    assert len(lines) == 1, answer.stderr
    assert lines[0].startswith("pivotctl: "), lines
    return lines[0].removeprefix("pivotctl: ")
