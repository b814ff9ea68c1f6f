"""The file system's process: ``server.py DIRECTORY``, orders on standard input, answers on standard output.

A process of its own, because a page fault of a shared mapping waits for it: in the process that faults, that thread
would wait for itself. Orders and answers are pickles; one byte on descriptor 2 says that a fault has struck.
"""

from __future__ import annotations

import errno
import os
import pickle
import random
import select
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tests.journal_disk.kernel import ROOT, Attributes, Kernel, Op, Request
from tests.journal_disk.store import (
    SECTOR_BYTES,
    Change,
    Contents,
    File,
    Mark,
    Name,
    Store,
    Sync,
    SyncNames,
    Truncate,
    Write,
)

FREE_BLOCKS = 1 << 19


@dataclass(frozen=True, slots=True)
class Fault:
    """What to do to the nth write or fsync of files whose name ends so.

    Counted from when the fault is set or, of several, from when the one before has struck.

    ``what``: ``write``, ``fsync`` or ``any``. ``how``: ``eio``, ``enospc`` or ``hang``.
    The first write that meets ENOSPC is cut short, as it is in life, and the next one fails.
    ``lasting``: all that follow fail too, of any kind, until the faults are cleared.
    """

    what: str
    nth: int
    how: str
    lasting: bool = False
    suffix: str = ""


class Server:
    """Carries requests out on a Store, and keeps a log of every change."""

    def __init__(self, where: Path) -> None:
        self._kernel = Kernel(where)
        self._store = Store()
        self._modes: dict[int, int] = {}
        self._log: list[Change] = []
        self._faults: list[Fault] = []
        self._counted = 0
        self._broken: str | None = None
        self._after_half: set[int] = set()
        self._hung: list[Request] = []
        self._next = ROOT + 1

    def run(self) -> None:
        """Serve until standard input ends."""
        poll = select.poll()
        for fd in (0, self._kernel.fd):
            poll.register(fd, select.POLLIN)
        orders = os.fdopen(0, "rb")
        answers = os.fdopen(1, "wb")
        while True:
            ready = {fd for fd, _ in poll.poll()}
            # Requests first: a mark must come after everything that happened before it.
            if self._kernel.fd in ready:
                request = self._kernel.receive()
                if request is not None:
                    self._request(request)
            elif 0 in ready:
                try:
                    name, arguments = pickle.load(orders)
                except EOFError:
                    return
                pickle.dump(getattr(self, f"order_{name}")(*arguments), answers)
                answers.flush()

    # -- orders

    def order_log(self) -> list[Change]:
        return self._log

    def order_mark(self, text: str) -> int:
        self._log.append(Mark(text))
        return len(self._log)

    def order_faults(self, faults: list[Fault]) -> None:
        """Set faults in place of those before; hanging requests go on."""
        self._faults, self._counted, self._broken = faults, 0, None
        self._after_half.clear()
        hung, self._hung = self._hung, []
        for request in hung:
            self._request(request)

    def order_hung(self) -> int:
        return len(self._hung)

    def order_cut(self, seed: int | None, *_: Any) -> None:
        """Cut the power: every file has what is left, durable now; who still waits gets EIO."""
        left = self._store.after_cut(None if seed is None else random.Random(seed))
        hung, self._hung = self._hung, []
        for request in hung:
            self._kernel.fail(request.unique, errno.EIO)
        self.order_load(left)

    def order_load(self, contents: Contents) -> None:
        """Hold exactly these files, durable, under numbers that the kernel's cache does not know; empty the log."""
        self._store = Store()
        self._log = []
        self._faults, self._broken = [], None
        for name, data in contents.items():
            number = self._number()
            self._change(Name(name, number))
            self._change(Write(number, 0, data))
            self._change(Sync(number))
        self._change(SyncNames())

    def order_replay(self, log: list[Change]) -> None:
        """Begin with the files as they were after these changes, with what was durable then and what was not."""
        self.order_load({})
        numbers: dict[int, int] = {0: 0}
        for change in log:
            if isinstance(change, SyncNames):
                self._change(change)
            elif not isinstance(change, Mark):
                if change.file not in numbers:
                    numbers[change.file] = self._number()
                self._change(replace(change, file=numbers[change.file]))

    # -- requests

    def _request(self, request: Request) -> None:
        what = {Op.WRITE: "write", Op.FSYNC: "fsync", Op.FSYNCDIR: "fsync"}.get(request.op)
        how = None if what is None or request.cached else self._strikes(what, request)
        if how == "hang":
            self._hung.append(request)
        elif how is not None:
            self._fail(request, errno.ENOSPC if how == "enospc" else errno.EIO)
        else:
            getattr(self, f"_{request.op.name.lower()}", self._nothing)(request)

    def _strikes(self, what: str, request: Request) -> str | None:
        if self._broken == "enospc" and what == "fsync":
            return None
        if self._broken is not None:
            return self._broken
        if request.node in self._after_half:
            return "enospc"
        name = next((name for name, number in self._store.names.items() if number == request.node), "")
        fault = self._faults[0] if self._faults else None
        if fault is None or fault.what not in {what, "any"} or not name.endswith(fault.suffix):
            return None
        self._counted += 1
        if self._counted == fault.nth:
            os.write(2, b"!")
            self._faults, self._counted = self._faults[1:], 0
            self._broken = fault.how if fault.lasting else None
            return fault.how
        return None

    def _fail(self, request: Request, number: int) -> None:
        if request.op is Op.FSYNC:
            self._change(Sync(request.node, failed=True))
        half = self._half(request) if request.op is Op.WRITE and number == errno.ENOSPC else b""
        if half:
            self._change(Write(request.node, request.offset, half))
            self._after_half.add(request.node)
            self._kernel.written(request.unique, len(half))
            return
        self._kernel.fail(request.unique, number)

    def _half(self, request: Request) -> bytes:
        """Return what still fits of a write that fills the disk: whole sectors, and nothing of the rest."""
        if request.node in self._after_half:
            self._after_half.discard(request.node)
            return b""
        end = request.offset + request.size // 2
        return request.data[: max(0, end - end % SECTOR_BYTES - request.offset)]

    def _change(self, change: Change) -> None:
        self._log.append(change)
        self._store.apply(change)

    def _number(self) -> int:
        self._next += 1
        return self._next

    def _file(self, request: Request) -> File:
        return self._store.files[request.node]

    def _shown(self, number: int) -> Attributes:
        if number == ROOT:
            return Attributes(ROOT, -1)
        return Attributes(number, len(self._store.files[number].seen), self._modes.get(number, 0o640))

    def _nothing(self, request: Request) -> None:
        self._kernel.done(request.unique)

    def _lookup(self, request: Request) -> None:
        number = self._store.names.get(request.name)
        if number is None:
            self._kernel.fail(request.unique, errno.ENOENT)
        else:
            self._kernel.entry(request.unique, self._shown(number))

    def _getattr(self, request: Request) -> None:
        if request.node != ROOT and request.node not in self._store.files:
            self._kernel.fail(request.unique, errno.ESTALE)
        else:
            self._kernel.attributes(request.unique, self._shown(request.node))

    def _setattr(self, request: Request) -> None:
        if request.sets_size:
            self._change(Truncate(request.node, request.size))
        if request.mode:
            self._modes[request.node] = request.mode
        self._getattr(request)

    def _create(self, request: Request) -> None:
        if self._broken == "enospc":
            self._kernel.fail(request.unique, errno.ENOSPC)
            return
        number = self._number()
        self._modes[number] = request.mode
        self._change(Name(request.name, number))
        self._kernel.entry(request.unique, self._shown(number), opened=True)

    def _unlink(self, request: Request) -> None:
        self._change(Name(request.name, 0))
        self._kernel.done(request.unique)

    def _rename(self, request: Request) -> None:
        self._change(Name(request.new_name, self._store.names[request.name], request.name))
        self._kernel.done(request.unique)

    def _open(self, request: Request) -> None:
        self._kernel.opened(request.unique)

    _opendir = _open

    def _readdir(self, request: Request) -> None:
        self._kernel.listing(request.unique, sorted(self._store.names.items()), request.offset, request.size)

    def _read(self, request: Request) -> None:
        data = self._file(request).seen[request.offset : request.offset + request.size]
        self._kernel.done(request.unique, bytes(data))

    def _write(self, request: Request) -> None:
        if request.node in self._store.files:
            self._change(Write(request.node, request.offset, request.data))
        self._kernel.written(request.unique, request.size)

    def _fsync(self, request: Request) -> None:
        if request.node in self._store.files:
            self._change(Sync(request.node))
        self._kernel.done(request.unique)

    def _fsyncdir(self, request: Request) -> None:
        self._change(SyncNames())
        self._kernel.done(request.unique)

    def _statfs(self, request: Request) -> None:
        self._kernel.statistics(request.unique, free_blocks=0 if self._broken == "enospc" else FREE_BLOCKS)


if __name__ == "__main__":
    Server(Path(sys.argv[1])).run()
