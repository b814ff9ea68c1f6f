"""Flush images outside the pause, which is also the probe that the storage answers at all.

``stop`` flushes the source, and the mirror's completion the destination, with the guest paused; what is flushed before
costs nothing then. A hung file system shows here, while the guest still runs.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Sequence

from pivotd import limits


class Flusher:
    """Flushes files in threads of their own, at most one per file: one that hangs stays alone until it ends."""

    def __init__(self) -> None:
        self._busy: set[str] = set()
        self._lock = threading.Lock()

    async def flush(self, paths: Sequence[str], timeout_s: float = limits.PROBE_TIMEOUT_S) -> float | None:
        """Flush all files side by side; return the milliseconds it took, None where pivotd may not open one.

        Raises: TimeoutError: the storage does not answer in time. OSError: it reported an I/O error.
        """
        loop = asyncio.get_running_loop()
        started = time.monotonic()
        results = [self._start(path, loop) for path in dict.fromkeys(paths)]
        async with asyncio.timeout(timeout_s):
            readable = [await result for result in results]
        return (time.monotonic() - started) * 1000 if all(readable) else None

    def _start(self, path: str, loop: asyncio.AbstractEventLoop) -> asyncio.Future[bool]:
        result: asyncio.Future[bool] = loop.create_future()
        with self._lock:
            if path in self._busy:
                raise TimeoutError(f"an earlier flush of {path} has not ended yet")
            self._busy.add(path)
        threading.Thread(target=self._work, args=(path, loop, result), name="flush", daemon=True).start()
        return result

    def _work(self, path: str, loop: asyncio.AbstractEventLoop, result: asyncio.Future[bool]) -> None:
        outcome: bool | OSError
        try:
            outcome = _fdatasync(path)
        except OSError as error:
            outcome = error
        with self._lock:
            self._busy.discard(path)
        if not loop.is_closed():
            loop.call_soon_threadsafe(_resolve, result, outcome)


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
    return True


def _resolve(result: asyncio.Future[bool], outcome: bool | OSError) -> None:
    if result.done():
        return
    if isinstance(outcome, OSError):
        result.set_exception(outcome)
    else:
        result.set_result(outcome)
