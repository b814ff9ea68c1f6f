"""The QEMU process of a domain that libvirt manages. libvirt's interface does not tell its pid; its files do."""

from __future__ import annotations

import os
from pathlib import Path

from pivotd.core.pivot import Pivot
from pivotd.host import process
from pivotd.libvirt.libvirt_files import run_directories

NONCE = "libvirt-"
"""How the nonce of a pivot of libvirt's begins: uuid and mark follow."""
UUID_LENGTH = 36


def find(uri: str, name: str, uuid: str) -> tuple[int, str] | None:
    """Return the pid of a domain's QEMU, and a mark that another process of the same domain does not have.

    The mark is the time when libvirt wrote the pid: /proc may hide when the process began.
    """
    likely, *others = run_directories(uri)
    for directory in (likely, *others):
        file = directory / f"{name}.pid"
        try:
            pid, written = int(file.read_text()), file.stat().st_mtime_ns
        except (OSError, ValueError):
            continue
        if _may_be(pid, uuid, visibly=directory != likely):
            return pid, f"{written:x}"
    return None


def of_pivot(pivot: Pivot) -> int | None:
    """Return the pid of the QEMU in which the guest of one of libvirt's pivots runs now; None: nothing shows one."""
    uuid = pivot.identity.nonce.removeprefix(NONCE)[:UUID_LENGTH]
    found = find(pivot.qmp, pivot.domain, uuid)
    return None if found is None else found[0]


def _may_be(pid: int, uuid: str, *, visibly: bool) -> bool:
    """Return whether a process may be a domain's QEMU: it lives, and its command line has the uuid.

    Unless it has to be so ``visibly``, a command line that /proc hides is taken to have it.
    """
    try:
        line = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        if visibly:
            return False
        try:
            pidfd = process.opened(pid)
        except OSError:
            return True
        if pidfd is not None:
            os.close(pidfd)
        return pidfd is not None
    return uuid.encode() in line
