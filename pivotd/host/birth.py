"""When a file was made: a file system gives the number of a deleted file to a new one, but not its time of birth."""

from __future__ import annotations

import os
import sys
from datetime import UTC, datetime
from functools import cache
from typing import Any

from pivotd.host.threads import look_at

_STATX_BTIME = 0x800
_AT_FDCWD = -100
_SIZE, _BTIME_AT = 256, 80
"""struct statx of statx(2): its size, and where stx_btime is, in bytes; stx_mask is at its start."""


def born(path: str) -> str | None:
    """Return when the file at a path was made, UTC, RFC 3339 with microseconds; it follows symbolic links.

    None: the file system does not keep that, there is no such file, or this process may not look.
    """
    look_at(path)
    statx = _statx()
    buffer = bytearray(_SIZE)
    if statx is None or "\0" in path or statx(os.fsencode(path), buffer):
        return None

    def number(at: int, size: int) -> int:
        return int.from_bytes(buffer[at : at + size], sys.byteorder)

    seconds = number(_BTIME_AT, 8)
    if not (number(0, 4) & _STATX_BTIME and 0 < seconds < 1 << 40):
        return None
    made = datetime.fromtimestamp(seconds, UTC).replace(microsecond=number(_BTIME_AT + 8, 4) // 1000)
    return made.isoformat(timespec="microseconds").replace("+00:00", "Z")


@cache
def _statx() -> Any:
    """Return a function that fills a buffer and returns 0 or -1; None if the C library has none."""
    try:
        import ctypes  # noqa: PLC0415 - 5 ms, and rarely needed

        function = ctypes.CDLL(None).statx
    except (ImportError, OSError, AttributeError, MemoryError):
        return None
    array = ctypes.c_char * _SIZE
    return lambda path, buffer: function(_AT_FDCWD, path, 0, _STATX_BTIME, array.from_buffer(buffer))
