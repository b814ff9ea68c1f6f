"""Bind mounts: a test that needs one is skipped where nobody may mount."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


@contextlib.contextmanager
def bound(what: Path, where: Path) -> Iterator[None]:
    """Let a directory or a file be at another place, too, which is there."""
    mounted = subprocess.run(["mount", "--bind", what, where], capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"needs root to mount: {mounted.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", where], check=True)
