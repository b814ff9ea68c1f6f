"""Removing what a failed commit may have left in the WAL.

A failed commit is rolled back for every reader, but its frames may be complete in the file, perhaps with bytes that an
older generation of the WAL left there, and a crash would bring them back. No reader needs anything after the last valid
frame: without it the record is certainly absent. Removing it takes no space, and waits for no reader.
"""

from __future__ import annotations

import os
import sqlite3
import struct
from contextlib import suppress
from pathlib import Path

_INDEX_VERSION = 3007000
_INDEX = struct.Struct("=I 8x ? x H I")
"""Version, whether it is filled, bytes of a page, number of the last frame that counts; in this machine's order."""
_PAGE_BYTES_MIN = 512
"""The number 1 stands for 65536 there, and 0 is there before the first frame."""
_HEADER_BYTES = 32
_FRAME_HEADER_BYTES = 24


def path_of(journal: Path) -> Path:
    """Return the name of the WAL. SQLite keeps no lock on that file, so pivotd may open and close it."""
    return journal.with_name(journal.name + "-wal")


def open_index(journal: Path) -> int:
    """Return a descriptor of the WAL-index of an open connection. Close it after that one: closing drops its locks."""
    return os.open(journal.with_name(journal.name + "-shm"), os.O_RDONLY | os.O_CLOEXEC)


def cut(connection: sqlite3.Connection, journal: Path, index: int) -> None:
    """Remove every invalid frame, durably. Raises: sqlite3.Error, OSError; then nothing is certain.

    Source: "WAL-mode File Format", section 2.1 (``mxFrame``); "Database File Format", section 4.1.
    """
    connection.execute("BEGIN IMMEDIATE")  # only who writes changes the length
    try:
        counted_bytes = _counted_bytes(os.pread(index, _INDEX.size, 0))
        descriptor = os.open(path_of(journal), os.O_RDWR | os.O_CLOEXEC)
        try:
            if os.fstat(descriptor).st_size > counted_bytes:
                os.ftruncate(descriptor, counted_bytes)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    finally:
        with suppress(sqlite3.Error):
            connection.execute("ROLLBACK")


def _counted_bytes(index: bytes) -> int:
    """Return the length of the WAL up to the last valid frame. Raises: OSError: the format of the index is unknown."""
    if len(index) == _INDEX.size:
        version, filled, page_bytes, frames = _INDEX.unpack(index)
        if version == _INDEX_VERSION and filled and (page_bytes >= _PAGE_BYTES_MIN or not frames):
            size_bytes: int = _HEADER_BYTES + frames * (_FRAME_HEADER_BYTES + page_bytes)
            return size_bytes
    raise OSError("the WAL-index is not one that pivotd knows")
