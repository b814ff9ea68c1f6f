"""Tells the fleet what a host has learned of the image of a disk since its last pivot.

Otherwise whoever takes the guest would start it from where that pivot has left it, and lose all writes since.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from pivotd.core.fleet import FleetImage
from pivotd.core.pivot import FleetStage, Pivot, PivotDisk
from pivotd.core.rules.fleet_owners import accepting, doubting_all, owned, settling, straying
from pivotd.core.rules.fleet_pivots import Here
from pivotd.core.rules.fleet_words import fleet_verdict
from pivotd.core.verdict import right_image
from pivotd.engine.ports import Fleet
from pivotd.errors import ConflictError
from pivotd.journal.changes import utc_now


async def tell(fleet: Fleet | None, pivot: Pivot, disk: str, image: FleetImage) -> int | None:
    """Return the ``fleet_epoch`` of a closed pivot, the last one of its disk, once the image is accepted there.

    Raises: ConflictError: the word of this host does not count; FleetError: nothing is known to be told.
    """
    epoch = None
    if fleet is not None:
        view = await fleet.read(pivot.domain, fleet.timeout_s)
        after = accepting(view, Here(fleet.host, fleet.boot_id, utc_now()), pivot, disk, image)
        if isinstance(after, str):
            raise ConflictError(f"{pivot.domain} {disk}: {after}", disk=disk)
        if after != view:
            await fleet.write(view, after, fleet.timeout_s)
        epoch = after.epoch
    # Under the epoch of its intent, the outcome of a pivot that was announced can still be told.
    return pivot.fleet_epoch if pivot.fleet is FleetStage.ANNOUNCED else epoch


async def doubt(fleet: Fleet, domain: str, disks: Iterable[tuple[Pivot, PivotDisk]]) -> bool:
    """Have the fleet name both images of disks that are in doubt here: their guest has run on other ones.

    Return whether it does, or has the guest at another host. Raises: FleetError: it may not know of it yet.
    """
    view = await fleet.read(domain, fleet.timeout_s)
    here = Here(fleet.host, fleet.boot_id, utc_now())
    after = doubting_all(view, here, disks)
    if after != view:
        await fleet.write(view, after, fleet.timeout_s)
    return owned(view, here, None) and view.intent is None


async def stray(fleet: Fleet, domain: str, others: Mapping[str, FleetImage]) -> None:
    """Have the fleet name both images of disks that were never moved here, and run here on other ones.

    The journal has no row of such a disk to keep that in.
    Raises: FleetError: it may not know of it yet.
    """
    view = await fleet.read(domain, fleet.timeout_s)
    after = straying(view, Here(fleet.host, fleet.boot_id, utc_now()), others)
    if after != view:
        await fleet.write(view, after, fleet.timeout_s)


async def settle(fleet: Fleet | None, pivot: Pivot, disk: PivotDisk) -> bool:
    """Have the fleet name the image of a disk again that was in doubt, before the journal does; return whether it does.

    Raises: FleetError: it may still name both.
    """
    if fleet is None:
        return True
    view = await fleet.read(pivot.domain, fleet.timeout_s)
    here = Here(fleet.host, fleet.boot_id, utc_now())
    if view.intent is not None or not owned(view, here, None):
        return view.owner is None
    # Also if the fleet has never heard of the doubt: a late word of it would land, and nobody would take it back.
    after = settling(view, here, pivot.id, _right(disk), disk.disk)
    await fleet.write(view, after, fleet.timeout_s)
    word = fleet_verdict(after, disk.disk)
    return word.certain and word.image in {None, _right(disk)}


def _right(disk: PivotDisk) -> FleetImage:
    right = right_image(disk)
    return FleetImage(right.filename, right.format)
