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
from pivotd.qmp.blocks import DiskSeen, Graph

NO_FILTERS = frozenset(
    {"raw", "luks", "qcow2", "qcow", "qed", "vdi", "vmdk", "vpc", "vhdx", "parallels", "bochs", "cloop", "dmg"}
    | {"blkdebug", "blkverify", "blkreplay"}
)
"""Drivers with a node below them that may go: formats; encryption, which has a rule of its own; and tools for tests."""
NO_IMAGES = frozenset({"quorum", "snapshot-access"})
"""Drivers of which QEMU does not say that they are filters, and whose node is no image either."""
TOOLS = ("blkdebug:", "blkverify:")
"""Names of images inside which is such a tool."""
LEAVES = frozenset({"file", "host_device", "nbd"})
"""Formats of layers that are one node."""


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
    new = disk.destination.filename
    stands_alone = disk.below is None and not domain.options.adopted
    if stands_alone and len(domain.blocks.graph.chain(seen.node)) != len(seen.layers) and not domain.options.force:
        raise BadRequestError(
            f"{seen.disk}: a filter node is in its backing chain, and {new}, which stands alone, would not have it: "
            "--force goes on without it",
            disk=seen.disk,
        )
    drivers = [node["driver"] for node in descriptions.inner(seen.filename)]
    found = next((driver for driver in drivers if driver not in NO_FILTERS), None)
    if found is not None:
        raise BadRequestError(
            f"{seen.disk}: a {found} node is below its image, and {new} would not have it: pivotd does not move such a "
            "disk",
            disk=seen.disk,
        )
    if hides_nodes(domain.blocks.graph, seen) and not domain.options.force:
        raise BadRequestError(
            f"{seen.disk}: below its image is a node that QEMU does not describe, perhaps a filter: {new} would not "
            "have it: --force goes on all the same",
            disk=seen.disk,
        )


def hides_nodes(graph: Graph, seen: DiskSeen) -> bool:
    """Return whether below the images of a disk there are more nodes, other than the lowest, than their names describe.

    QEMU names an image after its file also if a copy-before-write node is between them, or another data file was given.
    """
    known = sum(layer.format not in LEAVES for layer in seen.layers)
    known += sum(len(descriptions.inner(layer.filename)) for layer in seen.layers)
    known += sum(layer.filename.startswith(TOOLS) for layer in seen.layers)
    return sum(bool(graph.children.get(node)) for node in graph.below(seen.node)) > known
