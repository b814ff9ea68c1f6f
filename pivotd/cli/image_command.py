"""`pivotctl image`: print the image to start a guest with."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from pivotd.cli import render
from pivotd.cli.complaints import UsageError, WrongImageError
from pivotd.cli.context import App, pass_app
from pivotd.cli.help import ExampleCommand
from pivotd.cli.known_names import DISK, DOMAIN
from pivotd.cli.right_images import certain, image_history, right_images, same_image
from pivotd.cli.values import WAIT, AnyImage, absolute, local_word
from pivotd.client import Verdict
from pivotd.core import nbd
from pivotd.core.image_names import options
from pivotd.core.standing import Standing
from pivotd.errors import NeverMovedError, UncertainError
from pivotd.host.files import with_drivers

EXAMPLES = (
    "qemu-system-x86_64 -drive file=$(pivotctl image web1 disk0),format=$(pivotctl image web1 disk0 --format)",
    "pivotctl image web1 disk0 --default /images/web1.qcow2",
    "pivotctl image web1 --all > /run/vm/web1.env",
    "pivotctl --offline /var/lib/pivotd image web1 disk0",
)
IMAGE = ("image",)
Shown = dict[str, str]
"""``disk``, ``image`` and ``format``."""
NODE_NAME_LENGTH_MAX = 31
"""QEMU's own limit."""


@click.command(cls=ExampleCommand, examples=EXAMPLES, short_help="The path of the right image alone.")
@click.argument("domain", type=DOMAIN)
@click.argument("disk", type=DISK, required=False)
@click.option("--format", "as_format", is_flag=True, help="Print the format instead: qcow2 or raw.")
@click.option("--blockdev", "as_blockdev", is_flag=True, help="Print the value for QEMU's -blockdev, as JSON.")
@click.option("--all", "every", is_flag=True, help="All disks, as lines for systemd's EnvironmentFile=.")
@click.option("--default", "defaults", multiple=True, metavar="PATH",
              help="What to print if the disk was never moved; with --all: DISK=PATH, repeatedly.")  # fmt: skip
@click.option("--default-format", type=click.Choice(["qcow2", "raw"]), default="qcow2", show_default=True,
              help="The format of defaults.")  # fmt: skip
@click.option("--wait", type=WAIT, default="10s", metavar="TIME", show_default=True,
              help="How long to wait while a pivot is being recovered.")  # fmt: skip
@local_word
@pass_app
def image(app: App, /, domain: str, disk: str | None, wait: int, **options: Any) -> None:
    """Print the image that holds the data of a disk, and nothing else: for $(...) and for scripts that start guests.

    Asks the daemon, or reads the journal of this host if the daemon is away. Prints nothing and says why on stderr with
    status 6 if nobody can be certain, 7 if this journal has never moved the disk, 4 if nobody has heard of the domain,
    3 if neither the daemon nor the journal can be asked.

    With --all, each disk gives two lines like DISK0="/images/web1.qcow2" and DISK0_FORMAT=qcow2.
    """
    every = options["every"]
    if (disk is None) is not every:
        raise UsageError("give a disk, or --all for every disk of the domain; see `pivotctl image --help`")
    if options["as_format"] + options["as_blockdev"] + every > 1:
        raise UsageError("give one of --format, --blockdev and --all")
    standard = _standard(disk, options["defaults"], options["default_format"])
    found = right_images(app, domain, {*standard, *([disk] if disk else [])}, wait, local=options["local"])
    if every:
        moved = {one for one, right in found.items() if right.outcome is not None}
        shown = {one: _right(app, domain, one, found, standard) for one in sorted({*moved, *standard})}
        if not shown:
            raise NeverMovedError(f"this journal has never moved a disk of {domain}", domain=domain)
        lines = "".join(_lines(shown))
        if not render.answer(app, list(shown.values()), IMAGE):
            print(lines, end="")
        return
    one = _right(app, domain, str(disk), found, standard)
    if render.answer(app, one, IMAGE):
        return
    if options["as_blockdev"]:
        print(json.dumps(blockdev(one["disk"], one["image"], one["format"])))
    else:
        print(one["format" if options["as_format"] else "image"])


def _standard(disk: str | None, defaults: Sequence[str], image_format: str) -> dict[str, Shown]:
    """Return what to show for disks that were never moved. Raises: UsageError."""
    if disk is not None and len(defaults) > 1:
        raise UsageError("give one --default for one disk")
    pairs = [_of_disk(one) if disk is None else (disk, AnyImage().convert(one, None, None)) for one in defaults]
    return {one: {"disk": one, "image": path, "format": image_format} for one, path in pairs}


def _right(app: App, domain: str, disk: str, found: dict[str, Verdict], standard: dict[str, Shown]) -> Shown:
    """Return the image and its format. Raises: NeverMovedError, UncertainError, WrongImageError."""
    try:
        one = certain(domain, disk, found)
    except NeverMovedError:
        if disk not in standard:
            raise
        check_default(app, domain, disk, standard[disk]["image"], found.get(disk))
        return standard[disk]
    if one.image is None or one.format is None:
        raise UncertainError(f"{domain} {disk}: the journal names no image", domain=domain, disk=disk)
    return {"disk": disk, "image": one.image, "format": one.format}


def check_default(app: App, domain: str, disk: str, path: str, found: Verdict | None) -> None:
    """Check an image of a disk that was never moved; ``found``: the verdict on the disk.

    Raises: WrongImageError: history says that it is not one to start this disk with, or QEMU uses another one now;
    UncertainError: another disk's pivot has written to it, or the name of what QEMU uses leads elsewhere.
    """
    if found is not None and not found.certain:
        raise UncertainError(f"{domain} {disk}: nobody can be certain: {found.reason}", domain=domain, disk=disk)
    live = {Standing.CURRENT.value, Standing.BASE.value}  # of its own: what QEMU uses now says more
    for one in image_history(app, path):
        if one.standing in live and (one.domain, one.disk) == (domain, disk):
            continue
        why = f"it is {one.standing} for {one.domain} {one.disk}: {one.standing_reason}"
        raise WrongImageError(f"{path} is no image to start {domain} {disk} with: {why}", image=path)
    if found is not None and found.image is not None and not same_image(path, found.image):
        raise WrongImageError(
            f"{path} is no image to start {domain} {disk} with: QEMU uses {found.image} now", image=path
        )


def _of_disk(text: str) -> tuple[str, str]:
    disk, separator, path = text.partition("=")
    if not (disk and separator and path):
        raise UsageError(f"--default {text}: with --all, give DISK=PATH, like disk0=/images/web1.qcow2")
    return disk, path if nbd.is_uri(path) else absolute(path)


def blockdev(disk: str, image: str, image_format: str) -> dict[str, Any]:
    """Return the options of QEMU's -blockdev for an image, as a node that is named after the disk."""
    node = re.sub(r"[^A-Za-z0-9._-]", "-", disk)
    node = (node if node[:1].isalpha() else f"disk{node}")[:NODE_NAME_LENGTH_MAX]
    described = options(image)
    if described is not None:
        return {**with_drivers(described), "node-name": node}
    if nbd.is_uri(image):
        file: dict[str, Any] = dict(nbd.parse(image).options)
    else:
        path = Path(image)
        file = {"driver": "host_device" if path.is_block_device() else "file", "filename": image}
    return {"driver": image_format, "node-name": node, "file": file}


def _lines(shown: dict[str, Shown]) -> list[str]:
    """Return lines for systemd's EnvironmentFile=. Raises: UsageError: two disks would get one name."""
    names: dict[str, str] = {}
    lines = []
    for disk, one in shown.items():
        name = re.sub(r"[^A-Z0-9]", "_", disk.upper())
        name = f"_{name}" if name[:1].isdigit() else name
        if name in names:
            raise UsageError(f"{names[name]} and {disk} would both be {name}: ask for each by itself")
        names[name] = disk
        lines += [f"{name}={_quoted(one['image'])}\n", f"{name}_FORMAT={one['format']}\n"]
    return lines


def _quoted(text: str) -> str:
    r"""Return a value in double quotes, where systemd takes a backslash before ``"``, ``\``, `````, ``$`` as escape."""
    return '"' + re.sub(r'(["\\`$])', r"\\\1", text) + '"'
