"""Flush images outside the pause. The flush also shows whether the storage answers at all.

``stop`` flushes the source, and the mirror's completion flushes the destination, while the guest is paused. Data
flushed earlier costs nothing then. A file system that hangs shows here, while the guest still runs.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Sequence

from pivotd import limits
from pivotd.host.threads import in_thread


class Flusher:
    """Flushes files. A file that hangs gets no second call: its path has no thread left."""

    async def flush(self, paths: Sequence[str], timeout_s: float = limits.PROBE_TIMEOUT_S) -> float | None:
        """Flush all files concurrently; return the milliseconds it took, None if pivotd may not open one.

        Raises: TimeoutError: the storage does not answer in time. OSError: it reported an I/O error.
        """
        started = time.monotonic()
        distinct = dict.fromkeys(paths)
        readable = await asyncio.gather(*(in_thread(timeout_s, _fdatasync, path, paths=[path]) for path in distinct))
        return (time.monotonic() - started) * 1000 if all(readable) else None


def _fdatasync(path: str) -> bool:
    try:
        # Open for reading is enough, and O_NONBLOCK keeps a FIFO of that name from blocking the thread.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        os.fdatasync(fd)
    finally:
        os.close(fd)
    _sync_name(path)
    return True


def _sync_name(path: str) -> None:
    """Make the name of a new file durable too, if its directory may be opened; most file systems have done it above."""
    try:
        fd = os.open(os.path.dirname(path) or ".", os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY)  # noqa: PTH120
    except OSError:
        return
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
