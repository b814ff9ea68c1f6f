"""What a shell can offer: names of domains, disks and pivots. Quick, and silent if nobody answers."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from typing import TYPE_CHECKING

import click
from click.shell_completion import CompletionItem

from pivotd import limits
from pivotd.cli import render
from pivotd.cli.context import App
from pivotd.client import Client, Pivot

if TYPE_CHECKING:
    from pivotd.cli.journal_answers import OfflineJournal

Items = list[CompletionItem[str]]


def domains(context: click.Context, incomplete: str) -> Items:
    """Return domains, with what is to say of each."""
    with _asked(context) as reads:
        return _items(((one.name, one.run_state or one.connection) for one in reads.domains()), incomplete)


def disks(context: click.Context, incomplete: str) -> Items:
    """Return the disks of the domain that was named."""
    return _items(((name, image) for name, image in _disks(context)), incomplete)


def targets(context: click.Context, incomplete: str) -> Items:
    """Return ``DISK=`` for each disk, and behind that files."""
    disk, separator, path = incomplete.partition("=")
    if separator:
        return [CompletionItem(f"{disk}={name}") for name in _files(path)]
    return _items(((f"{name}=", image) for name, image in _disks(context)), incomplete)


def pivots(context: click.Context, incomplete: str) -> Items:
    """Return the newest pivots."""
    with _asked(context) as reads:
        return _items(map(_pivot, reads.pivots(limit=limits.PIVOTS_LISTED)), incomplete)


def open_pivots(context: click.Context, incomplete: str) -> Items:
    """Return the pivots that are open."""
    with _asked(context) as reads:
        return _items(map(_pivot, reads.pivots(open_only=True, limit=limits.PIVOTS_LISTED)), incomplete)


def _disks(context: click.Context) -> list[tuple[str, str | None]]:
    """Return the disks of the domain, each with its image."""
    name = context.params.get("domain")
    with _asked(context) as reads:
        found = reads.disks(name) if isinstance(reads, Client) and name else reads.verdicts(name)
    return [(one.disk, one.image) for one in found]


def _files(beginning: str) -> list[str]:
    """Return the files that begin so, a directory with its final slash."""
    head, name = os.path.split(beginning)
    with suppress(OSError), os.scandir(head or ".") as entries:
        found = sorted(f"{entry.name}/" if entry.is_dir() else entry.name for entry in entries)
        return [os.path.join(head, one) for one in found if one.startswith(name) and (name or one[0] != ".")]  # noqa: PTH118
    return []


@contextmanager
def _asked(context: click.Context) -> Iterator[Client | OfflineJournal]:
    """Ask whom the command would ask. Raises: PivotdError, which nobody is told (shells.complete)."""
    app = context.find_object(App)
    assert app is not None
    if app.offline is None:
        yield Client(app.socket, patience_s=0, timeout_s=limits.COMPLETION_S)
        return
    from pivotd.cli.journal_answers import OfflineJournal  # noqa: PLC0415 - SQLite only where it is read

    with closing(OfflineJournal(app.offline)) as journal:
        yield journal


def _pivot(one: Pivot) -> tuple[str, str]:
    return one.id, f"{one.domain} {one.kind} {one.outcome or one.phase} {render.minute(one.created)}"


def _items(found: Iterable[tuple[str, str | None]], incomplete: str) -> Items:
    return [CompletionItem(name, help=said) for name, said in found if name.startswith(incomplete)]
