"""Destinations that are NBD exports: cuts their connections while QEMU hangs on their server."""

from __future__ import annotations

from collections.abc import Sequence

from pivotd import limits
from pivotd.core import names, nbd
from pivotd.core.pivot import Pivot, PivotDisk
from pivotd.errors import QmpRefusedError
from pivotd.qmp.burst import Command
from pivotd.qmp.monitor import Monitor


def yank(node: str) -> Command:
    """Return the command that cuts the connection of one node, to be run out of band.

    Source: QEMU QMP reference, yank; docs/interop/qmp-spec, "Out-of-band execution".
    """
    return {"exec-oob": "yank", "arguments": {"instances": [{"type": "block-node", "node-name": node}]}}


async def cut(monitor: Monitor, pivot: Pivot, disks: Sequence[PivotDisk]) -> bool:
    """Cut the connections to the exports to which these disks are copied, out of band; return whether QEMU did.

    This also works while QEMU's main loop hangs on such a server: every operation that waits for it then fails.
    """
    exports = [disk for disk in disks if disk in pivot.movers and nbd.is_uri(disk.destination.filename)]
    if not exports or not monitor.out_of_band:
        return False
    burst = [yank(names.file_node(pivot.id, disk.index)) for disk in exports]
    done = await monitor.burst(burst, limits.YANK_TIMEOUT_S)
    return not any(isinstance(reply, QmpRefusedError) for reply in done)
