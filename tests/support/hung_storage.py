"""A file system that answers nothing: every call below its mount point waits in the kernel until it is let go."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

_MNT_DETACH = 2
_libc = ctypes.CDLL(None, use_errno=True)


class HungStorage:
    """A FUSE mount whose server never reads a request, over a directory that may have files.

    Whoever has such a file open already goes on with it; whoever looks for it by its name hangs, until release().
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._server = -1

    def __enter__(self) -> Self:
        try:
            self._server = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            pytest.skip(f"/dev/fuse: {error.strerror} (needs root and fuse)")
        options = f"fd={self._server},rootmode=40000,user_id=0,group_id=0".encode()
        if _libc.mount(b"hung", os.fsencode(self.directory), b"fuse", 0, options) != 0:
            os.close(self._server)
            pytest.skip(f"mount: {os.strerror(ctypes.get_errno())} (needs root)")
        return self

    def release(self) -> None:
        """Let every call that waits end in an error, and show the directory below again."""
        if self._server >= 0:
            os.close(self._server)
            self._server = -1
            _libc.umount2(os.fsencode(self.directory), _MNT_DETACH)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()
