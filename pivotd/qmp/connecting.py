"""Connects to a QMP socket and negotiates; each error says what prevents this."""

from __future__ import annotations

import asyncio
import socket
from typing import Any, cast

from qemu.qmp import ConnectError, QMPError
from qemu.qmp.models import Greeting
from qemu.qmp.qmp_client import GreetingError

from pivotd import limits
from pivotd.errors import DomainUnreachableError, MonitorBusyError, UnsupportedQemuError
from pivotd.host import view
from pivotd.qmp.burst import Client

VERSION_MIN = (6, 2)
"""Older versions can abort, or keep a mirror that nobody can cancel. Source: docs/protocol.md, "Which QEMU"."""


async def open_socket(path: str) -> socket.socket:
    """Return a socket that is connected to this path. Raises: DomainUnreachableError."""
    try:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    except OSError as error:
        # No descriptor left: this monitor is out of reach for now, which is no reason to end the others.
        raise DomainUnreachableError(f"{path}: {error.strerror}", qmp=path, errno=error.errno) from error
    sock.setblocking(False)
    try:
        async with asyncio.timeout(limits.CONNECT_TIMEOUT_S):
            await asyncio.get_running_loop().sock_connect(sock, path)
    except (OSError, TimeoutError, ValueError) as error:
        sock.close()
        raise DomainUnreachableError(
            f"{path}: {_why(error, path)}", qmp=path, errno=getattr(error, "errno", None)
        ) from error
    except asyncio.CancelledError:
        sock.close()
        raise
    return sock


def _why(error: Exception, path: str) -> str:
    if isinstance(error, FileNotFoundError | PermissionError) and (why := view.hidden(path)) is not None:
        return why
    match error:
        case FileNotFoundError():
            return "no such socket; is the guest running?"
        case ConnectionRefusedError():
            return "no process listens on this socket; the QEMU that made it has ended"
        case PermissionError():
            return "permission denied; give pivotd's user access to the socket"
        case BlockingIOError() | TimeoutError():
            return "the socket does not take connections: other clients are waiting for it"
    return str(error)


async def negotiate(client: Client, sock: socket.socket, path: str) -> tuple[int, int, int]:
    """Return QEMU's (major, minor, micro) once it takes commands; qemu.qmp enables out-of-band if QEMU offers it.

    Raises: DomainUnreachableError (no QMP, or QEMU is stuck), MonitorBusyError, UnsupportedQemuError.
    """
    try:
        async with asyncio.timeout(limits.GREETING_TIMEOUT_S):
            await client.connect(sock)
        version = _version(client.greeting)
    except TimeoutError as error:
        if client.greeting is None:
            raise MonitorBusyError(
                f"{path}: no greeting: another client holds this monitor; give pivotd a QMP socket of its own",
                qmp=path,
            ) from error
        raise DomainUnreachableError(
            f"{path}: QEMU greets but does not answer: its main loop is blocked, often by storage that hangs",
            qmp=path,
        ) from error
    except (ConnectError, QMPError, OSError, EOFError, AssertionError) as error:
        # AssertionError: qemu.qmp's own, when the connection ends in the turn of the loop after the negotiation.
        why = str(error).splitlines()[0] if str(error) else "the connection was closed"
        raise DomainUnreachableError(f"{path}: {why}; is this a QMP socket?", qmp=path) from error
    if version[:2] < VERSION_MIN:
        text = ".".join(map(str, version))
        raise UnsupportedQemuError(
            f"{path}: QEMU {text} is too old, pivotd needs 6.2 or later: "
            "older ones can abort in the middle of a switch",
            version=text,
        )
    return version


def _version(greeting: Greeting | None) -> tuple[int, int, int]:
    """Return (major, minor, micro). Raises: GreetingError: there is none."""
    try:
        qemu = cast("Any", greeting).QMP.version["qemu"]
        return int(qemu["major"]), int(qemu["minor"]), int(qemu["micro"])
    except (LookupError, TypeError, ValueError, ArithmeticError) as error:
        raise GreetingError("the greeting names no version of QEMU", error) from error
