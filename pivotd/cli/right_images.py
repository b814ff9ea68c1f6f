"""The images to start a guest with: the daemon's word or the journal's, waiting while a pivot is being recovered."""

from __future__ import annotations

import os.path
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

from msgspec.structs import replace

from pivotd.cli.context import App
from pivotd.cli.host_journal import state_dir_without
from pivotd.client import Client, ImageVerdict, Verdict
from pivotd.core import nbd
from pivotd.core.image_names import options
from pivotd.core.pivot import Image
from pivotd.core.verdict import Presence
from pivotd.errors import (
    ClientError,
    JournalError,
    JournalLockedError,
    NeverMovedError,
    RefusedError,
    UncertainError,
)
from pivotd.host import files

if TYPE_CHECKING:
    from pivotd.cli.journal_answers import OfflineJournal

LOOK_AGAIN_S = 0.2


def right_images(
    app: App, domain: str, disks: Iterable[str], wait_s: float, *, local: bool = False
) -> dict[str, Verdict]:
    """Return the verdicts on these disks of a domain, and on all that the journal has moved or QEMU shows, by disk.

    Asks the daemon; if it is away, reads the journal of this host. Waits up to ``wait_s`` seconds while a pivot is
    being decided or recovered, while QEMU runs without pivotd, or while the fleet of this host does not answer, and
    nobody can be certain yet. ``local``: the host's word counts alone if its fleet does not answer.

    Raises: RefusedError, NotFoundError (nobody has heard of the domain, or QEMU runs without the disk), ClientError,
    JournalError.
    """
    deadline = time.monotonic() + wait_s
    while True:
        try:
            found = _look(app, domain, disks, local=local)
        except RefusedError:
            raise
        except (ClientError, JournalLockedError):
            if time.monotonic() >= deadline:
                raise
            time.sleep(LOOK_AGAIN_S)
            continue
        if not any(one.pending for one in found) or time.monotonic() >= deadline:
            return {one.disk: _looked_at(one) for one in found}
        time.sleep(LOOK_AGAIN_S)


def image_history(app: App, image: str) -> list[ImageVerdict]:
    """Return what history says of an image: the daemon, or the journal of this host if the daemon is away."""
    if app.offline is not None:
        return app.journal.image(image)
    try:
        return app.client.image(image)
    except RefusedError:
        raise
    except ClientError as away:
        try:
            return app.with_journal(str(state_dir_without(app, away))).journal.image(image)
        except JournalError as error:
            away.message += f"; and {error.message}"
            raise away from None


def same_image(one: str, other: str) -> bool:
    """Return whether two names lead to one image now."""
    if one.startswith("json:") or other.startswith("json:"):
        return one == other or (options(one) is not None and options(one) == options(other))
    if nbd.is_uri(one) or nbd.is_uri(other):
        return (nbd.canonical(one) or one) == (nbd.canonical(other) or other)
    if os.path.normpath(one) == os.path.normpath(other):
        return True
    try:
        return os.path.samefile(one, other)  # noqa: PTH121
    except OSError:
        return False


def certain(domain: str, disk: str, found: dict[str, Verdict]) -> Verdict:
    """Return a verdict that names an image for certain. Raises: NeverMovedError, UncertainError."""
    one = found.get(disk)
    if one is None or one.outcome is None:
        now = "" if one is None or one.image is None else f"; QEMU uses {one.image} now"
        raise NeverMovedError(f"this journal has never moved {domain} {disk}{now}", domain=domain, disk=disk)
    if not one.certain:
        reason = one.reason[:1].lower() + one.reason[1:].rstrip(".")
        raise UncertainError(
            f"{domain} {disk}: nobody can be certain: {reason}; see `pivotctl verdict {domain} {disk}`",
            domain=domain, disk=disk, image=one.image,
        )  # fmt: skip
    return one


def _look(app: App, domain: str, disks: Iterable[str], *, local: bool) -> list[Verdict]:
    if app.offline is not None:
        return _offline(app, domain, disks, local=local)
    try:
        return _of_all(app.client, domain, disks, local=local)
    except RefusedError:
        raise
    except ClientError as away:
        try:
            journal = app.with_journal(str(state_dir_without(app, away)))
            return _offline(journal, domain, disks, local=local, away=True)
        except JournalError as error:
            away.message += f"; and {error.message}"
            raise away from None


def _of_all(source: Client | OfflineJournal, domain: str, disks: Iterable[str], *, local: bool) -> list[Verdict]:
    """Return the verdicts on these disks and on all that are known; if they are of several moments, none is certain."""
    found = source.verdicts(domain, local=local)
    others = sorted(set(disks) - {one.disk for one in found})
    if not others:
        return found
    alone = [one for disk in others for one in source.verdicts(domain, disk, local=local)]
    if _words(source.verdicts(domain, local=local)) == _words(found):
        return [*found, *alone]
    reason = f"The disks of {domain} have changed while they were asked for: ask again."
    return [replace(one, certain=False, pending=True, reason=reason) for one in (*found, *alone)]


def _words(found: Iterable[Verdict]) -> list[tuple[object, ...]]:
    return [(one.disk, one.image, one.outcome, one.certain, one.pivot, one.since) for one in found]


def _offline(app: App, domain: str, disks: Iterable[str], *, local: bool, away: bool = False) -> list[Verdict]:
    """Return what the journal says, uncertain while QEMU runs: it may be in the middle of a switch, or have moved on.

    ``away``: the daemon was asked first, and is away.
    """
    journal = app.journal
    journal.check_known(domain)
    before = journal.running(domain)  # it may end after its switch, which was recorded after the journal was read
    found = _of_all(journal, domain, disks, local=local)
    said, taken = before or journal.running(domain), journal.is_taken
    if said is None and not taken:
        return found
    if taken:
        reason = "pivotd has just started: ask again."
    elif not journal.beside_daemon:
        reason = f"pivotd does not run, and {said}: start pivotd and ask again."
    elif away:
        reason = f"pivotd does not answer, and {said}: see `systemctl status pivotd`, and ask again."
    else:
        reason = f"pivotd runs, and {said}, which only pivotd can ask: leave out --offline."
    pending = away or not journal.beside_daemon
    return [replace(one, certain=False, pending=one.pending or pending, reason=reason) for one in found]


def _looked_at(one: Verdict) -> Verdict:
    """Return the verdict after a look of this process, if the daemon could not look at the image."""
    if one.file != Presence.UNSEEN.value or one.image is None or not one.certain:
        return one
    match files.presence(Image(one.image, "", ""), sees_all=True):
        case Presence.GONE:
            return replace(one, certain=False, reason=f"The journal names {one.image}, but it is not there any more.")
        case Presence.UNSEEN:
            return replace(one, certain=False, reason=f"Neither pivotd nor this user may look at {one.image}.")
        case _:
            return one
