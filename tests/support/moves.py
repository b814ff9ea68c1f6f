"""The ways to move a disk, as tests name them."""

from __future__ import annotations

from enum import StrEnum

from pivotd.core.request import Kind


class Move(StrEnum):
    """What is asked for; a commit is two things."""

    COPY = "copy"
    COMMIT = "commit"
    """Of everything above the base, the active layer too: a switch."""
    INNER_COMMIT = "inner commit"
    """Of the layer between the active one and the base: a merge."""
    PULL = "pull"
    SNAPSHOT = "snapshot"

    @property
    def kind(self) -> Kind:
        """The pivot's kind."""
        return Kind.COMMIT if self is Move.INNER_COMMIT else Kind(self.value)

    @property
    def switches(self) -> bool:
        """Whether the disk gets another image."""
        return self not in {Move.INNER_COMMIT, Move.PULL}

    @property
    def needs_chain(self) -> bool:
        """Whether the disk must have layers below its image."""
        return self not in {Move.COPY, Move.SNAPSHOT}
