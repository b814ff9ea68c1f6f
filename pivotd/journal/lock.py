"""The lock file: one daemon owns the journal, and an offline reader copies it only while no daemon does."""

from __future__ import annotations

import fcntl
import os
import time
from contextlib import suppress
from pathlib import Path

from pivotd import limits
from pivotd.errors import JournalLockedError
from pivotd.journal.sqlite_failures import on_read

FILE_MODE = 0o640
RETRY_S = 0.01
"""Between two tries; a reader holds the lock for the milliseconds of one copy."""
WAITING_AT_BYTES = 32
"""Where a daemon that waits writes when it has last tried; the pid of the owner is before that."""
WAITING_S = 20 * RETRY_S
"""A daemon that has not tried for so long has given up, or is dead."""


def lock_path(journal: Path) -> Path:
    """Return the lock file that belongs to a journal."""
    return journal.with_name("journal.lock")


def acquire(journal: Path) -> int:
    """Take the lock for the life of the process and return its descriptor; closing it releases the lock.

    The kernel drops the lock with the process, so none is ever stale. The file holds the owner's process id.

    Raises: JournalLockedError after limits.JOURNAL_LOCK_TIMEOUT_S, JournalError.
    """
    path = lock_path(journal)
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, FILE_MODE)
    except OSError as error:
        raise on_read(error, path) from error
    try:
        _wait(descriptor, journal, path)
        # The lock is the flock; the number is for people and may be missing on a full disk.
        with suppress(OSError):
            os.fchmod(descriptor, FILE_MODE)
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _wait(descriptor: int, journal: Path, path: Path) -> None:
    deadline_s = time.monotonic() + limits.JOURNAL_LOCK_TIMEOUT_S
    while not _try(descriptor, fcntl.LOCK_EX):
        if time.monotonic() >= deadline_s:
            owner = (
                os.pread(descriptor, WAITING_AT_BYTES, 0).partition(b"\n")[0].decode("ascii", "replace") or "unknown"
            )
            raise JournalLockedError(
                f"{journal} belongs to another pivotd (process {owner}, lock file {path}); stop that one first",
                pid=owner,
            )
        # Readers that come and go would together hold the lock for ever: new ones stay away while this is recent.
        with suppress(OSError):
            os.pwrite(descriptor, f"{time.monotonic():.3f}\n".encode(), WAITING_AT_BYTES)
        time.sleep(RETRY_S)


def is_waited_for(journal: Path) -> bool:
    """Return whether a daemon waits for the lock."""
    try:
        with lock_path(journal).open("rb", buffering=0) as file:
            file.seek(WAITING_AT_BYTES)
            return 0 <= time.monotonic() - float(file.read(32)) < WAITING_S
    except (OSError, ValueError):
        return False


def try_shared(journal: Path) -> int | None:
    """Return a descriptor that keeps daemons out until it is closed, None while one owns the journal or waits for it.

    Creates nothing: a directory without a lock file has never had a daemon, then the descriptor is -1.
    """
    path = lock_path(journal)
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return -1
    except OSError as error:
        raise on_read(error, path) from error
    if not is_waited_for(journal) and _try(descriptor, fcntl.LOCK_SH):
        return descriptor
    os.close(descriptor)
    return None


def is_owned(journal: Path) -> bool:
    """Return whether a daemon owns the journal now; holds the lock for no longer than this question."""
    try:
        descriptor = os.open(lock_path(journal), os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return not _try(descriptor, fcntl.LOCK_SH)
    finally:
        os.close(descriptor)


def release(descriptor: int) -> None:
    """Release a lock; -1 means none."""
    if descriptor >= 0:
        os.close(descriptor)


def _try(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
