"""`pivotctl copy`: copy disks to new images and switch to them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from pivotd.cli import image_options, starting
from pivotd.cli.complaints import UsageError
from pivotd.cli.context import App, pass_app
from pivotd.cli.help import ExampleCommand
from pivotd.cli.known_names import DISK_IMAGE, DOMAIN
from pivotd.cli.values import FORMAT, SECONDS, Granularity
from pivotd.client import CopyDisk, CopyRequest

F = TypeVar("F", bound=Callable[..., Any])
COPY_MODES = ("auto", "background", "write-blocking")

EXAMPLES = (
    "pivotctl copy web1 disk0=/new/web1.qcow2",
    "pivotctl copy web1 disk0=a.raw disk1=b.raw --format raw --bandwidth 200M",
    "pivotctl copy web1 disk0=/new/web1.qcow2 --keep-synced --for 1h",
    "pivotctl copy web1 disk0=/new/web1.qcow2 --id move-42 --detach",
    "pivotctl copy web1 disk0=nbd://store:10809/web1 --format raw --reuse",
)


def copying(function: F) -> F:
    """Add the options of how QEMU copies."""
    function = click.option(
        "--granularity",
        "granularity_bytes",
        type=Granularity(),
        metavar="SIZE",
        help="What the guest's smallest write makes QEMU copy again: a power of two, 512 to 64M.  [default: QEMU's]",
    )(function)
    return click.option(
        "--copy-mode",
        type=click.Choice(COPY_MODES),
        default="auto",
        show_default=True,
        help="When guest writes reach the new image.",
    )(function)


def keeping(function: F) -> F:
    """Add the options of the window for an undo."""
    function = click.option(
        "--for",
        "keep_synced_s",
        type=SECONDS,
        metavar="TIME",
        help="How long to keep them in sync, like 1h.  [default: 1h]",
    )(function)
    said = "Keep the old images in sync after the switch, for `pivot undo`."
    return click.option("--keep-synced", is_flag=True, help=said)(function)


def check_kept(keep_synced_s: int | None, command: str, *, keep_synced: bool) -> None:
    """Raises: UsageError: --for is given alone."""
    if keep_synced_s is not None and not keep_synced:
        raise UsageError(f"--for says how long --keep-synced lasts: give both; see `pivotctl {command} --help`")


@click.command(cls=ExampleCommand, examples=EXAMPLES, short_help="Copy disks to new images, switch as one pivot.")
@click.argument("domain", metavar="DOMAIN", type=DOMAIN)
@click.argument("targets", metavar="DISK=IMAGE...", type=DISK_IMAGE, nargs=-1, required=True)
@click.option("--format", "image_format", type=FORMAT, help="Format of the new images.  [default: the source's]")
@click.option("--reuse", is_flag=True, help="The images exist already; overwrite them.")
@click.option(
    "--sync",
    type=click.Choice(("full", "top")),
    default="full",
    show_default=True,
    help="Copy all layers, or only the active one.",
)
@image_options.creating
@starting.bandwidth
@starting.pausing
@copying
@starting.throttling
@keeping
@click.option("--resumable", is_flag=True, help="A failing destination pauses the copy instead of ending it.")
@starting.holding
@starting.dropping
@starting.common
@pass_app
def copy(app: App, /, domain: str, targets: tuple[tuple[str, str], ...], **options: Any) -> None:
    """Mirror each DISK of DOMAIN to a new IMAGE and switch all of them as one pivot: all or none.

    The guest keeps running; pivotd pauses it only for the switch. If the switch takes longer than --max-pause, the
    guest continues on the source, and pivotd tries again.

    IMAGE is a path, or with --reuse also a block device or an NBD export: nbd://HOST:PORT/EXPORT,
    nbd+unix:///EXPORT?socket=/PATH. In a directory, like /new/, the image gets the file name of the source. With --sync
    top the new image has the backing image of the source.

    With --keep-synced QEMU mirrors every write back to the old images for a while: `pivotctl pivot undo ID` returns to
    them at once, `pivotctl pivot release ID` ends this early. Meanwhile each guest write waits for both images. If QEMU
    ends, the mirrors end, and the old images are out of date.

    With --resumable a destination that fails pauses the copy, as a full one always does. pivotd tries again, and the
    copy continues where it stopped; `pivotctl pivot show` says how much did not have to be copied again.
    """
    starting.check_targets(targets, "image", "copy")
    check_kept(options["keep_synced_s"], "copy", keep_synced=options["keep_synced"])
    image_format = options.pop("image_format")
    disks = [CopyDisk(disk=disk, image=image, format=image_format) for disk, image in targets]
    starting.start(app, domain, CopyRequest, disks, image_options.fold(options))
