"""`pivotctl pivot adopt`: make a pivot of block jobs that other programs have started."""

from __future__ import annotations

from typing import Any

import click

from pivotd.cli import starting
from pivotd.cli.complaints import UsageError
from pivotd.cli.context import App, pass_app
from pivotd.cli.help import ExampleCommand
from pivotd.cli.known_names import DOMAIN
from pivotd.cli.values import FORMAT, absolute
from pivotd.client import AdoptDisk, AdoptRequest

EXAMPLES = (
    "pivotctl pivot adopt web1 disk0=/new/web1.qcow2 --sync full",
    "pivotctl pivot adopt web1 disk0 --no-pivot",
    "pivotctl pivot adopt web1 --job mirror0=/new/web1.qcow2 --sync full",
)


@click.command("adopt", cls=ExampleCommand, examples=EXAMPLES, short_help="Take over other programs' block jobs.")
@click.argument("domain", metavar="DOMAIN", type=DOMAIN)
@click.argument("targets", metavar="[DISK[=IMAGE]]...", nargs=-1)
@click.option("--job", "jobs", metavar="JOB[=IMAGE]", multiple=True, help="Name a job by its id; may be repeated.")
@click.option("--format", "image_format", type=FORMAT, help="Format of the images.  [default: the source's]")
@click.option("--sync", type=click.Choice(("full", "top")), help="The sync with which the mirrors were started.")
@starting.pausing
@starting.throttling
@starting.holding
@starting.dropping
@starting.common
@pass_app
def adopt(app: App, /, domain: str, targets: tuple[str, ...], jobs: tuple[str, ...], **options: Any) -> None:
    """Make one pivot of the block jobs that other programs have started on each DISK of DOMAIN.

    `pivotctl domain show DOMAIN` lists the jobs. Name a job by its disk, or by its id with --job.

    For a mirror, give the IMAGE that it writes to and its --sync: QEMU shows neither. A commit of the active layer
    needs neither. The jobs must have been started with auto-finalize=false and auto-dismiss=false.

    The result is a pivot like any other: `pivot cancel` cancels the jobs.
    """
    named = [(what, *text.partition("=")) for what, texts in (("disk", targets), ("job", jobs)) for text in texts]
    if not named:
        raise UsageError("name a DISK or a --job to adopt; see `pivotctl domain show` and `pivot adopt --help`")
    for kind in ("disk", "job"):
        starting.check_twice(kind, [name for what, name, _, _ in named if what == kind], "pivot adopt")
    image_format = options.pop("image_format")
    if options["sync"] is None and any(image for *_, image in named):
        raise UsageError("--sync is missing: say with which sync the mirror was started; see `pivot adopt --help`")
    disks = [
        AdoptDisk(
            disk=name if what == "disk" else None,
            job=name if what == "job" else None,
            image=absolute(image) if image else None,
            format=image_format if image else None,
        )
        for what, name, _, image in named
    ]
    starting.start(app, domain, AdoptRequest, disks, options)
