"""The parent of a private libvirtd and of all that it starts; a program of its own, started by libvirtd.py.

libvirtd lets its QEMUs outlive it: they become children of process 1. Where that one reaps nobody, as in many
containers, libvirtd waits 15 seconds for each QEMU that it asks for its capabilities. So orphans come here (a child
subreaper), are reaped here, and end with the test: when standard input ends, this kills every child it has.

Each line of standard input is ``{"run": [...], "environment": {...}, "output": path}``; the answer is the process id.
``{"run": null}`` kills every child, and answers 0 when they are gone.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import sys
from pathlib import Path

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
_libc = ctypes.CDLL(None)


def start(command: list[str], environment: dict[str, str], output: str) -> int:
    """Start a program that dies with this process; return its process id."""
    file = os.open(output, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    pid = os.fork()
    if pid == 0:
        _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        null = os.open("/dev/null", os.O_RDONLY)
        for number, target in ((null, 0), (file, 1), (file, 2)):
            os.dup2(number, target)
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        try:
            os.execvpe(command[0], command, os.environ | environment)
        finally:
            os._exit(127)
    os.close(file)
    return pid


def reap() -> None:
    """Take the exit status of every child that has ended."""
    try:
        while os.waitpid(-1, os.WNOHANG) != (0, 0):
            pass
    except ChildProcessError:
        pass


def end_all() -> None:
    """Kill all children, also those who become ours when their parents die."""
    children = Path(f"/proc/self/task/{os.getpid()}/children")
    while pids := [int(pid) for pid in children.read_text().split()]:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        os.waitpid(-1, 0)


def serve(run: list[str] | None, environment: dict[str, str] | None = None, output: str = os.devnull) -> int:
    """Do what one line asks for and return the answer."""
    if run is not None:
        return start(run, environment or {}, output)
    end_all()
    return 0


def main() -> None:
    """Serve until standard input ends."""
    assert _libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0
    woken, wakes = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # Those of the test's process group: the children have to be ended first.
        signal.signal(number, signal.SIG_IGN)
    signal.set_wakeup_fd(wakes, warn_on_full_buffer=False)
    left = b""
    try:
        while True:
            ready = select.select([0, woken], [], [])[0]
            if woken in ready:
                os.read(woken, 4096)
                reap()
            if 0 in ready:
                data = os.read(0, 65536)
                if not data:
                    return
                *lines, left = (left + data).split(b"\n")
                for line in lines:
                    os.write(1, b"%d\n" % serve(**json.loads(line)))
    finally:
        end_all()


if __name__ == "__main__":
    sys.exit(main())
