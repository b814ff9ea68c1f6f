"""File systems of a test's own, each on a loop device."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

SIZE_BYTES = 128 << 20


@contextlib.contextmanager
def subvolumes(directory: Path) -> Iterator[tuple[Path, Path]]:
    """Mount a new btrfs, give its two subvolumes; skips the test where this host cannot."""
    with _mounted(directory, "btrfs") as place:
        one, two = place / "one", place / "two"
        for path in (one, two):
            subprocess.run(["btrfs", "subvolume", "create", path], check=True, capture_output=True)
        yield one, two


@contextlib.contextmanager
def ext4(directory: Path) -> Iterator[Path]:
    """Mount a new ext4; a file's number is that of the file that was deleted last, as nobody else makes files there."""
    with _mounted(directory, "ext4") as place:
        yield place


@contextlib.contextmanager
def _mounted(directory: Path, kind: str) -> Iterator[Path]:
    image, place = directory / f"{kind}.img", directory / kind
    with image.open("wb") as file:
        file.truncate(SIZE_BYTES)
    place.mkdir()
    try:
        subprocess.run([f"mkfs.{kind}", "-q", image], check=True, capture_output=True)
        subprocess.run(["mount", "-o", "loop", image, place], check=True, capture_output=True)
    except (FileNotFoundError, subprocess.CalledProcessError) as error:
        pytest.skip(f"needs mkfs.{kind}, and root to mount: {error}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", place], check=True)
