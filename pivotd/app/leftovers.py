"""Nodes that pivotd has opened and that nobody uses any more: a disk was unplugged, or moved on by another client.

QEMU keeps such a node, and the lock on its image, for ever. The tool that unplugs a disk deletes the nodes that it
knows, and does not know this one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from pivotd import limits
from pivotd.app.due_domains import DueDomains
from pivotd.app.reads import Reads
from pivotd.app.registry import Host
from pivotd.core import names
from pivotd.core.pivot import Phase
from pivotd.core.request import Manager
from pivotd.engine.supervisor import Supervisor
from pivotd.errors import PivotdError, QmpRefusedError
from pivotd.log import get_logger
from pivotd.qmp.session import Session

log = get_logger()


class Leftovers:
    """Looks at a domain when pivotd has connected to it, when a pivot ends, and when a disk may have lost its node.

    While QEMU has nodes of pivotd's, it is also looked at now and then: not every way to lose a node is an event.
    """

    def __init__(self, host: Host, reads: Reads) -> None:
        self._host = host
        self._reads = reads
        self._due = DueDomains(self._try)
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._watched: dict[str, tuple[Session, Callable[[], None]]] = {}
        self._told: dict[str, str] = {}

    async def run(self) -> None:
        """Look whenever a look is due; ends only when it is cancelled."""
        self._host.listeners.append(self._on_changed)
        for name in self._host.supervisors:
            self._on_changed(name)
        try:
            await self._due.run()
        finally:
            self._host.listeners.remove(self._on_changed)
            for timer in self._timers.values():
                timer.cancel()
            for _, unsubscribe in self._watched.values():
                unsubscribe()

    async def _try(self, domain: str) -> None:
        """Look; a failure is told once, and the next look tries again."""
        try:
            again_s = await self._look(domain)
            self._told.pop(domain, None)
        except Exception as error:  # noqa: BLE001 - one domain must not end the looks at the others
            text = error.message if isinstance(error, PivotdError) else repr(error)
            again_s = limits.LEFTOVERS_AGAIN_S
            if self._told.get(domain) != text:
                log.warning("domain.nodes-left", domain=domain, error=text)
            self._told[domain] = text
        if again_s is not None:
            self._later(domain, again_s)

    def _on_changed(self, domain: str) -> None:
        """Watch each new connection, and look soon: a pivot may have ended."""
        supervisor = self._host.supervisors.get(domain)
        session = None if supervisor is None else supervisor.session
        if supervisor is not None and supervisor.manager is Manager.LIBVIRT:
            return  # pivotd opens no nodes there
        known, unsubscribe = self._watched.get(domain, (None, None))
        if session is not known:
            if unsubscribe is not None:
                unsubscribe()
            self._watched.pop(domain, None)
            if session is not None:
                self._watch(domain, session)
        if session is not None:
            self._later(domain, limits.LEFTOVERS_DELAY_S)

    def _watch(self, domain: str, session: Session) -> None:
        seen = session.detached

        def event() -> None:
            nonlocal seen
            if session.detached != seen:
                seen = session.detached
                self._later(domain, limits.LEFTOVERS_DELAY_S)

        self._watched[domain] = session, session.subscribe(event)

    def _later(self, domain: str, delay_s: float) -> None:
        """Ask for a look after a while; one that is due earlier stays."""
        loop = asyncio.get_running_loop()
        timer = self._timers.get(domain)
        if timer is not None and timer.when() <= loop.time() + delay_s:
            return
        if timer is not None:
            timer.cancel()
        self._timers[domain] = loop.call_later(delay_s, self._ask, domain)

    def _ask(self, domain: str) -> None:
        self._timers.pop(domain, None)
        self._due.ask(domain)

    async def _look(self, domain: str) -> float | None:
        """Remove what nobody uses; return when to look again, None if only an event can change anything.

        Raises: QmpError, JournalError.
        """
        supervisor = self._host.supervisors.get(domain)
        session = None if supervisor is None else supervisor.session
        if supervisor is None or session is None:
            return None
        if supervisor.window.locked():
            return limits.LEFTOVERS_DELAY_S
        blocks = await session.blocks()
        if not any(names.pivot_of_node(node) for node in blocks.graph.nodes):
            return None
        unused = blocks.graph.unused(candidates(supervisor, blocks.graph.nodes))
        closed = {pivot for pivot in map(names.pivot_of_node, unused) if pivot and await self._is_closed(pivot)}
        if closed:
            async with supervisor.window:
                await self._remove(supervisor, session, closed)
        return limits.LEFTOVERS_AGAIN_S

    async def _is_closed(self, pivot: str) -> bool:
        """Return whether this journal has the pivot, and it has ended: else its nodes are not pivotd's to remove."""
        known = await self._reads.known(pivot)
        return known is not None and known.id == pivot and known.phase is Phase.CLOSED

    async def _remove(self, supervisor: Supervisor, session: Session, closed: set[str]) -> None:
        """Look once more, now that no pause can begin, and remove the nodes of these pivots that nobody uses."""
        graph = (await session.blocks()).graph
        unused = graph.unused(candidates(supervisor, graph.nodes))
        doomed = [node for node in unused if names.pivot_of_node(node) in closed]
        if not doomed:
            return
        left = await session.remove(doomed)
        if gone := [node for node in doomed if node not in left]:
            log.info("domain.nodes-removed", domain=supervisor.name, nodes=gone)
        if left:
            raise QmpRefusedError(f"QEMU did not delete {', '.join(left)}")


def candidates(supervisor: Supervisor, nodes: frozenset[str]) -> set[str]:
    """Return pivotd's nodes, but those that an open pivot has made, or will go back to."""
    pivots = [driver.pivot for driver in supervisor.drivers.values()]
    kept = {image.node for pivot in pivots for disk in pivot.disks for image in (disk.source, disk.destination)}
    kept |= {node for pivot in pivots for node in pivot.options.nodes_below}
    family = [name for pivot in pivots for name in pivot.family]
    mine = {node for node in nodes if names.pivot_of_node(node) and not names.belongs_to(node, *family)}
    return {node for node in mine if node not in kept}
