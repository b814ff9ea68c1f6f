"""When a pivot was in which phase and when its guest stood still, for `pivot show --timeline` and `report`. Pure.

The clock of the journal is the host's and may go back. A record is then taken to have been written when the one
before it was, and ``clock_went_back`` says so; lengths of pauses come from a clock that does not go back.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from msgspec import Struct

from pivotd.client import PivotWithRecords, Record
from pivotd.errors import JournalCorruptError

MS = timedelta(milliseconds=1)


class Scale(Struct, frozen=True):
    """A length of time that a drawing shows as its width."""

    zero: datetime
    end: datetime

    def fraction(self, at: datetime) -> float:
        """Return where a time lies, from 0 to 1."""
        if self.end <= self.zero:
            return 0.0
        return min(1.0, max(0.0, (at - self.zero) / (self.end - self.zero)))


class Span(Struct, frozen=True):
    """How long a pivot stayed in a phase. The same phase can come again, with each attempt."""

    phase: str
    begin: datetime
    end: datetime

    @property
    def length_s(self) -> float:
        """Return its length."""
        return (self.end - self.begin).total_seconds()


class Moment(Struct, frozen=True):
    """One record between the intent to pause the guest and the end of that pause."""

    event: str
    at: datetime


class GuestPause(Struct, frozen=True):
    """One pause of the guest.

    ``pause_ms`` was measured; ``begin`` and ``end`` are where it lies, as closely as the records around it say: not
    before the intent, not after the record of its end. ``ended`` is the phase or outcome that ended it.
    """

    attempt: int
    ended: str
    pause_ms: float
    fleet_ms: float | None
    begin: datetime
    end: datetime
    moments: tuple[Moment, ...]
    """From the intent to the record of the end."""

    @property
    def scale(self) -> Scale:
        """Return the span that is shown enlarged: from the intent to the record of the end."""
        return Scale(self.moments[0].at, self.end)


class Timeline(Struct, frozen=True):
    """A pivot from its acceptance to its end; an open one up to ``end``, which is then only where it was last seen."""

    begin: datetime
    end: datetime
    open: bool
    spans: tuple[Span, ...]
    pauses: tuple[GuestPause, ...]
    later: tuple[Record, ...]
    """Records from after the end, such as a person's word on a disk."""
    clock_went_back: bool

    @property
    def length_s(self) -> float:
        """Return its length."""
        return (self.end - self.begin).total_seconds()

    @property
    def scale(self) -> Scale:
        """Return the whole of it."""
        return Scale(self.begin, self.end)

    @property
    def paused_ms(self) -> float:
        """Return how long the guest stood still in all of its pauses."""
        return sum(pause.pause_ms for pause in self.pauses)

    def phases(self) -> list[tuple[str, list[Span]]]:
        """Return each phase with its spans, in the order in which they were entered first."""
        found: dict[str, list[Span]] = {}
        for span in self.spans:
            found.setdefault(span.phase, []).append(span)
        return list(found.items())


def of_pivot(pivot: PivotWithRecords, now: datetime | None) -> Timeline:
    """Return the timeline of a pivot. ``now``: how far one that is open has come; None: to its last record."""
    begin = moment(pivot.created)
    at, went_back = _increasing(begin, pivot.records)
    closed = next((index for index, record in enumerate(pivot.records) if record.phase == "closed"), None)
    length = len(pivot.records) if closed is None else closed + 1
    records, at, later = pivot.records[:length], at[:length], pivot.records[length:]
    end = max(begin, *at) if at else begin
    if closed is None and now is not None:
        end = max(end, now)
    return Timeline(
        begin=begin,
        end=end,
        open=pivot.closed is None,
        spans=_spans(begin, end, records, at),
        pauses=_pauses(pivot, records, at),
        later=later,
        clock_went_back=went_back,
    )


def moment(at: str) -> datetime:
    """Return a time of the journal. Raises: JournalCorruptError."""
    try:
        found = datetime.fromisoformat(at)
    except ValueError:
        raise JournalCorruptError(f"{at!a} in the journal is no time: pivotd has not written this") from None
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def _increasing(begin: datetime, records: Sequence[Record]) -> tuple[list[datetime], bool]:
    """Return when each record was written, none before the one before it, and whether a clock had to be corrected."""
    found: list[datetime] = []
    last, went_back = begin, False
    for record in records:
        at = moment(record.at)
        went_back = went_back or at < last
        last = max(last, at)
        found.append(last)
    return found, went_back


def _spans(begin: datetime, end: datetime, records: Sequence[Record], at: Sequence[datetime]) -> tuple[Span, ...]:
    found: list[Span] = []
    phase, since = None, begin
    for record, entered in zip(records, at, strict=True):
        if record.phase is None or record.phase == phase:
            continue
        if phase is not None:
            found.append(Span(phase, since, entered))
            since = entered
        phase = record.phase
    if phase is not None and phase != "closed":
        found.append(Span(phase, since, end))
    return tuple(found)


def _pauses(pivot: PivotWithRecords, records: Sequence[Record], at: Sequence[datetime]) -> tuple[GuestPause, ...]:
    """Return the pauses. Each has a record of its end, with its length; the attempt begins with the last intent."""
    found: list[GuestPause] = []
    first = 0
    for index, record in enumerate(records):
        if record.event == "pausing":
            first = index
        length_ms = record.facts.get("pause_ms")
        if not isinstance(length_ms, int | float) or len(found) == len(pivot.pauses):
            continue
        known, end = pivot.pauses[len(found)], at[index]
        fleet_ms = record.facts.get("fleet_ms")
        found.append(
            GuestPause(
                attempt=known.attempt,
                ended=known.ended,
                pause_ms=known.pause_ms,
                fleet_ms=fleet_ms if isinstance(fleet_ms, int | float) else None,
                begin=min(end, max(at[first], end - known.pause_ms * MS)),
                end=end,
                moments=tuple(Moment(records[one].event, at[one]) for one in range(first, index + 1)),
            )
        )
    return tuple(found)
