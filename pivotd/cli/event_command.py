"""`pivotctl events`: show the durable event log."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import click
import msgspec

from pivotd.cli import render
from pivotd.cli.complaints import EXIT_INTERRUPTED, UsageError
from pivotd.cli.context import App, pass_app
from pivotd.cli.help import ExampleCommand
from pivotd.client import Record

EXAMPLES = (
    "pivotctl events --after 1200",
    "pivotctl --json events --follow | jq .event",
)


@click.command(cls=ExampleCommand, examples=EXAMPLES, short_help="The durable event log, starting at any record.")
@click.option("--follow", "-f", is_flag=True, help="Continue with new records as they are written, until Ctrl-C.")
@click.option(
    "--after",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    metavar="SEQ",
    help="Only records with a larger sequence number.",
)
@pass_app
def events(app: App, follow: bool, after: int) -> None:
    """Show the records of the journal, oldest first.

    Each line starts with the record's sequence number. To continue later without a gap or a repetition, give the last
    number to --after. --follow continues across a restart of the daemon.
    """
    if follow and app.offline is not None:
        raise UsageError("`events --follow` needs the daemon: leave --offline or --follow out")
    try:
        for record in _records(app, after, follow):
            _show(app, record, follow)
    except KeyboardInterrupt:
        app.status = EXIT_INTERRUPTED


def _records(app: App, after: int, follow: bool) -> Iterator[Record]:
    if not follow:
        yield from app.reads.events(after)
        return
    client = app.client
    client.health()
    yield from client.events(after, follow=True)


def _show(app: App, record: Record, follow: bool) -> None:
    if app.json:
        print(json.dumps(msgspec.to_builtins(record)), flush=follow)
        return
    facts = " ".join(f"{key}={_fact(value)}" for key, value in record.facts.items())
    head = (record.seq, record.at, record.domain, record.pivot, record.event)
    print(
        f"{' '.join(render.text(value) for value in head)} {render.text(facts) if facts else ''}".rstrip(), flush=follow
    )


def _fact(value: Any) -> str:
    return value if isinstance(value, str) and " " not in value else json.dumps(value, ensure_ascii=False)
