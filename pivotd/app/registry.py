"""All domains of this host: their supervisors, what was configured, what was added, what was discovered."""

from __future__ import annotations

import asyncio
import glob
from collections.abc import Iterable
from pathlib import Path

from pivotd import limits
from pivotd.core.pivot import Pivot
from pivotd.engine.driver import Driver
from pivotd.engine.supervisor import DriverFactory, Supervisor
from pivotd.errors import NotFoundError

CONFIG = "config"
RUNTIME = "runtime"
DISCOVERED = "discovered"


class Host:
    """The supervisors by domain name. run() owns their tasks."""

    def __init__(self, make_driver: DriverFactory) -> None:
        self.supervisors: dict[str, Supervisor] = {}
        self._make_driver = make_driver
        self._group: asyncio.TaskGroup | None = None
        self._ended = asyncio.Event()
        self._started = asyncio.Event()

    async def run(self) -> None:
        """Run until end(): then every driver leaves its pause first."""
        async with asyncio.TaskGroup() as group:
            self._group = group
            self._started.set()
            await self._ended.wait()
            for supervisor in self.supervisors.values():
                supervisor.end()

    async def started(self) -> None:
        """Wait until domains can be added."""
        await self._started.wait()

    def end(self) -> None:
        """Let run() return."""
        self._ended.set()

    def add(self, name: str, path: str, origin: str, pivots: Iterable[Pivot] = ()) -> Supervisor:
        """Begin to supervise a domain."""
        assert self._group is not None, "run() has begun"
        assert name not in self.supervisors, name
        supervisor = Supervisor(name, path, origin, self._make_driver)
        self.supervisors[name] = supervisor
        self._group.create_task(supervisor.run(list(pivots)), name=f"domain {name}")
        return supervisor

    def remove(self, name: str) -> None:
        """Forget a domain; its supervisor ends."""
        self.supervisors.pop(name).end()

    def get(self, name: str) -> Supervisor:
        """Return one supervisor. Raises: NotFoundError."""
        try:
            return self.supervisors[name]
        except KeyError:
            known = ", ".join(sorted(self.supervisors)[:10]) or "none"
            raise NotFoundError(f"there is no domain {name}; known are: {known}", domain=name) from None

    def driver(self, pivot: str) -> Driver | None:
        """Return the driver of an open pivot."""
        for supervisor in self.supervisors.values():
            if pivot in supervisor.drivers:
                return supervisor.drivers[pivot]
        return None

    def discover(self, patterns: Iterable[str]) -> None:
        """Adopt sockets that match and forget discovered domains whose socket is gone and that have nothing open.

        The file name without its suffix is the domain's name; a name that is taken stays with its owner.
        """
        found = {Path(path).stem: path for pattern in patterns for path in sorted(glob.glob(pattern))}  # noqa: PTH207
        known = {supervisor.path for supervisor in self.supervisors.values()}
        for name, path in found.items():
            if name not in self.supervisors and path not in known and len(name) <= limits.NAME_LENGTH_MAX:
                self.add(name, path, DISCOVERED)
        for supervisor in list(self.supervisors.values()):
            gone = supervisor.name not in found and supervisor.session is None
            if supervisor.origin == DISCOVERED and gone and not supervisor.drivers:
                self.remove(supervisor.name)

    async def all_looked(self) -> None:
        """Wait until every open pivot was looked at, or was found silent and that was told."""
        drivers = [driver for supervisor in self.supervisors.values() for driver in supervisor.drivers.values()]
        for driver in drivers:
            await driver.looked.wait()
