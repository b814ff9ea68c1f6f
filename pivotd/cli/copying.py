"""The command that copies disks to new images and switches to them."""

from __future__ import annotations

import os
import sys
from typing import Any

import click

from pivotd import limits
from pivotd.cli import render
from pivotd.cli.app import App, pass_app
from pivotd.cli.client import persistently
from pivotd.cli.errors import EXIT_INTERRUPTED, CtlError, LostError, UsageError
from pivotd.cli.help import ExampleCommand
from pivotd.cli.values import Bandwidth, DiskImage, Milliseconds, Name
from pivotd.cli.waiting import FOLLOW, wait_to_the_end
from pivotd.errors import EXIT_DONE

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
@click.option("--bandwidth", type=Bandwidth(), default=0, metavar="RATE", help="Bytes per second, like 10M or 1G.")
@click.option(
    "--max-pause",
    "max_pause_ms",
    type=Milliseconds(),
    metavar="TIME",
    help="Longest pause of the guest, like 500ms or 1s.  [default: the daemon's]",
)
@click.option(
    "--attempts",
    type=click.IntRange(1, limits.ATTEMPTS_MAX),
    metavar="N",
    help="How often to try the switch within the longest pause.  [default: the daemon's]",
)
@click.option(
    "--copy-mode",
    type=click.Choice(COPY_MODES),
    default="auto",
    show_default=True,
    help="How writes of the guest follow.",
)
@click.option("--no-pivot", is_flag=True, help="Stop at ready; `pivotctl pivot complete ID` switches.")
@click.option("--detach", "-d", is_flag=True, help="Do not wait.")
@click.option("--id", "request_id", type=Name(), metavar="REQUEST_ID", help="Your own id, see above.")
@click.option("--force", is_flag=True, help="Go on where a warning would refuse (cache=unsafe).")
@pass_app
def copy(app: App, /, domain: str, targets: tuple[tuple[str, str], ...], **options: Any) -> None:
    """Mirror each DISK of DOMAIN to a new IMAGE and switch all of them as one pivot: all or none.

    The guest runs on, and is paused only for the switch. If the switch cannot be made within the longest pause, the
    guest goes on with the source, and the next attempt follows.

    The same REQUEST_ID again returns the same pivot instead of starting another one: give one, and a script can be
    run again after any failure.

    Ctrl-C stops the waiting, not the pivot.
    """
    _check_targets(targets)
    request_id = options["request_id"] or os.urandom(16).hex()
    body = _body(targets, options)
    pivot = _send(app, domain, body, request_id)
    if not options["detach"]:
        wait_to_the_end(app, pivot)
        return
    app.status = EXIT_DONE
    if not render.answer(app, pivot):
        print(f"pivot {pivot['id']} runs; {FOLLOW.format(id=pivot['id'])}")


def _check_targets(targets: tuple[tuple[str, str], ...]) -> None:
    for index, what in ((0, "disk"), (1, "image")):
        names = [target[index] for target in targets]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise UsageError(f"{what} {twice} is named twice; see `pivotctl copy --help`")


def _body(targets: tuple[tuple[str, str], ...], options: dict[str, Any]) -> dict[str, Any]:
    """Return the request; what was not given is left out, and the daemon's own setting counts."""
    disks = []
    for disk, image in targets:
        target = {"disk": disk, "image": image}
        disks.append(target | ({"format": options["image_format"]} if options["image_format"] else {}))
    body = {
        "disks": disks,
        "reuse": options["reuse"],
        "bandwidth_bytes_per_s": options["bandwidth"],
        "max_pause_ms": options["max_pause_ms"],
        "attempts": options["attempts"],
        "copy_mode": options["copy_mode"],
        "pivot": not options["no_pivot"],
        "force": options["force"],
    }
    return {key: value for key, value in body.items() if value is not None}


def _send(app: App, domain: str, body: dict[str, Any], request_id: str) -> dict[str, Any]:
    """Return the pivot. Sent again after a lost connection: the request id makes that safe."""
    client = app.client
    again = f"see `pivotctl pivot show {request_id}`, or send it again with --id {request_id}"
    try:
        try:
            return client.copy(domain, body, request_id)
        except LostError:
            return persistently(
                lambda: client.copy(domain, body, request_id),
                lambda message: print(f"pivotctl: {message}", file=sys.stderr),
            )
    except KeyboardInterrupt:
        message = f"interrupted; pivotd may have taken the request: {again}"
        raise CtlError("interrupted", message, EXIT_INTERRUPTED, request_id=request_id) from None
