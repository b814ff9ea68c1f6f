"""Disks that libvirt has moved for somebody else since pivotd's last pivot of them: pivotd follows, and says so.

libvirt's guests belong to many tools. pivotd follows onto an image that QEMU, the running domain and its next boot name
in the very QEMU process of its last pivot, if that image certainly has the disk's data: libvirt has told of the job
that switched to it, or the right image is a layer below it, as after a snapshot. Everything else is left in doubt, and
so is an image that the journal knows as stale: somebody may have plugged it in.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from typing import Protocol

from pivotd import limits
from pivotd.app.telling_words import tell
from pivotd.core.fleet import FleetImage
from pivotd.core.pivot import Accepted, FileSeen, Phase, Pivot, PivotDisk
from pivotd.core.request import Manager
from pivotd.core.standing import ImageFound
from pivotd.core.verdict import Verdict, right_image
from pivotd.engine.ports import Fleet
from pivotd.errors import ConflictError, RevisionConflictError
from pivotd.host import files
from pivotd.host.threads import in_thread
from pivotd.journal.changes import utc_now
from pivotd.journal.journal import Journal
from pivotd.log import get_logger
from pivotd.qmp.session import Session

log = get_logger()
REASON = "libvirt has moved the disk since, for another program: QEMU and both definitions name this image"


class History(Protocol):
    """What this needs of the journal; app.reads.Reads has it."""

    async def latest(self, domain: str | None, disk: str | None = None) -> list[tuple[Pivot, PivotDisk]]:
        """Return the last pivot of each disk with its entry for the disk."""
        ...

    async def standings(self, image: str) -> list[ImageFound]:
        """Return how an image stands to each disk that ever had it, by the journal alone."""
        ...


async def follow(
    session: Session, doubts: Iterable[Verdict], journal: Journal, history: History, fleet: Fleet | None
) -> bool:
    """Record the present image of each of these disks if libvirt has moved it; return whether one was recorded.

    The fleet learns of it first. The caller holds the lock of the domain: no pivot of it begins meanwhile.

    Raises: QmpError, JournalError, ConflictError, FleetError.
    """
    if session.manager is not Manager.LIBVIRT:
        return False
    shown, believed = await session.disks(), await session.believed()
    done = False
    for domain, disk in [(doubt.domain, doubt.disk) for doubt in doubts]:
        latest = await history.latest(domain, disk)
        if disk not in shown or disk not in believed or not latest:
            continue
        (pivot, known), seen = latest[0], shown[disk]
        same = pivot.phase is Phase.CLOSED and pivot.identity == session.identity(pivot.id)
        if not same or not believed[disk].agrees(seen.filename) or await history.standings(seen.filename):
            continue
        below = {layer.filename for layer in seen.layers[1:]}
        if believed[disk].removable or not (session.was_switched(disk) or right_image(known).filename in below):
            continue
        accepted = Accepted(seen.filename, seen.format, utc_now(), os.getuid(), REASON)
        facts = {"disk": disk, "image": seen.filename, "format": seen.format, "reason": REASON, "uid": os.getuid()}
        try:
            epoch = await tell(fleet, pivot, disk, FleetImage(seen.filename, seen.format))
        except ConflictError:
            continue  # the guest is another host's by now, or the fleet waits for what another pivot has done
        try:
            # No mark: only a person can say what became of a disk of which an image was overwritten.
            file = await _file(seen.filename)
            await journal.accept_image(pivot, known, accepted, facts, mark=None, fleet_epoch=epoch, file=file)
        except RevisionConflictError:
            continue  # something else has happened to it meanwhile: the next look decides
        log.info("domain.image-followed", domain=domain, pivot=pivot.id, disk=disk, image=seen.filename)
        done = True
    return done


async def _file(filename: str) -> FileSeen | None:
    """Return the file at a path, None if it is none, or if its storage does not answer."""
    with suppress(TimeoutError):
        return await in_thread(limits.FILE_TIMEOUT_S, files.seen_now, filename, paths=[filename])
    return None
