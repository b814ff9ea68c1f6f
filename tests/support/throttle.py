"""Limits that somebody has given to a disk, and those that QEMU shows."""

from __future__ import annotations

from typing import Any

from tests.support.qemu import Qemu

LIMITS = {"bps": 0, "bps_rd": 0, "bps_wr": 64 << 20, "iops": 0, "iops_rd": 700, "iops_wr": 0, "bps_wr_max": 90 << 20}
SLOW_NODE = "slow"


def slow_down(qemu: Qemu, node: str, bytes_per_s: int) -> None:
    """Let a raw destination of pivotd's take no more than this, as a slow network would."""
    bounds = {"bps-write": bytes_per_s}
    if "slow" not in [entry["name"] for entry in qemu.spy("qom-list", path="/objects")]:
        qemu.spy("object-add", {"qom-type": "throttle-group", "id": "slow", "limits": bounds})
        above = {"driver": "throttle", "node-name": SLOW_NODE, "throttle-group": "slow", "file": f"{node}f"}
        qemu.spy("blockdev-add", above)
        qemu.spy("blockdev-reopen", {"options": [{"driver": "raw", "node-name": node, "file": SLOW_NODE}]})
    qemu.spy("qom-set", {"path": "/objects/slow", "property": "limits", "value": bounds})


def limits_of(qemu: Qemu, index: int = 0) -> dict[str, Any]:
    """Return the limits of a disk as QEMU shows them."""
    inserted = qemu.spy("query-block")[index]["inserted"]
    return {name: inserted[name] for name in inserted if name.startswith(("bps", "iops", "group"))}
