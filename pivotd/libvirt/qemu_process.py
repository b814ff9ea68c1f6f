"""The QEMU process of a domain that libvirt manages. libvirt's interface does not tell its pid; its files do."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import parse_qs, urlsplit


def find(uri: str, name: str, uuid: str) -> tuple[int, str] | None:
    """Return the pid of a domain's QEMU, and a mark that another process of the same domain does not have.

    The mark is the time when libvirt wrote the pid: /proc may hide when the process began.
    """
    file = run_directory(uri) / f"{name}.pid"
    try:
        pid, written = int(file.read_text()), file.stat().st_mtime_ns
    except (OSError, ValueError):
        return None
    return (pid, f"{written:x}") if _may_be(pid, uuid) else None


def run_directory(uri: str) -> Path:
    """Return the directory where libvirt notes the pids of its QEMUs, for everybody to read, and their state."""
    parts = urlsplit(uri)
    socket = parse_qs(parts.query).get("socket")
    if socket is not None:
        return Path(socket[0]).parent / "qemu"
    if parts.path == "/session":
        return Path(os.environ.get("XDG_RUNTIME_DIR", "/nonexistent")) / "libvirt/qemu/run"
    return Path("/run/libvirt/qemu")


def _may_be(pid: int, uuid: str) -> bool:
    """Return whether a process may be a domain's QEMU: it lives, and its command line, if visible, has the uuid."""
    try:
        line = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        try:
            os.close(os.pidfd_open(pid))
        except ProcessLookupError:
            return False
        except OSError:
            return True
        return True
    return uuid.encode() in line
