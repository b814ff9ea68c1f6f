"""A forgetful disk for a test: mounted at a directory, with its faults and its power switch."""

from __future__ import annotations

import os
import pickle
import select
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest

from tests.journal_disk import kernel
from tests.journal_disk.server import Fault
from tests.journal_disk.store import Change, Contents

REPOSITORY = Path(__file__).parents[2]
TIMEOUT_S = 60.0


class Disk:
    """Use it as a context manager; without root or /dev/fuse the test is skipped. Threads may share it."""

    def __init__(self, where: Path) -> None:
        self.where = where
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        if os.geteuid() != 0:
            pytest.skip("mounting a file system of the test's own needs root")
        if not Path("/dev/fuse").exists():
            pytest.skip("the kernel has no /dev/fuse")
        self.where.mkdir(exist_ok=True)
        self._process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", sys.executable, "-m", "tests.journal_disk.server", str(self.where)],
            cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        try:
            self._order("hung")
        except EOFError:
            assert self._process.stderr is not None
            said = self._process.stderr.read().decode()
            self.__exit__(None, None, None)
            pytest.skip(f"cannot mount a file system of the test's own: {said.splitlines()[-1]}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # The process first: with it every request that hangs ends.
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
            assert stream is not None
            stream.close()
        kernel.unmount(self.where)

    def fail(self, *faults: Fault) -> None:
        """Set faults in place of those before; none: the disk is sound again. What hangs goes on.

        Each counts from when the one before has struck.
        """
        self._forget_strikes()
        self._order("faults", list(faults))

    def await_strike(self, *, timeout_s: float = TIMEOUT_S) -> bool:
        """Wait until a fault strikes; False if none did in time."""
        assert self._process.stderr is not None
        if not select.select([self._process.stderr], [], [], timeout_s)[0]:
            return False
        return os.read(self._process.stderr.fileno(), 1) == b"!"

    def mark(self, text: str) -> int:
        """Note in the log that something happened after every change so far; return the length of the log."""
        length: int = self._order("mark", text)
        return length

    def log(self) -> list[Change]:
        """Return every change since the start, the last cut or load."""
        log: list[Change] = self._order("log")
        return log

    def hung(self) -> int:
        """Return how many requests hang."""
        number: int = self._order("hung")
        return number

    def cut(self, seed: int | None = None) -> None:
        """Cut the power; nothing may have a file open. With a seed some of what was not fsynced survives."""
        self._order("cut", seed)

    def load(self, contents: Contents) -> None:
        """Hold exactly these files, all durable."""
        self._order("load", contents)

    def replay(self, log: Sequence[Change]) -> None:
        """Hold the files as they were after these changes; what was not durable then is not durable now."""
        self._order("replay", list(log))

    def _forget_strikes(self) -> None:
        while self.await_strike(timeout_s=0):
            pass

    def _order(self, name: str, *arguments: Any) -> Any:
        with self._lock:
            assert self._process.stdin is not None
            assert self._process.stdout is not None
            try:
                pickle.dump((name, arguments), self._process.stdin)
                self._process.stdin.flush()
            except BrokenPipeError as error:
                raise EOFError from error
            return pickle.load(self._process.stdout)


def put(contents: Contents, directory: Path) -> None:
    """Write files as they were left into an empty directory of an ordinary file system."""
    directory.mkdir()
    for name, data in contents.items():
        (directory / name).write_bytes(data)
