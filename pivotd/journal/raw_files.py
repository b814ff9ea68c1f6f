"""Looking at a journal's files without SQLite: the header, the size, a copy."""

from __future__ import annotations

import os
import shutil
import sqlite3
import struct
from pathlib import Path

from pivotd.errors import JournalCorruptError

MAGIC = b"SQLite format 3\0"
HEADER_BYTES = 100
_WAL_HEADER_BYTES = 32
_WAL_MAGIC = b"\x37\x7f\x06"
_FRAME_HEADER_BYTES = 24
_COPIED = ("", "-wal", "-journal")
"""Never ``-shm``: it describes the locks and the memory of processes that do not use the copy."""


def check_header(path: Path) -> None:
    """Check that a file has an SQLite header and is not truncated. Raises: JournalCorruptError, OSError.

    Source: "Database File Format", sections 1.3.2 (page size), 1.3.7 and 1.3.8 (size in pages, version-valid-for).
    """
    with path.open("rb") as file:
        header = file.read(HEADER_BYTES)
        size_bytes = os.fstat(file.fileno()).st_size
    if not header:
        raise _damaged(path, "it is empty")
    if len(header) < HEADER_BYTES or not header.startswith(MAGIC):
        raise _damaged(path, "it does not begin like an SQLite file")
    wal = path.with_name(path.name + "-wal")
    if wal.exists() and wal.stat().st_size:
        return  # pages may still be in the WAL: check_size looks again, with them
    page_bytes = int.from_bytes(header[16:18]) if header[16:18] != b"\0\1" else 65536
    pages = int.from_bytes(header[28:32])
    if header[24:28] == header[92:96] and size_bytes < pages * page_bytes:
        raise _damaged(path, f"it has {size_bytes} of {pages * page_bytes} bytes")


def check_size(connection: sqlite3.Connection, path: Path, name: Path) -> None:
    """Check that the WAL can hold every page that the file lacks. Raises: JournalCorruptError."""
    page_bytes = connection.execute("PRAGMA page_size").fetchone()[0]
    pages = connection.execute("PRAGMA page_count").fetchone()[0]
    wal = path.with_name(path.name + "-wal")
    wal_bytes = wal.stat().st_size - _WAL_HEADER_BYTES if wal.exists() else 0
    frames = max(0, wal_bytes) // (_FRAME_HEADER_BYTES + page_bytes)
    # stat, not open: closing any descriptor of the file would drop SQLite's locks.
    if path.stat().st_size + frames * page_bytes < pages * page_bytes:
        raise _damaged(name, f"{pages} pages are named, the file and its WAL hold fewer")


def wal_holds_frames(path: Path) -> bool | None:
    """Return whether the WAL of a journal that is not open may hold records, None if its header is damaged.

    Source: "Database File Format", sections 4.1 (header) and 4.2 (checksum).
    """
    try:
        with path.with_name(path.name + "-wal").open("rb") as file:
            header, more = file.read(_WAL_HEADER_BYTES), file.read(1)
    except FileNotFoundError:
        return False
    if not more:
        return False
    order = ">" if header[3] & 1 else "<"
    words, (first, second) = struct.unpack(f"{order}6I", header[:24]), struct.unpack(">2I", header[24:])
    one = two = 0
    for index in range(0, 6, 2):
        one = (one + words[index] + two) & 0xFFFFFFFF
        two = (two + words[index + 1] + one) & 0xFFFFFFFF
    return True if header[:3] == _WAL_MAGIC and (one, two) == (first, second) else None


def copy(path: Path, directory: Path) -> Path:
    """Copy a journal with its WAL or rollback journal and return the copy; no process may write meanwhile."""
    target = directory / "journal.db"
    for suffix in _COPIED:
        source = path.with_name(path.name + suffix)
        if suffix and not source.exists():
            continue
        shutil.copyfile(source, target.with_name(target.name + suffix))
    return target


def _damaged(path: Path, why: str) -> JournalCorruptError:
    return JournalCorruptError(f"{path} is not a journal or is damaged ({why}); it was left as it is; restore a copy")
