"""A copy of the journal from before an upgrade of its schema: the way back to a pivotd that knows only that schema."""

from __future__ import annotations

import os
import re
import sqlite3
from contextlib import closing, suppress
from pathlib import Path

from pivotd import limits
from pivotd.errors import JournalError, JournalFullError, JournalNewerError
from pivotd.host.fsync import fsync_directory, fsync_file
from pivotd.journal import schema
from pivotd.journal.sqlite_failures import READ_ERRORS, on_read

_SUFFIX = re.compile(r"\.schema-([1-9][0-9]{0,5})")
_SIDE_FILES = ("-wal", "-shm", "-journal")


def path_of(journal: Path, version: int) -> Path:
    """Return the name of the copy that a journal of this schema gets before it is upgraded."""
    return journal.with_name(f"{journal.name}.schema-{version}")


def keep(journal: Path, version: int) -> Path:
    """Copy a journal that is about to be upgraded from this schema, and return the copy, whole and durable.

    It replaces the last one of the same schema in one step: a kill or a power cut at any point leaves that one or the
    new one. Of copies of other schemas, the newest stay. No process may write meanwhile.

    Raises: JournalFullError, JournalError: the journal was not upgraded, and all copies are as they were.
    """
    copy = path_of(journal, version)
    new = copy.with_name(copy.name + ".new")
    try:
        _remove(new)
        try:
            _copy(journal, new)
            new.rename(copy)
        except BaseException:
            with suppress(OSError):
                _remove(new)
            raise
        fsync_directory(copy.parent)
    except READ_ERRORS as error:
        raise _not_kept(journal, error) from error
    others = [number for number in _versions(journal) if number != version]
    for number in others[limits.JOURNAL_COPIES_MAX - 1 :]:
        with suppress(OSError):  # one copy too many loses nothing
            path_of(journal, number).unlink()
    return copy


def way_back(journal: Path, error: JournalNewerError) -> JournalNewerError:
    """Return the error of a journal that a newer pivotd has upgraded, with the copy to go back to, if there is one."""
    for number in _versions(journal):
        copy = path_of(journal, number)
        if number <= schema.SCHEMA_VERSION and (ends := _ends(copy)) is not None:
            return JournalNewerError(
                f"{error.message}, or go back to {copy} (docs/install.md): it ends at {ends}, "
                "and what was recorded later is lost then",
                **error.fields,
                copy=str(copy),
                ends=ends,
            )
    return error


def _copy(journal: Path, new: Path) -> None:
    """Write a copy of the journal with all that is in its WAL into a new file, and make it durable.

    The journal may need the recovery that a killed daemon has left to the next one: only who may write can do that.
    """
    os.close(os.open(new, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, schema.FILE_MODE))
    new.chmod(schema.FILE_MODE)  # whatever the umask is
    with (
        closing(sqlite3.connect(schema.uri(journal, "mode=rw"), uri=True)) as source,
        closing(sqlite3.connect(schema.uri(new, "mode=rw"), uri=True)) as target,
    ):
        source.backup(target)
    # SQLite does not report what fails while a connection is closed.
    if left := [name for suffix in _SIDE_FILES if (name := new.with_name(new.name + suffix)).exists()]:
        raise OSError(0, f"SQLite has left {left[0].name}")
    fsync_file(new)


def _ends(copy: Path) -> str | None:
    """Return the time of the last record of a copy, or of the file if it has none; None if it cannot be read."""
    try:
        with closing(schema.connect_read_only(copy, "mode=ro&immutable=1")) as connection:
            schema.check_version(connection, copy)
            row = connection.execute("SELECT at FROM record ORDER BY seq DESC LIMIT 1").fetchone()
    except (*READ_ERRORS, JournalError):
        return None
    return "its beginning" if row is None else str(row[0])


def _versions(journal: Path) -> list[int]:
    """Return the schemas of which there is a copy, the newest first; none where the directory cannot be read."""
    try:
        names = [path.name for path in journal.parent.iterdir()]
    except OSError:
        return []
    found = (_SUFFIX.fullmatch(name.removeprefix(journal.name)) for name in names if name.startswith(journal.name))
    return sorted((int(match[1]) for match in found if match), reverse=True)


def _not_kept(journal: Path, error: Exception) -> JournalError:
    said = on_read(error, journal)
    why = "no space left" if isinstance(said, JournalFullError) else str(getattr(error, "strerror", None) or error)
    return type(said)(
        f"{journal} is not upgraded, as no copy of it can be kept ({why}); "
        f"free {_megabytes(journal)} MB in {journal.parent}, or install the older pivotd again"
    )


def _megabytes(journal: Path) -> int:
    try:
        return (journal.stat().st_size >> 20) + 1
    except OSError:
        return 1


def _remove(path: Path) -> None:
    for suffix in ("", *_SIDE_FILES):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
