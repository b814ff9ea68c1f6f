"""`pivotctl journal`: how large the journal is, moving old pivots to archives, a backup while it is in use."""

from __future__ import annotations

import re
import sys
import time
from pathlib import Path
from typing import Any

import click

from pivotd import limits
from pivotd.cli import render
from pivotd.cli.complaints import EXIT_INTERRUPTED, UnusableFileError
from pivotd.cli.context import App, Form, pass_app, tell
from pivotd.cli.help import ExampleCommand
from pivotd.cli.values import OutputPath
from pivotd.client import JournalStats, UnsentError
from pivotd.errors import EXIT_DONE, EXIT_REFUSED, ConflictError

UNITS_S = {"d": 86_400, "w": 7 * 86_400, "y": 365 * 86_400}
TELL_EVERY_S = 10.0


class Keep(click.ParamType[int]):
    """A length of time in days, weeks or years, as ``keep`` in the configuration has it; 0d: nothing is kept."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return seconds."""
        if isinstance(value, int):
            return value
        found = re.fullmatch(r"([0-9]{1,6})([dwy])", str(value), re.ASCII)
        seconds = -1 if found is None else int(found[1]) * UNITS_S[found[2]]
        if not 0 <= seconds <= limits.KEEP_S_MAX:
            self.fail(f"{value!r} is no length of time: give days, weeks or years, like 400d or 2y", param, ctx)
        return seconds


@click.group(short_help="Size, archives and backups of the journal.")
def journal() -> None:
    """Look after the journal: its size, the archives of old pivots, and backups."""


@journal.command(
    cls=ExampleCommand,
    short_help="Size and contents of the journal.",
    examples=("pivotctl journal stats", "pivotctl --offline /var/lib/pivotd journal stats"),
)
@pass_app
def stats(app: App) -> None:
    """Show how large the journal and its archives are, and what is in them.

    An archive that cannot be read is shown with the reason, and the status is 4. All else can be used without it.
    """
    found = app.reads.journal_stats()
    app.found(EXIT_REFUSED if any(one.fault for one in found.archives) else EXIT_DONE)
    if not render.answer(app, found):
        _show(found)


def _show(found: JournalStats) -> None:
    free = f", {render.size(found.free_bytes)} of it free for new records" if found.free_bytes else ""
    render.card(found.path, [
        ("size", f"{render.size(found.size_bytes)}{free}"),
        ("WAL", render.size(found.wal_bytes)),
        ("pivots", f"{found.pivots}, {found.open_pivots} of them open"),
        ("records", f"{found.records}, the last one is {found.last_seq}"),
        ("oldest record", found.oldest),
    ])  # fmt: skip
    if found.archives:
        print()
        columns = ("ARCHIVE", "SIZE", "PIVOTS", "RECORDS", "CLOSED", "FAULT")
        render.table(columns, [
            (Path(one.path).name, render.size(one.size_bytes), one.pivots, one.records,
             f"{one.first_closed[5:10]} to {one.last_closed[5:10]}", one.fault)  # the year is in the name
            for one in found.archives
        ], last_below=True)  # fmt: skip


@journal.command(
    cls=ExampleCommand,
    short_help="Move old pivots to archives.",
    examples=("pivotctl journal archive --dry-run", "pivotctl journal archive --keep 400d"),
)
@click.option(
    "--keep",
    type=Keep(),
    metavar="TIME",
    help="Move pivots that were closed before this time.  [default: keep in [journal]]",
)
@click.option("--dry-run", is_flag=True, help="Say how many pivots would move, and move none.")
@pass_app
def archive(app: App, keep: int | None, dry_run: bool) -> None:
    """Move closed pivots to archives beside the journal, one for each year, now.

    `pivot ls`, `pivot show`, `events` and all other commands read the archives too. What a verdict, the list of stale
    images or an undo rests on stays in the journal. No pivot moves while a guest is paused for a switch.

    The status is 4 if some archive could not be used; the pivots that belong there stay in the journal.
    """
    pivots = records = 0
    names, obstacles = set[str](), dict[str, None]()
    told = time.monotonic()
    try:
        for step in app.client.archive(keep, dry_run=dry_run):
            pivots, records = pivots + step.pivots, records + step.records
            names |= set(step.archives)
            obstacles |= dict.fromkeys(step.obstacles)
            if step.next is not None and time.monotonic() - told >= TELL_EVERY_S:
                told = time.monotonic()
                tell(f"{pivots} pivots so far")
    except KeyboardInterrupt:
        app.status = EXIT_INTERRUPTED
        tell("interrupted; what was moved is in its archive, and the same command goes on with the rest")
    else:
        status = EXIT_REFUSED if obstacles else EXIT_DONE
        if dry_run:
            app.found(status)
        else:
            app.status = status
    for obstacle in obstacles:
        tell(obstacle)
    if app.form is Form.NAME:
        print(*sorted(names), sep="\n", end="\n" if names else "")
        return
    document = {"pivots": pivots, "records": records, "archives": sorted(names), "obstacles": list(obstacles)}
    if render.answer(app, document | {"dry_run": dry_run}):
        return
    where = f" to {', '.join(sorted(names))}" if names else ""
    print(f"{'would move' if dry_run else 'moved'} {pivots} pivots with {records} records{where}")


@journal.command(
    cls=ExampleCommand,
    short_help="Copy the journal and its archives.",
    examples=("pivotctl journal backup /backup/pivotd", "pivotctl --offline /var/lib/pivotd journal backup /backup/a"),
)
@click.argument("directory", type=OutputPath())
@click.option("--force", is_flag=True, help="Replace the backup that DIRECTORY holds, without a question.")
@pass_app
def backup(app: App, directory: str, force: bool) -> None:
    """Copy the journal and its archives into DIRECTORY, which is made for it; pivotd may run or not.

    The copy is whole or not there. It can be read with `pivotctl --offline DIRECTORY`. A pivotd that is started on it
    is certain of no disk until it has seen QEMU or a person has accepted an image: later moves may be missing.

    pivotctl reads the files itself, so run it as a user who may. The status is 4 if an archive could not be copied.
    """
    from pivotd.journal.backup import back_up, holds_backup  # noqa: PLC0415 - SQLite only where it is read

    target = Path(directory)
    if not target.parent.is_dir():
        raise UnusableFileError(
            f"{target.parent} is no directory: make it first, or name another place", path=directory
        )
    source = Path(app.offline) if app.offline is not None else _journal(app)
    try:
        if not force and holds_backup(target):
            if app.documents or not (sys.stdin.isatty() and sys.stderr.isatty()):
                raise ConflictError(f"{target} holds a backup already: name another directory, or give --force")
            force = click.confirm(f"{target} holds a backup already. Replace it?", err=True)
            if not force:
                raise ConflictError(f"{target} holds a backup already: it was left as it is")
        done = back_up(source, target, replace=force)
    except OSError as error:
        raise UnusableFileError.of(error) from error
    app.status = EXIT_REFUSED if done.obstacles else EXIT_DONE
    for obstacle in done.obstacles:
        tell(f"not copied: {obstacle}")
    if render.answer(app, done):
        return
    with_archives = f" with {', '.join(done.archives)}" if done.archives else ""
    print(f"{done.path}: {render.size(done.size_bytes)}{with_archives}")


def _journal(app: App) -> Path:
    """Return the path of the journal: the daemon knows it, and its configuration while it does not run."""
    try:
        return Path(app.client.health().journal.path)
    except UnsentError as away:
        from pivotd.cli.host_journal import state_dir_without  # noqa: PLC0415 - only without a daemon

        return state_dir_without(app, away)
