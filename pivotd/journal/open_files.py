"""Whether the names of the journal's files still lead to the files that this process has open.

SQLite goes on in a file whose name was removed, or given to another file, and says nothing. What it records there is
gone when the daemon ends, and the next one knows the name only. Without the name of the lock, another daemon could have
the journal too, and a reader would take this one for dead.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

FileId = tuple[int, int]


class OpenFiles:
    """The files by name, as they were when they were opened. Every method may block on their storage."""

    def __init__(self, paths: Iterable[Path]) -> None:
        """Note the files, which have just been opened. Raises: OSError."""
        self._known = {path: _file_id(path) for path in paths}

    def lost(self) -> str | None:
        """Return in one line which name leads to no file, or to another one, None if none does."""
        for path, known in self._known.items():
            try:
                now: FileId | None = _file_id(path)
            except OSError as error:
                now, why = None, f"is gone ({error.strerror})"
            else:
                why = "is another file now"
            if now != known:
                return (
                    f"{path} {why}, and pivotd has the old one open: a record would be lost when pivotd ends; nothing "
                    "was recorded; move the file back, or stop pivotd, restore a copy (docs/journal.md) and start it"
                )
        return None


def _file_id(path: Path) -> FileId:
    found = path.stat()
    return found.st_dev, found.st_ino
