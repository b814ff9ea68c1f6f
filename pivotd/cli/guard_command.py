"""`pivotctl guard`: refuse to start a guest from other images than those that hold its data."""

from __future__ import annotations

import click

from pivotd.cli import render
from pivotd.cli.complaints import UsageError, WrongImageError
from pivotd.cli.context import App, pass_app
from pivotd.cli.help import ExampleCommand
from pivotd.cli.image_command import check_default
from pivotd.cli.known_names import DISK_IMAGE, DOMAIN
from pivotd.cli.right_images import certain, image_history, right_images, same_image
from pivotd.cli.values import WAIT, local_word
from pivotd.errors import EXIT_DONE, NeverMovedError, UncertainError

EXAMPLES = (
    "pivotctl guard web1 disk0=/images/web1.qcow2",
    "ExecStartPre=/opt/pivotd/bin/pivotctl guard %i disk0=${DISK0}",
)


@click.command(cls=ExampleCommand, examples=EXAMPLES, short_help="Refuse to start from other images.")
@click.argument("domain", type=DOMAIN)
@click.argument("images", type=DISK_IMAGE, nargs=-1, required=True, metavar="DISK=IMAGE...")
@click.option("--wait", type=WAIT, default="10s", metavar="TIME", show_default=True,
              help="How long to wait while a pivot is being recovered.")  # fmt: skip
@local_word
@pass_app
def guard(app: App, domain: str, images: tuple[tuple[str, str], ...], wait: int, local: bool) -> None:
    """Succeed if these are the images to start the guest with; else say on one line which are right, and fail.

    Asks the daemon, or reads the journal of this host if the daemon is away. The status is 4 for a wrong image and for
    a domain that nobody has heard of, 6 if nobody can be certain, 3 if neither the daemon nor the journal can be
    asked. A disk that was never moved may start from any image that is not another disk's, and of which the journal
    does not know that it is out of date.
    """
    wanted = dict(images)
    if len(wanted) < len(images):
        raise UsageError("a disk is named twice: name each once")
    found = right_images(app, domain, wanted, wait, local=local)
    wrong = {}
    for disk, image in wanted.items():
        try:
            right = certain(domain, disk, found)
        except UncertainError:
            if found[disk].pending or not is_renamed(app, domain, disk, image):
                raise
            continue
        except NeverMovedError:
            check_default(app, domain, disk, image, found.get(disk))
            continue
        if right.image is not None and not same_image(image, right.image):
            wrong[disk] = right.image
    if wrong:
        named = " ".join(f"{disk}={image}" for disk, image in wrong.items())
        asked = " ".join(f"{disk}={wanted[disk]}" for disk in wrong)
        raise WrongImageError(f"{domain} must start with {named}, not with {asked}", domain=domain, images=wrong)
    app.status = EXIT_DONE
    render.answer(app, {"domain": domain, "images": wanted})


def is_renamed(app: App, domain: str, disk: str, image: str) -> bool:
    """Return whether an image is the file that holds a disk's data, of which the journal has another name."""
    mine = [one for one in image_history(app, image) if (one.domain, one.disk) == (domain, disk)]
    return any(one.standing == "current" and one.file in {"gone", "replaced"} for one in mine)
