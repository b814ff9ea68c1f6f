"""A full file system under the journal."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pivotd.errors import JournalFullError
from pivotd.journal.journal import Journal
from pivotd.journal.reader import Reader

SIZE_BYTES = 4 << 20


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """Yield a directory on a file system of 4 MiB."""
    where = tmp_path / "small"
    where.mkdir()
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={SIZE_BYTES}", "none", where], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount a small file system: {mounted.stderr.decode().strip()}")
    yield where
    subprocess.run(["umount", where], check=True)


def fill(where: Path) -> Path:
    ballast = where / "ballast"
    with ballast.open("wb", buffering=0) as file:
        try:
            while file.write(b"x" * 4096):
                pass
        except OSError:
            return ballast
    raise AssertionError("the file system did not fill up")


async def test_full_disk_refuses_loses_nothing_and_recovers(small: Path) -> None:
    """Without space a record is a JournalFullError and absent; with space again the journal goes on."""
    journal = Journal.open(small)
    await journal.note("before", {})
    ballast = fill(small)
    with pytest.raises(JournalFullError, match="no space left"):
        await journal.note("big", {"text": "x" * 20000})
    written = journal.last_seq
    assert not journal.healthy
    ballast.unlink()
    assert (await journal.note("after", {})).seq == written + 1
    assert journal.healthy
    reader = Reader.attach(small)
    assert reader.check() == []
    assert reader.last_seq() == written + 1
    reader.close()
    await journal.close()


def test_no_space_to_begin(small: Path) -> None:
    """A journal that cannot be made for want of space is a JournalFullError and leaves no half journal."""
    ballast = fill(small)
    with pytest.raises(JournalFullError):
        Journal.open(small)
    assert sorted(path.name for path in small.iterdir()) == ["ballast", "journal.lock"]
    ballast.unlink()
