"""The commands that lengthen and shorten backing chains: snapshot, commit, pull."""

from __future__ import annotations

from typing import Any

import click

from pivotd.cli import image_options, starting
from pivotd.cli.context import App, pass_app
from pivotd.cli.help import ExampleCommand
from pivotd.cli.known_names import DISK_IMAGE, DOMAIN
from pivotd.cli.values import AbsolutePath
from pivotd.client import CommitDisk, CommitRequest, PullDisk, PullRequest, SnapshotDisk, SnapshotRequest

SNAPSHOT_EXAMPLES = (
    "pivotctl snapshot web1 disk0=/images/web1-monday.qcow2",
    "pivotctl snapshot db1 system=sys.qcow2 data=data.qcow2 log=log.qcow2",
)
COMMIT_EXAMPLES = (
    "pivotctl commit web1 disk0",
    "pivotctl commit web1 disk0 --base /images/base.qcow2",
    "pivotctl commit web1 disk0 --top /images/tuesday.qcow2 --base /images/monday.qcow2",
)
PULL_EXAMPLES = (
    "pivotctl pull web1 disk0",
    "pivotctl pull web1 disk0 --base /images/golden.qcow2",
)


@click.command(cls=ExampleCommand, examples=SNAPSHOT_EXAMPLES, short_help="New overlays on disks, all at one instant.")
@click.argument("domain", metavar="DOMAIN", type=DOMAIN)
@click.argument("targets", metavar="DISK=OVERLAY...", type=DISK_IMAGE, nargs=-1, required=True)
@image_options.creating
@starting.pausing
@starting.common
@pass_app
def snapshot(app: App, /, domain: str, targets: tuple[tuple[str, str], ...], **options: Any) -> None:
    """Put a new, empty OVERLAY on each DISK of DOMAIN, all of them at one instant: all or none.

    From then on the guest writes to the overlays, and the images below stay as they were at that instant. The overlays
    are qcow2. OVERLAY may also be a directory, like /new/: the overlay then gets the file name of the image below.
    """
    starting.check_targets(targets, "overlay", "snapshot")
    disks = [SnapshotDisk(disk=disk, image=image) for disk, image in targets]
    starting.start(app, domain, SnapshotRequest, disks, image_options.fold(options))


@click.command(cls=ExampleCommand, examples=COMMIT_EXAMPLES, short_help="Write layers into a layer below them.")
@click.argument("domain", metavar="DOMAIN", type=DOMAIN)
@click.argument("disks", metavar="DISK...", nargs=-1, required=True)
@click.option("--base", type=AbsolutePath(), metavar="IMAGE", help="The layer written to.  [default: the lowest]")
@click.option(
    "--top", type=AbsolutePath(), metavar="IMAGE", help="The uppermost layer committed.  [default: the active]"
)
@starting.bandwidth
@starting.pausing
@starting.throttling
@starting.holding
@starting.dropping
@starting.common
@pass_app
def commit(app: App, /, domain: str, disks: tuple[str, ...], base: str | None, top: str | None, **options: Any) -> None:
    """Write the layers of each DISK of DOMAIN, from --top down, into --base, which replaces them.

    If the active layer is among them, the guest moves to the base: this is a switch, all disks or none. Otherwise the
    guest stays on its image. In both cases pivotd pauses the guest at the end, for at most --max-pause. The committed
    images stay where they are, and are stale.
    """
    starting.check_twice("disk", list(disks), "commit")
    starting.start(app, domain, CommitRequest, [CommitDisk(disk=disk, top=top, base=base) for disk in disks], options)


@click.command(cls=ExampleCommand, examples=PULL_EXAMPLES, short_help="Copy lower layers into the active images.")
@click.argument("domain", metavar="DOMAIN", type=DOMAIN)
@click.argument("disks", metavar="DISK...", nargs=-1, required=True)
@click.option("--base", type=AbsolutePath(), metavar="IMAGE", help="The layer that stays below.  [default: none]")
@starting.bandwidth
@starting.pausing
@starting.holding
@starting.dropping
@starting.common
@pass_app
def pull(app: App, /, domain: str, disks: tuple[str, ...], base: str | None, **options: Any) -> None:
    """Copy the layers below the active image of each DISK of DOMAIN into it, so that it no longer needs them.

    The guest stays on the same image. pivotd pauses it at the end, for at most --max-pause, while QEMU writes the
    image's tables to disk and takes the layers out of the chain.
    """
    starting.check_twice("disk", list(disks), "pull")
    starting.start(app, domain, PullRequest, [PullDisk(disk=disk, base=base) for disk in disks], options)
