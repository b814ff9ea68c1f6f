"""libvirt's files: they are its own, but it does not make the directory of its definitions durable."""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

from pivotd.host.fsync import fsync_directory, fsync_file
from pivotd.libvirt.qemu_process import run_directory


def definitions(uri: str) -> Path:
    """Return the directory in which libvirt keeps the definitions of next boots."""
    if urlsplit(uri).path == "/session":
        return Path(os.environ.get("XDG_CONFIG_HOME", str(Path.home() / ".config"))) / "libvirt/qemu"
    return Path("/etc/libvirt/qemu")


def sync_definition(uri: str, name: str) -> None:
    """Make a definition that libvirt has just written durable: file, where it may be read, and directory.

    libvirt has written the file to disk before it gave it its name. Where not even the directory may be read, its
    whole file system is written instead, and every one where a libvirt of another make keeps its files elsewhere.
    Raises: OSError.
    """
    directory = definitions(uri)
    try:
        with suppress(PermissionError):  # libvirt makes it for root alone, and has written it out
            fsync_file(directory / f"{name}.xml")
        fsync_directory(directory)
    except FileNotFoundError:
        os.sync()
    except PermissionError:
        _sync_file_system(next(parent for parent in directory.parents if os.access(parent, os.R_OK)))


def _sync_file_system(path: Path) -> None:
    """Write out the file system of a directory. Source: syncfs(2), which needs no permission on the files."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if ctypes.CDLL(None, use_errno=True).syncfs(descriptor):
            raise OSError(ctypes.get_errno(), f"syncfs of {path}")
    finally:
        os.close(descriptor)


def status_file(uri: str, name: str) -> str | None:
    """Return libvirt's file about a running domain, None if pivotd's user may not read it."""
    try:
        return (run_directory(uri) / f"{name}.xml").read_text()
    except OSError:
        return None
