"""Dirty bitmaps are merged into bitmaps of the same names on the destinations, while nothing is written to either."""

from __future__ import annotations

from typing import Any

from pivotd import limits
from pivotd.core.bitmaps import Bitmap, Bitmaps, owed
from pivotd.core.words import Pivot, PivotDisk
from pivotd.errors import QmpRefusedError
from pivotd.qmp import replies
from pivotd.qmp.client import Command
from pivotd.qmp.monitor import Monitor, command

EXISTS = "Bitmap already exists"


async def carry(monitor: Monitor, pivot: Pivot) -> Bitmaps:
    """Give the destinations the bitmaps of the sources, which are still the roots, and return these.

    Doing it twice is doing it once. Raises: QmpRefusedError: not all could be carried.
    """
    block = await monitor.execute(command("query-block"), limits.QUERY_TIMEOUT_S)
    found = owed(pivot, replies.bitmaps(block, pivot))
    pairs = [(disk, bitmap) for disk in pivot.disks for bitmap in found.get(disk.disk, ())]
    adds = [_add(disk, bitmap) for disk, bitmap in pairs]
    actions = [action for disk, bitmap in pairs for action in _merge(disk, bitmap)]
    *added, done = await monitor.burst([*adds, command("transaction", actions=actions)], limits.COMMAND_TIMEOUT_S)
    if isinstance(done, QmpRefusedError):
        refused = [reply for reply in added if isinstance(reply, QmpRefusedError)]
        raise next((reply for reply in refused if not reply.fields["text"].startswith(EXISTS)), done)
    return found


def _add(disk: PivotDisk, bitmap: Bitmap) -> Command:
    return command(
        "block-dirty-bitmap-add",
        node=disk.destination.node,
        name=bitmap.name,
        granularity=bitmap.granularity_bytes,
        persistent=bitmap.persistent,
        disabled=True,
    )


def _merge(disk: PivotDisk, bitmap: Bitmap) -> list[dict[str, Any]]:
    """A transaction: no bitmap records before it holds everything."""
    target = {"node": disk.destination.node, "name": bitmap.name}
    source = {"node": disk.source.node, "name": bitmap.name}
    turn = "enable" if bitmap.recording else "disable"
    return [
        {
            "type": "block-dirty-bitmap-merge",
            "data": {"node": disk.destination.node, "target": bitmap.name, "bitmaps": [source]},
        },
        {"type": f"block-dirty-bitmap-{turn}", "data": target},
    ]
