"""Snapshots inside qcow2 images (savevm, ``qemu-img snapshot``): QEMU copies, commits and streams none of them.

A mirror leaves them in the old image. A commit writes into the image below, and a pull takes that image away: then a
snapshot reads other data than it was taken of. Source: measured on 7.2.
"""

from __future__ import annotations

from collections.abc import Iterable

from pivotd.errors import BadRequestError
from pivotd.planning.domain_snapshot import DomainSnapshot
from pivotd.qmp.blocks import DiskSeen

Left = tuple[str, tuple[str, ...]]
"""An image and the names of its snapshots."""


def left(domain: DomainSnapshot, seen: DiskSeen, places: Iterable[int]) -> tuple[Left, ...]:
    """Return what the layers at these places of the chain have. Raises: BadRequestError: nobody said to drop it."""
    images = domain.images(seen)
    found = tuple((images[place].filename, kept) for place in places if (kept := seen.layers[place].snapshots))
    if found and not domain.options.drop_internal_snapshots:
        image, names = found[0]
        raise BadRequestError(
            f"{seen.disk}: {image} has internal snapshots, which the disk would lose: {', '.join(names)}; "
            "--drop-internal-snapshots goes on without them",
            disk=seen.disk,
        )
    return found
