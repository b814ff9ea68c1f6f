"""Whether libvirt's lock daemon holds leases of images. Source: proc(5), and libvirt.org/kbase/locking-lockd.html."""

from __future__ import annotations

import os
from pathlib import Path

LOCKS = Path("/proc/locks")
PID_FILE = Path("/run/virtlockd.pid")


def virtlockd_holds(locks: Path = LOCKS, pid_file: Path = PID_FILE) -> bool:
    """Return whether virtlockd certainly has locked a file besides its pid file: an image, or what stands for one.

    The settings of libvirt are for root alone to read, and /proc may hide virtlockd itself.
    """
    try:
        pid, own = pid_file.read_text().strip(), _name(pid_file)
        lines = locks.read_text().splitlines()
    except OSError:
        return False
    # "1: POSIX  ADVISORY  WRITE 3642 fe:00:2196913 0 0"; one that waits for a lock has "->" after the number.
    held = [fields for line in lines if len(fields := line.split()) == _FIELDS and fields[1] == "POSIX"]
    return any(fields[4] == pid and fields[5] != own for fields in held)


_FIELDS = 8


def _name(path: Path) -> str:
    """Return what /proc/locks calls a file."""
    found = path.stat()
    return f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino}"
