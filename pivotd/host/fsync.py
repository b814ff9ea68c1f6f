"""Making files, and names in directories, durable. It blocks."""

from __future__ import annotations

import os
from pathlib import Path


def fsync_directory(directory: Path) -> None:
    """Make names in a directory durable. Raises: OSError."""
    _fsync(directory, os.O_DIRECTORY)


def fsync_file(path: Path) -> None:
    """Make the contents of a file durable, whichever process wrote it. Raises: OSError.

    Never of an open SQLite database: closing it drops this process's locks.
    """
    _fsync(path, 0)


def _fsync(path: Path, flags: int) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
