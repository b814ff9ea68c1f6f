"""The files that a qcow2 image needs, read from headers, without QEMU: the images below it, and external data files.

A header can say anything, and leads no further than a name.
"""

from __future__ import annotations

import json
import os
import stat
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

from pivotd import limits
from pivotd.core.image_names import describe, options
from pivotd.host import files, view
from pivotd.host.threads import look_at

_HEADER = struct.Struct(">4sIQII")
"""Magic, version, offset and size of the backing file name, cluster bits. Source: docs/interop/qcow2.txt of QEMU."""
_MAGIC = b"QFI\xfb"
_EXTENSIONS_AT = {1: 48, 2: 72}
"""Where header extensions begin, by version; version 3 says it itself, in 4 bytes at 100."""
_BACKING_FORMAT, _DATA_FILE = 0xE2792ACA, 0x44415441
_EXTENSION = struct.Struct(">II")
_HEADER_READ_BYTES = 65536
_NAME_BYTES_MAX = 1023
_CLUSTER_BYTES_MAX = 1 << 21
"""The first cluster holds the header and all that it says."""
_ALONE = frozenset({"raw", "vdi", "vhdx", "vpc", "dmg", "luks", "bochs", "cloop", "file", "host_device", "nbd"})
"""Formats whose images QEMU never puts on others."""


Below = tuple[str, str | None]
"""The name of an image, and its format; None: decided by its content, as QEMU would."""


class BlindError(Exception):
    """This process may not look at ``image``, which is there, or may be there; the text is one sentence."""

    def __init__(self, text: str, image: str) -> None:
        super().__init__(text)
        self.image = image


def needed(image: str, image_format: str | None, known: Mapping[str, Sequence[Below]] | None = None) -> list[str]:
    """Return the names of all images and data files below an image, as absolute paths and addresses, nearest first.

    ``known``: what is right below images that nobody can read, by name. It looks at storage, so it may block.

    Raises: BlindError.
    """
    found: list[str] = []
    queue: list[Below] = [(image, image_format)]
    while queue and len(found) < limits.IMAGES_BELOW_MAX:
        name, kind = queue.pop(0)
        try:
            right_below = _right_below(name, kind)
        except BlindError:
            if known is None or name not in known:
                raise
            right_below = known[name]
        for below in right_below:
            if below[0] not in found:
                found.append(below[0])
                queue.append(below)
    return found


def _right_below(name: str, image_format: str | None) -> Sequence[Below]:
    asked = name
    described = options(name)
    if described is not None and "backing" in described:
        below = described["backing"]
        if below is not None and not isinstance(below, dict):
            raise BlindError(f"pivotd cannot read what is below {name}", asked)
        return [] if below is None else [(f"json:{json.dumps(below)}", below.get("driver"))]
    if image_format in _ALONE:
        return []
    if described is not None and describe(name).text == name:
        raise BlindError(f"pivotd cannot read what is below {name}", asked)
    name = describe(name).text
    if not name.startswith("/"):
        return []
    if (hidden := view.hidden(name)) is not None:
        raise BlindError(hidden, asked)
    if image_format not in {None, "qcow", "qcow2"}:
        raise BlindError(f"pivotd cannot read what is below {name}, a {image_format} image", asked)
    try:
        head = _head(name)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except (OSError, ValueError) as error:
        raise BlindError(f"pivotd cannot read what is below {name}: {error}", asked) from None
    return [] if head is None else _named(name, head)


def _head(name: str) -> bytes | None:
    """Return the first bytes of a file or block device, None of anything else."""
    look_at(name)
    descriptor = os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISBLK(mode):
            return None
        head = os.pread(descriptor, _HEADER_READ_BYTES, 0)
        if len(head) < _HEADER.size or head[:4] != _MAGIC:
            return None
        _, _, at, size, _ = _HEADER.unpack_from(head)
        below = os.pread(descriptor, min(size, _NAME_BYTES_MAX), at) if at < _CLUSTER_BYTES_MAX else b""
        return head.ljust(_HEADER_READ_BYTES, b"\0") + below
    finally:
        os.close(descriptor)


def _named(name: str, head: bytes) -> list[Below]:
    _, version, at, size, _ = _HEADER.unpack_from(head)
    extensions = _extensions(head, version)
    found: list[Below] = []
    if _DATA_FILE in extensions:
        found.append((extensions[_DATA_FILE], "raw"))
    if at and size:
        backing = os.fsdecode(head[_HEADER_READ_BYTES:])
        found.append((backing, extensions.get(_BACKING_FORMAT)))
    return [(path, kind) for text, kind in found if (path := _path(text, name)) is not None]


def _extensions(head: bytes, version: int) -> dict[int, str]:
    """Return the header extensions that hold text, by type."""
    at = _EXTENSIONS_AT.get(version) or int.from_bytes(head[100:104], "big")
    found: dict[int, str] = {}
    while version > 1 and at + _EXTENSION.size <= _HEADER_READ_BYTES:
        kind, size = _EXTENSION.unpack_from(head, at)
        if kind == 0:
            break
        at += _EXTENSION.size
        if kind in {_BACKING_FORMAT, _DATA_FILE}:
            found[kind] = os.fsdecode(head[at : min(at + size, _HEADER_READ_BYTES)])
        at += -(-size // 8) * 8
    return found


def _path(text: str, image: str) -> str | None:
    """Return what a header of an image names: relative names start where the image is named."""
    return files.resolve(text.removeprefix("file:"), Path(image).parent).path
