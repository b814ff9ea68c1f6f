"""Connections to libvirt's daemon. Everything here blocks: it runs in the thread of a Line."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pivotd import limits
from pivotd.errors import LibvirtUnreachableError, QmpRefusedError, QmpUnknownError
from pivotd.libvirt import library


def open_connection(uri: str) -> Any:
    """Return a connection that fails within seconds once libvirt's daemon hangs. Raises: LibvirtUnreachableError."""
    api = library.load().api
    try:
        connection = api.open(uri)
        connection.setKeepAlive(limits.LIBVIRT_KEEPALIVE_S, limits.LIBVIRT_KEEPALIVES)
    except api.libvirtError as error:
        raise LibvirtUnreachableError(f"{uri}: {_why(api, error)}", uri=uri) from error
    return connection


def _why(api: Any, error: Exception) -> str:
    """Return what prevents a connection, and what to do, in one line."""
    text = " ".join(str(error).split())
    if "Permission denied" in text:
        return f"{text}; make pivotd's user a member of that socket's group (usermod -aG libvirt USER), restart pivotd"
    if "No such file" in text or "Connection refused" in text:
        return f"{text}; no libvirt daemon listens: start libvirtd.socket (or virtqemud.socket)"
    denied = {api.VIR_ERR_AUTH_FAILED, api.VIR_ERR_AUTH_CANCELLED, api.VIR_ERR_AUTH_UNAVAILABLE}
    if getattr(error, "get_error_code", lambda: None)() in denied:
        return (
            f"{text}; make pivotd's user a member of the group libvirt (usermod -aG libvirt USER), and restart pivotd"
        )
    return text


def translated(connection: Any, what: str, function: Callable[[], Any]) -> Any:
    """Return the result of a call to libvirt.

    Raises: QmpRefusedError: libvirt has answered with an error. QmpUnknownError: the connection broke on the way.
    """
    api = library.load().api
    try:
        return function()
    except api.libvirtError as error:
        text = " ".join(str(error).split())
        if not connection.isAlive():
            raise QmpUnknownError(f"{what}: libvirt's daemon is gone or hangs ({text})", command=what) from error
        raise QmpRefusedError(
            f"libvirt refused {what}: {text}", command=what, text=text, code=error.get_error_code()
        ) from error


def check(uri: str) -> str:
    """Connect once and return what answers. Raises: LibvirtUnreachableError, QmpError."""
    connection = open_connection(uri)
    version = translated(connection, "libvirt's version", connection.getLibVersion)
    connection.close()
    return f"libvirt {version_text(version)}"


def version_text(number: int) -> str:
    """Return libvirt's version, which it gives as one number."""
    return f"{number // 1_000_000}.{number // 1000 % 1000}.{number % 1000}"
