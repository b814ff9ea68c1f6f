"""What the header of a qcow2 file says, read without QEMU. A damaged header can say anything, and leads to no error.

Source: docs/interop/qcow2.txt of QEMU.
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from pivotd.host.threads import look_at

_HEADER = struct.Struct(">4sIQI4xQIIQ24xQ8xQ4xI")
"""Magic, version, offset and size of the backing file name, virtual size, method of encryption, entries and offset of
the L1 table; of version 3 also the incompatible and the autoclear features, and the length of the header."""
_MAGIC = b"QFI\xfb"
_LUKS_MAGIC = b"LUKS\xba\xbe"
_EXTENSIONS_AT = {1: 48, 2: 72}
"""Where header extensions begin, by version; version 3 says it itself."""
_BACKING_FORMAT, _DATA_FILE, _BITMAPS = 0xE2792ACA, 0x44415441, 0x23852875
_EXTENSION = struct.Struct(">II")
_DIRECTORY = struct.Struct(">IIQQ")
"""Number of bitmaps, reserved, size and offset of their directory."""
_ENTRY = struct.Struct(">QIIBBHI")
"""Table offset and size, flags, type, granularity as a power of two, sizes of the name and of extra data."""
_AUTOCLEAR_BITMAPS = 1
_STORED_OTHERWISE = 1 << 3 | 1 << 4
"""Incompatible features that only say how clusters are stored: compression type, extended L2 entries."""
_L1_ENTRY_BYTES = 8
_L1_BYTES_MAX = 32 << 20
"""QEMU opens no image with a larger one."""
_PIECE_BYTES = 1 << 20
_IN_USE = 1
_READ_BYTES = 65536
_NAME_BYTES_MAX = 1023
_CLUSTER_BYTES_MAX = 1 << 21
"""The first cluster holds the header and all that it says."""
_OFFSET_MAX = (1 << 63) - 1 - (1 << 20)
"""Beyond it a file cannot be read."""
_DIRECTORY_BYTES_MAX = 64 << 20
"""QEMU's own bound is 65,535 bitmaps with names of at most 1,023 bytes."""


@dataclass(frozen=True, slots=True)
class Bitmap:
    """A bitmap as a file holds it. ``in_use``: a QEMU has it, or has crashed with it."""

    granularity_bytes: int
    in_use: bool


@dataclass(frozen=True, slots=True)
class Header:
    """A header; the names are as they are written there."""

    version: int
    size_bytes: int
    """What a guest sees."""
    backing_file: str | None
    backing_format: str | None
    data_file: str | None
    is_encrypted: bool
    bitmaps: Mapping[str, Bitmap]


@dataclass(frozen=True, slots=True)
class Head:
    """The beginning of a file or block device. ``header`` None: it is no qcow2 image."""

    file_bytes: int
    header: Header | None
    is_encrypted: bool
    """It says of itself that it is encrypted, as qcow2 or as LUKS."""


def look(path: str) -> Head | None:
    """Return the beginning of a file or block device, None of anything else; it may block.

    Raises: OSError, ValueError.
    """
    look_at(path)
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISBLK(mode):
            return None
        size = os.lseek(descriptor, 0, os.SEEK_END)
        start = os.pread(descriptor, _READ_BYTES, 0)
        header = _header(descriptor, start.ljust(_READ_BYTES, b"\0")) if start.startswith(_MAGIC) else None
        return Head(size, header, start.startswith(_LUKS_MAGIC) or (header is not None and header.is_encrypted))
    finally:
        os.close(descriptor)


def _header(descriptor: int, start: bytes) -> Header:
    _, version, at, length, size, encryption, _, _, _, autoclear, header_bytes = _HEADER.unpack_from(start)
    extensions = dict(_extensions(start, _EXTENSIONS_AT.get(version, header_bytes)))
    text = {kind: os.fsdecode(data) for kind, data in extensions.items()}
    name = os.pread(descriptor, min(length, _NAME_BYTES_MAX), at) if at < _CLUSTER_BYTES_MAX else b""
    has_bitmaps = (
        version >= 3 and autoclear & _AUTOCLEAR_BITMAPS and len(extensions.get(_BITMAPS, b"")) >= _DIRECTORY.size
    )
    return Header(
        version,
        size,
        os.fsdecode(name) if at and length else None,
        text.get(_BACKING_FORMAT),
        text.get(_DATA_FILE),
        encryption != 0,
        dict(_bitmaps(descriptor, extensions[_BITMAPS])) if has_bitmaps else {},
    )


def _extensions(start: bytes, at: int) -> Iterator[tuple[int, bytes]]:
    """Yield type and data of each header extension."""
    while at + _EXTENSION.size <= len(start):
        kind, size = _EXTENSION.unpack_from(start, at)
        if kind == 0:
            return
        at += _EXTENSION.size
        yield kind, start[at : at + size]
        at += -(-size // 8) * 8


def _bitmaps(descriptor: int, extension: bytes) -> Iterator[tuple[str, Bitmap]]:
    """Yield the bitmaps of a directory, as far as it makes sense."""
    _, _, size, at = _DIRECTORY.unpack_from(extension)
    directory, position = os.pread(descriptor, min(size, _DIRECTORY_BYTES_MAX), min(at, _OFFSET_MAX)), 0
    while position + _ENTRY.size <= len(directory):
        _, _, flags, _, granularity, name, extra = _ENTRY.unpack_from(directory, position)
        begin = position + _ENTRY.size + extra
        yield directory[begin : begin + name].decode(errors="replace"), Bitmap(1 << granularity, bool(flags & _IN_USE))
        position = begin + name + -(begin + name) % 8


def is_blank(path: str) -> bool:
    """Return whether a file is a qcow2 image that stands alone and in which no cluster is allocated; it may block.

    Then all of it reads as zeroes. Only what is in the file counts: a QEMU that has written to it may hold tables that
    it has not stored yet. False also if pivotd cannot read it.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        start = os.pread(descriptor, _HEADER.size, 0).ljust(_HEADER.size, b"\0")
        magic, version, backing, *_, entries, at, features, _, _ = _HEADER.unpack(start)
        if magic != _MAGIC or version not in {2, 3} or backing or (version == 3 and features & ~_STORED_OTHERWISE):
            return False
        size = entries * _L1_ENTRY_BYTES
        return 0 < size <= _L1_BYTES_MAX and _is_zero(descriptor, at, size)
    except (OSError, OverflowError):
        return False
    finally:
        os.close(descriptor)


def _is_zero(descriptor: int, at: int, size: int) -> bool:
    for offset in range(0, size, _PIECE_BYTES):
        length = min(_PIECE_BYTES, size - offset)
        if os.pread(descriptor, length, at + offset) != bytes(length):
            return False
    return True
