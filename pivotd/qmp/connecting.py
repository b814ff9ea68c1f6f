"""Connects to a QMP socket and negotiates; each error says what prevents this."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import stat
from typing import Any, cast

from qemu.qmp import ConnectError
from qemu.qmp.models import Greeting
from qemu.qmp.qmp_client import GreetingError, NegotiationError

from pivotd import limits
from pivotd.errors import DomainUnreachableError, MonitorBusyError, UnsupportedQemuError
from pivotd.host import process, view
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
            await _connect(sock, path)
    except (OSError, TimeoutError, ValueError) as error:
        sock.close()
        raise DomainUnreachableError(
            f"{path}: {_why(error, path)}", qmp=path, errno=getattr(error, "errno", None)
        ) from error
    except asyncio.CancelledError:
        sock.close()
        raise
    return sock


async def _connect(sock: socket.socket, path: str) -> None:
    """Connect a Unix socket, which takes no time: it is connected, refused, or has to be asked again. Raises: OSError.

    asyncio takes one whose listener has no room (EAGAIN) for one that is being connected, and then for connected. Its
    first read failed with EINVAL. Source: unix(7); asyncio's selector_events.py, _sock_connect().
    """
    while True:
        try:
            sock.connect(path)
        except BlockingIOError:
            await asyncio.sleep(limits.CONNECT_AGAIN_S)
        else:
            return


def _why(error: Exception, path: str) -> str:
    if isinstance(error, FileNotFoundError | PermissionError) and (why := view.hidden(path)) is not None:
        return why
    match error:
        case FileNotFoundError():
            return "no such socket; is the guest running?"
        case ConnectionRefusedError() if not _is_socket(path):
            return "this is no socket; name the one of QEMU's -qmp option"
        case ConnectionRefusedError():
            return "no process listens on this socket; the QEMU that made it has ended"
        case PermissionError():
            return "permission denied; give pivotd's user access to the socket"
        case BlockingIOError() | TimeoutError():
            return "the socket does not take connections: other clients are waiting for it"
        case OSError(errno=errno.EPROTOTYPE):
            return "this is no stream socket; name the one of QEMU's -qmp option"
        case OSError(errno=None):  # Python's own
            return f"{error}; the path of a socket has at most {limits.SOCKET_PATH_BYTES_MAX} bytes: use a shorter one"
        case OSError():
            return f"{error.strerror}; is this the path of a QMP socket?"
    return str(error)


def _is_socket(path: str) -> bool:
    """Return whether it is one, as far as anybody can tell."""
    try:
        return stat.S_ISSOCK(os.stat(path).st_mode)  # noqa: PTH116 - as connect() takes it
    except (OSError, ValueError):
        return True


def peer(sock: socket.socket, path: str) -> int:
    """Return the pid of whoever listens. Raises: DomainUnreachableError."""
    try:
        return process.peer_pid(sock)
    except OSError as error:
        raise DomainUnreachableError(f"{path}: {error.strerror}; is this a QMP socket?", qmp=path) from error


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
    except Exception as error:
        # Any: where the end of a connection that cannot be made fails as well, qemu.qmp raises what that has raised
        # instead of its own errors, or one of its assertions fails. It may also hide that this task was cancelled.
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise asyncio.CancelledError from error
        raise DomainUnreachableError(f"{path}: {_words(error)}; is this a QMP socket?", qmp=path) from error
    if version[:2] < VERSION_MIN:
        text = ".".join(map(str, version))
        raise UnsupportedQemuError(
            f"{path}: QEMU {text} is too old, pivotd needs 6.2 or later: "
            "older ones can abort in the middle of a switch",
            version=text,
        )
    return version


def _words(error: Exception) -> str:
    """Return in one line why there is no connection; qemu.qmp's errors have their cause in them."""
    cause = error
    while isinstance(cause, ConnectError | GreetingError | NegotiationError):
        cause = cause.exc
    match cause:
        case EOFError() | ConnectionError():
            return "the connection was closed before QEMU took commands"
        case OSError():
            return f"the connection has failed: {cause.strerror or cause}"
        case UnicodeError() | RecursionError():
            return "what came is no JSON"
        case ValueError():  # asyncio's StreamReader.readline()
            return "what came is no JSON: its first line does not end"
    return str(error).splitlines()[0] if str(error) else f"the connection was closed ({type(error).__name__})"


def _version(greeting: Greeting | None) -> tuple[int, int, int]:
    """Return (major, minor, micro). Raises: GreetingError: there is none."""
    try:
        qemu = cast("Any", greeting).QMP.version["qemu"]
        return int(qemu["major"]), int(qemu["minor"]), int(qemu["micro"])
    except (LookupError, TypeError, ValueError, ArithmeticError) as error:
        raise GreetingError("the greeting names no version of QEMU", error) from error
