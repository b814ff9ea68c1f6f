"""libvirt's files: they are its own, but it does not make the directory of its definitions durable."""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress
from pathlib import Path

from pivotd.host.fsync import fsync_directory, fsync_file
from pivotd.libvirt.libvirt_files import definitions, is_by_default, run_directories


def sync_definition(uri: str, name: str, uuid: str) -> None:
    """Make a definition that libvirt has just written durable: file, where it may be read, and directory.

    libvirt has written the file to disk before it gave it its name. Where not even the directory may be read, its
    whole file system is written instead, and every one where a libvirt may keep its files elsewhere. Raises: OSError.
    """
    directory = definitions(uri)
    file = directory / f"{name}.xml"
    try:
        with suppress(PermissionError):  # libvirt makes it for root alone, and has written it out
            if not is_by_default(uri) and uuid not in file.read_text():
                os.sync()  # it is another libvirt's
                return
            fsync_file(file)
        fsync_directory(directory)
    except FileNotFoundError:
        os.sync()
    except PermissionError:
        if is_by_default(uri):
            _sync_file_system(next(parent for parent in directory.parents if os.access(parent, os.R_OK)))
        else:
            os.sync()


def _sync_file_system(path: Path) -> None:
    """Write out the file system of a directory. Source: syncfs(2), which needs no permission on the files."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if ctypes.CDLL(None, use_errno=True).syncfs(descriptor):
            raise OSError(ctypes.get_errno(), f"syncfs of {path}")
    finally:
        os.close(descriptor)


def status_file(uri: str, name: str, uuid: str) -> str | None:
    """Return libvirt's file about a running domain, None if pivotd's user may not read it."""
    for directory in run_directories(uri):
        with suppress(OSError, UnicodeDecodeError):
            text = (directory / f"{name}.xml").read_text()
            if uuid in text:
                return text
    return None
