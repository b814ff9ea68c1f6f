"""Opening the journal: every check before the first byte is written, then the one read-write connection.

The order: the header without SQLite, then a read-only look that loads what the daemon needs, and only then a
connection that may write. A refused file is not touched. pivotd builds a new journal beside its place and renames it,
so ``journal.db`` is never incomplete.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from types import ModuleType
from urllib.parse import quote

import pivotd
from pivotd.errors import JournalCorruptError, JournalError, JournalNewerError
from pivotd.host.fsync import fsync_directory, fsync_file
from pivotd.journal import place, raw_files
from pivotd.journal.rows import SELECT_OPEN, load_pivots
from pivotd.journal.sqlite_failures import READ_ERRORS, on_read

SCHEMA_VERSION = 15
"""The number of the last step in migrations/migrations.py."""
APPLICATION_ID = 0x70767464
FILE_NAME = "journal.db"
FILE_MODE = 0o640
NUMBER_MAX = 1 << 53
"""Largest number of a record or pivot that JSON readers tell apart. At a million a second it lasts 300 years."""
BUSY_TIMEOUT_MS = 250
"""Time to wait for another program's write lock; half of the default bound of a pause."""

_OBJECTS = {
    "table": {
        "archive",
        "archived",
        "archiving",
        "domain",
        "guest_to_release",
        "pivot",
        "pivot_disk",
        "disk_latest",
        "image_latest",
        "journal_file",
        "overwritten",
        "pause",
        "record",
    },
    "trigger": {
        "record_no_update",
        "record_no_delete",
        "record_no_replace",
        "pause_no_update",
        "pause_no_delete",
        "pivot_no_delete",
        "pivot_disk_no_delete",
        "pivot_disk_latest",
        "disk_latest_no_delete",
        "pivot_disk_images",
        "pivot_disk_image_made",
        "pivot_disk_image_accepted",
        "image_latest_no_delete",
        "disk_latest_accepted",
        "overwritten_accepted",
        "archive_no_delete",
        "archived_no_delete",
        "archived_no_update",
        "archiving_only_archived",
        "pivot_not_archived",
    },
    "index": {
        "archived_by_domain",
        "archived_undo_of",
        "disk_latest_by_pivot",
        "image_latest_by_file",
        "image_latest_by_pivot",
        "pivot_by_domain",
        "pivot_open",
        "pivot_undo_of",
        "record_by_pivot",
    },
}
_PRAGMAS: tuple[tuple[str, str, object], ...] = (
    ("journal_mode", "WAL", "wal"),
    ("synchronous", "FULL", 2),
    ("foreign_keys", "ON", 1),
    ("wal_autocheckpoint", "0", 0),
    ("busy_timeout", str(BUSY_TIMEOUT_MS), BUSY_TIMEOUT_MS),
    ("recursive_triggers", "ON", 1),
    ("trusted_schema", "OFF", 0),
    ("cell_size_check", "ON", 1),
    ("temp_store", "MEMORY", 2),
    ("mmap_size", "0", 0),
)
_ARCHIVE_PRAGMAS = (
    ("journal_mode", "DELETE", "delete"),
    ("synchronous", "EXTRA", 3),
    *((name, value, found) for name, value, found in _PRAGMAS if name not in {"journal_mode", "synchronous"}),
)
"""EXTRA: the end of a transaction is the removal of its rollback journal, and that must be durable too."""
_READ_PRAGMAS: tuple[tuple[str, str, object], ...] = (
    ("query_only", "ON", 1),
    ("busy_timeout", str(BUSY_TIMEOUT_MS), BUSY_TIMEOUT_MS),
    ("trusted_schema", "OFF", 0),
    ("cell_size_check", "ON", 1),
    ("temp_store", "MEMORY", 2),
    ("mmap_size", "0", 0),
)


def prepare(path: Path, before_upgrade: Callable[[Path, int], object]) -> None:
    """Create or upgrade the journal at ``path`` to this version; the caller holds the lock.

    ``before_upgrade`` is called with the path and its present version before a byte of an older journal changes.

    Raises: JournalCorruptError, JournalNewerError, JournalFullError, JournalError; the file is then as it was.
    """
    try:
        if not path.exists():
            _create(path)
        elif (version := inspect(path)) < SCHEMA_VERSION:
            _rehearse(path)
            before_upgrade(path, version)
            migrate(path)
    except READ_ERRORS as error:
        raise on_read(error, path) from error


def connect(path: Path) -> sqlite3.Connection:
    """Return the read-write connection of the calling thread, every pragma set and read back."""
    connection = sqlite3.connect(uri(path, "mode=rw"), uri=True, isolation_level=None, cached_statements=64)
    return _configured(connection, _PRAGMAS)


def connect_archive(path: Path) -> sqlite3.Connection:
    """Return a connection that writes to an archive; any thread may use it, one at a time."""
    connection = sqlite3.connect(uri(path, "mode=rw"), uri=True, isolation_level=None, check_same_thread=False)
    return _configured(connection, _ARCHIVE_PRAGMAS)


def connect_read_only(path: Path, flags: str = "mode=ro") -> sqlite3.Connection:
    """Return a connection that cannot write; any thread may use it, one at a time."""
    connection = sqlite3.connect(uri(path, flags), uri=True, isolation_level=None, check_same_thread=False)
    return _configured(connection, _READ_PRAGMAS)


def inspect(path: Path) -> int:
    """Return the schema version of an existing journal without changing a byte of it.

    Reads everything that a start needs, so damage there shows now. Damage in old records does not: see Reader.check.

    Raises: JournalCorruptError, JournalNewerError, and what SQLite and the operating system raise.
    """
    # Opening the file here would drop the locks of an SQLite connection of the same process; there is none yet.
    raw_files.check_header(path)
    if path.with_name(path.name + "-journal").exists():
        # Something was killed while it wrote without WAL: only a copy can be rolled back without changing the file.
        with tempfile.TemporaryDirectory(prefix="pivotd-") as directory:
            return _inspect(raw_files.copy(path, Path(directory)), "mode=rw", path)
    wal = path.with_name(path.name + "-wal")
    if not wal.exists() or not wal.stat().st_size:
        return _inspect(path, "mode=ro&immutable=1", path)
    shared_memory = path.with_name(path.name + "-shm")
    had_shared_memory = shared_memory.exists()
    try:
        return _inspect(path, "mode=ro", path)
    finally:
        if not had_shared_memory:
            shared_memory.unlink(missing_ok=True)


def check_version(connection: sqlite3.Connection, path: Path) -> int:
    """Return the schema version behind a connection. Raises: JournalCorruptError, JournalNewerError."""
    owner = connection.execute("PRAGMA application_id").fetchone()[0]
    version: int = connection.execute("PRAGMA user_version").fetchone()[0]
    if owner != APPLICATION_ID or version < 1:
        raise JournalCorruptError(
            f"{path} is an SQLite file but not a journal of pivotd; it was left as it is; set another state_dir"
        )
    if version > SCHEMA_VERSION:
        raise JournalNewerError(
            f"{path} was written by a newer pivotd (schema {version}, this one knows {SCHEMA_VERSION}); "
            f"it was left as it is; install the newer pivotd again",
            version=version,
        )
    return version


def check_objects(connection: sqlite3.Connection, path: Path) -> None:
    """Check that the schema is complete. Raises: JournalCorruptError."""
    for kind, names in _OBJECTS.items():
        found = {row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = ?", (kind,))}
        if missing := sorted(names - found):
            raise JournalCorruptError(
                f"{path} lacks the {kind} {missing[0]}; it was left as it is; restore a copy", missing=missing
            )


def migrate(path: Path, name: Path | None = None) -> None:
    """Apply the pending steps, one transaction each, and make them durable before anything else happens.

    ``name``: the journal of which ``path`` is a copy. Raises: JournalCorruptError.
    """
    import sqlite_utils  # noqa: PLC0415 - costs 75 ms, so only where a step is pending

    with closing(connect(path)) as connection:
        database = sqlite_utils.Database(connection, execute_plugins=False)
        _load_migrations().migrations.apply(database)
        found = connection.execute("PRAGMA user_version").fetchone()[0]
    if found != SCHEMA_VERSION:
        raise JournalCorruptError(
            f"{name or path} cannot be upgraded (the steps end at schema {found}, not {SCHEMA_VERSION}); restore a copy"
        )
    fsync_directory(path.parent)


def _rehearse(path: Path) -> None:
    """Upgrade a copy first: a file that does not match its version is then refused before a byte of it changes."""
    with tempfile.TemporaryDirectory(prefix="pivotd-") as directory:
        copy = raw_files.copy(path, Path(directory))
        migrate(copy, path)
        _inspect(copy, "mode=rw", path)


def uri(path: Path, flags: str) -> str:
    """Return the SQLite URI of a path, with the path escaped."""
    return f"file:{quote(os.fsencode(path.absolute()))}?{flags}"


def _inspect(path: Path, flags: str, name: Path) -> int:
    try:
        with closing(sqlite3.connect(uri(path, flags), uri=True, isolation_level=None)) as connection:
            connection.row_factory = sqlite3.Row
            version = check_version(connection, name)
            raw_files.check_size(connection, path, name)
            if version == SCHEMA_VERSION:
                check_objects(connection, name)
                _check_numbers(connection, name)
                load_pivots(connection, SELECT_OPEN)
                connection.execute("SELECT name, qmp_path FROM domain").fetchall()
                connection.execute("SELECT * FROM record ORDER BY seq DESC LIMIT 1").fetchone()
            return version
    except (ValueError, TypeError, LookupError) as error:
        raise on_read(error, name) from error


def _check_numbers(connection: sqlite3.Connection, path: Path) -> None:
    """Check that a record and a pivot can be added: after the largest number, SQLite reports SQLITE_FULL.

    Raises: JournalCorruptError.
    """
    numbers = [row[0] for row in connection.execute("SELECT seq FROM sqlite_sequence")]
    for column, table in (("seq", "record"), ("number", "pivot")):
        for end in ("min", "max"):  # two statements: SQLite looks up one end, and reads the table for both
            numbers += connection.execute(f"SELECT {end}({column}) FROM {table}").fetchone()  # noqa: S608 - ours
    if wrong := [number for number in numbers if number is not None and not 0 <= number < NUMBER_MAX]:
        raise JournalCorruptError(
            f"{path} is damaged (a row has number {wrong[0]}); it was left as it is; restore a copy"
        )


def _create(path: Path) -> None:
    """Build an empty journal. Raises: JournalCorruptError."""
    wal = path.with_name(path.name + "-wal")
    if wal.exists() and wal.stat().st_size:
        # SQLite would replay these frames onto the new file.
        raise JournalCorruptError(
            f"{path} is gone but {wal.name} is still there; both were left as they are; "
            f"restore {path.name}, or move {wal.name} away to begin an empty journal"
        )
    build(path, _claim)


def build(path: Path, complete: Callable[[Path], None], like: Path | None = None) -> None:
    """Build a file of this schema beside its place, make it durable, and give it its name; ``like``: from a copy.

    ``complete`` changes the file before it has its name, and must leave it without a connection.
    """
    new = path.with_name(path.name + ".new")
    leftovers = [new.with_name(new.name + suffix) for suffix in ("", "-wal", "-shm", "-journal")]
    for leftover in leftovers:
        leftover.unlink(missing_ok=True)
    try:
        descriptor = os.open(new, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, FILE_MODE)
        os.fchmod(descriptor, FILE_MODE)
        os.close(descriptor)
        if like is None:
            _give_pages_back(new)
        else:
            shutil.copyfile(like, new)
        migrate(new)
        complete(new)
        _check_whole(new)
        fsync_file(new)
        new.rename(path)
    except BaseException:
        for leftover in leftovers:
            leftover.unlink(missing_ok=True)
        raise
    fsync_directory(path.parent)


def _give_pages_back(new: Path) -> None:
    """Let the file become smaller after rows have left it. SQLite takes this before the first table, or by VACUUM."""
    with closing(sqlite3.connect(uri(new, "mode=rw"), uri=True, isolation_level=None)) as connection:
        _set(connection, "auto_vacuum", "INCREMENTAL", 2)
        connection.execute("VACUUM")


def _claim(new: Path) -> None:
    """Note which file the journal is: renaming keeps that, copying does not."""
    with closing(connect(new)) as connection:
        connection.execute("INSERT INTO journal_file VALUES (?)", (place.identity(new),))


def _check_whole(new: Path) -> None:
    """Check that closing has moved everything into the file and removed the WAL: SQLite does not report a failure."""
    if new.with_name(new.name + "-wal").exists():
        raise JournalError(f"{new} could not be made; nothing was recorded; check the storage below it")


def _configured(connection: sqlite3.Connection, pragmas: tuple[tuple[str, str, object], ...]) -> sqlite3.Connection:
    connection.row_factory = sqlite3.Row
    try:
        for name, value, expected in pragmas:
            _set(connection, name, value, expected)
    except BaseException:
        connection.close()
        raise
    return connection


def _set(connection: sqlite3.Connection, name: str, value: str, expected: object) -> None:
    connection.execute(f"PRAGMA {name} = {value}").fetchall()
    row = connection.execute(f"PRAGMA {name}").fetchone()
    found = None if row is None else row[0]
    if found != expected:
        raise JournalError(f"SQLite does not take PRAGMA {name} = {value} (it says {found}); use another build")


def _load_migrations() -> ModuleType:
    """Import the migrations by path: inside an installed package, beside the package in a checkout."""
    package = Path(pivotd.__file__).parent
    candidates = (package / "migrations" / "migrations.py", package.parent / "migrations" / "migrations.py")
    for candidate in candidates:
        if candidate.exists():
            spec = importlib.util.spec_from_file_location("pivotd_migrations", candidate)
            assert spec is not None
            assert spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            return module
    raise JournalError(f"{candidates[0]} is missing; install pivotd again")
