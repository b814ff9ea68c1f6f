"""Several devices of one guest on one image: by one node they move together; by nodes of their own, none moves."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from pivotd.core.pivot import PivotDisk
from pivotd.core.request import Target
from pivotd.errors import BadRequestError, NotFoundError
from pivotd.planning.domain_snapshot import DomainSnapshot
from pivotd.qmp.blocks import DiskSeen


def once(domain: DomainSnapshot, targets: Iterable[Target]) -> list[Target]:
    """Return the targets without those that name another device on the node of an earlier one.

    Raises: BadRequestError: two devices on one node are to go different ways.
    """
    found: dict[str, Target] = {}
    for number, target in enumerate(targets):
        try:
            seen = domain.find(target.disk)
        except NotFoundError:
            found[f"#{number}"] = target  # refused where it is planned
            continue
        first = found.setdefault(seen.node, target)
        if first is not target and (first.disk == target.disk or replace(target, disk=first.disk) != first):
            raise BadRequestError(
                f"{first.disk} and {target.disk} are devices on one image, {seen.filename}: name the same for both, or "
                "one of them",
                disk=seen.disk,
            )
    return list(found.values())


def with_companions(domain: DomainSnapshot, planned: list[PivotDisk]) -> list[PivotDisk]:
    """Return the disks of a pivot, and every other device on their nodes: QEMU moves it along.

    Raises: BadRequestError: the old image cannot follow them.
    """
    found = list(planned)
    for disk in planned:
        for seen in domain.blocks.disks.values():
            if seen.node != disk.source.node or any(seen.disk == one.disk for one in found):
                continue
            if domain.options.keep_synced:
                raise BadRequestError(
                    f"{disk.disk} and {seen.disk} are devices on one image: leave out --keep-synced, which follows one",
                    disk=disk.disk,
                )
            found.append(replace(disk, disk=seen.disk, qdev=seen.qdev, index=len(found)))
    return found


def refuse_two_nodes(domain: DomainSnapshot, seen: DiskSeen) -> None:
    """Raises: BadRequestError: the guest has the image of this disk under another disk too, by a node of its own."""
    own = [domain.place(layer.filename) for layer in seen.layers]
    for other in domain.blocks.disks.values():
        if other.node == seen.node:
            continue
        theirs = [domain.place(layer.filename) for layer in other.layers]
        is_below = not other.read_only and any(place.overlaps(theirs[0]) for place in own[1:])
        if is_below or any(own[0].overlaps(place) for place in theirs):
            image = other.filename if is_below else seen.filename
            raise BadRequestError(
                f"{image} is an image of {seen.disk} and of {other.disk}, by two nodes, and QEMU cannot switch two "
                f"nodes to one image: with {seen.disk} moved, the guest would have two different disks; remove one "
                "device",
                disk=seen.disk,
            )
