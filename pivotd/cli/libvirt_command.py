"""`pivotctl libvirt`: what concerns guests that libvirt manages."""

from __future__ import annotations

from functools import partial
from typing import Any

import click

from pivotd.cli import starting
from pivotd.cli.context import App, pass_app
from pivotd.cli.help import ExampleCommand
from pivotd.cli.values import Name
from pivotd.client import AdoptDisk, AdoptRequest
from pivotd.errors import EXIT_DONE, EXIT_KEPT, EXIT_REFUSED


@click.group(short_help="Guests that libvirt manages.")
def libvirt() -> None:
    """Switch disks of guests that libvirt manages, and set up what they need on this host."""


@libvirt.command("pivot", cls=ExampleCommand, examples=("pivotctl libvirt pivot web1 vda",))
@click.argument("domain", metavar="DOMAIN", type=Name())
@click.argument("disks", metavar="DISK...", nargs=-1, required=True)
@starting.pausing
@starting.common
@pass_app
def pivot(app: App, /, domain: str, disks: tuple[str, ...], **options: Any) -> None:
    """Switch each DISK of DOMAIN to the image of the job that virsh or another tool has started there, guarded.

    Replaces `virsh blockjob DOMAIN DISK --pivot`: pivotd waits until the copy or the active commit is ready, pauses the
    guest, has libvirt switch, sees to it that QEMU, the running domain and its next boot name the same image, and lets
    the guest run. All disks or none.
    """
    _adopt(app, domain, disks, options, abort=False)


@libvirt.command("abort", cls=ExampleCommand, examples=("pivotctl libvirt abort web1 vda",))
@click.argument("domain", metavar="DOMAIN", type=Name())
@click.argument("disks", metavar="DISK...", nargs=-1, required=True)
@starting.pausing
@starting.common
@pass_app
def abort(app: App, /, domain: str, disks: tuple[str, ...], **options: Any) -> None:
    """End the job on each DISK of DOMAIN that virsh or another tool has started, without a switch, guarded.

    Replaces `virsh blockjob DOMAIN DISK --abort`. Exit status 0 means that the guest stays on its image, and that
    libvirt knows that.
    """
    _adopt(app, domain, disks, options, abort=True)


def _adopt(app: App, domain: str, disks: tuple[str, ...], options: dict[str, Any], *, abort: bool) -> None:
    """Guard libvirt's jobs on disks to their end."""
    starting.check_twice("disk", list(disks), f"libvirt {'abort' if abort else 'pivot'}")
    request, waits = partial(AdoptRequest, abort=abort), not options["detach"]
    starting.start(app, domain, request, [AdoptDisk(disk=disk) for disk in disks], options)
    if abort and waits and app.status in {EXIT_DONE, EXIT_KEPT}:
        # Here "kept" is what was asked for; a disk that was switched before it could be kept is not.
        app.status = EXIT_DONE if app.status == EXIT_KEPT else EXIT_REFUSED
