"""A pivotd of its own for one test: its configuration, its process, and pivotctl to talk to it."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.support.qemu import popen_tied

READY_TIMEOUT_S = 60.0
CTL_TIMEOUT_S = 60.0
LOOK_MS = 2


@dataclass(frozen=True, slots=True)
class Answer:
    """What a call of pivotctl gave; ``json`` is None where stdout is no JSON document."""

    status: int
    stdout: str
    stderr: str
    json: Any


class Daemon:
    """One pivotd with everything below one directory; start it again after a kill.

    ``domains`` maps names to QMP sockets. ``configuration`` is further TOML. ``environment`` is added to pivotd's own.
    The process dies with the test process.
    """

    def __init__(
        self,
        directory: Path,
        domains: Mapping[str, Path],
        *,
        configuration: str = "",
        environment: Mapping[str, str] | None = None,
        command: Sequence[str] | None = None,
    ) -> None:
        self.directory = directory
        self.state_dir = directory / "state"
        self.socket = directory / "pivotd.sock"
        self.log_path = directory / "pivotd.log"
        self._config = directory / "pivotd.toml"
        self._command = list(command or [str(_program("pivotd"))])
        self._environment = {**os.environ, **(environment or {})}
        self._process: subprocess.Popen[bytes] | None = None
        self.state_dir.mkdir(exist_ok=True)
        lines = [f"state_dir = {json.dumps(str(self.state_dir))}", f"socket = {json.dumps(str(self.socket))}"]
        for name, path in domains.items():
            lines += [f"[domains.{name}]", f"qmp = {json.dumps(str(path))}"]
        self._config.write_text("\n".join([*lines, configuration, ""]))

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    def start(self, *, wait: bool = True) -> Self:
        """Start pivotd, and wait until its socket answers unless told not to."""
        assert self._process is None or self._process.poll() is not None, "it runs already"
        self._process = popen_tied(
            [*self._command, "--config", str(self._config)], self.log_path, self.directory, env=self._environment
        )
        if wait:
            self.await_ready()
        return self

    def await_ready(self, *, timeout_s: float = READY_TIMEOUT_S) -> None:
        """Wait until the API's socket accepts connections, which is after recovery."""
        deadline_s = time.monotonic() + timeout_s
        pidfd = os.pidfd_open(self.pid)
        try:
            poll = select.poll()
            poll.register(pidfd, select.POLLIN)
            while time.monotonic() < deadline_s:
                with socket.socket(socket.AF_UNIX) as client:
                    if client.connect_ex(str(self.socket)) == 0:
                        return
                if poll.poll(LOOK_MS):
                    break
        finally:
            os.close(pidfd)
        raise RuntimeError(f"pivotd is not ready: {self.log_path.read_text(errors='replace')[-3000:]}")

    @property
    def pid(self) -> int:
        """The process id of the newest process."""
        assert self._process is not None, "not started"
        return self._process.pid

    def kill(self) -> None:
        """SIGKILL, and wait for the end; may be called repeatedly. Another thread may start the next one meanwhile."""
        if (process := self._process) is not None:
            process.kill()
            process.wait()

    def wait(self) -> int:
        """Return the exit status of the newest process once it has ended."""
        assert self._process is not None, "not started"
        return self._process.wait()

    def terminate(self, *, timeout_s: float = READY_TIMEOUT_S) -> int:
        """SIGTERM, and return the exit status."""
        assert self._process is not None, "not started"
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait(timeout_s)

    def ctl(self, *arguments: str, offline: bool = False, timeout_s: float = CTL_TIMEOUT_S) -> Answer:
        """Run ``pivotctl --json`` against this daemon, or with ``offline`` against its journal alone."""
        where = ["--offline", str(self.state_dir)] if offline else ["--socket", str(self.socket)]
        done = subprocess.run(
            [str(_program("pivotctl")), *where, "--json", *arguments],
            capture_output=True, text=True, timeout=timeout_s, check=False,
        )  # fmt: skip
        try:
            document = json.loads(done.stdout)
        except ValueError:
            document = None
        return Answer(done.returncode, done.stdout, done.stderr, document)


def _program(name: str) -> Path:
    """Return the program installed beside the interpreter that runs the tests."""
    return Path(sys.executable).parent / name
