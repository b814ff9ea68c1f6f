"""One domain's supervisor: keeps its QEMU connected and runs the drivers of the domain's open pivots."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
from collections.abc import Callable
from typing import Protocol

from pivotd import limits
from pivotd.core.pivot import Identity, Phase, Pivot, Process
from pivotd.core.request import Manager
from pivotd.counts import COUNTS
from pivotd.engine import pivot_log
from pivotd.engine.driver import Driver
from pivotd.engine.processes import Processes, of_pid
from pivotd.errors import DomainUnreachableError, MonitorBusyError, QmpError, UnsupportedQemuError
from pivotd.host import process, view
from pivotd.host.threads import in_thread
from pivotd.log import get_logger
from pivotd.qmp.libvirt_signs import refuse_path
from pivotd.qmp.session import Session

log = get_logger()
NOBODY = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ECONNREFUSED})
"""What connect() says where nobody listens. Source: unix(7)."""

DriverFactory = Callable[[Pivot, "Supervisor"], Driver]


class Connector(Protocol):
    """How a domain is reached."""

    manager: Manager
    """Who changes the guest."""
    path: str
    """The QMP socket, or the URI of libvirt."""

    async def connect(self, *, wanted: bool) -> Session:
        """Connect once; ``wanted``: there are open pivots, which have to know if the guest has ended.

        Raises: DomainUnreachableError, UnsupportedQemuError, TimeoutError: storage hangs.
        """
        ...

    async def beside(self, pivot: Pivot) -> Session | None:
        """Connect to the QEMU of a pivot for a moment without whoever manages it; None: that is not possible."""
        ...

    def hold_back(self, in_pause: Callable[[], bool]) -> None:
        """Keep readers away from the guest while ``in_pause``, which any thread may call, returns True."""
        ...

    def end(self) -> None:
        """Release what the connections had in common."""
        ...


class MonitorConnector:
    """Connects to a QMP socket that pivotd has for itself."""

    manager = Manager.PIVOTD

    def __init__(self, path: str) -> None:
        self.path = path

    async def connect(self, *, wanted: bool) -> Session:  # noqa: ARG002 - no QEMU, no monitor
        """Connect once."""
        # connect() of a name whose storage hangs would stop the event loop.
        refuse_path(await in_thread(limits.CONNECT_TIMEOUT_S, os.path.realpath, self.path, paths=[self.path]))
        return await Session.connect(self.path)

    async def beside(self, pivot: Pivot) -> Session | None:  # noqa: ARG002 - nobody is between
        """Return None: there is one monitor."""
        return None

    def hold_back(self, in_pause: Callable[[], bool]) -> None:
        """Nothing is to be done: QEMU takes one command while another waits for its answer."""

    def end(self) -> None:
        """There is nothing to release."""


class Supervisor:
    """Reaches one QEMU. ``connection`` is ``connecting``, ``connected``, ``unreachable`` or ``refused``."""

    def __init__(  # noqa: PLR0913, PLR0917 - what it has of its own, and what it shares with the others
        self,
        name: str,
        connector: Connector,
        origin: str,
        make_driver: DriverFactory,
        changed: Callable[[str], None] = lambda _name: None,
        processes: Processes | None = None,
    ) -> None:
        """``changed`` is called at each change of the connection, and when a pivot begins or ends.

        ``processes``: those of all supervisors of the host; None: there is no other one.
        """
        self.name = name
        self.path = connector.path
        self.manager = connector.manager
        self.origin = origin
        self.window = asyncio.Lock()
        self.planning = asyncio.Lock()
        """Requests for this domain are planned one at a time, so that nothing changes during a plan."""
        self.drivers: dict[str, Driver] = {}
        self.session: Session | None = None
        self.connection = "connecting"
        self.detail = "not yet connected"
        self.failure: Exception | None = None
        """Why the last try to connect has failed; None while connected, and before the first one has ended."""
        self.alarms: dict[str, str] = {}
        """Disks that run on a wrong image, each with one sentence; app.alarms keeps them."""
        self._connector = connector
        connector.hold_back(self.window.locked)
        self._make_driver = make_driver
        self._changed = changed
        self._processes = processes or Processes({})
        self._process: Process | None = None
        """The QEMU process of the connection, or of the last one."""
        self._hurry = asyncio.Event()
        self._settled = self._next_settled = asyncio.Event()
        """Set at the end of the present try to connect, or of the last one; the same of the try after that.

        Each has an event of its own, as the next may begin before anybody looks.
        """
        self._group: asyncio.TaskGroup | None = None
        self._ended = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self, pivots: list[Pivot]) -> None:
        """Run until end() is called. Pivots in a pause come first: they may hold the guest."""
        async with asyncio.TaskGroup() as group:
            self._group = group
            connector = group.create_task(self._keep_connected())
            for pivot in sorted(pivots, key=lambda pivot: pivot.phase is not Phase.PAUSING and not pivot.owes_resume):
                pivot_log.taken_up(pivot)
                COUNTS.taken_up(pivot)
                self.start(pivot)
            await self._ended.wait()
            for driver in self.drivers.values():
                driver.end()
            while self.drivers:
                await asyncio.wait(self._tasks)
            connector.cancel()
        if self.session is not None:
            await self.session.close()
        self._connector.end()

    def start(self, pivot: Pivot) -> Driver:
        """Drive a pivot."""
        assert self._group is not None, "the supervisor runs"
        assert not self.ended, "nobody would tell the driver to end"
        driver = self._make_driver(pivot, self)
        self.drivers[pivot.id] = driver
        self._processes.note(pivot.identity.process, self)
        self._changed(self.name)
        task = self._group.create_task(driver.run(), name=f"pivot {pivot.id}")
        self._tasks.add(task)

        def ended(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            self.drivers.pop(pivot.id, None)
            self._processes.note(pivot.identity.process, self)
            self._changed(self.name)
            if driver.successor is not None and not self.ended:
                self.start(driver.successor)
            if not self.drivers and self.session is not None:
                self.session.end_unless_qemu()

        task.add_done_callback(ended)
        return driver

    @property
    def ended(self) -> bool:
        """Whether end() was called: this supervisor drives no further pivot."""
        return self._ended.is_set()

    def end(self) -> None:
        """Make run() return: each driver leaves as soon as it has no pause open."""
        self._ended.set()

    async def settled(self, timeout_s: float) -> None:
        """Wait until the present attempt to connect has ended, at most timeout_s."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._settled.wait()

    async def connected(self) -> Session:
        """Return the connection, after one more try if there is none. Raises: DomainUnreachableError."""
        if self.session is None:
            await self.tried()
        if self.session is None:
            raise DomainUnreachableError(f"domain {self.name}: {self.detail}", domain=self.name)
        return self.session

    @property
    def is_silent(self) -> bool:
        """Whether somebody listens at the monitor who does not answer."""
        return isinstance(self.failure, MonitorBusyError)

    @property
    def found_nobody(self) -> bool:
        """Whether nobody listened at the monitor at the last try; any other failure leaves that open."""
        error = self.failure
        is_sure = isinstance(error, DomainUnreachableError) and error.fields.get("errno") in NOBODY
        return is_sure and view.hidden(self.path) is None

    @property
    def may_have_started(self) -> bool:
        """Whether a QEMU may run that was not there at the last try."""
        return self.session is None and self.manager is Manager.PIVOTD and not self.is_silent

    async def tried(self) -> bool:
        """Try to connect at once, for a bounded time; return whether a try that began after this call has ended.

        Or one that was on its way then, if it has found that somebody listens who does not answer.
        """
        if self.session is not None:
            return True
        present, following = self._settled, self._next_settled
        is_on_its_way = not present.is_set()
        self._hurry.set()
        try:
            async with asyncio.timeout(limits.GREETING_TIMEOUT_S + limits.CONNECT_TIMEOUT_S):
                await present.wait()
                if not (is_on_its_way and self.is_silent):
                    await following.wait()
        except TimeoutError:
            return False
        return True

    async def beside(self, pivot: Pivot) -> Session | None:
        """Return a connection to QEMU that does not go through libvirt, None if there is none."""
        return await self._connector.beside(pivot)

    def pause_of(self, identity: Identity) -> asyncio.Lock:
        """Return the lock that is held while the QEMU of a pivot is in a pause, whatever its domain is called."""
        return self._processes.pause(identity.process)

    def has(self, of: Process) -> bool:
        """Whether this domain is connected to a QEMU process, or has open pivots there."""
        is_connected = self.session is not None and self.session.connected and self._process == of
        return is_connected or self.drives_in(of)

    def drives_in(self, of: Process) -> bool:
        """Whether this domain has open pivots in a QEMU process."""
        return any(driver.pivot.identity.process == of for driver in self.drivers.values())

    async def let_go(self) -> None:
        """Disconnect from a QEMU that belongs to another domain: the next try to connect says to which one."""
        if self.session is not None:
            await self.session.close()

    def process_gone(self, known: Identity) -> bool:
        """Return whether that QEMU process has certainly ended."""
        return process.is_gone(known.pid, known.start_ticks, known.boot_id)

    def _wake(self) -> None:
        for driver in self.drivers.values():
            driver.wake()

    async def _keep_connected(self) -> None:
        delay_s = limits.RECONNECT_FIRST_S
        while True:
            self._hurry.clear()
            self._settled, self._next_settled = self._next_settled, asyncio.Event()
            try:
                session = await self._connect()
            except TimeoutError as error:
                self.failure = error
                self._lost("unreachable", str(error))
            except (DomainUnreachableError, UnsupportedQemuError) as error:
                self.failure = error
                self._lost("refused" if isinstance(error, UnsupportedQemuError) else "unreachable", error.message)
            except Exception as error:
                # Whatever a peer has sent: it must cost the other domains nothing.
                log.exception("domain.failed", domain=self.name, error=repr(error))
                self.failure = error
                self._lost("unreachable", f"{self.path}: pivotd failed on what it said: {error!r}")
            else:
                delay_s = limits.RECONNECT_FIRST_S
                await self._attend(session)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(delay_s):
                    await self._hurry.wait()
            delay_s = min(delay_s * 2, limits.RECONNECT_MAX_S)

    async def _connect(self) -> Session:
        """Connect once; a domain of libvirt that was given as pivotd's own is refused, but its open pivots are ended.

        A QEMU that does not answer this question is asked again before each pivot. The QEMU of another domain is
        refused, too. ``session`` has to be set before anything is awaited: then that holds until it is closed.

        Raises: as Connector.connect().
        """
        session = await self._connector.connect(wanted=bool(self.drivers))
        try:
            if not self.drivers:
                with contextlib.suppress(QmpError):
                    await session.refuse_libvirts()
            self._process = of_pid(session.pid) if session.pid else None  # libvirt's may not run
            if self._process is not None:
                await self._processes.take(self._process, self)
        except BaseException:
            await session.close()
            raise
        return session

    async def _attend(self, session: Session) -> None:
        session.subscribe(self._wake)
        self.session = session
        self._note_process()
        self.connection, self.detail, self.failure = "connected", f"QEMU {session.version_text}".rstrip(), None
        self._settled.set()
        self._next_settled.set()  # there is none while this connection lasts
        self._next_settled = asyncio.Event()
        self._changed(self.name)
        self._wake()
        log.info("domain.connected", domain=self.name, qemu=session.version_text or None, pid=session.pid)
        gone = "QEMU closed the monitor" if self.manager is Manager.PIVOTD else "the connection to libvirt has ended"
        try:
            await session.closed()
            self.session = None
            self._lost("connecting", gone)  # before the end, which may take a moment: nobody is to read the old state
        finally:
            self.session = None
            self._note_process()
            self.alarms = {}
            await session.close()

    def _note_process(self) -> None:
        if self._process is not None:
            self._processes.note(self._process, self)

    def _lost(self, connection: str, detail: str) -> None:
        if detail != self.detail and connection == "refused":
            log.warning("domain.skipped", domain=self.name, qmp=self.path, reason=detail)
        elif detail != self.detail:
            log.info("domain.disconnected", domain=self.name, detail=detail)
        self.connection, self.detail = connection, detail
        self._changed(self.name)
        self._settled.set()
        self._wake()
