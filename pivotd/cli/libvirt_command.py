"""`pivotctl libvirt`: what concerns guests that libvirt manages."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import click

from pivotd.cli import render, starting
from pivotd.cli.complaints import UnusableFileError
from pivotd.cli.context import App, pass_app
from pivotd.cli.help import ExampleCommand
from pivotd.cli.known_names import DOMAIN
from pivotd.cli.values import AbsolutePath
from pivotd.client import AdoptDisk, AdoptRequest
from pivotd.errors import EXIT_DONE, EXIT_KEPT, EXIT_REFUSED
from pivotd.host import libvirt_hooks

HOOK_EXAMPLES = (
    "pivotctl libvirt install-hooks",
    "pivotctl libvirt install-hooks --starts && systemctl reload libvirtd",
    "pivotctl libvirt install-hooks --remove",
)


@click.group(short_help="Guests that libvirt manages.")
def libvirt() -> None:
    """Switch disks of guests that libvirt manages, and set up what they need on this host."""


@libvirt.command("pivot", cls=ExampleCommand, examples=("pivotctl libvirt pivot web1 vda",))
@click.argument("domain", metavar="DOMAIN", type=DOMAIN)
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
@click.argument("domain", metavar="DOMAIN", type=DOMAIN)
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


@libvirt.command("install-hooks", cls=ExampleCommand, examples=HOOK_EXAMPLES)
@click.option("--root", type=AbsolutePath(), default="/", metavar="DIR", help="Install below DIR, as into a package.")
@click.option("--starts", is_flag=True, help="Also refuse to start a domain from a stale image.")
@click.option("--remove", is_flag=True, help="Remove the hook again.")
@pass_app
def install_hooks(app: App, root: str, starts: bool, remove: bool) -> None:
    """Install the hook that repairs libvirt's view of its disks when libvirtd starts.

    Writes /etc/libvirt/hooks/pivotd-libvirt-hook.py and a small program in daemon.d; needs libvirt 6.5 or newer, and
    root. Hooks of others stay. The hook works by itself: the daemon need not run. See docs/libvirt-hook.md.

    With --starts, also a program in qemu.d, by which libvirt asks the journal before it starts a domain. When libvirtd
    starts, it runs that program for each running domain, which costs it about 10 ms of processor time each.
    """
    place = Path(root)
    try:
        if not remove and place == Path("/") and not (place / libvirt_hooks.PYTHON).exists():
            raise UnusableFileError("the hook needs /usr/bin/python3: install Python 3 of the distribution")
        paths = libvirt_hooks.remove(place) if remove else libvirt_hooks.install(place, starts=starts)
    except libvirt_hooks.ForeignFileError as error:
        raise UnusableFileError(str(error)) from None
    except OSError as error:
        raise UnusableFileError.of(error) from None
    app.status = EXIT_DONE
    word = "removed" if remove else "installed"
    if render.answer(app, {word: [str(path) for path in paths]}):
        return
    for path in paths:
        print(f"{word} {path}")
    if paths and place == Path("/"):
        print("libvirt looks for hooks when it starts or reloads: systemctl reload libvirtd (or virtqemud)")


def _adopt(app: App, domain: str, disks: tuple[str, ...], options: dict[str, Any], *, abort: bool) -> None:
    """Guard libvirt's jobs on disks to their end."""
    starting.check_twice("disk", list(disks), f"libvirt {'abort' if abort else 'pivot'}")
    request, waits = partial(AdoptRequest, abort=abort), not options["detach"]
    starting.start(app, domain, request, [AdoptDisk(disk=disk) for disk in disks], options)
    if abort and waits and app.status in {EXIT_DONE, EXIT_KEPT}:
        # Here "kept" is what was asked for; a disk that was switched before it could be kept is not.
        app.status = EXIT_DONE if app.status == EXIT_KEPT else EXIT_REFUSED
