"""`pivotctl verdict`: say which image holds a disk's data."""

from __future__ import annotations

from typing import Any

import click

from pivotd.cli import render
from pivotd.cli.complaints import UsageError, perhaps_taken
from pivotd.cli.context import App, pass_app
from pivotd.cli.global_options import after
from pivotd.cli.help import ExampleCommand
from pivotd.cli.known_names import DISK, DOMAIN
from pivotd.cli.values import FORMAT, AnyImage, local_word
from pivotd.client import AcceptRequest, Verdict
from pivotd.errors import EXIT_DONE, EXIT_NEVER_MOVED, EXIT_UNKNOWN

EXAMPLES = (
    "pivotctl verdict",
    "pivotctl verdict web1 disk0",
    "pivotctl verdict --image /new/web1.qcow2",
    "pivotctl --offline /var/lib/pivotd verdict web1",
)
NAME = ("domain", "disk")

ACCEPT_EXAMPLES = ('pivotctl verdict accept web1 disk0 /images/web1.qcow2 --reason "restored from Monday\'s backup"',)


class VerdictCommand(ExampleCommand):
    """``verdict [DOMAIN [DISK]]``, and ``verdict accept …``; a domain named accept is asked for after ``--``."""

    def get_command(self, _context: click.Context, name: str) -> click.Command | None:
        """Return the command below this one."""
        return after(accept) if name == "accept" else None

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        """Return the context of the command that is meant."""
        if args[:1] == ["accept"]:
            return after(accept).make_context(f"{info_name} accept", args[1:], parent, **extra)
        return super().make_context(info_name, args, parent, **extra)


@click.command(cls=ExampleCommand, examples=ACCEPT_EXAMPLES, short_help="Settle a doubt by a person's word.")
@click.argument("domain", type=DOMAIN)
@click.argument("disk", type=DISK)
@click.argument("image", type=AnyImage())
@click.option("--reason", required=True, metavar="TEXT", help="How you know; it stays in the journal with your uid.")
@click.option("--format", type=FORMAT,
              help="Format of an image that the journal does not know.")  # fmt: skip
@pass_app
def accept(app: App, /, domain: str, disk: str, image: str, **word: Any) -> None:
    """Say which image holds the data of a disk, where pivotd cannot know it: your word is recorded, and counts.

    Compare the images first. It is refused while a pivot of the disk is open, while QEMU runs on another image, and for
    an image that another disk needs for certain.
    """
    app.will_answer(Verdict)
    with perhaps_taken(f"see `pivotctl verdict {domain} {disk}`", domain=domain, disk=disk):
        found = app.client.accept(domain, disk, AcceptRequest(image=image, **word))
    app.status = EXIT_DONE
    if not render.answer(app, found, NAME):
        _card(found)


@click.command(cls=VerdictCommand, examples=EXAMPLES, short_help="Which image holds the data of a disk, and why.")
@click.argument("domain", metavar="[DOMAIN", type=DOMAIN, required=False)
@click.argument("disk", metavar="[DISK]]", type=DISK, required=False)
@click.option("--image", type=AnyImage(), metavar="PATH", help="What all of history says of this image.")
@local_word
@pass_app
def verdict(app: App, domain: str | None, disk: str | None, image: str | None, local: bool) -> None:
    """Say which image holds the data of each disk, and why.

    The daemon checks the journal against what QEMU shows now. With --offline, pivotctl reads only the journal: this
    works while the daemon or QEMU is dead, and after a host crash.

    The exit status is 6 if any verdict shown is not certain: compare both images before you trust either. Then
    `pivotctl verdict accept DOMAIN DISK IMAGE --reason TEXT` settles it.
    """
    if image is not None and domain is not None:
        raise UsageError("give a domain or --image, not both; see `pivotctl verdict --help`")
    if image is not None:
        _image(app, image)
        return
    found = app.reads.verdicts(domain, disk, local=local)
    if domain is not None and app.offline is not None and all(row.pivot is None for row in found):
        app.journal.check_known(domain)
    app.found(EXIT_UNKNOWN if any(not row.certain for row in found) else EXIT_DONE)
    if render.answer(app, found[0] if disk is not None and len(found) == 1 else found, NAME):
        return
    if domain is not None:
        for row in found:
            _card(row)
    else:
        _table(found)
    if not found:
        print(f"the journal holds no pivot of {'any domain' if domain is None else f'domain {render.text(domain)}'}")


def _image(app: App, image: str) -> None:
    """Show what history says of an image."""
    found = app.reads.image(image)
    if not found:
        app.found(EXIT_NEVER_MOVED)
    else:
        app.found(EXIT_DONE if all(row.certain for row in found) else EXIT_UNKNOWN)
    if render.answer(app, found, NAME):
        return
    if not found:
        print(f"never seen: neither the journal nor a QEMU knows {render.text(image)}")
    for row in found:
        render.card(
            f"{row.asked}  {row.standing}",
            (
                ("disk", f"{row.domain} {row.disk}"),
                ("reason", row.standing_reason),
                ("since", row.standing_since),
                ("pivot", row.standing_pivot),
                ("below", row.above),
                ("right", row.image if row.standing != "current" else None),
                ("certain", "yes" if row.certain else f"NO: {row.reason}"),
            ),
        )


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
        [(row.domain, row.disk, _outcome(row), row.image, row.format, render.when(row.since)) for row in found],
    )


def _outcome(row: Verdict) -> str | None:
    return row.outcome if row.certain or row.outcome == "unknown" else "not certain"
