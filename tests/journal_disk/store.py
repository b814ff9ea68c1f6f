"""The model of a disk that forgets: what processes see, what is durable, and what a power cut may leave.

- A write or truncation is durable once fsync or fdatasync of its file has succeeded. Until then a power cut may keep any
  subset of it, in sectors of 512 bytes, in any order; what lies between and was never written reads as zeros.
- A created, renamed or removed name is durable once fsync of the directory has succeeded. Until then a power cut keeps
  the first few of them, perhaps none: names change in order, as file systems with a journal have it.
- An fsync that fails makes nothing durable, and a later one that succeeds does not make up for it: the kernel has
  taken the dirty marks off the pages. Only writing to the same page of 4096 bytes again helps. (Linux; found by
  PostgreSQL in 2018.) A power cut may keep such bytes by chance. Truncations are kept for the next fsync, and what they
  cut off is gone with it.
- ``fsync`` of a file does not make its name durable; POSIX does not promise that, although ext4 and XFS do it.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

SECTOR_BYTES = 512
PAGE_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Write:
    """Bytes of a file changed."""

    file: int
    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Truncate:
    """The length of a file changed."""

    file: int
    size: int


@dataclass(frozen=True, slots=True)
class Sync:
    """fsync of a file ended; ``failed``: with an error."""

    file: int
    failed: bool = False


@dataclass(frozen=True, slots=True)
class Name:
    """A name came to mean a file, or, with ``file`` 0, nothing. ``old`` is the name that it had before."""

    name: str
    file: int
    old: str = ""


@dataclass(frozen=True, slots=True)
class SyncNames:
    """fsync of the directory ended."""


@dataclass(frozen=True, slots=True)
class Mark:
    """Something happened outside the disk, after every change before it in the log."""

    text: str


Change = Write | Truncate | Sync | Name | SyncNames | Mark
Contents = dict[str, bytes]


@dataclass(slots=True)
class File:
    """One file: ``seen`` by processes, ``durable``, and the changes between the two."""

    seen: bytearray = field(default_factory=bytearray)
    durable: bytearray = field(default_factory=bytearray)
    pending: list[Write | Truncate] = field(default_factory=list)
    dropped: list[Write] = field(default_factory=list)
    """Sectors that a failed fsync has left behind: seen, and not durable until their page is written again."""
    older: int = 0
    """So many of the pending changes came before the sectors that were dropped last."""

    def sync(self) -> None:
        """Make what is pending durable, with the whole of every page that it touches."""
        pages = set()
        for change in self.pending[self.older :]:
            if isinstance(change, Truncate):
                self.dropped = [piece for left in self.dropped for piece in _before(left, change.size)]
        for change in self.pending:
            _apply(self.durable, change)
            pages |= {piece.offset // PAGE_BYTES for piece in _pieces(change) if isinstance(piece, Write)}
        for page in pages:
            begin, end = page * PAGE_BYTES, min(len(self.durable), (page + 1) * PAGE_BYTES)
            self.durable[begin:end] = self.seen[begin:end]
        self.dropped = [piece for piece in self.dropped if piece.offset // PAGE_BYTES not in pages]
        self.pending, self.older = [], 0

    def fail(self) -> None:
        """Forget that what is pending has to be written."""
        for change in self.pending:
            self.dropped += [piece for piece in _pieces(change) if isinstance(piece, Write)]
        self.pending = [change for change in self.pending if isinstance(change, Truncate)]
        self.older = len(self.pending)


class Store:
    """Applies changes in order. ``names`` is the directory as processes see it."""

    def __init__(self) -> None:
        self.files: dict[int, File] = {}
        self.names: dict[str, int] = {}
        self._durable_names: dict[str, int] = {}
        self._pending_names: list[Name] = []

    def apply(self, change: Change) -> None:
        """Apply one change."""
        match change:
            case Write() | Truncate():
                file = self.files[change.file]
                _apply(file.seen, change)
                file.pending.append(change)
            case Sync(number, failed):
                if failed:
                    self.files[number].fail()
                else:
                    self.files[number].sync()
            case Name():
                if change.file:
                    self.files.setdefault(change.file, File())
                _rename(self.names, change)
                self._pending_names.append(change)
            case SyncNames():
                for name in self._pending_names:
                    _rename(self._durable_names, name)
                self._pending_names = []

    def everything(self) -> Contents:
        """Return what processes see: what is left when only processes die."""
        return {name: bytes(self.files[number].seen) for name, number in self.names.items()}

    def after_cut(self, chance: random.Random | None = None) -> Contents:
        """Return what a power cut leaves: only what is durable, or with ``chance`` also some of the rest, torn."""
        names = dict(self._durable_names)
        if chance is not None:
            for change in self._pending_names[: chance.randint(0, len(self._pending_names))]:
                _rename(names, change)
        return {name: self._left(self.files[number], chance) for name, number in names.items()}

    @staticmethod
    def _left(file: File, chance: random.Random | None) -> bytes:
        data = bytearray(file.durable)
        if chance is not None:
            share = chance.choice((0.1, 0.5, 0.9, 1.0))
            for change in (*file.dropped, *file.pending):
                for piece in _pieces(change):
                    if chance.random() < share:
                        _apply(data, piece)
        return bytes(data)


def _pieces(change: Write | Truncate) -> Iterator[Write | Truncate]:
    if isinstance(change, Truncate):
        yield change
        return
    begin, end = change.offset, change.offset + len(change.data)
    while begin < end:
        stop = min(end, begin - begin % SECTOR_BYTES + SECTOR_BYTES)
        yield Write(change.file, begin, change.data[begin - change.offset : stop - change.offset])
        begin = stop


def _before(piece: Write, size: int) -> Iterator[Write]:
    """Yield what a durable truncation leaves of a write; what it has cut off comes back by no chance."""
    if piece.offset < size:
        yield Write(piece.file, piece.offset, piece.data[: size - piece.offset])


def _apply(data: bytearray, change: Write | Truncate) -> None:
    size = change.size if isinstance(change, Truncate) else change.offset + len(change.data)
    if len(data) < size:
        data.extend(bytes(size - len(data)))
    if isinstance(change, Truncate):
        del data[size:]
    else:
        data[change.offset : size] = change.data


def _rename(names: dict[str, int], change: Name) -> None:
    if change.old:
        names.pop(change.old, None)
    if change.file:
        names[change.name] = change.file
    else:
        names.pop(change.name, None)


def replay(log: Sequence[Change]) -> Iterator[tuple[int, Store]]:
    """Yield the store after each change of a log; the same object, further on each time."""
    store = Store()
    for position, change in enumerate(log, 1):
        store.apply(change)
        yield position, store
