"""What is behind a block device now: its name and its number may belong to another one tomorrow, or in a moment."""

from __future__ import annotations

import os
from pathlib import Path

from pivotd.host.birth import born

SYSFS = "/sys/dev/block"


def backing_file(device: str) -> str | None:
    """Return the path of the file behind a loop device, None if it is no such device, or has no file.

    ``device``: Image.file_id. Source: Documentation/ABI of Linux, sysfs-block-loop.
    """
    return text(device, "loop/backing_file")


def is_empty(device: str) -> bool:
    """Return whether a device certainly has nothing behind it, as a loop or NBD device that is not attached."""
    return text(device, "size") == "0"


def made(path: str) -> str | None:
    """Return when the file behind the loop device at a path was made, and which part of it the device is.

    None: nobody can tell, or it is another device, of which nothing of the kind lasts.
    """
    try:
        number = os.stat(path).st_rdev  # noqa: PTH116 - one system call, no object
    except (OSError, ValueError):
        return None
    device = f"block:{os.major(number)}:{os.minor(number)}"
    file = backing_file(device)
    at = None if file is None else born(file)
    part = [text(device, f"loop/{name}") for name in ("offset", "sizelimit")]
    return at if at is None or part == ["0", "0"] else f"{at}@{part[0]}+{part[1]}"


def text(device: str, name: str) -> str | None:
    """Return what the kernel says of a device in a file of sysfs, None if there is none, or if it is no device."""
    if not device.startswith("block:"):
        return None
    try:
        found = Path(SYSFS, device.removeprefix("block:"), name).read_text(errors="surrogateescape")
    except OSError:
        return None
    return found.rstrip("\n")
