"""Keeps others from loading an internal snapshot into an image while a job of pivotd's fills it.

A job never copies again what it has copied: an image that goes back to an earlier state meanwhile lacks that in the
end, and nothing says so. QEMU loads no snapshot into a node that has a dirty bitmap, so the image gets one, which
records nothing and is not stored. The source of a mirror has the bitmap of the mirror.
Source: block/snapshot.c, bdrv_snapshot_goto(): "Device has active dirty bitmaps".
"""

from __future__ import annotations

from pivotd import limits
from pivotd.core import names
from pivotd.core.pivot import Pivot, PivotDisk
from pivotd.core.request import Kind
from pivotd.errors import QmpRefusedError
from pivotd.qmp.burst import Command
from pivotd.qmp.monitor import Monitor, command

EXISTS = "Bitmap already exists"


async def place(monitor: Monitor, pivot: Pivot, disk: PivotDisk) -> None:
    """Guard the image that the job of a disk is about to fill; it may be guarded already. Raises: QmpRefusedError."""
    (reply,) = await monitor.burst([add(pivot, _filled(pivot, disk))], limits.COMMAND_TIMEOUT_S)
    if (refusal := refused(reply)) is not None:
        raise refusal


def add(pivot: Pivot, node: str) -> Command:
    """Return the command that guards a node. At this granularity the bitmap takes next to no memory."""
    return command(
        "block-dirty-bitmap-add",
        node=node,
        name=names.load_guard(pivot.id),
        granularity=limits.LOAD_GUARD_BYTES,
        persistent=False,
        disabled=True,
    )


def refused(reply: object) -> QmpRefusedError | None:
    """Return the error of a reply to add(), None if the node is guarded."""
    if isinstance(reply, QmpRefusedError) and not reply.fields["text"].startswith(EXISTS):
        return reply
    return None


def removals(pivot: Pivot) -> list[Command]:
    """Return the commands that end every guard of a pivot, and of the one that it undoes; QEMU refuses most."""
    nodes = [image.node for disk in pivot.disks for image in (disk.source, disk.destination, disk.base) if image]
    nodes += [names.reopened_source(pivot.id, disk.index) for disk in pivot.disks if pivot.options.keep_synced]
    return [
        command("block-dirty-bitmap-remove", node=node, name=names.load_guard(family))
        for node in dict.fromkeys(nodes)
        for family in pivot.family
    ]


def _filled(pivot: Pivot, disk: PivotDisk) -> str:
    """Return the node to which the job writes: that of a merge is the active image, or the base."""
    if pivot.kind is Kind.COMMIT and disk.base is not None:
        return disk.base.node
    return disk.destination.node
