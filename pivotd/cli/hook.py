"""One command run once with a document on its standard input, in a process group of its own and within a bound."""

from __future__ import annotations

import os
import select
import shlex
import shutil
import signal
import subprocess
from collections.abc import Callable
from contextlib import suppress

from pivotd import limits
from pivotd.cli.complaints import UsageError


class Hook:
    """A command line, split into words as a shell does and run without one.

    ``timeout_s``: how long one run may take. ``tell``: called with one line before a run is ended.
    """

    def __init__(self, line: str, timeout_s: float, tell: Callable[[str], None]) -> None:
        """Raises: UsageError: the line names no program."""
        try:
            self.words = shlex.split(line)
        except ValueError as error:
            raise UsageError(f"--exec {line!r}: {str(error).lower()}; see `pivotctl events --help`") from None
        if not self.words or shutil.which(self.words[0]) is None:
            name = repr(self.words[0] if self.words else line)
            raise UsageError(f"--exec: there is no program {name}, or it must not be executed; no shell reads the line")
        self.name, self.timeout_s, self.tell = self.words[0], timeout_s, tell

    def run(self, document: bytes, keep_open: int) -> str | None:
        """Return None after exit status 0, else what went wrong.

        The command inherits the descriptor ``keep_open``. Whatever else is in its process group is killed with it,
        unless it ended with 0.
        """
        held = _HeldSignals()
        try:
            process = self._start(document, keep_open)
        except OSError as error:
            held.release()
            return f"cannot be started ({error.strerror or error})"
        in_time = False
        try:
            held.release()
            in_time = _ended(process, self.timeout_s)
            if not in_time:
                self.tell(f"{self.name} has not ended within {self.timeout_s:g} s: it is being killed")
        finally:
            if not in_time:
                _signal_group(process, signal.SIGTERM)
                _ended(process, limits.HOOK_GRACE_S)
            status = _reap(process)
        if not in_time:
            return f"was killed after {self.timeout_s:g} s"
        if status < 0:
            return f"was ended by signal {-status} ({signal.strsignal(-status)})"
        return f"failed with exit status {status}" if status else None

    def _start(self, document: bytes, keep_open: int) -> subprocess.Popen[bytes]:
        # A file instead of a pipe: a command that does not read all of it, or nothing, is no special case.
        stdin = os.memfd_create("pivot")
        try:
            os.pwrite(stdin, document, 0)
            return subprocess.Popen(  # noqa: S603 - the operator's own words, and no shell
                self.words, stdin=stdin, pass_fds=(keep_open,), process_group=0
            )
        finally:
            os.close(stdin)


class _HeldSignals:
    """SIGINT and SIGTERM held back until release(): an exception between fork and the return of Popen loses the child.

    Not by a signal mask: the child would inherit it.
    """

    def __init__(self) -> None:
        self._came: list[int] = []
        self._before = {
            number: signal.signal(number, lambda number, _frame: self._came.append(number))
            for number in (signal.SIGINT, signal.SIGTERM)
        }

    def release(self) -> None:
        """Take signals as before, first those that came meanwhile; may raise what their handlers raise."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        for came in self._came:
            signal.raise_signal(came)


def _ended(process: subprocess.Popen[bytes], timeout_s: float) -> bool:
    """Wait, and leave the dead process unreaped: as long as it is there, nobody else can have its group's number."""
    pidfd = os.pidfd_open(process.pid)
    try:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        return bool(poll.poll(timeout_s * 1000))
    finally:
        os.close(pidfd)


def _reap(process: subprocess.Popen[bytes]) -> int:
    """Return the exit status, minus the signal's number if one ended it; a failure leaves nothing of the group."""
    found = os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG)
    if found is None or found.si_code != os.CLD_EXITED or found.si_status:
        _signal_group(process, signal.SIGKILL)
    return process.wait()


def _signal_group(process: subprocess.Popen[bytes], number: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)
