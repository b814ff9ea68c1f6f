"""Dirty bitmaps that could not come along: what can be known of them before anything is copied."""

from __future__ import annotations

from collections.abc import Collection

from pivotd.core import nbd
from pivotd.core.dirty_bitmaps import Bitmap, busy_sentence
from pivotd.core.pivot import Image
from pivotd.errors import BadRequestError, ConflictError
from pivotd.host import qcow2
from pivotd.planning.domain_snapshot import DomainSnapshot


def refuse_bitmaps(
    domain: DomainSnapshot, bitmaps: Collection[Bitmap], image: Image, disk: str, *, base: bool = False
) -> None:
    """Refuse what would only show when everything is copied; this looks at files, so it may block.

    ``base``: the image is a layer of the disk, in which a bitmap that is there keeps its granularity and persistence.
    Raises: ConflictError (a bitmap in use), BadRequestError (one that cannot be).
    """
    if domain.options.force or not bitmaps:
        return
    domain.refuse_to_lose(bitmaps, image.format, disk)
    new = not base and not domain.options.reuse
    if new and domain.options.image_options.version == "v2":
        if kept := [bitmap.name for bitmap in bitmaps if bitmap.persistent]:
            raise BadRequestError(_too_old(image, disk, kept), disk=disk)
    elif not new and image.format == "qcow2" and not nbd.is_uri(image.filename):
        _refuse_stored(image, bitmaps, disk, may_differ=base)
    carried = [bitmap for bitmap in bitmaps if image.format == "qcow2" or not bitmap.persistent]
    busy = next((bitmap.name for bitmap in carried if bitmap.busy), None)
    if busy is not None:
        raise ConflictError(
            f"{busy_sentence(disk, busy)}: try again then, or use --force to leave the bitmaps behind", disk=disk
        )


def _refuse_stored(image: Image, bitmaps: Collection[Bitmap], disk: str, *, may_differ: bool) -> None:
    """Refuse an image that is there and holds bitmaps of these names that cannot take what the disk's mark."""
    header = _header(image.filename)
    if header is None:
        return
    if header.version == 2 and (kept := [bitmap.name for bitmap in bitmaps if bitmap.persistent]):
        raise BadRequestError(_too_old(image, disk, kept), disk=disk)
    for bitmap in bitmaps:
        there = header.bitmaps.get(bitmap.name)
        if there is None:
            continue
        same = may_differ or (bitmap.persistent and there.granularity_bytes == bitmap.granularity_bytes)
        if there.in_use or not same:
            why = "left by a QEMU that has crashed" if there.in_use else "with other properties"
            raise BadRequestError(
                f"{image.filename} has a dirty bitmap {bitmap.name} already, {why}, which cannot take that of {disk}: "
                f"remove it first, `qemu-img bitmap --remove {image.filename} {bitmap.name}`",
                disk=disk,
            )


def _header(filename: str) -> qcow2.Header | None:
    """Return what the file says of itself, None if it is not qcow2 or cannot be read: QEMU looks again."""
    try:
        head = qcow2.look(filename)
    except (OSError, ValueError):
        return None
    return None if head is None else head.header


def _too_old(image: Image, disk: str, kept: Collection[str]) -> str:
    return (
        f"{image.filename}: qcow2 of version 2 cannot hold the dirty bitmaps of {disk} ({', '.join(kept)}), and "
        "backups go on from them: choose version 3, or --force to leave them behind"
    )
