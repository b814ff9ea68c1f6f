"""`pivotctl events`: show the durable event log, or run a command for each decided pivot in it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypedDict

import click

from pivotd import limits
from pivotd.cli import render, unknown_domain
from pivotd.cli.complaints import EXIT_INTERRUPTED, UsageError
from pivotd.cli.context import App, pass_app, tell
from pivotd.cli.help import ExampleCommand
from pivotd.cli.known_names import DOMAIN, EventName
from pivotd.cli.since import Since
from pivotd.cli.values import UNITS_S, AbsolutePath, Length, Number
from pivotd.client import Record
from pivotd.core.event_names import EVENTS, no_event
from pivotd.core.list_filters import journal_time
from pivotd.errors import NotFoundError

EXAMPLES = (
    "pivotctl events --tail 20",
    "pivotctl events --since 12h --domain web1 --event switched",
    "pivotctl events --after 1200",
    "pivotctl --json events --follow | jq .event",
    "pivotctl events --follow --exec /etc/pivotd/hook --cursor /var/lib/pivotd-hooks/cursor",
)


class Wanted(TypedDict):
    """Which records; None: all."""

    domain: str | None
    event: str | None
    since: str | None


@click.command(cls=ExampleCommand, examples=EXAMPLES, short_help="The durable event log, starting at any record.")
@click.option("--follow", "-f", is_flag=True, help="Continue with new records as they are written, until Ctrl-C.")
@click.option(
    "--after",
    type=Number(0, limits.SEQ_MAX),
    metavar="SEQ",
    help="Only records with a larger sequence number.  [default: 0, with --exec the last one]",
)
@click.option("--tail", "-n", type=Number(1, limits.SEQ_MAX), metavar="N", help="Only the last N of them.")
@click.option("--since", type=Since(), metavar="TIME", help="Only records written then or later: 2m, 3d, 2026-11-23.")
@click.option("--domain", type=DOMAIN, metavar="DOMAIN", help="Only records of this domain.")
@click.option("--event", type=EventName(), metavar="EVENT", help="Only records of this event, like switched.")
@click.option("--exec", "command", metavar="COMMAND", help="Run COMMAND for each decided pivot.")
@click.option("--cursor", type=AbsolutePath(), metavar="FILE", help="Where --exec keeps how far it has come.")
@click.option(
    "--timeout",
    "timeout_s",
    type=Length(UNITS_S, "seconds", "90s or 5m", limits.HOOK_TIMEOUT_S_MAX),
    metavar="TIME",
    help=f"How long COMMAND may take before it is killed.  [default: {limits.HOOK_TIMEOUT_S}s]",
)
@pass_app
def events(app: App, /, follow: bool, after: int | None, tail: int | None, **options: Any) -> None:
    """Show the records of the journal, oldest first.

    Each line starts with the record's sequence number. To continue later without a gap or a repetition, give the last
    number to --after. --follow continues across a restart of the daemon.

    With --exec, nothing is shown. COMMAND runs once for each pivot whose outcome is decided, oldest first, with the
    pivot as JSON on its standard input. If it fails, it runs again after 1 s, 2 s and so on, up to 60 s: no pivot is
    skipped. FILE holds how far it has come, so a pivot whose COMMAND was interrupted is run again at the next start.
    Without a FILE yet, the first pivot is the next one that is decided; --after 0 begins with the oldest one.

    COMMAND is a program with arguments. Quotes work as in a shell, but no shell reads it: for pipes and variables name
    a script, or give "sh -c '...'".
    """
    if follow and app.offline is not None:
        raise UsageError("`events --follow` needs the daemon: leave --offline or --follow out")
    since = options.pop("since")
    wanted = Wanted(domain=options.pop("domain"), event=options.pop("event"), since=since and journal_time(since))
    if tail is not None and after is not None:
        raise UsageError("give --tail or --after, not both; see `pivotctl events --help`")
    try:
        if any(value is not None for value in options.values()):
            if tail is not None or any(wanted.values()):
                raise UsageError("--exec takes every decided pivot: leave --tail, --since, --domain and --event out")
            _execute(app, follow, after, **options)
            return
        if follow:
            _say_unknown(app, wanted)
        shown = False
        for record in _records(app, after or 0, tail, wanted, follow=follow):
            _show(app, record, follow)
            shown = True
        if not shown:
            _check_known(app, wanted)
    except KeyboardInterrupt:
        app.status = EXIT_INTERRUPTED


def _execute(app: App, follow: bool, after: int | None, **executing: Any) -> None:
    """Run the command until Ctrl-C or SIGTERM, or without ``follow`` for what the journal holds now."""
    from pivotd.cli.cursor import CursorFile  # noqa: PLC0415 - showing records does without
    from pivotd.cli.follower import Follower, ended_by_sigterm  # noqa: PLC0415
    from pivotd.cli.hook import Hook  # noqa: PLC0415

    command, cursor = executing["command"], executing["cursor"]
    if command is None or cursor is None:
        raise UsageError(
            "give both, --exec COMMAND and --cursor FILE, where the place in the journal is kept; "
            "see `pivotctl events --help`"
        )
    with ended_by_sigterm():
        client, hook = app.client, Hook(command, executing["timeout_s"] or limits.HOOK_TIMEOUT_S, tell)
        follower = Follower(client, CursorFile(Path(cursor)), hook)
        follower.begin(after)
        follower.catch_up()
        if follow:
            follower.follow()


def _records(app: App, after: int, tail: int | None, wanted: Wanted, *, follow: bool) -> Iterator[Record]:
    if not follow:
        yield from app.reads.events(after, **wanted) if tail is None else app.reads.last_events(tail, **wanted)
        return
    client = app.client
    end = client.health().journal.last_seq
    if tail is not None:
        yield from client.last_events(tail, end + 1, **wanted)
        after = end
    elif wanted["since"] is not None:
        # A stream would read all that is older.
        for record in client.events(after, **wanted):
            yield record
            after = max(end, record.seq)
        after = max(end, after)
    yield from client.events(after, follow=True, domain=wanted["domain"], event=wanted["event"])


def _check_known(app: App, wanted: Wanted) -> None:
    """Check the names of the filters. Raises: NotFoundError: a name is neither known nor in the journal."""
    unknown_domain.check(app, wanted["domain"])
    event = wanted["event"]
    if event is not None and event not in EVENTS and not app.reads.last_events(1, event=event):
        raise NotFoundError(no_event(event), event=event)


def _say_unknown(app: App, wanted: Wanted) -> None:
    """Say that there is no such domain or event: one can be waited for that is yet to come."""
    try:
        _check_known(app, wanted)
    except NotFoundError as error:
        tell(f"{error.message}; waiting for its first record")


def _show(app: App, record: Record, follow: bool) -> None:
    if render.each(app, record, flush=follow):
        return
    facts = " ".join(f"{key}={_fact(value)}" for key, value in record.facts.items())
    # An id must not begin where a terminal of 80 columns ends.
    at = render.when(record.at) if render.is_terminal() else record.at
    head = (record.seq, at, record.domain, record.pivot, record.event)
    print(
        f"{' '.join(render.text(value) for value in head)} {render.text(facts) if facts else ''}".rstrip(), flush=follow
    )


def _fact(value: Any) -> str:
    return value if isinstance(value, str) and " " not in value else json.dumps(value, ensure_ascii=False)
