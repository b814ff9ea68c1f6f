"""What a report says: pivots with their records, verdicts of now, and where all this was asked.

A verdict that could not be had is not left out: the reason stands in its place.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from itertools import islice
from typing import TYPE_CHECKING

from msgspec import Struct

from pivotd import __version__, limits
from pivotd.cli.context import App
from pivotd.cli.report_chains import Word
from pivotd.cli.timeline import Timeline, moment, of_pivot
from pivotd.client import Client, DomainView, Pivot, PivotWithRecords, Verdict
from pivotd.errors import PivotdError

if TYPE_CHECKING:
    from pivotd.cli.journal_answers import OfflineJournal

    Reads = Client | OfflineJournal

PIVOTS_MAX = limits.PIVOTS_LISTED_MAX
"""Pivots on one page: some megabytes, which a browser still shows at once."""

ASKED_ALONE_MAX = 3
"""Domains that are asked for their verdicts one by one; of more, those that do not answer shall not add up."""


class Source(Struct, frozen=True):
    """Where a report comes from. ``offline``: from a journal alone, without QEMU and the daemon having been asked."""

    offline: bool
    where: str
    host: str
    made: datetime
    pivotctl: str
    pivotd: str | None
    """The daemon's version; None: it was not asked, or did not say."""


class Reported(Struct, frozen=True):
    """One pivot, its timeline, and what people have said of its disks."""

    pivot: PivotWithRecords
    timeline: Timeline
    words: dict[str, Word]


class Report(Struct, frozen=True):
    """Everything on the page. ``pivots`` are in the order in which they were accepted."""

    source: Source
    chosen: str
    """How the pivots were chosen, in words."""
    pivots: tuple[Reported, ...]
    left_out: bool
    """Whether there are more pivots than a page takes: the oldest are left out."""
    verdicts: dict[tuple[str, str], Verdict]
    """Of every disk that is in the report and that could be asked for, by domain and disk."""
    silent: dict[str, str]
    """Why a domain has no verdicts."""
    domains: dict[str, DomainView]
    users: dict[int, str]
    """Names of the users who asked, by this host; none from a journal alone, which may be another host's."""


class Choice(Struct, frozen=True):
    """Which pivots: those with these ids, else those of a domain, and from a time on."""

    ids: tuple[str, ...] = ()
    domain: str | None = None
    since: datetime | None = None

    def __str__(self) -> str:
        """Return it in words."""
        if self.ids:
            return "by their ids"
        domain = "of all domains" if self.domain is None else f"of domain {self.domain}"
        return domain if self.since is None else f"{domain} since {self.since:%Y-%m-%d %H:%M:%S}Z"


def gather(app: App, choice: Choice) -> Report:
    """Ask for everything. Raises: NotFoundError: a pivot; ClientError, JournalError."""
    reads = app.reads
    source = _source(app)
    found, left_out = _pivots(reads, choice)
    verdicts, silent = _verdicts(reads, found)
    wanted = {pivot.domain for pivot in found}
    now = None if source.offline else source.made
    return Report(
        source=source,
        chosen=str(choice),
        pivots=tuple(Reported(pivot, of_pivot(pivot, now), _words(pivot)) for pivot in found),
        left_out=left_out,
        verdicts=verdicts,
        silent=silent,
        domains={one.name: one for one in reads.domains() if one.name in wanted},
        users={} if source.offline else _users(found),
    )


def _pivots(reads: Reads, choice: Choice) -> tuple[list[PivotWithRecords], bool]:
    """Return the pivots with their records, oldest first, and whether older ones are left out."""
    if choice.ids:
        found = {pivot.id: pivot for pivot in map(reads.pivot, choice.ids)}
        return sorted(found.values(), key=_order), False
    newest = list(islice(_since(reads, choice), PIVOTS_MAX + 1))
    return [reads.pivot(pivot.id) for pivot in reversed(newest[:PIVOTS_MAX])], len(newest) > PIVOTS_MAX


def _order(pivot: PivotWithRecords) -> int:
    return pivot.records[0].seq if pivot.records else 0


def _since(reads: Reads, choice: Choice) -> Iterator[Pivot]:
    """Yield pivots, newest first, that had not ended before the time that was given.

    The order is that of acceptance, and one that began long ago may have ended late: a page of pivots in a row that
    had ended before ends the search, a single one does not.
    """
    too_old = 0
    for pivot in reads.pivots(choice.domain, limit=sys.maxsize):
        if choice.since is None or pivot.closed is None or moment(pivot.closed) >= choice.since:
            too_old = 0
            yield pivot
        elif (too_old := too_old + 1) >= limits.PIVOTS_LISTED:
            return


def _verdicts(
    reads: Reads, pivots: Sequence[PivotWithRecords]
) -> tuple[dict[tuple[str, str], Verdict], dict[str, str]]:
    """Return the verdicts of now on the disks of these pivots, and why there are none of a domain."""
    wanted = {(pivot.domain, disk.disk) for pivot in pivots for disk in pivot.disks}
    domains = tuple(dict.fromkeys(pivot.domain for pivot in pivots))
    found: dict[tuple[str, str], Verdict] = {}
    silent: dict[str, str] = {}
    for asked in [(domain,) for domain in domains] if len(domains) <= ASKED_ALONE_MAX else [domains]:
        try:
            every = reads.verdicts(asked[0] if len(asked) == 1 else None)
        except PivotdError as error:
            silent |= dict.fromkeys(asked, error.message)
        else:
            found |= {(one.domain, one.disk): one for one in every if (one.domain, one.disk) in wanted}
    return found, silent


def _users(pivots: Sequence[PivotWithRecords]) -> dict[int, str]:
    asked = {pivot.requested_by.uid for pivot in pivots}
    later = {record.facts.get("uid") for pivot in pivots for record in pivot.records}
    found = {}
    for uid in asked | {uid for uid in later if isinstance(uid, int)}:
        with contextlib.suppress(KeyError, OverflowError):
            found[uid] = pwd.getpwuid(uid).pw_name
    return found


def _source(app: App) -> Source:
    host, now = os.uname().nodename, datetime.now(UTC)
    if app.offline is not None:
        return Source(True, app.offline, host, now, __version__, None)
    return Source(False, app.socket, host, now, __version__, app.client.health().version)


def _words(pivot: PivotWithRecords) -> dict[str, Word]:
    """Return the last word of a person on each disk."""
    found: dict[str, Word] = {}
    for record in pivot.records:
        if record.event == "image-accepted":
            facts = {name: record.facts.get(name) for name in ("disk", "image", "format", "uid", "reason")}
            word = Word(str(facts["image"]), str(facts["format"]), _uid(facts["uid"]), str(facts["reason"]), record.at)
            found[str(facts["disk"])] = word
    return found


def _uid(value: object) -> int:
    return value if isinstance(value, int) else -1
