"""Second processes for tests: one that owns a journal, and one that looks at files.

Files of an open journal are looked at from another process: closing a descriptor of ``journal.db`` here would drop the
locks of SQLite connections of this process.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
_LOOK = """
import hashlib, os, sys
top = sys.argv[1]
for name in ['.', *sorted(os.listdir(top))]:
    found = os.stat(os.path.join(top, name))
    data = b'' if name == '.' else open(os.path.join(top, name), 'rb').read()
    print(name, found.st_mtime_ns, found.st_ino, found.st_mode, hashlib.sha256(data).hexdigest())
"""


@contextmanager
def working(state_dir: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Run work.py; killed with SIGKILL at the end at the latest."""
    with subprocess.Popen(
        [sys.executable, "-m", "tests.journal.work", str(state_dir), *arguments],
        cwd=REPOSITORY,
        env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def wait_for(process: subprocess.Popen[str], word: str) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if line.strip() == word:
            return
    raise AssertionError(f"the process ended without saying {word}")


def look(directory: Path) -> str:
    """Return names, times, inodes and hashes of everything in a directory."""
    command = [sys.executable, "-c", _LOOK, str(directory)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
