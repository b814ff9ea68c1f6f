"""Getting at a journal without changing anything beside it, whether a daemon has it or not."""

from __future__ import annotations

import sqlite3
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from pivotd import limits
from pivotd.errors import JournalError, JournalLockedError
from pivotd.journal import lock, raw_files, schema
from pivotd.journal.sqlite_failures import READ_ERRORS, on_read

_LIVE = "mode=ro&readonly_shm=1"
"""Without the second flag a reader would create or write ``journal.db-shm``."""

Opened = tuple[Path, sqlite3.Connection, tempfile.TemporaryDirectory[str] | None]


def journal_path(state_dir_or_file: Path) -> Path:
    """Return the journal of a state directory, or the file itself."""
    return state_dir_or_file / schema.FILE_NAME if state_dir_or_file.is_dir() else state_dir_or_file


def open_journal(state_dir_or_file: Path) -> Opened:
    """Return the path, a read-only connection and the private directory that the caller must remove, if any.

    Raises: JournalError, JournalCorruptError, JournalNewerError, JournalLockedError.
    """
    path = journal_path(state_dir_or_file)
    if not path.exists():
        raise JournalError(f"there is no journal at {path}; name the state_dir of the daemon or a copy of journal.db")
    deadline_s = time.monotonic() + limits.JOURNAL_LOCK_TIMEOUT_S
    try:
        while True:
            # SQLite itself waits for seconds where the daemon dies under its hands: the lock is free after that, so
            # only a try that began after the deadline is the last one.
            last = time.monotonic() >= deadline_s
            # A copy under another name never has a daemon.
            held = lock.try_shared(path) if path.name == schema.FILE_NAME else -1
            if held is not None:
                try:
                    return _open_copy(path)
                finally:
                    lock.release(held)
            if (opened := _open_live(path)) is not None:
                return opened
            if last:
                raise JournalLockedError(
                    f"{path} is being opened or closed by a daemon that does not finish; try again"
                )
            time.sleep(lock.RETRY_S)
    except READ_ERRORS as error:
        raise on_read(error, path) from error


def _open_live(path: Path) -> Opened | None:
    """Return None while the daemon is between taking the lock and opening the journal, or closing it."""
    if not all(path.with_name(path.name + suffix).exists() for suffix in ("-wal", "-shm")):
        return None
    try:
        connection = schema.connect_read_only(path, _LIVE)
    except sqlite3.OperationalError:
        return None
    try:
        _check_live(connection, path)
    except BaseException as error:
        connection.close()
        if isinstance(error, sqlite3.OperationalError):
            return None
        raise
    return path, connection, None


def _check_live(connection: sqlite3.Connection, path: Path) -> None:
    version = schema.check_version(connection, path)
    if version < schema.SCHEMA_VERSION:
        raise JournalError(f"{path} belongs to an older pivotd that is running (schema {version}); use its pivotctl")
    schema.check_objects(connection, path)


def _open_copy(path: Path) -> Opened:
    directory = tempfile.TemporaryDirectory(prefix="pivotd-")
    try:
        raw_files.check_header(path)
        _make_durable(path)
        copy = raw_files.copy(path, Path(directory.name))
        connection = _connect_copy(copy, path)
    except BaseException:
        directory.cleanup()
        raise
    return path, connection, directory


def _make_durable(path: Path) -> None:
    """Make the last records durable before they are told: a daemon may have been killed between write and fsync."""
    with suppress(FileNotFoundError):
        schema.fsync_file(path.with_name(path.name + "-wal"))


def _connect_copy(copy: Path, path: Path) -> sqlite3.Connection:
    """Open a private copy; here SQLite may recover, and an older schema be upgraded, as it likes."""
    connection = sqlite3.connect(schema.uri(copy, "mode=rw"), uri=True, isolation_level=None)
    try:
        raw_files.check_size(connection, copy, path)
        version = schema.check_version(connection, path)
    finally:
        connection.close()
    if version < schema.SCHEMA_VERSION:
        schema.migrate(copy, path)
    connection = schema.connect_read_only(copy)
    try:
        schema.check_objects(connection, path)
    except BaseException:
        connection.close()
        raise
    return connection
