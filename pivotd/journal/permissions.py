"""Whether this process may read a journal; if not: what is closed, to whom it is open, and what to do."""

from __future__ import annotations

import grp
import os
import pwd
import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pivotd.errors import JournalNotAllowedError

LIVE_SUFFIXES = ("", "-wal", "-shm")
"""The files that SQLite reads."""


def check(path: Path) -> None:
    """Raises: JournalNotAllowedError: a directory above the journal, or a file of it, is not open to this process."""
    path = Path(os.path.realpath(path))
    # From the root down: behind a closed directory there is nothing to be seen.
    for directory in reversed(path.parents):
        if directory.is_dir() and not _may(directory, os.X_OK):
            raise _refused(directory, path, "enter")
    for suffix in LIVE_SUFFIXES:
        file = path.with_name(path.name + suffix)
        if file.exists() and not _may(file, os.R_OK):
            raise _refused(file, path, "read")
    lock = path.with_name("journal.lock")
    if lock.exists() and not _may(lock, os.R_OK):
        raise _refused(lock, path, "read")


def _may(path: Path, mode: int) -> bool:
    return os.access(path, mode, effective_ids=os.access in os.supports_effective_ids)


def _refused(what: Path, journal: Path, verb: str) -> JournalNotAllowedError:
    found = what.stat()
    owner, group = _name(pwd.getpwuid, found.st_uid), _name(grp.getgrgid, found.st_gid)
    need = stat.S_IXUSR if verb == "enter" else stat.S_IRUSR
    may = ["root"]
    if found.st_mode & need and owner != "root":
        may.append(owner)
    by_group = bool(found.st_mode & need >> 3)
    if by_group:
        may.append(f"members of the group {group}")
    who = " and ".join([", ".join(may[:-1]), may[-1]] if len(may) > 1 else may)
    remedy = (
        f"or ask to be put into that group (`usermod -aG {group} USER`, then log in again)"
        if by_group
        else "or ask the running pivotd instead: leave --offline out"
    )
    return JournalNotAllowedError(
        f"you may not {verb} {what}, so the journal {journal} cannot be read: only {who} may "
        f"(owner {owner}:{group}, mode {stat.S_IMODE(found.st_mode):04o}); run it as one of them (sudo), {remedy}",
        path=str(what),
    )


def _name(look_up: Callable[[int], Sequence[Any]], number: int) -> str:
    try:
        return str(look_up(number)[0])
    except KeyError:
        return str(number)
