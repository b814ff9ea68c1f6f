"""File systems that know no O_DIRECT: QEMU cannot open an image there past the page cache of the host."""

from __future__ import annotations

import errno
import os

from pivotd.core.request import CopyOptions, past_cache
from pivotd.errors import BadRequestError
from pivotd.host.threads import look_at
from pivotd.qmp.blocks import DiskSeen


def refuse_without(options: CopyOptions, seen: DiskSeen, filename: str) -> None:
    """Refuse if QEMU certainly cannot open the image as it is to be opened; this looks at files, so it may block.

    Where pivotd may not try, QEMU does, before anything is copied. Raises: BadRequestError.
    """
    if options.force or not past_cache(options, seen.cache_direct):
        return
    look_at(filename)
    path, flags = filename, os.O_RDONLY | os.O_NONBLOCK
    if not options.reuse:
        path, flags = os.path.dirname(filename), os.O_TMPFILE | os.O_RDWR  # noqa: PTH120
    if _opens(path, flags | os.O_DIRECT) == errno.EINVAL and _opens(path, flags) is None:
        why = "" if options.cache is not None else f", as {seen.disk} has its present image"
        raise BadRequestError(
            f"{filename}: its file system knows no O_DIRECT, so QEMU cannot open the image past the host's page cache"
            f"{why}: choose --cache writeback, or another place",
            disk=seen.disk,
        )


def _opens(path: str, flags: int) -> int | None:
    """Return the error number of an attempt to open, None if it succeeds; it leaves no file behind."""
    try:
        descriptor = os.open(path, flags | os.O_CLOEXEC, 0o600)
    except OSError as error:
        return error.errno
    os.close(descriptor)
    return None
