"""`pivotctl events --exec` as a process: what it has run, and what it says."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.cli.ctl import COMMAND, TIMEOUT_S, environment
from tests.support.daemon import Daemon
from tests.support.waiting import until


class Following:
    """One cursor and one log of documents below a directory, for one follower after the other.

    ``command`` is run by a shell in place of the plain one, which appends its standard input to ``$LOG``.
    ``line``: the whole command line, in place of the shell's.
    """

    def __init__(self, directory: Path, socket: Path, command: str = 'cat >>"$LOG"', *, line: str = "") -> None:
        self.cursor, self.log, self.errors = directory / "cursor", directory / "log", directory / "errors"
        self.socket, self.directory, self.line = socket, directory, line or f"sh -c {shlex.quote(command)}"

    @property
    def words(self) -> list[str]:
        return [*COMMAND, "--socket", str(self.socket), "events", "--exec", self.line, "--cursor", str(self.cursor)]

    def start(self, *options: str, before: Sequence[str] = ()) -> subprocess.Popen[bytes]:
        """Start a follower; ``before``: what its command line begins with."""
        with self.errors.open("ab") as errors:
            return subprocess.Popen(
                # Whoever runs the tests in the background has SIGINT ignored, and every child would inherit that.
                ["env", "--default-signal=INT", *before, *self.words, "--follow", *options],
                stdout=errors,
                stderr=errors,
                env=environment({"LOG": str(self.log), "DIRECTORY": str(self.directory)}),
            )

    @contextmanager
    def running(self, *options: str) -> Iterator[subprocess.Popen[bytes]]:
        """Start a follower and wait until it has its place; killed at the end at the latest."""
        said = self.said()
        process = self.start(*options)
        try:
            assert until(lambda: "pivotctl: running " in self.said()[len(said) :] or process.poll() is not None), (
                self.said()
            )
            assert process.poll() is None, self.said()
            yield process
        finally:
            process.kill()
            process.wait()

    def to_the_end(self, *options: str) -> subprocess.CompletedProcess[str]:
        """Run a follower that deals with what the journal holds, and return what it said."""
        return subprocess.run(
            [*self.words, *options],
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S * 3,
            check=False,
            env=environment({"LOG": str(self.log), "DIRECTORY": str(self.directory)}),
        )

    def said(self) -> str:
        return self.errors.read_text() if self.errors.exists() else ""

    def documents(self) -> list[Any]:
        """Every document that a command has read to its end, in order."""
        lines = self.log.read_text().splitlines(keepends=True) if self.log.exists() else []
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def ids(self) -> list[str]:
        return [document["id"] for document in self.documents()]

    def place(self) -> int:
        """The sequence number in the cursor."""
        return int(json.loads(self.cursor.read_text())["seq"])


def decisions(daemon: Daemon, after: int = 0) -> list[str]:
    """Return the pivots of the journal in the order of their decisions."""
    reader = daemon.ctl("events", "--after", str(after))
    rows = [json.loads(line) for line in reader.stdout.splitlines()]
    return [row["pivot"] for row in rows if row["phase"] == "decided" and row["event"] in OUTCOMES]


OUTCOMES = {"switched", "kept", "merged", "split", "unknown"}


def without_repetition(ids: Sequence[str]) -> list[str]:
    """Return the list with each run of the same id once."""
    return [one for index, one in enumerate(ids) if not index or ids[index - 1] != one]


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


def end(process: subprocess.Popen[bytes], number: int = signal.SIGTERM) -> int:
    """Send a signal and return the status, minus the number of the signal that ended it."""
    process.send_signal(number)
    return process.wait(TIMEOUT_S)
