"""The running domains of the libvirt of this host: each gets a supervisor while it runs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from contextlib import suppress
from typing import Any

from pivotd import limits
from pivotd.app.registry import LIBVIRT, Host
from pivotd.core.names import DOMAIN_NAME_WORDS, is_domain_name
from pivotd.core.pivot import Pivot
from pivotd.core.request import Manager
from pivotd.errors import DomainUnreachableError, QmpError
from pivotd.libvirt import own_monitor
from pivotd.libvirt.connection import open_connection, translated
from pivotd.libvirt.domain_session import NO_QEMU, LibvirtSession
from pivotd.libvirt.library import load
from pivotd.libvirt.line import Line
from pivotd.log import get_logger
from pivotd.qmp.session import Session

log = get_logger()


class LibvirtConnector:
    """Connects to one domain of libvirt, each time anew: a connection to a libvirtd that has ended stays dead."""

    manager = Manager.LIBVIRT

    def __init__(self, uri: str, name: str) -> None:
        self.path = uri
        self._name = name
        self._line = Line(name)
        self._monitor: str | None = None

    async def connect(self, *, wanted: bool) -> Session:
        """Connect once; this also starts a libvirtd that systemd starts for its clients."""
        session = await LibvirtSession.open(self.path, self._name, self._line, wanted=wanted)
        if session.pid != NO_QEMU:  # of one that has ended libvirt may know nothing any more
            with suppress(QmpError):
                self._monitor = session.own_monitor = (await session.defined()).monitor
        return session

    async def beside(self, pivot: Pivot) -> Session | None:
        """Connect to QEMU by the monitor that its definition gives to pivotd, or gave when the pause was intended."""
        return await own_monitor.connect(pivot.identity, self._monitor or pivot.options.own_monitor or None)

    def hold_back(self, in_pause: Callable[[], bool]) -> None:
        """Make no reader's call to libvirt in a pause."""
        self._line.hold_back(in_pause)

    def end(self) -> None:
        """Let the thread end."""
        self._line.end()


class LibvirtDomains:
    """Keeps the supervisors of libvirt's domains in step with libvirt, by its events and by looking now and then."""

    def __init__(self, host: Host, uri: str) -> None:
        self._host = host
        self._uri = uri
        self._line = Line("domains")
        self._connection: Any = None
        self._events: int | None = None
        self._told: str | None = None
        self._changed = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    async def run(self) -> None:
        """Look whenever libvirt says so, until cancelled."""
        delay_s = limits.RECONNECT_FIRST_S
        try:
            while True:
                wait_s = limits.LIBVIRT_LIST_S
                if not await self.look():
                    wait_s = delay_s = min(delay_s * 2, limits.RECONNECT_MAX_S)
                else:
                    delay_s = limits.RECONNECT_FIRST_S
                await asyncio.wait([waiting := asyncio.ensure_future(self._changed.wait())], timeout=wait_s)
                waiting.cancel()
                self._changed.clear()
        finally:
            self._line.end()

    async def look(self) -> bool:
        """Look once; return whether libvirt has answered. What it does not tell stays as it was."""
        try:
            names = await self._line.call("the list of domains", limits.LIBVIRT_CONNECT_TIMEOUT_S, self._running)
        except (DomainUnreachableError, QmpError) as error:
            self._say(error.message)
            return False
        self._say(None)
        self._take(names)
        return True

    def _running(self) -> list[str]:
        """Return the names of the running domains; in the thread. Raises: LibvirtUnreachableError, QmpError."""
        if self._connection is None or not self._connection.isAlive():
            self._close()
            self._connection = open_connection(self._uri)
            try:
                translated(self._connection, "the events of domains", self._register)
            except QmpError:
                self._close()  # without its events nobody would tell of a domain that comes or goes
                raise
        active = load().api.VIR_CONNECT_LIST_DOMAINS_ACTIVE
        found = translated(self._connection, "the list of domains", lambda: self._connection.listAllDomains(active))
        return sorted(map(_name, found))

    def _register(self) -> None:
        self._connection.registerCloseCallback(self._on_event, None)
        lifecycle = load().api.VIR_DOMAIN_EVENT_ID_LIFECYCLE
        self._events = self._connection.domainEventRegisterAny(None, lifecycle, self._on_lifecycle, None)

    def _close(self) -> None:
        """Let go of the connection, which has ended or is of no use; what it still holds would stay for ever."""
        connection, self._connection, events, self._events = self._connection, None, self._events, None
        if connection is None:
            return
        if events is not None:
            with suppress(Exception):
                connection.domainEventDeregisterAny(events)
        for end in (connection.unregisterCloseCallback, connection.close):
            with suppress(Exception):
                end()

    def _on_lifecycle(self, _connection: Any, _domain: Any, event: int, *_arguments: Any) -> None:
        """A domain that is paused or resumed neither comes nor goes, and no look may lengthen pivotd's own pause."""
        if event not in {load().api.VIR_DOMAIN_EVENT_SUSPENDED, load().api.VIR_DOMAIN_EVENT_RESUMED}:
            self._on_event()

    def _on_event(self, *_arguments: Any) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._changed.set)

    def _take(self, names: Collection[str]) -> None:
        """Add and remove supervisors; one with an open pivot stays, whatever has become of its guest."""
        left_out: dict[str, str] = {}
        unusable: dict[str, tuple[str, str]] = {}
        for name in names:
            known = self._host.supervisors.get(name)
            if known is not None and known.manager is Manager.PIVOTD:
                left_out[f"{self._uri}, {name}"] = f"the name {name} belongs to the monitor {known.path}"
            elif not is_domain_name(name):
                shown = name.encode("unicode_escape").decode() if not name.isprintable() else name
                why = f'"{shown}" is no name for pivotd: expected {DOMAIN_NAME_WORDS}; rename it with virsh domrename'
                left_out[f"{self._uri}, {shown}"], unusable[name] = why, (self._uri, why)
            elif known is None and not self._host.lock(name).locked():
                self._host.add_by(name, LibvirtConnector(self._uri, name), LIBVIRT)
        for supervisor in list(self._host.supervisors.values()):
            mine = supervisor.manager is Manager.LIBVIRT and supervisor.path == self._uri
            busy = supervisor.drivers or self._host.lock(supervisor.name).locked()
            if mine and supervisor.name not in names and not busy:
                self._host.remove(supervisor.name)
        for path, reason in left_out.items() - self._host.libvirts_left_out.items():
            log.warning("domain.skipped", qmp=path, reason=reason)
        self._host.libvirts_left_out, self._host.libvirts_unusable = left_out, unusable

    def _say(self, why: str | None) -> None:
        """Tell that libvirt does not answer, or does again: once each, and in health as long as it lasts."""
        if why is None:
            self._host.libvirts_left_out.pop(self._uri, None)
        else:
            self._host.libvirts_left_out[self._uri] = why
        if why != self._told and why is not None:
            log.warning("libvirt.unreachable", uri=self._uri, reason=why)
        elif why != self._told:
            log.info("libvirt.connected", uri=self._uri)
        self._told = why


def _name(domain: Any) -> str:
    """Return a domain's name; what is no text gets one that shows its bytes, and is no name for pivotd."""
    try:
        return str(domain.name())
    except UnicodeDecodeError as error:
        return error.object.decode(errors="backslashreplace")
