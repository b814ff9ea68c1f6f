"""A disk's I/O limits in QEMU: read them, set others, and restore the earlier ones exactly."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pivotd.core.pivot import Pivot
from pivotd.core.request import Limits
from pivotd.errors import QmpRefusedError
from pivotd.qmp import blocks, replies
from pivotd.qmp.monitor import Monitor, ask

NONE: Limits = (("bps", 0), ("bps_rd", 0), ("bps_wr", 0), ("iops", 0), ("iops_rd", 0), ("iops_wr", 0))
"""The arguments that QEMU always requires; all zero: no limits."""


async def read(monitor: Monitor, pivot: Pivot) -> Mapping[str, Limits]:
    """Return the limits of each present disk of the pivot, by its QOM path.

    A disk in a group with other disks is left out: its limits are not its own.
    """
    found = await _limits(monitor)
    groups = [dict(values).get("group") for values in found.values()]
    return {
        disk.qdev: found[disk.qdev]
        for disk in pivot.disks
        if disk.qdev in found and ((group := dict(found[disk.qdev]).get("group")) is None or groups.count(group) == 1)
    }


async def writes(monitor: Monitor, pivot: Pivot) -> Mapping[str, tuple[int, int]]:
    """Return the bytes and the number of writes of the guest so far, by QOM path."""
    found = await ask(monitor, replies.writes)
    return {disk.qdev: found[disk.qdev] for disk in pivot.disks if disk.qdev in found}


async def place(monitor: Monitor, pivot: Pivot) -> None:
    """Set the last limits of each disk. Raises: QmpRefusedError."""
    for limit in pivot.options.write_limits:
        await monitor.execute(_set(limit.qdev, limit.placed[-1]))


async def restore(monitor: Monitor, pivot: Pivot) -> list[str]:
    """Restore the earlier limits; return the disks that now have other limits, or are gone: they stay unchanged."""
    found = await _limits(monitor)
    left = []
    for limit in pivot.options.write_limits:
        present = found.get(limit.qdev)
        if present is None or not any(_same(present, placed) for placed in limit.placed):
            if present != limit.before:
                left.append(limit.qdev)
            continue
        try:
            await monitor.execute(_set(limit.qdev, limit.before))
        except QmpRefusedError:
            left.append(limit.qdev)
    return left


async def _limits(monitor: Monitor) -> dict[str, Limits]:
    """Return each disk's I/O limits by its QOM path."""
    disks = await ask(monitor, blocks.disks)
    return {seen.qdev: seen.limits for seen in disks.values() if seen.qdev}


def _same(present: Limits, placed: Limits) -> bool:
    """QEMU names a group where none was asked for."""
    wanted = dict(placed)
    return {name: value for name, value in present if name in wanted or name != "group"} == wanted


def _set(qdev: str, values: Limits) -> dict[str, Any]:
    # Not command(): its keywords would turn the underscores of these names into dashes.
    return {"execute": "block_set_io_throttle", "arguments": {"id": qdev, **dict(NONE), **dict(values)}}
