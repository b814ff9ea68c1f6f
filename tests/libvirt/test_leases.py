"""virtlockd's leases, seen from /proc/locks by its pid file alone."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pivotd.host.leases import virtlockd_holds


@pytest.mark.parametrize(
    ("held", "leases"),
    [
        ("1: POSIX  ADVISORY  WRITE 77 {own} 0 0", False),
        ("1: POSIX  ADVISORY  WRITE 77 {own} 0 0\n2: POSIX  ADVISORY  WRITE 77 fe:00:5 0 0", True),
        ("1: OFDLCK ADVISORY  READ 77 fe:00:5 100 101\n2: POSIX  ADVISORY  WRITE 78 fe:00:5 0 0", False),
        ("1: POSIX  ADVISORY  WRITE 78 fe:00:5 0 0\n1: -> POSIX  ADVISORY  WRITE 77 fe:00:5 0 0", False),
    ],
)
def test_a_lock_beside_its_pid_file_is_a_lease(tmp_path: Path, held: str, leases: bool):
    """Not one of another process, not one of another kind, and not one that it waits for."""
    pid, locks = tmp_path / "virtlockd.pid", tmp_path / "locks"
    pid.write_text("77\n")
    found = pid.stat()
    own = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino}"
    locks.write_text(held.format(own=own) + "\n")
    assert virtlockd_holds(locks, pid) is leases


def test_without_virtlockd_there_are_none(tmp_path: Path):
    """There is no pid file."""
    assert virtlockd_holds(pid_file=tmp_path / "none") is False
