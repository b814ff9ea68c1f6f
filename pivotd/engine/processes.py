"""Which domain each QEMU process belongs to, and its pauses.

A QEMU can have several monitors. Were two of them two domains, the ``cont`` of the one could let the guest run in the
pause of the other, before its record: so a QEMU process is one domain, and has one pause at a time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

from pivotd.core.pivot import Process
from pivotd.core.request import Manager
from pivotd.errors import UnsupportedQemuError
from pivotd.host import process

if TYPE_CHECKING:
    from pivotd.engine.supervisor import Supervisor


class Processes:
    """The QEMU processes of one host, for all its supervisors."""

    def __init__(self, supervisors: Mapping[str, Supervisor]) -> None:
        """``supervisors``: those of the host, as they come and go; among equals, the first one has a process."""
        self._supervisors = supervisors
        self._in: dict[Process, set[Supervisor]] = {}
        self._pauses: WeakValueDictionary[Process, asyncio.Lock] = WeakValueDictionary()

    def pause(self, of: Process) -> asyncio.Lock:
        """Return the lock that is held while the guest of this QEMU is in a pause, whatever its domain is called."""
        return self._pauses.setdefault(of, asyncio.Lock())

    def note(self, of: Process, supervisor: Supervisor) -> None:
        """Note that a domain may have come to a process, or left it."""
        known = self._in.setdefault(of, set())
        (known.add if supervisor.has(of) else known.discard)(supervisor)
        if not known:
            del self._in[of]

    def owner(self, of: Process) -> Supervisor | None:
        """Return the domain to which a process belongs, None if it is none's yet."""
        having = self._having(of)
        return self._first(of, having) if having else None

    async def take(self, of: Process, asking: Supervisor) -> None:
        """Have a process belong to the domain that has just connected to it; others let go of it.

        Where two have open pivots there, from a pivotd that took them for two guests, both drive them to their end.
        Nothing is awaited after the last look, so that no other domain comes between.

        Raises: UnsupportedQemuError: it belongs to another domain.
        """
        while others := [one for one in self._having(of) if one is not asking]:
            owner = self._first(of, [asking, *others])
            if owner is not asking and not asking.drives_in(of):
                raise UnsupportedQemuError(belongs(asking.path, of, owner), qmp=asking.path, domain=owner.name)
            idle = [one for one in others if not one.drives_in(of)]
            if not idle:
                return
            for one in idle:
                await one.let_go()

    def _having(self, of: Process) -> list[Supervisor]:
        return [one for one in self._in.get(of, ()) if one.has(of) and self._supervisors.get(one.name) is one]

    def _first(self, of: Process, among: Iterable[Supervisor]) -> Supervisor:
        """Return that with open pivots there, which have to be driven to their end; then libvirt's, then the oldest."""
        ages = {name: age for age, name in enumerate(self._supervisors)}
        youngest = len(ages)
        return min(
            among,
            key=lambda one: (not one.drives_in(of), one.manager is not Manager.LIBVIRT, ages.get(one.name, youngest)),
        )


def of_pid(pid: int) -> Process:
    """Return a running process."""
    return process.boot_id(), pid, process.start_ticks(pid)


def belongs(path: str, of: Process, owner: Supervisor) -> str:
    """Return in words that a monitor leads to the QEMU of another domain, and what to do."""
    return (
        f"{path} leads to the QEMU of domain {owner.name} (process {of[1]}), and a QEMU is one domain: "
        f"use {owner.name}, or remove one of the two"
    )
