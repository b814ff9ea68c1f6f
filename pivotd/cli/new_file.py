"""A file that is there as a whole or not at all, and that takes nothing away that was there before."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pivotd.cli.complaints import UnusableFileError


def check(path: Path, *, force: bool) -> None:
    """Say early that a file cannot be written. Raises: UnusableFileError."""
    with _errors_of(path):
        if path.is_dir():
            raise UnusableFileError(f"{path} is a directory: name a file in it", path=str(path))
        if not force and os.path.lexists(path):
            raise UnusableFileError(f"{path} is there already: choose another name, or give --force", path=str(path))
        if path.exists() and not path.is_file():
            raise UnusableFileError(f"{path} is no file: choose another name", path=str(path))
        if not path.parent.is_dir():
            raise UnusableFileError(f"{path.parent} is no directory: make it first", path=str(path.parent))


def write(path: Path, content: bytes, *, force: bool) -> None:
    """Write a new file, or replace the old one if ``force``; a reader sees all of it or none.

    A kill leaves at most a hidden file beside it. Where the file is a symbolic link, ``force`` replaces what it leads
    to.

    Raises: UnusableFileError.
    """
    check(path, force=force)
    with _errors_of(path):
        target = path.resolve() if force else path
        handle, name = tempfile.mkstemp(prefix=".pivotctl-", dir=target.parent)
        made = Path(name)
        try:
            with os.fdopen(handle, "wb") as file:
                os.fchmod(file.fileno(), 0o666 & ~_umask())
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            if force:
                made.replace(target)
            else:
                _link(made, target)
        finally:
            made.unlink(missing_ok=True)


@contextmanager
def _errors_of(path: Path) -> Iterator[None]:
    """Name the file that was asked for in what the operating system says. Raises: UnusableFileError."""
    try:
        yield
    except OSError as error:
        why = f"{path}: {error.strerror or error}; check the path, your permissions and the room"
        raise UnusableFileError(why, path=str(path)) from error


def _link(made: Path, target: Path) -> None:
    """Give the file its name, which another program may have taken meanwhile."""
    try:
        target.hardlink_to(made)
    except FileExistsError:
        raise UnusableFileError(f"{target} is there already: choose another name, or give --force") from None
    except OSError:
        # No hard links there: a name of no length of time is what can be had.
        os.close(os.open(target, os.O_CREAT | os.O_EXCL, 0o600))
        made.replace(target)


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
