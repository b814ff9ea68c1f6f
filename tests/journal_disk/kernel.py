"""The kernel's side of a FUSE file system: mount it, take its requests, answer them. One flat directory.

Spoken directly to /dev/fuse, so nothing needs to be installed, and a request may be answered late, or never.
Source: linux/include/uapi/linux/fuse.h, protocol 7.31.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import struct
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

REQUEST_BYTES_MAX = 1 << 20
WRITE_BYTES_MAX = 128 << 10
ROOT = 1
BLOCK_BYTES = 4096
MNT_DETACH = 2
_BIG_WRITES = 1 << 5
_HEADER = struct.Struct("<IIQQIIII")
_ATTR = struct.Struct("<6Q10I")
_FATTR_SIZE = 1 << 3
_FROM_PAGE_CACHE = 1


class Op(IntEnum):
    """Requests that are understood; the kernel is told ENOSYS for all others and lives with that."""

    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    SETATTR = 4
    UNLINK = 10
    RENAME = 12
    OPEN = 14
    READ = 15
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    FSYNC = 20
    FLUSH = 25
    INIT = 26
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    FSYNCDIR = 30
    ACCESS = 34
    CREATE = 35
    INTERRUPT = 36
    DESTROY = 38
    BATCH_FORGET = 42
    RENAME2 = 45


SILENT = {Op.FORGET, Op.BATCH_FORGET, Op.INTERRUPT}
"""The kernel waits for no answer to these."""


@dataclass(frozen=True, slots=True)
class Request:
    """One request of the kernel, taken apart as far as this file system needs it."""

    op: Op
    unique: int
    node: int
    name: str = ""
    new_name: str = ""
    offset: int = 0
    size: int = 0
    data: bytes = b""
    mode: int = 0
    sets_size: bool = False
    cached: bool = False
    """A write of the page cache's own accord: a page of a shared mapping, at a time that nobody chose."""


@dataclass(frozen=True, slots=True)
class Attributes:
    """What stat() shows of a file or, with ``size`` -1, of the directory."""

    node: int
    size: int
    mode: int = 0o640


class Kernel:
    """A mounted connection. Only this process may use the descriptor; the mount ends with it."""

    def __init__(self, where: Path) -> None:
        """Mount at ``where``. Raises: OSError, where /dev/fuse or the right to mount is missing."""
        self.fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        options = f"fd={self.fd},rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions"
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.mount(b"forgetful", os.fsencode(where), b"fuse.forgetful", 0, options.encode()):
            number = ctypes.get_errno()
            os.close(self.fd)
            raise OSError(number, f"mount: {os.strerror(number)}", str(where))

    def receive(self) -> Request | None:
        """Return the next request that is for the file system itself; None if there was none, EOFError at the end."""
        try:
            message = os.read(self.fd, REQUEST_BYTES_MAX)
        except OSError as error:
            if error.errno == errno.ENODEV:
                raise EOFError from error
            if error.errno in {errno.ENOENT, errno.EINTR, errno.EAGAIN}:
                return None
            raise
        length, code, unique, node, *_ = _HEADER.unpack_from(message)
        body = message[_HEADER.size : length]
        try:
            op = Op(code)
        except ValueError:
            self.fail(unique, errno.ENOSYS)
            return None
        if op in SILENT:
            return None
        if op is Op.INIT:
            self._initialise(unique, body)
            return None
        return _parse(op, unique, node, body)

    def fail(self, unique: int, number: int) -> None:
        """Answer with an error."""
        self._send(unique, b"", error=number)

    def done(self, unique: int, body: bytes = b"") -> None:
        """Answer with success."""
        self._send(unique, body)

    def entry(self, unique: int, found: Attributes, *, opened: bool = False) -> None:
        """Answer LOOKUP or, with ``opened``, CREATE. Nothing is cached by name: a power cut changes everything."""
        body = struct.pack("<4Q2I", found.node, 0, 0, 0, 0, 0) + _attributes(found)
        self._send(unique, body + (_opened() if opened else b""))

    def attributes(self, unique: int, found: Attributes) -> None:
        """Answer GETATTR or SETATTR."""
        self._send(unique, struct.pack("<QII", 0, 0, 0) + _attributes(found))

    def opened(self, unique: int) -> None:
        """Answer OPEN or OPENDIR. Through the page cache, not around it: only so can a file be mapped and shared."""
        self._send(unique, _opened())

    def written(self, unique: int, size: int) -> None:
        """Answer WRITE; fewer bytes than asked are a short write."""
        self._send(unique, struct.pack("<II", size, 0))

    def listing(self, unique: int, names: list[tuple[str, int]], offset: int, size: int) -> None:
        """Answer READDIR."""
        body = b""
        for index, (name, node) in enumerate(names[offset:], offset + 1):
            text = name.encode()
            row = struct.pack("<QQII", node, index, len(text), stat.S_IFREG >> 12) + text
            row += b"\0" * (-len(row) % 8)
            if len(body) + len(row) > size:
                break
            body += row
        self._send(unique, body)

    def statistics(self, unique: int, *, free_blocks: int) -> None:
        """Answer STATFS."""
        self._send(
            unique, struct.pack("<5Q4I24x", 1 << 20, free_blocks, free_blocks, 100, 50, BLOCK_BYTES, 255, 4096, 0)
        )

    def _send(self, unique: int, body: bytes, *, error: int = 0) -> None:
        try:
            os.write(self.fd, struct.pack("<IiQ", 16 + len(body), -error, unique) + body)
        except OSError as failure:
            # The request was interrupted: its process is dead and takes no answer.
            if failure.errno not in {errno.ENOENT, errno.ENODEV}:
                raise

    def _initialise(self, unique: int, body: bytes) -> None:
        _major, _minor, readahead, _flags = struct.unpack_from("<IIII", body)
        self._send(
            unique, struct.pack("<IIIIHHIIHH32x", 7, 31, readahead, _BIG_WRITES, 12, 9, WRITE_BYTES_MAX, 1, 0, 0)
        )


def unmount(where: Path) -> None:
    """Unmount at once, whoever still uses it; no mount there is no error."""
    ctypes.CDLL(None, use_errno=True).umount2(os.fsencode(where), MNT_DETACH)


def _opened() -> bytes:
    return struct.pack("<QII", 0, 0, 0)


def _attributes(found: Attributes) -> bytes:
    is_directory = found.size < 0
    mode = stat.S_IFDIR | 0o755 if is_directory else stat.S_IFREG | found.mode
    size = max(0, found.size)
    blocks = -(-size // 512)
    return _ATTR.pack(found.node, size, blocks, 0, 0, 0, 0, 0, 0, mode, 1 + is_directory, 0, 0, 0, BLOCK_BYTES, 0)


def _text(data: bytes) -> str:
    return data.split(b"\0", 1)[0].decode()


def _parse(op: Op, unique: int, node: int, body: bytes) -> Request:
    match op:
        case Op.LOOKUP | Op.UNLINK:
            return Request(op, unique, node, name=_text(body))
        case Op.CREATE:
            _flags, mode, umask, _ = struct.unpack_from("<IIII", body)
            return Request(op, unique, node, name=_text(body[16:]), mode=mode & ~umask & 0o7777)
        case Op.RENAME | Op.RENAME2:
            old, new, _ = body[8 if op is Op.RENAME else 16 :].split(b"\0", 2)
            return Request(Op.RENAME, unique, node, name=old.decode(), new_name=new.decode())
        case Op.READ | Op.READDIR:
            _fh, offset, size = struct.unpack_from("<QQI", body)
            return Request(op, unique, node, offset=offset, size=size)
        case Op.WRITE:
            _fh, offset, size, flags = struct.unpack_from("<QQII", body)
            data = body[40 : 40 + size]
            return Request(op, unique, node, offset=offset, size=size, data=data, cached=bool(flags & _FROM_PAGE_CACHE))
        case Op.SETATTR:
            (valid,) = struct.unpack_from("<I", body)
            (size,) = struct.unpack_from("<Q", body, 16)
            (mode,) = struct.unpack_from("<I", body, 68)
            mode = mode & 0o7777 if valid & 1 else 0
            return Request(op, unique, node, size=size, mode=mode, sets_size=bool(valid & _FATTR_SIZE))
    return Request(op, unique, node)
