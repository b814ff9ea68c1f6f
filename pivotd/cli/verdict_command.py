"""`pivotctl verdict`: say which image holds a disk's data."""

from __future__ import annotations

import click

from pivotd.cli import render
from pivotd.cli.complaints import UsageError
from pivotd.cli.context import App, pass_app
from pivotd.cli.help import ExampleCommand
from pivotd.cli.values import AnyImage, Name
from pivotd.client import Verdict
from pivotd.errors import EXIT_DONE, EXIT_UNKNOWN

EXAMPLES = (
    "pivotctl verdict",
    "pivotctl verdict web1 disk0",
    "pivotctl verdict --image /new/web1.qcow2",
    "pivotctl --offline /var/lib/pivotd verdict web1",
)


@click.command(cls=ExampleCommand, examples=EXAMPLES, short_help="Which image holds the data of a disk, and why.")
@click.argument("domain", metavar="[DOMAIN", type=Name(), required=False)
@click.argument("disk", metavar="[DISK]]", type=Name(), required=False)
@click.option("--image", type=AnyImage(), metavar="PATH", help="Only disks that use or used this image.")
@pass_app
def verdict(app: App, domain: str | None, disk: str | None, image: str | None) -> None:
    """Say which image holds the data of each disk, and why.

    The daemon checks the journal against what QEMU shows now. With --offline, pivotctl reads only the journal: this
    works while the daemon or QEMU is dead, and after a host crash.

    The exit status is 6 if any verdict shown is not certain: compare both images before you trust either.
    """
    if image is not None and domain is not None:
        raise UsageError("give a domain or --image, not both; see `pivotctl verdict --help`")
    found = app.reads.verdicts(domain, disk, image)
    app.status = EXIT_UNKNOWN if any(not row.certain for row in found) else EXIT_DONE
    if render.answer(app, found[0] if disk is not None and len(found) == 1 else found):
        return
    if domain is not None or image is not None:
        for row in found:
            _card(row)
    else:
        _table(found)
    if not found:
        print(f"the journal holds no pivot of {'any domain' if domain is None else f'domain {render.text(domain)}'}")


def _card(row: Verdict) -> None:
    render.card(
        f"{row.domain} {row.disk}  {render.text(row.image)}",
        (
            ("format", row.format),
            ("outcome", row.outcome or "no pivot"),
            ("certain", "yes" if row.certain else "NO: a person must look"),
            ("reason", row.reason),
            ("evidence", list(row.evidence)),
            ("pivot", row.pivot),
            ("since", row.since),
        ),
    )


def _table(found: list[Verdict]) -> None:
    if not found:
        return
    render.table(
        ("DOMAIN", "DISK", "OUTCOME", "IMAGE", "FORMAT", "SINCE"),
        [(row.domain, row.disk, row.outcome, row.image, row.format, render.when(row.since)) for row in found],
    )
