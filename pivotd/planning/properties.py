"""Properties of a disk's images that would be lost: refused, unless the request says to drop them.

docs/tasks.md has a table of every property that QEMU shows; tests/engine/test_properties.py walks it.
"""

from __future__ import annotations

from collections.abc import Iterable

from pivotd.core.pivot import Image, PivotDisk
from pivotd.core.request import Aio, Kind, Sync, past_cache
from pivotd.errors import BadRequestError
from pivotd.planning import encryption, filters, internal_snapshots
from pivotd.planning.domain_snapshot import DomainSnapshot
from pivotd.planning.internal_snapshots import Left
from pivotd.qmp.blocks import DiskSeen, find


def check(domain: DomainSnapshot, kind: Kind, planned: Iterable[PivotDisk]) -> tuple[Left, ...]:
    """Check planned disks; this looks at files, so it may block. Return the internal snapshots that they lose.

    Raises: BadRequestError.
    """
    left: list[Left] = []
    for disk in planned:
        seen = find(domain.blocks.disks, disk)
        assert seen is not None, "it was planned from this"
        copied = _copied(domain, kind, seen, disk)
        filters.refuse_inside(domain, seen, disk)
        if kind is Kind.COPY:
            _refuse_to_lose_data_file(domain, seen, disk)
        if domain.options.aio is Aio.NATIVE and not past_cache(domain.options, seen.cache_direct):
            raise BadRequestError(
                f"--aio native passes by the host's page cache, which the new image of {seen.disk} would use: "
                "add --cache none",
                disk=seen.disk,
            )
        encryption.check(domain, seen, disk, copied, _taker(domain, kind, seen, disk))
        left += internal_snapshots.left(domain, seen, _spoilt(kind, copied))
    return tuple(left)


def _spoilt(kind: Kind, copied: range) -> range:
    """Return the layers that the disk leaves, or that read other data afterwards if read by themselves."""
    match kind:
        case Kind.SNAPSHOT:
            return range(0)
        case Kind.PULL:
            return range(copied.stop)
    return copied


def _refuse_to_lose_data_file(domain: DomainSnapshot, seen: DiskSeen, disk: PivotDisk) -> None:
    """Raises: BadRequestError: other programs may read the external data file, which a new image would not have."""
    data = seen.layers[0].data_file if seen.layers[0].data_file_is_raw else None
    options = domain.options
    if data is None or disk.destination.format == "raw" or options.reuse or options.adopted or options.force:
        return
    raise BadRequestError(
        f"{seen.disk}: its image keeps the data as a raw image in {data}, and a new qcow2 image would not: use "
        "--format raw, or --reuse with an image made with data_file and data_file_raw, or --force to go on without",
        disk=seen.disk,
    )


def _copied(domain: DomainSnapshot, kind: Kind, seen: DiskSeen, disk: PivotDisk) -> range:
    """Return the layers, by their place in the chain, whose data lands in another image.

    Of a snapshot: the active layer, because the overlay takes what the guest would have written into it.
    """
    match kind:
        case Kind.SNAPSHOT:
            return range(1)
        case Kind.COPY:
            return range(1 if domain.options.sync is Sync.TOP else len(seen.layers))
        case Kind.PULL:
            return range(1, _place(domain, seen, disk.base))
        case Kind.COMMIT:
            return range(_place(domain, seen, disk.top), _place(domain, seen, disk.base))


def _taker(domain: DomainSnapshot, kind: Kind, seen: DiskSeen, disk: PivotDisk) -> int | None:
    """Return the place of the layer that takes the data, None if it is an image outside the chain."""
    match kind:
        case Kind.PULL:
            return 0
        case Kind.COMMIT:
            return _place(domain, seen, disk.base)
    return None


def _place(domain: DomainSnapshot, seen: DiskSeen, layer: Image | None) -> int:
    """Return the place of a layer in the chain, the end of the chain for None."""
    return len(seen.layers) if layer is None else domain.blocks.graph.chain(seen.node).index(layer.node)
