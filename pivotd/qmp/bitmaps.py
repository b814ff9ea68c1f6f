"""Merges dirty bitmaps into those of the same names on the images that take them, while nothing writes to these."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pivotd import limits
from pivotd.core.dirty_bitmaps import Bitmap, Bitmaps, ends, owed
from pivotd.core.pivot import Pivot, PivotDisk
from pivotd.core.request import Kind
from pivotd.errors import QmpRefusedError
from pivotd.qmp import of_pivot
from pivotd.qmp.burst import Command
from pivotd.qmp.looking import blocks_of
from pivotd.qmp.monitor import Monitor, command

EXISTS = "Bitmap already exists"


async def carry(monitor: Monitor, pivot: Pivot) -> Bitmaps:
    """Copy the bitmaps of the sources, which are still the roots, to the destinations, and return them.

    For a commit, the base gets the bitmaps of the uppermost committed layer, merged with those of the same names on the
    layers in between. The function is idempotent. Raises: QmpRefusedError: not all could be carried.
    """
    shown = await blocks_of(monitor)
    found = owed(pivot, of_pivot.bitmaps(shown, pivot))
    adds, actions = [], []
    for disk in pivot.disks:
        below = of_pivot.between(shown, disk) if pivot.kind is Kind.COMMIT else {}
        for bitmap in found.get(disk.disk, ()):
            adds.append(_add(disk, bitmap))
            actions += _merge(disk, bitmap, (node for node, names in below.items() if bitmap.name in names))
    *added, done = await monitor.burst([*adds, command("transaction", actions=actions)], limits.COMMAND_TIMEOUT_S)
    if isinstance(done, QmpRefusedError):
        refused = [reply for reply in added if isinstance(reply, QmpRefusedError)]
        raise next((reply for reply in refused if not reply.fields["text"].startswith(EXISTS)), done)
    return found


def _add(disk: PivotDisk, bitmap: Bitmap) -> Command:
    return command(
        "block-dirty-bitmap-add",
        node=ends(disk)[1].node,
        name=bitmap.name,
        granularity=bitmap.granularity_bytes,
        persistent=bitmap.persistent,
        disabled=True,
    )


def _merge(disk: PivotDisk, bitmap: Bitmap, below: Iterable[str]) -> list[dict[str, Any]]:
    """Return the actions of one transaction, so that no bitmap records before it is complete."""
    source, destination = ends(disk)
    target = {"node": destination.node, "name": bitmap.name}
    sources = [{"node": node, "name": bitmap.name} for node in (source.node, *below)]
    turn = "enable" if bitmap.recording else "disable"
    return [
        {
            "type": "block-dirty-bitmap-merge",
            "data": {"node": destination.node, "target": bitmap.name, "bitmaps": sources},
        },
        {"type": f"block-dirty-bitmap-{turn}", "data": target},
    ]
