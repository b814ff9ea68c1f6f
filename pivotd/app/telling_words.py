"""Tells the fleet what a host has learned of the image of a disk since its last pivot.

Otherwise whoever takes the guest would start it from where that pivot has left it, and lose all writes since.
"""

from __future__ import annotations

from pivotd.core.fleet import FleetImage
from pivotd.core.pivot import FleetStage, Pivot, PivotDisk
from pivotd.core.rules.fleet_owners import accepting, doubting, settling
from pivotd.core.rules.fleet_pivots import Here
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


async def doubt(fleet: Fleet | None, pivot: Pivot, disk: PivotDisk, other: FleetImage) -> None:
    """Have the fleet name both images of a disk that is in doubt here: its guest has run on another one.

    Raises: FleetError: it may not know of it yet.
    """
    if fleet is not None:
        view = await fleet.read(pivot.domain, fleet.timeout_s)
        here = Here(fleet.host, fleet.boot_id, utc_now())
        after = doubting(view, here, pivot.id, (_right(disk), other), disk.disk)
        if after != view:
            await fleet.write(view, after, fleet.timeout_s)


async def settle(fleet: Fleet | None, pivot: Pivot, disk: PivotDisk) -> None:
    """Have the fleet name the image of a disk again that was in doubt, before the journal does.

    Raises: FleetError: it may still name both.
    """
    if fleet is not None:
        view = await fleet.read(pivot.domain, fleet.timeout_s)
        after = settling(view, Here(fleet.host, fleet.boot_id, utc_now()), pivot.id, _right(disk), disk.disk)
        if after != view:
            await fleet.write(view, after, fleet.timeout_s)


def _right(disk: PivotDisk) -> FleetImage:
    right = right_image(disk)
    return FleetImage(right.filename, right.format)
