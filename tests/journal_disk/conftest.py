"""A place in memory for what is judged: a thousand journals are opened there, and none has to survive."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

MEMORY = Path("/dev/shm")


@pytest.fixture
def ram(tmp_path: Path) -> Iterator[Path]:
    """Yield an empty directory in memory, where the kernel has that; what a test leaves in it is kept."""
    place = Path(tempfile.mkdtemp(prefix="pivotd-", dir=MEMORY)) if MEMORY.is_dir() else tmp_path
    yield place
    if place != tmp_path:
        with contextlib.suppress(OSError):
            place.rmdir()
