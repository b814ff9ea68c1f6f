"""Whether a qcow2 file holds no data: all of it reads as zeroes, as on the day on which it was created."""

from __future__ import annotations

import os
import struct

_HEADER = struct.Struct(">IIQ20xIQ24xQ")
"""Magic, version, offset of the backing file's name, entries (at 36) and offset (40) of the L1 table, incompatible
features (72). Source: docs/interop/qcow2.txt of QEMU."""
_MAGIC = 0x514649FB
_HARMLESS = 1 << 3 | 1 << 4
"""Incompatible features that say how clusters are stored: compression type, extended L2 entries."""
_ENTRY_BYTES = 8
_L1_BYTES_MAX = 32 << 20
"""QEMU opens no image with a larger one."""
_PIECE_BYTES = 1 << 20


def is_blank(filename: str) -> bool:
    """Return whether this is a qcow2 file without a backing file in which no cluster is allocated; this may block.

    Only what is in the file counts: a QEMU that has written to it may hold tables that it has not stored yet.
    False also if pivotd cannot read it.
    """
    try:
        descriptor = os.open(filename, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        magic, version, backing, entries, at, features = _HEADER.unpack(os.pread(descriptor, _HEADER.size, 0))
        if magic != _MAGIC or version not in {2, 3} or backing or (version == 3 and features & ~_HARMLESS):
            return False
        size = entries * _ENTRY_BYTES
        return 0 < size <= _L1_BYTES_MAX and _is_zero(descriptor, at, size)
    except (OSError, OverflowError, struct.error):
        return False
    finally:
        os.close(descriptor)


def _is_zero(descriptor: int, at: int, size: int) -> bool:
    for offset in range(0, size, _PIECE_BYTES):
        length = min(_PIECE_BYTES, size - offset)
        if os.pread(descriptor, length, at + offset) != bytes(length):
            return False
    return True
