"""The protocol between pivotd and systemd: state, watchdog, sockets, and whether stderr is the journal.

Source: sd_notify(3), sd_watchdog_enabled(3), sd_listen_fds(3), systemd.exec(5) on $JOURNAL_STREAM.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path

from pivotd.errors import ConfigError

LISTEN_FDS_START = 3
LISTEN_FDS_MAX = 16
"""More than pivotd's units pass; a bound on what a broken environment can make pivotd inspect."""
STDERR = 2
JOURNALD = Path("/run/systemd/journal/socket")
"""Where journald takes events in its native protocol."""


def notify(*assignments: str) -> bool:
    """Tell the service manager, e.g. ``notify("READY=1", "STATUS=3 domains")``; never raises and never blocks.

    Return False only if a manager did not take the message: the caller may try again.
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return True
    lines = "\n".join(line.replace("\n", " ") for line in assignments)
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as manager:
            manager.setblocking(False)
            manager.sendto(lines.encode(), "\0" + address[1:] if address.startswith("@") else address)
    except (OSError, ValueError):
        return False
    return True


def extend_timeout(seconds: float) -> bool:
    """Request this much time from now on before start or stop counts as failed; like notify()."""
    return notify(f"EXTEND_TIMEOUT_USEC={int(seconds * 1e6)}")


def watchdog_interval_s() -> float | None:
    """Return the interval for ``WATCHDOG=1``, half of what the manager allows; None without a watchdog."""
    allowed_us = _number("WATCHDOG_USEC")
    if not allowed_us or os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    return allowed_us / 2e6


def listen_fds() -> list[socket.socket]:
    """Return the sockets from systemd, close-on-exec; this removes the environment variables.

    Raises: ConfigError if one is not a listening Unix stream socket.
    """
    mine = _number("LISTEN_PID") == os.getpid()
    count = _number("LISTEN_FDS") or 0
    for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"):
        os.environ.pop(name, None)
    if not mine:
        return []
    if count > LISTEN_FDS_MAX:
        raise ConfigError(f"systemd passed {count} sockets, expected at most {LISTEN_FDS_MAX}: see pivotd.socket")
    return [_listening(fd) for fd in range(LISTEN_FDS_START, LISTEN_FDS_START + count)]


def _listening(fd: int) -> socket.socket:
    expected = "expected a listening Unix stream socket: pivotd.socket needs ListenStream= with a path"
    try:
        os.set_inheritable(fd, False)
        listener = socket.socket(fileno=fd)
    except OSError as error:
        raise ConfigError(
            f"systemd passed fd {fd}, which is no socket ({error.strerror}), {expected}", fd=fd
        ) from error
    if (
        listener.family != socket.AF_UNIX
        or listener.type != socket.SOCK_STREAM
        or not listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    ):
        listener.detach()
        raise ConfigError(f"systemd passed fd {fd}, which is another kind of socket, {expected}", fd=fd)
    return listener


def under_journald() -> bool:
    """Return whether stderr goes to the systemd journal right now (it may have been redirected since the start)."""
    try:
        stderr = os.fstat(STDERR)
    except OSError:
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{stderr.st_dev}:{stderr.st_ino}"


def _number(variable: str) -> int | None:
    text = os.environ.get(variable, "")
    return int(text) if text.isascii() and text.isdigit() else None
