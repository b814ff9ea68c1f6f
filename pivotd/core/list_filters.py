"""Which pivots and which records a list is to have. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from pivotd.core.pivot import Outcome, Record

_BEFORE_ANYTHING = datetime(2000, 1, 1, tzinfo=UTC)
OUTCOMES = (*(outcome.value for outcome in Outcome), "split")
"""What can be asked for as the outcome of a pivot."""


@dataclass(frozen=True, slots=True)
class PivotFilter:
    """What a pivot has to be; None: anything. ``since``: created then or later, by the clock of the host, RFC 3339."""

    domain: str | None = None
    open_only: bool = False
    kind: str | None = None
    outcome: str | None = None
    since: str | None = None

    @property
    def indexed(self) -> bool:
        """Whether the journal finds such pivots without a look at others."""
        return self.kind is None and self.outcome is None and self.since is None


@dataclass(frozen=True, slots=True)
class EventFilter:
    """What a record has to be; None: anything. ``since``: written then or later, by the clock of the host, RFC 3339."""

    domain: str | None = None
    event: str | None = None
    since: str | None = None

    def takes(self, record: Record) -> bool:
        """Return whether a record is wanted."""
        return (
            self.domain in {None, record.domain}
            and self.event in {None, record.event}
            and (self.since is None or record.at >= self.since)
        )


def journal_time(at: datetime) -> str:
    """Return a time as the journal writes times, which compare as text; one before any journal is that."""
    return max(at.astimezone(UTC), _BEFORE_ANYTHING).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


EVERY_PIVOT, EVERY_EVENT = PivotFilter(), EventFilter()
