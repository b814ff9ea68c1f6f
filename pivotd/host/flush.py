"""Flush images outside the pause. The flush also shows whether the storage answers at all.

``stop`` flushes the source, and the mirror's completion flushes the destination, while the guest is paused. Data
flushed earlier costs nothing then. A file system that hangs shows here, while the guest still runs.
"""

from __future__ import annotations

import asyncio
import errno
import os
import time
from collections.abc import Sequence

from pivotd import limits
from pivotd.host.threads import in_thread

_CANNOT_BE_FLUSHED = frozenset({errno.EINVAL, errno.EROFS})
"""Of a file that is none of those that are written to disk; everything else may have cost data."""


class Flusher:
    """Flushes the files of one pivot. A file that hangs gets no second call: its path has no thread left."""

    def __init__(self) -> None:
        self.failed: dict[str, str] = {}
        """What a flush has said of a path, also one that was given up meanwhile: what was written may be lost.

        A later flush need not say so again.
        """

    async def flush(self, paths: Sequence[str], timeout_s: float = limits.PROBE_TIMEOUT_S) -> float | None:
        """Flush all files concurrently; return the milliseconds it took, None if pivotd may not open one.

        Raises: TimeoutError without errno: the storage does not answer in time. OSError: its error, with the path.
        """
        started = time.monotonic()
        calls = [in_thread(timeout_s, self._fdatasync, path, paths=[path]) for path in dict.fromkeys(paths)]
        readable = await asyncio.gather(*calls, return_exceptions=True)  # the answer of each one counts
        for answer in readable:
            if isinstance(answer, BaseException):
                raise answer
        return (time.monotonic() - started) * 1000 if all(readable) else None

    def _fdatasync(self, path: str) -> bool:
        try:
            # Open for reading is enough, and O_NONBLOCK keeps a FIFO of that name from blocking the thread.
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError:
            return False
        try:
            try:
                os.fdatasync(fd)
            finally:
                os.close(fd)
            _sync_name(path)
        except OSError as error:
            if error.errno not in _CANNOT_BE_FLUSHED:
                self.failed.setdefault(path, error.strerror or str(error))
            raise OSError(error.errno, error.strerror, path) from None
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
