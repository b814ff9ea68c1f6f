"""The journal of a model host: what is on disk, and what may be there after a write that failed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pivotd.core.pivot import JsonObject, Phase, Pivot, Record
from pivotd.core.request import Requester
from pivotd.errors import JournalFullError, JournalWriteError, RevisionConflictError
from tests.model import invariants
from tests.model.points import Alternative, nothing


class Ledger:
    """The part of a World that is the driver's Journal."""

    async def advance(self, before: Pivot, event: str, facts: JsonObject, **changes: Any) -> Pivot:
        """Record, or fail to."""
        return self.write(before, event, **changes)

    def write(self, before: Pivot, event: str, **changes: Any) -> Pivot:
        """As advance(), at once."""
        return self._write(before, replace(before, **changes, revision=before.revision + 1), event)

    async def hand_over(self, before: Pivot, successor: Pivot, facts: JsonObject) -> Pivot:
        """Record the end of one pivot and the beginning of the next as one, or fail to."""
        self._write(before, successor, "undo-requested")
        return replace(before, phase=Phase.CLOSED, hold=False)

    def _write(self, before: Pivot, after: Pivot, event: str) -> Pivot:
        if self.journal_fails is None and self.faults:
            self.point([
                Alternative("no record is written: the disk is", self._journal, ("full",)),
                Alternative("no record may be written: an I/O", self._journal, ("error",)),
                *self.meddling(),
            ])  # fmt: skip
        if self.durable.revision != before.revision:
            raise RevisionConflictError(f"{self.durable.phase} is not {before.phase}")
        self.say(
            f" record: {event} {after.phase}{'' if self.journal_fails is None else ' FAILED: ' + self.journal_fails}"
        )
        if self.journal_fails == "full":
            raise JournalFullError("no space left")
        if self.journal_fails is not None:
            self.maybe = after
            self.point(self.crash_alternatives())
            raise JournalWriteError("the record may or may not be there")
        self.durable, self.maybe = after, None
        invariants.when_recorded(self, before)
        invariants.at_every_instant(self)
        self.point(self.crash_alternatives())
        return after

    def _journal(self, how: str) -> None:
        self.journal_fails = how

    async def read(self, pivot: str) -> Pivot:
        """Return what is on disk."""
        return self.durable

    def asked_of(self, pivot: str) -> Mapping[str, Requester]:
        """Nobody asks through the journal: a message goes straight to the driver."""
        return {}

    async def note(self, event: str, facts: JsonObject, **_whose: Any) -> Record:
        """Record something that changes no pivot."""
        self.say(f" record: {event}")
        if self.journal_fails is not None:
            raise JournalFullError("no space left")
        self.maybe = None
        return Record(0, self.utc_now(), None, None, event, None, facts)

    async def settle(self) -> bool:
        """Make the failed record certainly absent, if the disk lets us."""
        if self.faults and self.point([Alternative("the journal's disk still fails", nothing)]):
            return False
        self.maybe = None
        return True

    def hold_checkpoints(self) -> None:
        """Nothing to keep away."""

    def release_checkpoints(self) -> None:
        """Nothing was kept away."""

    async def calm(self, patience_s: float) -> None:
        """No other guest is in a pause."""

    def read_journal(self) -> None:
        """Start anew from what is on disk: a record of unknown fate is there or is not."""
        if self.maybe is None:
            return
        maybe, self.maybe = self.maybe, None
        self.point([Alternative("the failed record is there after all", self._found, (maybe,), 0, 0)])

    def _found(self, pivot: Pivot) -> None:
        self.durable = pivot
