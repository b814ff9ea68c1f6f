"""The command `report`: a page of what pivots did, for a change ticket."""

from __future__ import annotations

import sys
from datetime import datetime
from pathlib import Path

import click

from pivotd.cli import new_file, render, unknown_domain
from pivotd.cli.complaints import UsageError
from pivotd.cli.context import App, pass_app, tell
from pivotd.cli.help import ExampleCommand
from pivotd.cli.known_names import DOMAIN, PIVOT
from pivotd.cli.since import Since
from pivotd.cli.values import Name
from pivotd.errors import NotFoundError

EXAMPLES = (
    "pivotctl report 01M85YE52MQ9X1E8RH9KXH3657 -o CHG-1042.html",
    "pivotctl report --since 24h -o night.html",
    "pivotctl --offline /var/lib/pivotd report --domain web1 -o web1.html",
)


@click.command(cls=ExampleCommand, examples=EXAMPLES, short_help="A page of what pivots did, for a change ticket.")
@click.argument("ids", metavar="[ID]...", nargs=-1, type=PIVOT)
@click.option("--since", type=Since(), metavar="TIME", help="Pivots that had not ended by then: 24h, 7d, 2026-11-30.")
@click.option("--domain", type=DOMAIN, metavar="DOMAIN", help="Only pivots of this domain.")
@click.option("-o", "--output", type=Name(), metavar="FILE", required=True, help="The page; - for stdout.")
@click.option("--force", is_flag=True, help="Replace FILE if it is there.")
@pass_app
def report(  # noqa: PLR0913 - click passes each option
    app: App, ids: tuple[str, ...], since: datetime | None, domain: str | None, output: str, *, force: bool
) -> None:
    """Write one page of HTML about pivots: what moved, chains before and after, timeline, pauses, verdict, who asked.

    The page needs no network and runs no program: attach it, or print it. ID is the id of a pivot or its request id;
    without one, choose pivots by --since, --domain, or both. Verdicts are those of now: of the daemon, or with
    --offline of the journal alone, which the page says. So it does of a pivot that is still open.
    """
    if ids and (since is not None or domain is not None):
        raise UsageError("give either ids, or --since and --domain; see `pivotctl report --help`")
    if not ids and since is None and domain is None:
        raise UsageError("say which pivots: ids, --since, --domain; see `pivotctl report --help`")
    if output == "-" and not app.for_people:
        raise UsageError("`-o -` prints the page and nothing else: name a file, or leave --json and -q out")
    path = Path(output)
    if output != "-":
        new_file.check(path, force=force)
    from pivotd.cli.report_data import PIVOTS_MAX, Choice, gather  # noqa: PLC0415 - after all that can be refused at once
    from pivotd.cli.report_page import document  # noqa: PLC0415

    found = gather(app, Choice(ids, domain, since))
    if not found.pivots:
        unknown_domain.check(app, domain)
        raise NotFoundError(f"there are no pivots {found.chosen}: no page was written; see `pivotctl pivot ls`")
    page = document(found)
    if found.left_out:
        tell(f"there are more pivots {found.chosen}: the page has the newest {PIVOTS_MAX}")
    if output == "-":
        sys.stdout.buffer.write(page)
        return
    new_file.write(path, page, force=force)
    told = {"file": str(path), "pivots": len(found.pivots), "bytes": len(page)}
    if not render.answer(app, told):
        many = f"{len(found.pivots)} pivot{'s' if len(found.pivots) > 1 else ''}"
        print(render.text(f"{output}: {many}, {render.size(len(page))}"))
