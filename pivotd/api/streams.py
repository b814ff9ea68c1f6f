"""Who may hold an event stream: a bound for each user, and places that readers cannot use up."""

from __future__ import annotations

from collections import Counter

from pivotd import limits
from pivotd.errors import ConflictError


class Streams:
    """The event streams that are open, by uid."""

    def __init__(self) -> None:
        self._open: Counter[int] = Counter()

    def enter(self, uid: int, *, operator: bool) -> None:
        """Take a place; leave() gives it back. Raises: ConflictError: there is none for this user."""
        if uid != 0 and self._open[uid] >= limits.STREAMS_PER_UID_MAX:
            raise ConflictError(
                f"uid {uid} has {limits.STREAMS_PER_UID_MAX} event streams open already: close one first", uid=uid
            )
        places = limits.STREAMS_MAX if operator else limits.STREAMS_MAX - limits.STREAMS_RESERVED
        if self._open.total() >= places:
            raise ConflictError(f"{places} event streams are open already: try again when one has been closed")
        self._open[uid] += 1

    def leave(self, uid: int) -> None:
        """Give the place back."""
        self._open[uid] -= 1
        if not self._open[uid]:
            del self._open[uid]
