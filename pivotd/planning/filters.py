"""Filter nodes of a disk: a throttle group, copy-on-read, a log of writes.

Above the image they keep pivotd from seeing it: QEMU shows neither the dirty bitmaps nor the cache mode nor the
``detect-zeroes`` of an image below a filter, and a commit of the active layer takes the filter away. Inside the image,
between its format and its file, they go with it. Source: measured on 7.2, 10.0 and 11.1.
"""

from __future__ import annotations

from pivotd.core.pivot import PivotDisk
from pivotd.errors import BadRequestError
from pivotd.planning.domain_snapshot import DomainSnapshot
from pivotd.qmp import descriptions
from pivotd.qmp.blocks import DiskSeen

NO_FILTERS = frozenset({"raw", "luks", "blkdebug"})
"""Drivers with a node below them that may go: encryption has a rule of its own, blkdebug only injects errors."""
NO_IMAGES = frozenset({"quorum", "snapshot-access", "blkverify", "blkreplay"})
"""Drivers of which QEMU does not say that they are filters, and whose node is no image either."""


def refuse_above(domain: DomainSnapshot, seen: DiskSeen) -> None:
    """Raises: BadRequestError: the node under the device is not the image, but above it.

    QEMU shows what is below a filter like a backing image, but it is not one.
    """
    filtered = len(seen.layers) > 1 and seen.node not in domain.blocks.graph.backing
    if filtered or seen.format in NO_IMAGES:
        raise BadRequestError(
            f"{seen.disk}: a {seen.format} node is above its image, and pivotd cannot keep it there: it does not move "
            "such a disk",
            disk=seen.disk,
        )


def refuse_inside(domain: DomainSnapshot, seen: DiskSeen, disk: PivotDisk) -> None:
    """Raises: BadRequestError: the active image has a filter below its format, and another image takes its place."""
    if not disk.switches:
        return
    described = descriptions.nodes(seen.filename)
    if described is None:
        graph = domain.blocks.graph
        below = [node for node in graph.children.get(seen.node, ()) if node != graph.backing.get(seen.node)]
        found = "more than one" if any(graph.children.get(node) for node in below) else None
    else:
        found = next(
            (f"a {node['driver']}" for node in described[1:] if _has_child(node) and node["driver"] not in NO_FILTERS),
            None,
        )
    if found is not None:
        raise BadRequestError(
            f"{seen.disk}: {found} node is below its image, and {disk.destination.filename} would not have it: pivotd "
            "does not move such a disk",
            disk=seen.disk,
        )


def _has_child(node: descriptions.Node) -> bool:
    return any(isinstance(child, dict) and "driver" in child for child in node.values())
