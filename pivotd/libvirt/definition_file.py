"""The file of one domain's next boot: libvirt's own, and nobody else writes it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from pivotd.libvirt import durable
from pivotd.libvirt.libvirt_files import definitions

State = tuple[int, int, int]


class DefinitionFile:
    """Whether libvirt has written it since this was made, and that it lasts."""

    def __init__(self, uri: str, name: Callable[[], str], uuid: str) -> None:
        """``name``: of the domain, from libvirt."""
        self._uri, self._name, self._uuid = uri, name(), uuid
        self._path: Path = definitions(uri) / f"{self._name}.xml"
        self._before = self._state()

    def rewritten(self) -> str | None:
        """Return its text if libvirt has put another file in its place, None if it has not or this cannot be known.

        libvirt writes a new file to disk before it gives it this name. One that has stayed may be another libvirt's.
        """
        now = self._state()
        if now is None or now == self._before:
            return None
        try:
            text = self._path.read_text()
        except (OSError, UnicodeDecodeError):
            return None  # libvirt makes it for root alone
        return text if f"<uuid>{self._uuid}</uuid>" in text else None

    def sync(self) -> None:
        """Make what libvirt has written last. Raises: OSError."""
        durable.sync_definition(self._uri, self._name, self._uuid)

    def _state(self) -> State | None:
        try:
            found = os.stat(self._path)  # noqa: PTH116 - one system call in the pause, no object
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns, found.st_size
