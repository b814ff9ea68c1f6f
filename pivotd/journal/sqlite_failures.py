"""Converts SQLite's errors to pivotd's: what is known about the record, in one line."""

from __future__ import annotations

import errno
import os
import sqlite3
from pathlib import Path

from pivotd.errors import JournalCorruptError, JournalError, JournalFullError, JournalWriteError

READ_ERRORS = (sqlite3.Error, UnicodeDecodeError, OSError)
"""The exceptions of a look at a journal: Python cannot decode SQLite's message on a damaged name."""
_NOT_A_JOURNAL = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
_REFUSED = {sqlite3.SQLITE_CONSTRAINT, sqlite3.SQLITE_MISMATCH, sqlite3.SQLITE_TOOBIG}
_BUSY = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}


def primary_code(error: sqlite3.Error) -> int | None:
    """Return SQLite's primary result code, None for an error that Python's module raised by itself."""
    code: int | None = getattr(error, "sqlite_errorcode", None)
    return None if code is None else code & 0xFF


def on_write(error: Exception, path: Path, *, in_doubt: bool = False) -> JournalError:
    """Return the typed error for a change that was not committed.

    Only JournalWriteError leaves the fate of the record open. It is the result of every storage error while frames
    of this try or of an earlier one may be complete in the WAL (``in_doubt``), also of SQLITE_FULL: half of a new
    frame and half of the earlier contents can make up the complete frame. Source: test_full.py, test_journal_faults.py.
    """
    why = _why(error)
    if is_refusal(error):
        return JournalError(f"{path} does not take this change ({why}); nothing was recorded; report this as a bug")
    code = primary_code(error) if isinstance(error, sqlite3.Error) else None
    if in_doubt:
        return JournalWriteError(
            f"{path} could not be written ({why}); the record may or may not be there; check the storage below it"
        )
    if code in _NOT_A_JOURNAL:
        return JournalCorruptError(f"{path} is damaged ({why}); nothing was recorded; keep the file and restore a copy")
    if code == sqlite3.SQLITE_FULL:
        return JournalFullError(f"{path}: no space left ({why}); nothing was recorded; free space and try again")
    if code in _BUSY:
        return JournalError(f"{path} is being written by another program ({why}); nothing was recorded; end it")
    return JournalError(f"{path} could not be written ({why}); nothing was recorded; check the storage below it")


def is_refusal(error: Exception) -> bool:
    """Return whether an error says nothing about the storage: the change itself is wrong."""
    code = primary_code(error) if isinstance(error, sqlite3.Error) else None
    return code is None or code in _REFUSED


def may_leave_frames(error: Exception) -> bool:
    """Return whether an error can leave frames of the failed commit in the WAL."""
    code = primary_code(error) if isinstance(error, sqlite3.Error) else None
    return not is_refusal(error) and code not in _NOT_A_JOURNAL | _BUSY


def is_full(error: Exception) -> bool:
    """Return whether there was no space."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOSPC
    return isinstance(error, sqlite3.Error) and primary_code(error) == sqlite3.SQLITE_FULL


def on_read(error: Exception, path: Path) -> JournalError:
    """Return the typed error for a journal that cannot be opened or read; nothing was changed."""
    why = _why(error)
    if isinstance(error, OSError):
        if error.errno == errno.ENOSPC:
            return JournalFullError(f"{path}: no space left; nothing was recorded; free space and try again")
        return JournalError(f"{path} cannot be opened ({error.strerror}); check the path and its permissions")
    if isinstance(error, sqlite3.Error):
        code = primary_code(error)
        if code == sqlite3.SQLITE_FULL or (code == sqlite3.SQLITE_IOERR and _no_space(path)):
            return JournalFullError(f"{path}: no space left ({why}); nothing was recorded; free space and try again")
        if code not in _NOT_A_JOURNAL:
            return JournalError(f"{path} cannot be read ({why}); check its permissions and the storage below it")
    return JournalCorruptError(f"{path} is not a journal or is damaged ({why}); it was left as it is; restore a copy")


def _why(error: Exception) -> str:
    name = getattr(error, "sqlite_errorname", type(error).__name__)
    return f"{name}: {error}".replace("\n", " ")


def _no_space(path: Path) -> bool:
    """Return whether the file system is full: SQLite hides ENOSPC of its shared memory file behind an I/O error."""
    try:
        return os.statvfs(path.parent).f_bavail == 0
    except OSError:
        return False
