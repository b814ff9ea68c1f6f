"""The cursor of `events --exec`: up to which record the command has run, in a file that survives any kill."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import Annotated

import msgspec

from pivotd import limits
from pivotd.errors import PivotdError

CURSOR_BYTES_MAX = 4096


class CursorError(PivotdError):
    """The cursor cannot be used with this journal, or by this follower; nothing was run."""

    kind = "cursor"


class Cursor(msgspec.Struct, frozen=True):
    """A place in the journal: the record that was dealt with last. ``seq`` 0: none was.

    ``at`` is the time of that record: it tells this journal from another one that has as many records.
    """

    seq: Annotated[int, msgspec.Meta(ge=0, le=limits.SEQ_MAX)]
    at: str | None


class CursorFile:
    """The file of one follower, locked as long as this process or a command that it has started lives.

    ``lock``: the descriptor to pass on to each command. A command that outlives its follower so keeps the next
    follower from running another one beside it.
    """

    def __init__(self, path: Path) -> None:
        """Lock the file. Raises: CursorError: it is in use, or cannot be locked."""
        self._given = path
        try:
            # However the file is named, it has one lock.
            self.path = path.resolve()
            self.lock = os.open(f"{self.path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CursorError(
                f"{path} is in use by another follower, or by a command that one has started and that still runs: "
                f"`fuser -v {self.path}.lock` shows it"
            ) from None
        except (OSError, RuntimeError) as error:
            raise self._unusable("lock", error) from None

    def read(self) -> Cursor | None:
        """Return the cursor, None if there is no file yet. Raises: CursorError."""
        try:
            with self.path.open("rb") as file:
                data = file.read(CURSOR_BYTES_MAX)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._unusable("read", error) from None
        try:
            return msgspec.json.decode(data, type=Cursor)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise CursorError(
                f"{self._given} is no cursor of `pivotctl events`: name another file with --cursor, or remove this one"
            ) from None

    def write(self, cursor: Cursor) -> None:
        """Replace the cursor: whatever dies, the file holds the old one or this one. Raises: CursorError."""
        new = Path(f"{self.path}.new")
        try:
            descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
            with os.fdopen(descriptor, "wb") as file:
                file.write(msgspec.json.encode(cursor) + b"\n")
                file.flush()
                os.fsync(file.fileno())
            new.rename(self.path)
            directory = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)
        except OSError as error:
            raise self._unusable("write", error) from None

    def _unusable(self, verb: str, error: Exception) -> CursorError:
        why = error.strerror if isinstance(error, OSError) else None
        return CursorError(f"cannot {verb} the cursor {self._given}: {why or error}")
