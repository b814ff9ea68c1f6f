"""Layers of a backing chain to merge: which are removed, which stays below, and its name in the image above."""

from __future__ import annotations

from dataclasses import replace

from pivotd.core.pivot import Image, PivotDisk
from pivotd.core.request import Target
from pivotd.errors import BadRequestError, DiskBusyError, NotFoundError
from pivotd.host import files, places
from pivotd.planning.bitmap_refusals import refuse_bitmaps
from pivotd.planning.domain_snapshot import DomainSnapshot
from pivotd.planning.lasting_names import backing_name
from pivotd.qmp.blocks import DiskSeen


def plan_commit(domain: DomainSnapshot, index: int, target: Target, seen: DiskSeen) -> PivotDisk:
    """Return the disk whose layers from ``top`` down are written into ``base``.

    With the active layer as ``top`` the disk moves to the base. Raises: NotFoundError, BadRequestError, DiskBusyError.
    """
    chain = _chain(domain, seen)
    top = 0 if target.top is None else _find(domain, chain, target.top, seen)
    base = len(chain) - 1 if target.base is None else _find(domain, chain, target.base, seen)
    if base <= top:
        raise BadRequestError(f"{chain[base].filename} is not below {chain[top].filename}: nothing can be committed")
    _refuse_short(seen, chain, top, base)
    # Everything from below top down to base is wrong by itself once base has been written to.
    for image in chain[top + 1 : base + 1]:
        _refuse_shared(domain, image, seen.disk)
    inner = top > 0
    bitmaps = seen.layers[top].bitmaps if inner else seen.bitmaps
    refuse_bitmaps(domain, bitmaps, chain[base], seen.disk, base=True)
    return replace(
        domain.disk(index, seen),
        destination=domain.merged(seen, top - 1, base) if inner else chain[base],
        top=chain[top],
        base=chain[base],
        between=_names(chain[top + 1 : base]),
        backing_file=_backing_file(seen, chain, top - 1, base) if inner else None,
    )


def plan_pull(domain: DomainSnapshot, index: int, target: Target, seen: DiskSeen) -> PivotDisk:
    """Return the disk whose active image takes in the layers above ``base``, or all layers.

    Raises: NotFoundError, BadRequestError.
    """
    chain = _chain(domain, seen)
    base = None if target.base is None else _find(domain, chain, target.base, seen)
    if base is not None and base < 2:
        raise BadRequestError(f"{chain[base].filename} is {('the active image', 'next to it')[base]}: nothing to pull")
    if base is not None:
        _refuse_short(seen, chain, 1, base)
    return replace(
        domain.disk(index, seen),
        destination=domain.merged(seen, 0, base),
        top=chain[1],
        base=None if base is None else chain[base],
        between=_names(chain[2:base]),
        backing_file=None if base is None else _backing_file(seen, chain, 0, base),
    )


def _chain(domain: DomainSnapshot, seen: DiskSeen) -> list[Image]:
    chain = domain.chain(seen)
    if len(chain) == 1:
        raise BadRequestError(f"{seen.disk} has no backing chain: {chain[0].filename} stands alone", disk=seen.disk)
    return chain


def _names(images: list[Image]) -> tuple[str, ...]:
    return tuple(image.filename for image in images)


def _find(domain: DomainSnapshot, chain: list[Image], name: str, seen: DiskSeen) -> int:
    wanted = files.resolve(name, domain.directory)
    for index, image in enumerate(chain):
        if image.filename == name or files.same(image, wanted):
            return index
    place = places.of(name if wanted.path is None else wanted.path)
    parts = [index for index, image in enumerate(chain) if place.overlaps(places.of(image.filename))]
    if len(parts) == 1:
        return parts[0]  # of a file that has but one part in this chain, the file's name says enough
    layers = ", ".join(image.filename for image in chain)
    raise NotFoundError(f"{name} is not in the chain of {seen.disk}; its layers are: {layers}", disk=seen.disk)


def _refuse_short(seen: DiskSeen, chain: list[Image], top: int, base: int) -> None:
    """Refuse a merge after which a guest would read data of the base that it did not see before.

    Beyond the end of a layer, the layer above reads zeroes. QEMU (7.2 to 11.1) copies only what lies before the end of
    ``top``: without it the base's data shows there, and a disk that moves to the base itself grows.
    """
    uppermost, lowest = seen.layers[top].size_bytes, seen.layers[base].size_bytes
    if top == 0 and uppermost < lowest:
        raise BadRequestError(
            f"{chain[base].filename} is larger than {seen.disk}, which would grow: {lowest} bytes for {uppermost}; "
            "resize the disk first",
            disk=seen.disk,
        )
    if top > 0 and uppermost < min(lowest, seen.layers[top - 1].size_bytes):
        raise BadRequestError(
            f"{chain[top].filename} is smaller than {chain[base].filename}: without it {seen.disk} would show what it "
            "hides behind its end; commit the active layer too, or pull everything",
            disk=seen.disk,
        )


def _refuse_shared(domain: DomainSnapshot, image: Image, disk: str) -> None:
    disks = domain.blocks.disks
    other = next((user for user in domain.users(image) if disks[user].node != disks[disk].node), None)
    if other is not None:
        raise BadRequestError(f"{image.filename} is also below {other}: a commit into it would change that disk")
    if domain.is_taken(image):
        raise DiskBusyError(f"{image.filename} belongs to another open pivot", disk=disk)


def _backing_file(seen: DiskSeen, chain: list[Image], above: int, base: int) -> str:
    """Return the backing file name for the image ``above``: relative if the name of base was relative before."""
    return backing_name(chain[base], chain[above].filename, seen.layers[base - 1].backing_file)
