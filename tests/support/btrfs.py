"""A btrfs of two subvolumes on a loop device."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

SIZE_BYTES = 128 << 20


@contextlib.contextmanager
def subvolumes(directory: Path) -> Iterator[tuple[Path, Path]]:
    """Mount a new file system, give its two subvolumes; skips the test where this host cannot."""
    image, place = directory / "btrfs.img", directory / "btrfs"
    with image.open("wb") as file:
        file.truncate(SIZE_BYTES)
    place.mkdir()
    one, two = place / "one", place / "two"
    try:
        subprocess.run(["mkfs.btrfs", "-q", image], check=True, capture_output=True)
        subprocess.run(["mount", "-o", "loop", image, place], check=True, capture_output=True)
    except (FileNotFoundError, subprocess.CalledProcessError) as error:
        pytest.skip(f"needs mkfs.btrfs, and root to mount: {error}")
    try:
        for path in (one, two):
            subprocess.run(["btrfs", "subvolume", "create", path], check=True, capture_output=True)
        yield one, two
    finally:
        subprocess.run(["umount", "-l", place], check=True)
