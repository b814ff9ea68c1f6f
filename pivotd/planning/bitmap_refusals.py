"""Dirty bitmaps that could not come along: what can be known of them before anything is copied."""

from __future__ import annotations

import os
import struct
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from pivotd.core import nbd
from pivotd.core.dirty_bitmaps import Bitmap, busy_sentence
from pivotd.core.pivot import Image
from pivotd.errors import BadRequestError, ConflictError
from pivotd.planning.domain_snapshot import DomainSnapshot

_HEADER = struct.Struct(">II80xQ4xI")
"""Magic, version, autoclear features (offset 88) and header length (100). Source: docs/interop/qcow2.txt of QEMU."""
_EXTENSION = struct.Struct(">II")
_BITMAPS = struct.Struct(">IIQQ")
"""Number of bitmaps, reserved, size and offset of their directory."""
_ENTRY = struct.Struct(">QIIBBHI")
"""Table offset and size, flags, type, granularity as a power of two, sizes of the name and of extra data."""
_MAGIC = 0x514649FB
_BITMAPS_EXTENSION = 0x23852875
_AUTOCLEAR_BITMAPS = 1
_IN_USE = 1
_EXTENSIONS_MAX = 64
_OFFSET_MAX = (1 << 63) - 1 - (1 << 20)
"""Beyond it a file cannot be read: a damaged header may say anything."""
_DIRECTORY_BYTES_MAX = 64 << 20
"""QEMU's own bound is 65,535 bitmaps with names of at most 1,023 bytes."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A bitmap as a qcow2 file holds it. ``in_use``: a QEMU has it, or has crashed with it."""

    granularity_bytes: int
    in_use: bool


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
    version, stored = read(image.filename)
    if version == 2 and (kept := [bitmap.name for bitmap in bitmaps if bitmap.persistent]):
        raise BadRequestError(_too_old(image, disk, kept), disk=disk)
    for bitmap in bitmaps:
        there = stored.get(bitmap.name)
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


def _too_old(image: Image, disk: str, kept: Collection[str]) -> str:
    return (
        f"{image.filename}: qcow2 of version 2 cannot hold the dirty bitmaps of {disk} ({', '.join(kept)}), and "
        "backups go on from them: choose version 3, or --force to leave them behind"
    )


def read(filename: str) -> tuple[int, Mapping[str, Stored]]:
    """Return version and bitmaps of a qcow2 file; 0 and none if it cannot be read: QEMU looks again."""
    try:
        descriptor = os.open(filename, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return 0, {}
    try:
        magic, version, autoclear, length = _unpack(_HEADER, descriptor, 0)
        if magic != _MAGIC or version < 3 or not autoclear & _AUTOCLEAR_BITMAPS:
            return (version if magic == _MAGIC else 0), {}
        return version, dict(_bitmaps(descriptor, length))
    except (OSError, struct.error):
        return 0, {}
    finally:
        os.close(descriptor)


def _bitmaps(descriptor: int, at: int) -> Iterator[tuple[str, Stored]]:
    """Yield the bitmaps that the header extensions from ``at`` on lead to."""
    for _ in range(_EXTENSIONS_MAX):
        kind, size = _unpack(_EXTENSION, descriptor, at)
        if kind == _BITMAPS_EXTENSION:
            _, _, size, at = _unpack(_BITMAPS, descriptor, at + _EXTENSION.size)
            directory, position = os.pread(descriptor, min(size, _DIRECTORY_BYTES_MAX), min(at, _OFFSET_MAX)), 0
            while position < len(directory):
                _, _, flags, _, granularity, name, extra = _ENTRY.unpack_from(directory, position)
                begin = position + _ENTRY.size + extra
                found = Stored(1 << granularity, bool(flags & _IN_USE))
                yield directory[begin : begin + name].decode(errors="replace"), found
                position = begin + name + -(begin + name) % 8
            return
        if kind == 0:
            return
        at += _EXTENSION.size + size + -size % 8


def _unpack(shape: struct.Struct, descriptor: int, at: int) -> tuple[int, ...]:
    return shape.unpack(os.pread(descriptor, shape.size, min(at, _OFFSET_MAX)))
