"""The look right after libvirt has switched a disk, and beside it the definition of the next boot, made durable.

It blocks: for a Line's thread. A query to QEMU and a change of a definition wait for each other in libvirtd, and each
of them for threads that have to wake up. So two threads ask at the same time, and the guest stands still for less.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from pivotd.core.observation import Belief, Root
from pivotd.core.pivot import Pivot
from pivotd.errors import QmpError
from pivotd.libvirt import calls, library, pivot_look
from pivotd.libvirt.definition_file import DefinitionFile
from pivotd.libvirt.domain_xml import DiskDefined, parse
from pivotd.libvirt.next_boot import disk_element
from pivotd.libvirt.passthrough import Query
from pivotd.qmp import blocks


@dataclass(frozen=True, slots=True)
class After:
    """What the look has brought.

    ``named``: the disks whose destination stands in the file of the next boot; ``durable``: that lasts; ``times``: how
    often something was written there; ``others``: how often others had defined the guest right before.
    """

    roots: Mapping[str, Root]
    beliefs: Mapping[str, Belief]
    named: frozenset[str] = frozenset()
    durable: bool = False
    times: int = 0
    others: int = 0


class Definitions:
    """Reads libvirt's definitions in a thread of its own, and sees to it that that of the next boot is written.

    libvirt ignores that it could not write it after a switch. Where pivotd may not read the file, or finds it behind,
    libvirt writes it again. Only where it names every destination already: whether another definition is due, pivotd
    decides once it has seen where the disks are.
    """

    def __init__(self, domain: Any, pivot: Pivot, file: DefinitionFile, others: Callable[[], int]) -> None:
        """Before the switch. ``others`` returns how often others have defined the guest."""
        self._domain, self._pivot, self._file, self._count_others = domain, pivot, file, others
        self._go, self._written = threading.Event(), threading.Event()
        self._wanted = self._failed = False
        self._text = ""
        self._live: Mapping[str, DiskDefined] = {}
        self._next: Mapping[str, DiskDefined] | None = None
        self._named: frozenset[str] = frozenset()
        self._times = self._others = 0
        self._thread = threading.Thread(target=self._run, name="libvirt definitions", daemon=True)
        self._thread.start()

    def begin(self) -> None:
        """Let the thread ask."""
        self._wanted = True
        self._go.set()

    def drop(self) -> None:
        """Let the thread end: nothing was switched."""
        self._go.set()

    def result(self, roots: Mapping[str, Root]) -> After | None:
        """Return the look once the definition of the next boot is durable; None if a definition could not be read."""
        self._written.wait()
        durable = False
        if self._next is not None and self._names_all(self._next):
            with suppress(OSError):  # then it is written and synced once more, and pivotd tells what fails
                self._file.sync()
                durable = True
        self._thread.join()
        if self._failed:
            return None
        beliefs = {disk.disk: pivot_look.belief(disk, self._live, self._next, {}) for disk in self._pivot.disks}
        return After(roots, beliefs, self._named, durable, self._times, self._others)

    def _run(self) -> None:
        self._go.wait()
        if not self._wanted:
            return
        self._failed = True
        try:
            with suppress(library.load().api.libvirtError, ValueError):
                self._read()
                self._failed = False
                self._write()
        finally:
            self._written.set()

    def _read(self) -> None:
        self._live = pivot_look.live(self._domain)
        if self._domain.isPersistent():
            self._others = self._count_others()
            api = library.load().api
            # With "secure", as it may be written again: without its secret an image could not be opened.
            self._text = self._domain.XMLDesc(api.VIR_DOMAIN_XML_INACTIVE | api.VIR_DOMAIN_XML_SECURE)
            self._next = parse(self._text).disks

    def _write(self) -> None:
        if self._next is None or not self._names_all(self._next):
            return
        names = frozenset(disk.disk for disk in self._pivot.disks)
        written = self._file.rewritten()
        if written is not None and self._names_all(parse(written).disks):
            self._named = names
            return
        api = library.load().api
        for disk in self._pivot.disks:
            element = disk_element(self._text, disk.disk)
            self._domain.updateDeviceFlags(element, api.VIR_DOMAIN_DEVICE_MODIFY_CONFIG)
            self._times += 1
        self._written.set()
        if self._names_all(parse(self._domain.XMLDesc(api.VIR_DOMAIN_XML_INACTIVE)).disks):
            self._named = names

    def _names_all(self, known: Mapping[str, DiskDefined]) -> bool:
        disks = self._pivot.disks
        return all(disk.disk in known and calls.has(known[disk.disk], disk.destination) for disk in disks)


def look(pivot: Pivot, definitions: Definitions, query: Query) -> After | None:
    """Ask QEMU for its disks and libvirt for its definitions, at the same time; None if there is no good answer."""
    definitions.begin()
    roots: Mapping[str, Root] | None = None
    try:
        with suppress(library.load().api.libvirtError, ValueError, QmpError):
            (answer,) = query([json.dumps(blocks.disks.command)])
            roots = pivot_look.roots(pivot, answer.get("return"))
    finally:
        after = definitions.result(roots or {})
    return None if roots is None else after
