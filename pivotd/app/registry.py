"""All domains of this host: their supervisors, and which domain owns which monitor.

Changes of the registry take the lock of the domain's name: adding, removing, starting a pivot. Nothing that can block
on QEMU or storage runs under a lock that two domains share.
"""

from __future__ import annotations

import asyncio
import glob
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from weakref import WeakValueDictionary

from pivotd import limits
from pivotd.core.image_names import storable
from pivotd.core.names import DOMAIN_NAME_WORDS, is_domain_name, no_domain
from pivotd.core.pivot import JsonObject, Pivot
from pivotd.core.request import Manager
from pivotd.engine.driver import Driver
from pivotd.engine.processes import Processes
from pivotd.engine.supervisor import Connector, DriverFactory, MonitorConnector, Supervisor
from pivotd.errors import BadRequestError, NotFoundError
from pivotd.host import files, view
from pivotd.host.threads import of_each
from pivotd.log import get_logger

log = get_logger()

CONFIG = "config"
RUNTIME = "runtime"
DISCOVERED = "discovered"
LIBVIRT = "libvirt"
T = TypeVar("T")


class LeftOut(NamedTuple):
    """A domain of configuration or journal without a monitor of its own, and why."""

    path: str
    origin: str
    reason: str


class Host:
    """The supervisors by domain name. run() owns their tasks."""

    def __init__(self, make_driver: DriverFactory) -> None:
        self.supervisors: dict[str, Supervisor] = {}
        self.left_out: dict[str, LeftOut] = {}
        """By name. Each is tried again with every look for sockets."""
        self._not_adopted: dict[str, str] = {}
        self.libvirts_left_out: dict[str, str] = {}
        """Domains of libvirt that are not supervised, or libvirt itself, and the reason."""
        self.libvirts_unusable: dict[str, tuple[str, str]] = {}
        """Of those, the ones whose own name pivotd cannot use: the URI and the reason, by that name."""
        self.processes = Processes(self.supervisors)
        self._make_driver = make_driver
        self._claims: list[tuple[str, str]] = []
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._group: asyncio.TaskGroup | None = None
        self.listeners: list[Callable[[str], None]] = []
        """Called with the name of a domain at each change of its connection, and when a pivot of it comes or goes."""
        self.looked_at: set[str] = set()
        """Domains whose images are being compared with the journal: what comes of that is not recorded yet."""
        self._ended = asyncio.Event()
        self._started = asyncio.Event()
        self.changed = asyncio.Event()
        """Set at each change of a domain's connection, and when a domain or a pivot comes or goes."""

    async def run(self) -> None:
        """Run until end(); before this returns, every driver ends its pause."""
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
        """Make run() return."""
        self._ended.set()

    def lock(self, name: str) -> asyncio.Lock:
        """Return the lock of a domain name, whether or not there is such a domain."""
        return self._locks.setdefault(name, asyncio.Lock())

    async def finish(self, work: Coroutine[Any, Any, T]) -> T:
        """Return the result of work, which runs to its end even if the caller is cancelled."""
        assert self._group is not None, "run() has begun"
        result: asyncio.Future[T] = asyncio.get_running_loop().create_future()

        async def run() -> None:
            try:
                value = await work
            except Exception as error:  # noqa: BLE001 - it is raised where it was asked for
                if not result.done():
                    result.set_exception(error)
            else:
                if not result.done():
                    result.set_result(value)

        self._group.create_task(run())
        return await result

    def add(
        self, name: str, path: str, origin: str, pivots: Iterable[Pivot] = (), by: JsonObject | None = None
    ) -> Supervisor:
        """Begin to supervise a domain that has a monitor for pivotd. ``by``: who asked, for the log."""
        return self.add_by(name, MonitorConnector(path), origin, pivots, by)

    def add_by(
        self, name: str, connector: Connector, origin: str, pivots: Iterable[Pivot] = (), by: JsonObject | None = None
    ) -> Supervisor:
        """Begin to supervise a domain. ``by``: who asked, for the log."""
        assert self._group is not None, "run() has begun"
        assert name not in self.supervisors, name
        supervisor = Supervisor(name, connector, origin, self._make_driver, self._changed, self.processes)
        self.supervisors[name] = supervisor
        self.changed.set()
        log.log(_level(origin, by), "domain.added", domain=name, qmp=connector.path, origin=origin, **(by or {}))
        self._group.create_task(supervisor.run(list(pivots)), name=f"domain {name}")
        if self._ended.is_set():
            supervisor.end()
        return supervisor

    def _changed(self, name: str) -> None:
        self.changed.set()
        for listener in self.listeners:
            listener(name)

    def remove(self, name: str, by: JsonObject | None = None) -> None:
        """Forget a domain; its supervisor ends. ``by``: who asked, for the log."""
        supervisor = self.supervisors.pop(name)
        supervisor.end()
        self._changed(name)  # whoever watches its connection lets go of it
        self.say_removed(name, supervisor.path, supervisor.origin, by)

    @staticmethod
    def say_removed(name: str, path: str, origin: str, by: JsonObject | None) -> None:
        """Log that a domain was forgotten."""
        log.log(_level(origin, by), "domain.removed", domain=name, qmp=path, origin=origin, **(by or {}))

    def get(self, name: str) -> Supervisor:
        """Return one supervisor. Raises: NotFoundError."""
        try:
            return self.supervisors[name]
        except KeyError:
            if name in self.libvirts_unusable:
                why = self.libvirts_unusable[name][1]
                raise NotFoundError(f"pivotd does not guard this domain of libvirt: {why}", domain=name) from None
            raise NotFoundError(no_domain(name, self.supervisors), domain=name) from None

    def drivers(self) -> dict[str, Driver]:
        """Return the drivers of all open pivots by id."""
        return {pivot: driver for s in self.supervisors.values() for pivot, driver in s.drivers.items()}

    def open_pivots(self) -> list[Pivot]:
        """Return the open pivots; of one that has just ended in its undo, that one, which has no driver yet."""
        return [driver.successor or driver.pivot for driver in self.drivers().values()]

    def driver(self, pivot: str) -> Driver | None:
        """Return the driver of an open pivot."""
        return next((s.drivers[pivot] for s in self.supervisors.values() if pivot in s.drivers), None)

    @asynccontextmanager
    async def claim(self, wanted: Mapping[str, str]) -> AsyncIterator[dict[str, str]]:
        """Reserve monitors, by domain name, for the caller; yield the owners of monitors already in use.

        A monitor is one socket, whatever its path. If the caller names a monitor twice, the first name counts.

        Raises: BadRequestError: the storage of a path does not answer.
        """
        while True:
            known = self._owned()
            paths = sorted({path for _, path in known} | set(wanted.values()))
            marks, silent = await of_each(limits.FILE_TIMEOUT_S, files.identities, {path: path for path in paths})
            for path in silent.keys() & wanted.values():
                raise BadRequestError(f"{silent[path]}: try again when it does")
            if known == self._owned():  # else another request has added or removed one meanwhile
                break
        # A known path on storage that does not answer counts by its name alone. Should it be a link to a wanted one,
        # the QEMU there shows whose it is: Processes.
        owner = {mark: name for name, path in known for mark in marks.get(path, {path})}
        owners: dict[str, str] = {}
        claims = []
        for name, path in wanted.items():
            other = next((owner[mark] for mark in marks[path] if owner.get(mark, name) != name), None)
            if other is None:
                claims.append((name, path))
                owner |= dict.fromkeys(marks[path], name)
            else:
                owners[name] = other
        self._claims += claims
        try:
            yield owners
        finally:
            for claim in claims:
                self._claims.remove(claim)

    def _owned(self) -> list[tuple[str, str]]:
        own = (one for one in self.supervisors.values() if one.manager is Manager.PIVOTD)
        return [(supervisor.name, supervisor.path) for supervisor in own] + self._claims

    async def add_all(self, wanted: Mapping[str, tuple[str, str]]) -> None:
        """Add the domains of configuration and journal, path and origin by name; skip those without an own monitor."""
        try:
            async with self.claim({name: path for name, (path, _) in wanted.items()}) as owners:
                for name, (path, origin) in wanted.items():
                    if name in owners:
                        self.leave_out(name, path, origin, _belongs(name, owners[name]))
                    else:
                        self._add_free(name, path, origin)
        except BadRequestError as error:  # better two that get into each other's way than none
            log.warning("domain.unchecked", reason=error.message)
            for name, (path, origin) in wanted.items():
                self._add_free(name, path, origin)

    def _add_free(self, name: str, path: str, origin: str) -> None:
        """Add a domain, unless its name was taken while its monitor was looked at."""
        if (known := self.supervisors.get(name)) is None:
            self.add(name, path, origin)
        else:
            why = f"domain {name} is left out: the name belongs to the monitor {known.path}"
            self.leave_out(name, path, origin, why)

    def leave_out(self, name: str, path: str, origin: str, reason: str) -> None:
        """Say of a monitor of configuration or journal that it is not supervised, and why; once."""
        before, self.left_out[name] = self.left_out.get(name), LeftOut(path, origin, reason)
        if before != self.left_out[name]:
            log.warning("domain.skipped", qmp=path, reason=reason)

    async def _take_in(self) -> None:
        """Supervise domains that were left out, and whose name and monitor are nobody else's any more."""
        for name, (path, origin, _) in list(self.left_out.items()):
            if name in self.supervisors:
                continue
            with suppress(BadRequestError):  # the next round asks again
                async with self.claim({name: path}) as owners:
                    known = self.left_out.get(name)
                    if known is None or known.path != path or name in self.supervisors or self.lock(name).locked():
                        continue  # somebody decides on this name
                    if name in owners:
                        self.leave_out(name, path, origin, _belongs(name, owners[name]))
                    else:
                        del self.left_out[name]
                        self.add(name, path, origin)

    def begin(self, work: Coroutine[Any, Any, None], name: str) -> None:
        """Have work done that raises nothing; run() waits for it."""
        assert self._group is not None, "run() has begun"
        self._group.create_task(work, name=name)

    async def move(self, name: str, path: str, origin: str) -> None:
        """Forget a domain, and have it at another monitor once it is known that this belongs to nobody else.

        The caller holds the lock of the name: nobody else takes that meanwhile.
        """
        self.left_out.pop(name, None)
        self.remove(name)
        await self.add_all({name: (path, origin)})

    async def discover(self, patterns: Sequence[str]) -> None:
        """Adopt matching sockets, and forget discovered domains whose socket is gone and that have no open pivot.

        What configuration and journal have named, and had to be left out, goes before. The file name without its suffix
        is the domain's name; a name in use stays with its owner.
        """
        await self._take_in()
        known = list(self.supervisors.values())  # another round may add a domain meanwhile, whose socket is newer
        found, silent = await self.matching(patterns)
        for supervisor in known:
            gone = supervisor.path not in found and not silent and supervisor.session is None and not supervisor.drivers
            is_known = self.supervisors.get(supervisor.name) is supervisor
            if supervisor.origin == DISCOVERED and gone and is_known and not self.lock(supervisor.name).locked():
                self.remove(supervisor.name)
        skipped = {pattern: f"{why}: nothing is discovered" for pattern, why in silent.items()}
        skipped |= {pattern: why for pattern in patterns if (why := view.hidden(pattern)) is not None}
        new = self._new(found, skipped)
        if not new:
            return
        with suppress(BadRequestError):  # the next round asks again
            async with self.claim(new) as owners:
                for name, path in new.items():
                    # The holder of the lock decides on this name now: the next round shows how.
                    if name not in owners and name not in self.supervisors and not self.lock(name).locked():
                        self.add(name, path, DISCOVERED)

    async def matching(self, patterns: Sequence[str]) -> tuple[list[str], dict[str, str]]:
        """Return the sockets that match now, in the order of the patterns, and why others could not be looked for."""
        found, silent = await of_each(limits.FILE_TIMEOUT_S, glob.glob, {pattern: pattern for pattern in patterns})
        paths = [path for pattern in patterns for path in sorted(found.get(pattern, []))]
        return list(dict.fromkeys(paths)), silent

    def _new(self, found: Iterable[str], skipped: dict[str, str]) -> dict[str, str]:
        """Return, by name, the path of each socket that no domain owns yet; ``skipped``: what else is not adopted."""
        known = {supervisor.path for supervisor in self.supervisors.values()}
        new: dict[str, str] = {}
        for path in found:
            name = Path(path).stem
            owner = self.supervisors.get(name)
            if path in known or self.lock(name).locked():
                continue
            if not is_domain_name(name):
                skipped[path] = f"{name} is no domain name: expected {DOMAIN_NAME_WORDS}"
            elif storable(path) != path:
                skipped[path] = "this path is not UTF-8, and cannot be recorded: give its directory another name"
            elif not path.isprintable():
                skipped[path] = "this path has line breaks or the like: give its directory another name"
            elif owner is not None or name in new:
                skipped[path] = f"the name {name} belongs to the monitor {new[name] if owner is None else owner.path}"
            else:
                new[name] = path
        self._say(skipped)
        return new

    @property
    def skipped(self) -> list[tuple[str, str]]:
        """Monitors that were configured, added or found and are not supervised: the path, and one sentence on why."""
        left_out = [(one.path, one.reason) for one in self.left_out.values()]
        return [*left_out, *self._not_adopted.items(), *self.libvirts_left_out.items()]

    def _say(self, not_adopted: Mapping[str, str]) -> None:
        """Remember the monitors that are not adopted, and log the new ones."""
        now = {_printable(path): _printable(reason) for path, reason in not_adopted.items()}
        for path, reason in now.items() - self._not_adopted.items():
            log.warning("domain.skipped", qmp=path, reason=reason)
        self._not_adopted = now

    async def all_looked(self) -> None:
        """Wait until every open pivot was looked at, or its QEMU was silent and this was reported."""
        for driver in self.drivers().values():
            await driver.looked.wait()


def _level(origin: str, by: JsonObject | None) -> str:
    """Return the level for a domain that comes or goes: of the configuration's, start and reload tell already."""
    return "info" if by or origin in {DISCOVERED, LIBVIRT} else "debug"


def _belongs(name: str, owner: str) -> str:
    return f"domain {name} is left out: this monitor belongs to {owner}"


def _printable(text: str) -> str:
    return text if text.isprintable() else text.encode("unicode_escape").decode()
