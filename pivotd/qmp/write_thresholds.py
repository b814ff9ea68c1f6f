"""Write thresholds: QEMU tells other programs, once, that the guest has written beyond an offset of the image.

A threshold belongs to a node. The mirror would pass it while it copies, so the new image gets it once the guest runs.
"""

from __future__ import annotations

from collections.abc import Mapping

from pivotd import limits
from pivotd.core.pivot import Outcome, Pivot, PivotDisk
from pivotd.qmp.blocks import DiskSeen, disks, find
from pivotd.qmp.monitor import Monitor, ask, command


def read(shown: Mapping[str, DiskSeen], pivot: Pivot) -> tuple[tuple[str, int], ...]:
    """Return the threshold of each disk of the pivot that has one, of its present root."""
    found = ((disk.disk, find(shown, disk)) for disk in pivot.disks)
    return tuple((name, seen.write_threshold_bytes) for name, seen in found if seen and seen.write_threshold_bytes)


async def place(monitor: Monitor, pivot: Pivot) -> None:
    """Set the thresholds of the switched disks on their new images, unless they have one already."""
    wanted = dict(pivot.options.write_thresholds)
    if not wanted:
        return
    shown = await ask(monitor, disks)
    places = [
        command("block-set-write-threshold", node_name=disk.destination.node, write_threshold=wanted[disk.disk])
        for disk in pivot.disks
        if disk.disk in wanted and disk.outcome is Outcome.SWITCHED and _has_none(shown, disk)
    ]
    if places:
        await monitor.burst(places, limits.COMMAND_TIMEOUT_S)


def _has_none(shown: Mapping[str, DiskSeen], disk: PivotDisk) -> bool:
    seen = find(shown, disk)
    return seen is not None and seen.node == disk.destination.node and not seen.write_threshold_bytes
