"""The command that copies disks to new images and switches to them."""

from __future__ import annotations

from typing import Any

import click

from pivotd.cli import starting
from pivotd.cli.app import App, pass_app
from pivotd.cli.help import ExampleCommand
from pivotd.cli.values import DiskImage, Name

COPY_MODES = ("auto", "background", "write-blocking")

EXAMPLES = (
    "pivotctl copy web1 disk0=/new/web1.qcow2",
    "pivotctl copy web1 disk0=a.raw disk1=b.raw --format raw --bandwidth 200M",
    "pivotctl copy web1 disk0=/new/web1.qcow2 --id move-42 --detach",
)


@click.command(cls=ExampleCommand, examples=EXAMPLES, short_help="Copy disks to new images, switch as one pivot.")
@click.argument("domain", metavar="DOMAIN", type=Name())
@click.argument("targets", metavar="DISK=IMAGE...", type=DiskImage(), nargs=-1, required=True)
@click.option("--format", "image_format", metavar="FORMAT", help="Format of the new images.  [default: the source's]")
@click.option("--reuse", is_flag=True, help="The images exist already, and are overwritten.")
@starting.bandwidth
@starting.pausing
@click.option(
    "--copy-mode",
    type=click.Choice(COPY_MODES),
    default="auto",
    show_default=True,
    help="How writes of the guest follow.",
)
@starting.throttling
@starting.holding
@starting.common
@pass_app
def copy(app: App, /, domain: str, targets: tuple[tuple[str, str], ...], **options: Any) -> None:
    """Mirror each DISK of DOMAIN to a new IMAGE and switch all of them as one pivot: all or none.

    The guest runs on, and is paused only for the switch. If the switch cannot be made within the longest pause, the
    guest goes on with the source, and the next attempt follows.

    The same REQUEST_ID again returns the same pivot instead of starting another one: give one, and a script can be
    run again after any failure.

    Ctrl-C stops the waiting, not the pivot.
    """
    for index, what in ((0, "disk"), (1, "image")):
        starting.check_twice(what, [target[index] for target in targets], "copy")
    image_format = options.pop("image_format")
    disks = [
        {"disk": disk, "image": image} | ({"format": image_format} if image_format else {}) for disk, image in targets
    ]
    starting.start(app, "copy", domain, disks, options)
