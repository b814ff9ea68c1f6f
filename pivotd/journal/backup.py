"""A copy of a journal and its archives in a directory of its own, while a daemon runs or not.

SQLite's backup interface copies one state of each file. The directory gets its name last: it is whole, or not there.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from pivotd import limits
from pivotd.errors import ArchiveError, ConflictError, JournalError, JournalFullError, JournalLockedError
from pivotd.host.fsync import fsync_directory, fsync_file
from pivotd.journal import archives, lock, offline, schema
from pivotd.journal.sqlite_failures import READ_ERRORS, is_full, on_read

PAGES_AT_ONCE = 1000
"""Between two looks whether a daemon wants to start: some milliseconds."""
_OF_A_JOURNAL = {schema.FILE_NAME, *(schema.FILE_NAME + suffix for suffix in ("-wal", "-shm"))}


@dataclass(frozen=True, slots=True)
class BackUp:
    """What was copied. ``obstacles``: one line for each archive that could not be."""

    path: str
    size_bytes: int
    archives: tuple[str, ...]
    obstacles: tuple[str, ...]


def holds_backup(target: Path) -> bool:
    """Return whether a backup is there already. Raises: ConflictError: something else is; OSError."""
    if not os.path.lexists(target):
        return False
    if not target.is_dir() or target.is_symlink():
        raise ConflictError(f"{target} is not a directory: name one that pivotctl may make", path=str(target))
    if os.path.lexists(lock.lock_path(target / schema.FILE_NAME)):  # which readers do not make
        raise ConflictError(f"{target} holds the journal of a pivotd, and no backup: name another directory")
    found = {entry.name for entry in target.iterdir()}
    others = sorted(name for name in found - _OF_A_JOURNAL if not archives.NAME.fullmatch(name))
    if others or (found and schema.FILE_NAME not in found):
        what = (others or sorted(found))[0]
        raise ConflictError(f"{target} holds other files, such as {what}: name an empty directory, or a new one")
    return bool(found)


def back_up(state_dir_or_file: Path, target: Path, *, replace: bool = False) -> BackUp:
    """Copy a journal and its archives into ``target``, which becomes a directory; ``replace``: or was a backup before.

    The copy names no file of its own: a daemon that starts on it is certain of no verdict until it has seen QEMU.

    Raises: ConflictError, JournalError, OSError; then nothing has changed.
    """
    source = offline.journal_path(state_dir_or_file)
    target = target.absolute()
    here, there = archives.directory(source), Path(os.path.realpath(target))
    if there == here or there in here.parents:
        raise ConflictError(f"{target} is the place of the journal itself: name another directory", path=str(target))
    if holds_backup(target) and not replace:
        raise ConflictError(f"{target} holds a backup already: name another directory", path=str(target))
    new = target.with_name(f"{target.name}.part-{os.getpid()}")
    new.mkdir(mode=0o750)
    try:
        done = _fill(source, new, target)
        _refuse_to_lose(done, target)
        fsync_directory(new)
        _put(new, target)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise
    return done


def _fill(source: Path, new: Path, target: Path) -> BackUp:
    names = _copy_journal(source, new / schema.FILE_NAME)
    found = archives.Archives(source, {}, owner=False)
    copied, obstacles = [], []
    try:
        for name in names:
            try:
                found.read(name, lambda connection, name=name: _copy(connection, new / name))  # type: ignore[misc]
                copied.append(name)
            except (ArchiveError, JournalLockedError) as error:
                if isinstance(error.__cause__, READ_ERRORS) and is_full(error.__cause__):
                    raise _no_room(target) from error
                (new / name).unlink(missing_ok=True)
                obstacles.append(error.message)
    finally:
        found.forget_copies()
    size_bytes = sum(entry.stat().st_size for entry in new.iterdir())
    return BackUp(str(target), size_bytes, tuple(copied), tuple(obstacles))


def _refuse_to_lose(done: BackUp, target: Path) -> None:
    """Raises: ConflictError: a backup would be replaced by one that lacks an archive of it."""
    lost = [name for name in (_archives_in(target) if done.obstacles else ()) if name not in done.archives]
    if lost:
        raise ConflictError(
            f"{done.obstacles[0]}; the backup in {target} has it, and was left as it is: name another directory",
            path=str(target),
        )


def _archives_in(target: Path) -> list[str]:
    return (
        sorted(entry.name for entry in target.iterdir() if archives.NAME.fullmatch(entry.name))
        if target.exists()
        else []
    )


def _no_room(target: Path) -> JournalFullError:
    return JournalFullError(f"{target.parent}: no space left for the backup; free some")


def _copy_journal(source: Path, copy: Path) -> list[str]:
    """Copy the journal and return the names of its archives. Raises: JournalError."""
    for _ in range(limits.DEAD_DAEMON_LOOKS):
        opened = offline.open_journal(source)
        try:
            opened.connection.execute("BEGIN")
            names = archives.names(opened.connection)
            _copy(opened.connection, copy, source if opened.held >= 0 else None)
            _disown(copy)
        except _WantedError:
            continue
        except READ_ERRORS as error:
            if is_full(error):
                raise _no_room(copy.parent) from error
            raise on_read(error, source) from error
        else:
            return names
        finally:
            opened.close()
    raise JournalLockedError(f"{source} is being opened by a daemon that does not finish; try again")


class _WantedError(JournalError):
    """A daemon waits for the journal: it may have a paused guest to look after."""


def _copy(connection: sqlite3.Connection, copy: Path, held: Path | None = None) -> None:
    """Copy one state of a database, durably; ``held``: a journal that no daemon can open meanwhile."""

    def look(_status: int, _left: int, _pages: int) -> None:
        if held is not None and lock.is_waited_for(held):
            raise _WantedError(str(held))

    copy.unlink(missing_ok=True)
    os.close(os.open(copy, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, schema.FILE_MODE))
    if not connection.in_transaction:
        connection.execute("BEGIN")
        connection.execute("SELECT 1 FROM pivot LIMIT 1").fetchall()  # one state, whatever is written meanwhile
    with closing(sqlite3.connect(schema.uri(copy, "mode=rw"), uri=True, isolation_level=None)) as made:
        connection.backup(made, pages=PAGES_AT_ONCE, progress=look)
    fsync_file(copy)


def _disown(copy: Path) -> None:
    """Forget which file the journal is."""
    with closing(schema.connect(copy)) as connection:
        connection.execute("DELETE FROM journal_file")
    fsync_file(copy)


def _put(new: Path, target: Path) -> None:
    """Give the copy its name. A backup from before keeps another name until that is done."""
    old = target.with_name(f"{target.name}.old-{os.getpid()}")
    had = target.exists()
    if had:
        target.rename(old)
    new.rename(target)
    fsync_directory(target.parent)
    if had:
        shutil.rmtree(old, ignore_errors=True)
