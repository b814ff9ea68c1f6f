"""Opening a journal without changing anything beside it, whether a daemon has it open or not."""

from __future__ import annotations

import sqlite3
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pivotd import limits
from pivotd.errors import JournalError, JournalLockedError, JournalNewerError
from pivotd.host.fsync import fsync_file
from pivotd.journal import lock, permissions, raw_files, schema, upgrade_copy
from pivotd.journal.sqlite_failures import READ_ERRORS, on_read, primary_code

_LIVE = "mode=ro&readonly_shm=1"
"""Without the second flag a reader would create or write ``journal.db-shm``."""

_ALONE = "mode=ro&immutable=1"
"""No process has it open and its WAL is empty: SQLite then needs no other file."""


def needs_recovery(error: sqlite3.Error) -> bool:
    """Return whether SQLite would have to write to read on: the index of the WAL is that of a process that died."""
    return primary_code(error) == sqlite3.SQLITE_READONLY


@dataclass(frozen=True, slots=True)
class Opened:
    """A read-only connection to a journal, or to a private copy of one.

    ``live``: a daemon has it open. ``held``: keeps daemons out, so it must not stay open longer than one look.
    """

    connection: sqlite3.Connection
    live: bool = False
    copy: tempfile.TemporaryDirectory[str] | None = None
    held: int = -1

    def close(self) -> None:
        """Close, let daemons in again, and remove the copy."""
        self.connection.close()
        lock.release(self.held)
        if self.copy is not None:
            self.copy.cleanup()


def journal_path(state_dir_or_file: Path) -> Path:
    """Return the journal of a state directory, or the file itself. Raises: JournalNotAllowedError, JournalError."""
    try:
        is_directory = state_dir_or_file.is_dir()
    except OSError as error:
        permissions.check(state_dir_or_file)
        raise on_read(error, state_dir_or_file) from error
    return state_dir_or_file / schema.FILE_NAME if is_directory else state_dir_or_file


def open_journal(state_dir_or_file: Path) -> Opened:
    """Open a journal for one look, or a private copy if it cannot be read in place without changing a byte.

    Raises: JournalError, JournalNotAllowedError, JournalCorruptError, JournalNewerError, JournalLockedError.
    """
    path = journal_path(state_dir_or_file)
    permissions.check(path)
    if not path.exists():
        raise JournalError(f"there is no journal at {path}; name the state_dir of the daemon or a copy of journal.db")
    if not path.is_file():  # a pipe would be waited for
        raise JournalError(f"{path} is no file; name the state_dir of the daemon or a copy of journal.db")
    deadline_s = time.monotonic() + limits.JOURNAL_LOCK_TIMEOUT_S
    try:
        while True:
            # SQLite itself waits for seconds where the daemon dies under its hands: the lock is free after that, so
            # only a try that began after the deadline is the last one.
            last = time.monotonic() >= deadline_s
            # A copy under another name never has a daemon.
            held = lock.try_shared(path) if path.name == schema.FILE_NAME else -1
            if held is not None:
                return _open_dead(path, held)
            if lock.is_owned(path) and (opened := _open_live(path)) is not None:
                return opened
            if last:
                raise JournalLockedError(
                    f"{path} is being opened or closed by a daemon that does not finish; try again"
                )
            time.sleep(lock.RETRY_S)
    except READ_ERRORS as error:
        raise on_read(error, path) from error
    except JournalNewerError as error:
        raise upgrade_copy.way_back(path, error) from error


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
    return Opened(connection, live=True)


def _check_live(connection: sqlite3.Connection, path: Path) -> None:
    version = schema.check_version(connection, path)
    if version < schema.SCHEMA_VERSION:
        raise JournalError(f"{path} belongs to an older pivotd that is running (schema {version}); use its pivotctl")
    schema.check_objects(connection, path)


def _open_dead(path: Path, held: int) -> Opened:
    """Open a journal that no daemon has open; ``held`` keeps daemons out, and is released once there is a copy."""
    try:
        raw_files.check_header(path)
        _make_durable(path)
        connection = _connect_in_place(path)
        if connection is not None:
            return Opened(connection, held=held)
        directory = tempfile.TemporaryDirectory(prefix="pivotd-")
        try:
            copy = raw_files.copy(path, Path(directory.name))
            opened = Opened(connect_copy(copy, path), copy=directory)
        except BaseException:
            directory.cleanup()
            raise
    except BaseException:
        lock.release(held)
        raise
    lock.release(held)
    return opened


def _connect_in_place(path: Path) -> sqlite3.Connection | None:
    """Return None if SQLite would have to change something: an older schema, a rollback, a WAL without its index.

    SQLite recovers the WAL of a killed daemon in memory, because its index is there but no process has it open.
    """
    frames = raw_files.wal_holds_frames(path)
    others = {suffix: path.with_name(path.name + suffix).exists() for suffix in ("-journal", "-shm")}
    if others["-journal"] or frames is None or (frames and not others["-shm"]):
        return None
    connection = schema.connect_read_only(path, _LIVE if frames else _ALONE)
    try:
        raw_files.check_size(connection, path, path)
        current = schema.check_version(connection, path) == schema.SCHEMA_VERSION
        if current:
            schema.check_objects(connection, path)
    except BaseException as error:
        connection.close()
        if isinstance(error, sqlite3.OperationalError) and needs_recovery(error):
            return None
        raise
    if not current:
        connection.close()
    return connection if current else None


def _make_durable(path: Path) -> None:
    """Make the last records durable before they are shown: a daemon may have been killed between write and fsync."""
    with suppress(FileNotFoundError):
        fsync_file(path.with_name(path.name + "-wal"))


def connect_copy(copy: Path, path: Path) -> sqlite3.Connection:
    """Open a private copy, in which SQLite may recover and an older schema may be upgraded."""
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
