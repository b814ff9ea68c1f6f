"""Names on the command line that a shell completes: domains, disks, pivots; of a pivot the beginning will do."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import click

from pivotd.cli.context import App
from pivotd.cli.values import DiskImage, Name
from pivotd.errors import ClientError, RefusedError

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from pivotd.cli.journal_answers import OfflineJournal
    from pivotd.client import Client

_WHOLE_ID = re.compile(r"[0-9A-HJKMNP-TV-Z]{26}")
"""A ULID, as pivotd gives them."""
CANDIDATES_SHOWN = 5
AWAY = "pivotd.away"
"""Set once the daemon did not answer: it is not asked for the other names."""


class DomainName(Name):
    """A domain."""

    name = "domain"

    def shell_complete(self, ctx: click.Context, _: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
        """Return the domains that begin so."""
        return _completed("domains", ctx, incomplete)


class DiskName(Name):
    """A disk of the domain that was named before it."""

    name = "disk"

    def shell_complete(self, ctx: click.Context, _: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
        """Return the disks that begin so."""
        return _completed("disks", ctx, incomplete)


class EventName(Name):
    """An event; the journal of another release can have others than this one records."""

    name = "event"

    def shell_complete(self, _ctx: click.Context, _: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
        """Return the events that begin so."""
        from click.shell_completion import CompletionItem  # noqa: PLC0415 - only where a shell asks

        from pivotd.core.event_names import EVENTS  # noqa: PLC0415

        return [CompletionItem(name) for name in sorted(EVENTS) if name.startswith(incomplete)]


class DiskAndImage(DiskImage):
    """DISK=IMAGE with a disk of the domain that was named before it."""

    def shell_complete(self, ctx: click.Context, _: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
        """Return the disks, each with its ``=``, and behind that the files."""
        return _completed("targets", ctx, incomplete)


class PivotId(Name):
    """A pivot: its id, its request id, or the beginning of an id that no other id has."""

    name = "pivot"

    def __init__(self, *, open_only: bool) -> None:
        """``open_only``: for commands that the daemon carries out: a shell offers open pivots, any can be given."""
        self.open_only = open_only

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the id, or what was given if nothing is known by it: the command then says so."""
        name = super().convert(value, param, ctx)
        if _WHOLE_ID.fullmatch(name) or ctx is None or ctx.resilient_parsing:
            return name
        app = ctx.find_object(App)
        assert app is not None
        reads = app.client if self.open_only else app.reads
        if ctx.meta.get(AWAY):
            return name
        try:
            return whole_id(reads, name)
        except RefusedError:
            return name  # the command asks too, and says what is wrong
        except ClientError:
            if param is None or param.nargs == 1:
                raise
            ctx.meta[AWAY] = True  # of several pivots the command says it of each
            return name

    def shell_complete(self, ctx: click.Context, _: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
        """Return the pivots that begin so, the newest first."""
        return _completed("open_pivots" if self.open_only else "pivots", ctx, incomplete)


DOMAIN, DISK, DISK_IMAGE = DomainName(), DiskName(), DiskAndImage()
PIVOT, OPEN_PIVOT = PivotId(open_only=False), PivotId(open_only=True)


def whole_id(reads: Client | OfflineJournal, name: str) -> str:
    """Return the id of the one pivot of this name, or the name itself if there is none.

    Raises: AmbiguousIdError: several ids begin so.
    """
    from pivotd.cli.complaints import AmbiguousIdError  # noqa: PLC0415 - raised rarely

    found = reads.pivots_named(name)
    if len(found) <= 1:
        return found[0].id if found else name
    shown = [f"{one.id} ({one.domain}, {one.outcome or one.phase})" for one in found[:CANDIDATES_SHOWN]]
    more = " and others" if len(found) > CANDIDATES_SHOWN else ""
    message = f"{name} is the beginning of several pivots: {', '.join(shown)}{more}; give more of the id"
    raise AmbiguousIdError(message, pivots=[one.id for one in found])


def _completed(what: str, ctx: click.Context, incomplete: str) -> list[CompletionItem[str]]:
    from pivotd.cli import completing  # noqa: PLC0415 - only where a shell asks

    found: list[CompletionItem[str]] = getattr(completing, what)(ctx, incomplete)
    return found
