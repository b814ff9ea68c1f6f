"""QEMU's locks on image files: whether some QEMU has a file open, wherever that QEMU runs on this host.

The kernel is asked about the file itself, which needs permission to read it. /proc/locks would need none, but has the
device of the file system, not what stat() shows: on btrfs, and on overlayfs over two file systems, these differ, and
files of two subvolumes have one number there.
"""

from __future__ import annotations

import fcntl
import os
import re
import struct
from pathlib import Path

_FLOCK = struct.Struct("hhqqi4x")
"""struct flock: type, whence, start, length, pid. Source: fcntl(2)."""
_LISTED = re.compile(r"OFDLCK\s+ADVISORY\s+\S+\s+-?\d+\s+([0-9a-f]+):([0-9a-f]+):(\d+)\s+(\d+)\s")
"""Device and inode, and the first byte of a lock. Source: proc(5), /proc/locks."""
_BYTES = range(100, 300)
"""QEMU locks single bytes here. Source: docs/system/images.rst of QEMU, and block/file-posix.c."""
_OFD = -1
"""The pid of a lock that belongs to an open file and not to a process. Source: fcntl(2)."""


def is_locked(path: str, found: os.stat_result) -> bool:
    """Return whether some QEMU has locked the file that was found at a path; it may block on its storage."""
    asked = ask(path, found)
    if asked is not None:
        return asked
    return (os.major(found.st_dev), os.minor(found.st_dev), found.st_ino) in listed(Path("/proc/locks"))


def ask(path: str, found: os.stat_result) -> bool | None:
    """Return what the kernel says of the file; None if it may not be asked, or if another program has locked it."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        if not os.path.samestat(os.fstat(descriptor), found):
            return None
        wanted = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, _BYTES.start, len(_BYTES), 0)
        kind, _, start, _, pid = _FLOCK.unpack(fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, wanted))
    except OSError:
        return None
    finally:
        os.close(descriptor)
    if kind == fcntl.F_UNLCK:
        return False
    return True if pid == _OFD and start in _BYTES else None


def listed(path: Path) -> set[tuple[int, int, int]]:
    """Return the files of QEMU's locks that a file of /proc lists: device numbers and inode."""
    try:
        locks = _LISTED.findall(path.read_text())
    except OSError:
        return set()
    return {(int(major, 16), int(minor, 16), int(node)) for major, minor, node, at in locks if int(at) in _BYTES}
