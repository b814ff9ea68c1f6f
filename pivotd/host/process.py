"""The process behind a socket, and whether it is still alive."""

from __future__ import annotations

import errno
import os
import re
import select
import socket
import struct
from functools import cache
from pathlib import Path

_SOCKET = re.compile(r"[0-9a-f]+:( [0-9A-F]{8}){2} (?P<flags>[0-9A-F]{8}) [0-9A-F]{4} [0-9A-F]{2} +[0-9]+ (?P<name>.+)")
"""A line of /proc/net/unix. The kernel writes all but the address in capitals."""


@cache
def boot_id() -> str:
    """Return the id of this boot of the host. Source: random(4), /proc/sys/kernel/random/boot_id."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def peer_pid(sock: socket.socket) -> int:
    """Return the pid that listened on the other side of a connected Unix socket (SO_PEERCRED)."""
    pid, _uid, _gid = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
    return int(pid)


def listens(path: str) -> bool:
    """Return whether a process listens at a Unix socket, without a connection, which would take a monitor.

    False also for one of another network namespace.
    """
    return path in listening()


def listening() -> frozenset[str]:
    """Return the names of the Unix sockets at which processes listen, of this network namespace.

    Anybody may give a socket a name with line breaks: what then is no line of the table is left out.
    Source: proc_net(5), and __SO_ACCEPTCON of the kernel's net/unix.
    """
    accepts = 0x10000
    lines = os.fsdecode(Path("/proc/net/unix").read_bytes()).split("\n")
    found = filter(None, map(_SOCKET.fullmatch, lines))
    return frozenset(one["name"] for one in found if int(one["flags"], 16) & accepts)


def start_ticks(pid: int) -> int | None:
    """Return the start time of a process in clock ticks since boot; None where /proc hides it or it is gone.

    Source: proc(5), field 22 of /proc/PID/stat; counted from the end of the command name, which may hold anything.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return None
    return int(stat.rpartition(")")[2].split()[19])


def uptime_s(pid: int) -> float | None:
    """Return the age of a process in seconds, None if /proc hides it."""
    ticks = start_ticks(pid)
    if ticks is None:
        return None
    now_s = float(Path("/proc/uptime").read_text().split()[0])
    return max(0.0, now_s - ticks / os.sysconf("SC_CLK_TCK"))


def working_directory(pid: int) -> Path | None:
    """Return the working directory of a process, None if pivotd may not see it."""
    try:
        return Path(f"/proc/{pid}/cwd").readlink()
    except OSError:
        return None


def opened(pid: int) -> int | None:
    """Return a descriptor of a process, None if no process has this pid; a thread of another one may have the number.

    Raises: OSError: nobody can tell. Source: pidfd_open(2); a thread is EINVAL to it, and ENOENT in recent kernels.
    """
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        return None
    except OSError as error:
        if pid > 0 and error.errno in {errno.EINVAL, errno.ENOENT}:
            return None
        raise


def is_gone(pid: int, ticks: int | None, boot: str) -> bool:
    """Return whether the process has certainly ended; False if that is not known.

    A zombie has ended: its descriptors are closed. A pid that was given to another process shows another start time.
    """
    if boot != boot_id():
        return True
    try:
        pidfd = opened(pid)
    except OSError:
        return False
    if pidfd is None:
        return True
    try:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        if poll.poll(0):
            return True
    finally:
        os.close(pidfd)
    now = start_ticks(pid)
    return ticks is not None and now is not None and now != ticks
