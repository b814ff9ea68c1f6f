"""Merges dirty bitmaps into those of the same names on the images that take them, while nothing writes to these."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pivotd import limits
from pivotd.core.dirty_bitmaps import Bitmap, Bitmaps, ends, owed
from pivotd.core.pivot import Pivot, PivotDisk
from pivotd.core.request import Kind
from pivotd.errors import QmpRefusedError
from pivotd.qmp import of_pivot
from pivotd.qmp.blocks import Blocks
from pivotd.qmp.burst import Command
from pivotd.qmp.looking import blocks_of
from pivotd.qmp.monitor import Monitor, command

EXISTS = "Bitmap already exists"
ABORTED = "Transaction aborted using Abort action"


async def refusal(monitor: Monitor, pivot: Pivot) -> str | None:
    """Return why QEMU would not copy the bitmaps now, None if it would.

    It is tried, in transactions that end in ``abort`` and so change nothing. A name that the destination has already
    is tried under another one: the bitmap that is there takes the marks.
    """
    shown = await blocks_of(monitor)
    found = owed(pivot, of_pivot.bitmaps(shown, pivot))
    for alias in (None, pivot.id):
        tried = _trial(pivot, shown, found, alias)
        abort = {"type": "abort", "data": {}}
        (done,) = await monitor.burst([command("transaction", actions=[*tried, abort])], limits.COMMAND_TIMEOUT_S)
        text = done.fields["text"] if isinstance(done, QmpRefusedError) else ABORTED
        if not text.startswith(EXISTS):
            return None if text == ABORTED else f"the dirty bitmaps cannot come along now: {text}"
    return f"the dirty bitmaps cannot come along now: {text}"


def _trial(pivot: Pivot, shown: Blocks, found: Bitmaps, alias: str | None) -> list[dict[str, Any]]:
    """Return actions that copy the bitmaps, under names with ``alias`` if there is one."""
    actions = []
    for disk in pivot.movers:
        below = _below(shown, pivot, disk)
        for number, bitmap in enumerate(found.get(disk.disk, ())):
            taker = bitmap if alias is None else replace(bitmap, name=f"{alias}-{number}")
            actions.append({"type": "block-dirty-bitmap-add", "data": _add(disk, taker)["arguments"]})
            actions.append(_merge(disk, taker, bitmap, below)[0])
    return actions


async def carry(monitor: Monitor, pivot: Pivot) -> Bitmaps:
    """Copy the bitmaps of the sources, which are still the roots, to the destinations, and return them.

    For a commit, the base gets the bitmaps of the uppermost committed layer, merged with those of the same names on the
    layers in between. The function is idempotent. Raises: QmpRefusedError: not all could be carried.
    """
    shown = await blocks_of(monitor)
    found = owed(pivot, of_pivot.bitmaps(shown, pivot))
    adds, actions = [], []
    for disk in pivot.movers:
        below = _below(shown, pivot, disk)
        for bitmap in found.get(disk.disk, ()):
            adds.append(_add(disk, bitmap))
            actions += _merge(disk, bitmap, bitmap, below)
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


def _below(shown: Blocks, pivot: Pivot, disk: PivotDisk) -> Mapping[str, frozenset[str]]:
    """Return, by node, the names of the bitmaps of the layers in between, which come along with the uppermost ones."""
    return of_pivot.between(shown, disk) if pivot.kind is Kind.COMMIT else {}


def _merge(disk: PivotDisk, taker: Bitmap, bitmap: Bitmap, below: Mapping[str, frozenset[str]]) -> list[dict[str, Any]]:
    """Return the actions of one transaction, so that no bitmap records before it is complete."""
    source, destination = ends(disk)
    target = {"node": destination.node, "name": taker.name}
    nodes = [source.node, *(node for node, names in below.items() if bitmap.name in names)]
    sources = [{"node": node, "name": bitmap.name} for node in nodes]
    turn = "enable" if bitmap.recording else "disable"
    return [
        {
            "type": "block-dirty-bitmap-merge",
            "data": {"node": destination.node, "target": taker.name, "bitmaps": sources},
        },
        {"type": f"block-dirty-bitmap-{turn}", "data": target},
    ]
