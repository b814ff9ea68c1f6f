"""Write thresholds: QEMU tells other programs, once, that the guest has written beyond an offset of the image.

A threshold belongs to a node. The mirror would pass it while it copies, so the new image gets it once the guest runs.
"""

from __future__ import annotations

from collections.abc import Mapping

from pivotd import limits
from pivotd.core.pivot import Outcome, Pivot
from pivotd.qmp.blocks import DiskSeen, find
from pivotd.qmp.monitor import Monitor, command


def read(disks: Mapping[str, DiskSeen], pivot: Pivot) -> tuple[tuple[str, int], ...]:
    """Return the threshold of each disk of the pivot that has one, of its present root."""
    found = ((disk.disk, find(disks, disk)) for disk in pivot.disks)
    return tuple((name, seen.write_threshold_bytes) for name, seen in found if seen and seen.write_threshold_bytes)


async def place(monitor: Monitor, pivot: Pivot) -> None:
    """Set the thresholds of the switched disks on their new images. Repeated, QEMU may tell of them once more."""
    wanted = dict(pivot.options.write_thresholds)
    places = [
        command("block-set-write-threshold", node_name=disk.destination.node, write_threshold=wanted[disk.disk])
        for disk in pivot.disks
        if disk.disk in wanted and disk.outcome is Outcome.SWITCHED
    ]
    if places:
        await monitor.burst(places, limits.COMMAND_TIMEOUT_S)
