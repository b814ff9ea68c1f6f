"""Tells the fleet the image of a disk that was accepted here, before the journal has it.

Otherwise whoever takes the guest would start it from where its last pivot has left it, and lose all writes since.
"""

from __future__ import annotations

from pivotd.core.fleet import FleetImage
from pivotd.core.pivot import FleetStage, Pivot
from pivotd.core.rules.fleet_owners import accepting
from pivotd.core.rules.fleet_pivots import Here
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
