"""Answers from the journal alone: the same types as the daemon's, without the facts that only the daemon sees."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import msgspec

from pivotd.client import DomainView, Pivot, PivotWithRecords, Record, Verdict, shown
from pivotd.core import verdict
from pivotd.errors import NotFoundError
from pivotd.host import files
from pivotd.journal.reader import Reader

UNSEEN = "read from the journal alone"


class OfflineJournal:
    """The methods of client.Client that the journal alone can answer.

    Raises: NotFoundError, JournalError and its subclasses.
    """

    def __init__(self, state_dir: str) -> None:
        self.path = state_dir
        self._reader = Reader.offline(Path(state_dir))

    def close(self) -> None:
        """Remove the private copy, if one was made."""
        self._reader.close()

    def domains(self) -> list[DomainView]:
        """Return the domains added at run time, and those that have pivots."""
        known: dict[str, tuple[str, str | None]] = {
            row.name: (row.qmp_path, "runtime") for row in self._reader.domains()
        }
        open_pivots: defaultdict[str, list[str]] = defaultdict(list)
        for pivot, _ in self._reader.every_latest():
            known.setdefault(pivot.domain, (pivot.qmp, None))
            # An open pivot is the last one of each of its disks.
            if not pivot.closed_at and pivot.id not in open_pivots[pivot.domain]:
                open_pivots[pivot.domain].append(pivot.id)
        return [
            DomainView(name, qmp, origin, None, UNSEEN, open_pivots=tuple(open_pivots[name]))
            for name, (qmp, origin) in sorted(known.items())
        ]

    def pivots(self, domain: str | None = None, *, open_only: bool = False, limit: int) -> list[Pivot]:
        """Return pivots, newest first."""
        return [shown.pivot(pivot) for pivot in self._reader.pivots(domain, open_only, limit)]

    def pivot(self, pivot: str) -> PivotWithRecords:
        """Return one pivot with its records."""
        found = self._reader.pivot(pivot)
        if found is None:
            raise NotFoundError(f"the journal in {self.path} holds no pivot {pivot}", pivot=pivot)
        return shown.pivot_with_records(found, self._reader.records(found.id))

    def verdicts(self, domain: str | None, disk: str | None, image: str | None) -> list[Verdict]:
        """Return the journal's verdicts on the requested disks."""
        file = None if image is None else files.named(image)
        found = []
        for pivot, moved in self._reader.every_latest(domain, disk):
            one = verdict.of_pivot(pivot, moved)
            sides = (moved.source, moved.destination)
            if file is None or one.image == image or any(files.same(side, file) for side in sides):
                doubtful = self._reader.beside_daemon and verdict.may_be_overtaken(pivot)
                found.append(verdict.provisional(one) if doubtful else one)
        if image is not None and not found:
            message = f"the journal in {self.path} holds no pivot with image {image}; see `pivotctl verdict`"
            raise NotFoundError(message, image=image)
        if domain is not None and disk is not None and not found:
            found = [_never_moved(domain, disk)]
        return msgspec.convert(found, list[Verdict], from_attributes=True)

    def events(self, after: int) -> Iterator[Record]:
        """Yield every existing record with seq > after."""
        while page := self._reader.events(after):
            yield from msgspec.convert(page, list[Record], from_attributes=True)
            after = page[-1].seq


def _never_moved(domain: str, disk: str) -> verdict.Verdict:
    live = verdict.without_pivot(domain, disk, verdict.Live(image="", format=""))
    reason = "The journal holds no pivot of this disk; only QEMU can tell which image it uses."
    return replace(live, image=None, format=None, reason=reason)
