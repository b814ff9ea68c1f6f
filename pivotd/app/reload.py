"""Reloading the configuration of a running daemon: all of it, or nothing and one line that says why.

There are two ways to request a reload: SIGHUP, whose answer is in the log and in the journal, and
``pivotd --reload PID``, which connects to an abstract socket named after the daemon's process and gets one line back.
The daemon reads the file after the request has come, so that no caller gets the answer to an earlier request.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections.abc import Mapping
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from pivotd import limits, log
from pivotd.api.refusals import REFUSALS
from pivotd.app.registry import CONFIG, DISCOVERED, RUNTIME, Host
from pivotd.app.status import Status
from pivotd.config import Config, load
from pivotd.core.request import Requester
from pivotd.engine.supervisor import Supervisor
from pivotd.errors import (
    EXIT_DONE,
    EXIT_REFUSED,
    EXIT_UNREACHABLE,
    BadRequestError,
    ConflictError,
    NotAllowedError,
    PivotdError,
)
from pivotd.host.threads import in_thread
from pivotd.journal.journal import Journal

logger = log.get_logger()

_UCRED = struct.Struct("3i")
OK, REFUSED = "ok ", "no "
_LINE_BYTES_MAX = 1 << 16


class TakesAccess(Protocol):
    """Access control, whose rules take effect with the next request."""

    operators: Any
    readers: Any


class TakesConfig(Protocol):
    """A component that answers requests with the defaults of a configuration."""

    def use(self, config: Config) -> None:
        """Answer with this configuration from now on."""


@dataclass
class _Changes:
    """What a new configuration changes in the domains, before any change. ``obstacles`` says why it is impossible."""

    remove: dict[str, Supervisor] = field(default_factory=dict)
    add: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Name -> monitor, origin."""
    origins: dict[str, str] = field(default_factory=dict)
    """For domains that keep their monitor."""
    told: list[str] = field(default_factory=list)
    obstacles: list[str] = field(default_factory=list)


@dataclass
class Reloader:
    """Reads the file at ``path`` again when asked. ``config`` is the configuration in force."""

    path: Path
    config: Config
    host: Host
    journal: Journal
    access: TakesAccess
    service: TakesConfig
    status: Status
    _one_at_a_time: asyncio.Lock = field(default_factory=asyncio.Lock, init=False)

    async def run(self, hangup: asyncio.Event, listener: socket.socket | None) -> None:
        """Serve until cancelled; ``hangup`` is set by SIGHUP."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._obey(hangup))
            if listener is not None:
                group.create_task(self._answer(listener))

    async def _obey(self, hangup: asyncio.Event) -> None:
        while await hangup.wait():
            hangup.clear()
            await self.reload("SIGHUP")

    async def _answer(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                client, _ = await loop.sock_accept(listener)
            except OSError as error:  # no free file descriptor: the client waits in the listener's queue
                logger.warning("daemon.reload-delayed", reason=error.strerror)
                await asyncio.sleep(limits.RELOAD_AGAIN_S)
                continue
            with client:
                pid, uid, gid = _peer(client)
                if uid in {0, os.geteuid()}:
                    answer = await self.reload({"uid": uid, "pid": pid})
                else:
                    refused = NotAllowedError("only root and pivotd's own user may reload it", uid=uid)
                    REFUSALS.tell(Requester(uid=uid, gid=gid, pid=pid), "reload", str(self.path), refused)
                    answer = REFUSED + refused.message
                # A line fits into any socket's buffer: a client that does not read it delays nothing.
                with suppress(OSError):
                    client.send(answer.encode()[:_LINE_BYTES_MAX])

    async def reload(self, by: Any) -> str:
        """Apply the present file; return ``ok`` or ``no`` and a line. ``by`` names the requester, for the journal."""
        async with self._one_at_a_time:
            try:
                new = await self._load()
                added = await self.journal.added_domains()
                found, silent = await self.host.matching(new.discover)
                for why in silent.values():
                    raise BadRequestError(why)
                told = await self._change(new, {row.name: row.qmp_path for row in added}, frozenset(found))
            except PivotdError as error:
                logger.warning("daemon.reload-refused", reason=error.message, by=by)
                self.status.add(f"reload refused: {error.message}")
                with suppress(PivotdError):
                    await self.journal.note("reload-refused", {"by": by, "reason": error.message})
                return REFUSED + f"reload refused, nothing has changed: {error.message}"
            logger.info("daemon.reloaded", changed=told, by=by)
            self.status.add("")
            try:
                await self.journal.note("reloaded", {"by": by, "changed": told})
            except PivotdError as error:
                return REFUSED + f"reloaded, but the journal does not say so: {error.message}"
            return OK + f"reloaded: {', '.join(told) or 'nothing had changed'}"

    async def _load(self) -> Config:
        """Return the configuration as the files have it now. Raises: ConfigError, ConflictError."""
        try:
            # The default threads are for what always ends: the end of the process waits for them.
            return await in_thread(limits.RELOAD_READ_S, load, self.path, paths=[str(self.path)])
        except TimeoutError as error:
            raise ConflictError(f"the configuration cannot be read: {error}") from None

    async def _change(self, new: Config, added: Mapping[str, str], found: frozenset[str]) -> list[str]:
        """Apply a configuration under the locks of the domains that it changes. Raises: PivotdError."""
        old = self.config.domains
        async with AsyncExitStack() as locks:
            names = sorted(old.keys() | new.domains.keys())
            changed = [name for name in names if old.get(name) != new.domains.get(name)]
            for name in changed:
                await locks.enter_async_context(self.host.lock(name))
            wanted = {name: path for name, (path, _) in self._changes(new, added, found).add.items()}
            owners = await locks.enter_async_context(self.host.claim(wanted))
            changes = self._changes(new, added, found)
            changes.obstacles += [
                f"{path} belongs to domain {owners[name]} already, by whatever name: remove that first"
                for name, (path, _) in changes.add.items()
                if name in owners and owners[name] not in changes.remove and not changes.obstacles
            ]
            busy = [name for name in changes.remove if name not in changed and self.host.lock(name).locked()]
            changes.obstacles += [f"domain {name} is just being changed by a request: try again" for name in busy]
            told = self._apply(new, changes)
            for name in changed:
                self.host.left_out.pop(name, None)
        await self.host.discover(new.discover)
        return told

    def _apply(self, new: Config, changes: _Changes) -> list[str]:
        """Check and change in one turn of the loop, so that no request intervenes. Raises: ConflictError."""
        old = self.config
        for key in ("state_dir", "socket"):
            if getattr(new, key) != getattr(old, key):
                stays = f"{key} stays {getattr(old, key)} while pivotd runs: restart it for {getattr(new, key)}"
                changes.obstacles.append(stays)
        for table in ("libvirt", "fleet"):
            if getattr(new, table) != getattr(old, table):
                changes.obstacles.append(f"[{table}] stays as it is while pivotd runs: restart it for the change")
        if changes.obstacles:
            raise ConflictError("; ".join(changes.obstacles))
        for name in changes.remove:
            self.host.remove(name)
        for name, (path, origin) in changes.add.items():
            self.host.add(name, path, origin)
        for name, origin in changes.origins.items():
            self.host.supervisors[name].origin = origin
        self.access.operators, self.access.readers = new.access.operators, new.access.readers
        self.service.use(new)
        log.level(new.log.level)
        self.config = new
        return [
            key for key in ("access", "pause", "log", "journal", "discover") if getattr(new, key) != getattr(old, key)
        ] + changes.told

    def _changes(self, new: Config, added: Mapping[str, str], found: frozenset[str]) -> _Changes:
        """Compare the domains; a domain added at run time (``added``) counts unless the configuration names it."""
        changes = _Changes()
        present = self.host.supervisors
        for name in sorted(self.config.domains.keys() | new.domains.keys()):
            if self.config.domains.get(name) == new.domains.get(name):
                continue
            wanted = (str(new.domains[name]), CONFIG) if name in new.domains else (added.get(name), RUNTIME)
            self._compare(name, present.get(name), wanted, changes)
        for name, (path, _) in changes.add.items():
            # The configuration goes before discovery, as at a start.
            changes.remove |= {o.name: o for o in present.values() if (o.path, o.origin) == (path, DISCOVERED)}
            owners = [o.name for o in present.values() if o.path == path and o.name not in changes.remove]
            owners += [other for other, (theirs, _) in changes.add.items() if theirs == path and other < name]
            changes.obstacles += [f"{path} belongs to domain {owner} already: remove that first" for owner in owners]
        if new.discover != self.config.discover:
            gone = {o.name: o for o in present.values() if o.origin == DISCOVERED and o.path not in found}
            changes.told += [f"domain {name} removed" for name in gone if name not in changes.remove]
            changes.remove |= gone
        for name, supervisor in changes.remove.items():
            for pivot in supervisor.drivers:
                changes.obstacles.append(f"domain {name} has an open pivot, {pivot}: cancel it or wait for it")
        return changes

    @staticmethod
    def _compare(name: str, known: Supervisor | None, wanted: tuple[str | None, str], changes: _Changes) -> None:
        path, origin = wanted
        if known is not None and known.path == path:
            changes.origins[name] = origin
            return
        if known is not None:
            changes.remove[name] = known
        if path is not None:
            changes.add[name] = (path, origin)
        if known is not None or path is not None:
            what = "added" if known is None else "removed" if path is None else "has another monitor"
            changes.told.append(f"domain {name} {what}")


# -- between the process that asks and the one that runs ----------------------------------------------------------


def _address(pid: int) -> str:
    """Return the abstract address of a daemon. Process ids are those of one PID namespace."""
    return f"\0pivotd-reload-{Path('/proc/self/ns/pid').stat().st_ino}-{pid}"


def listen() -> socket.socket | None:
    """Listen for ``pivotd --reload``; None if another process has the address: then only SIGHUP works."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.setblocking(False)
    try:
        listener.bind(_address(os.getpid()))
    except OSError as error:
        listener.close()
        logger.warning("daemon.reload-unavailable", reason=error.strerror)
        return None
    listener.listen()
    return listener


def ask(pid: int) -> tuple[int, str]:
    """Make the daemon with this process id reload; return the exit status and the line to print."""
    silent = f"pivotd (process {pid}) gave no answer to the reload: its log says why"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(limits.RELOAD_TIMEOUT_S)
        try:
            sock.connect(_address(pid))
        except OSError:
            return EXIT_UNREACHABLE, f"process {pid} takes no reload: it is no pivotd, or one that is starting"
        if _peer(sock)[0] != pid:
            return EXIT_UNREACHABLE, f"another process answers in place of process {pid}: send it SIGHUP instead"
        try:
            answer = sock.recv(_LINE_BYTES_MAX).decode()
        except OSError:
            return EXIT_UNREACHABLE, silent
    if answer.startswith(OK):
        return EXIT_DONE, answer.removeprefix(OK)
    return (EXIT_REFUSED, answer.removeprefix(REFUSED)) if answer else (EXIT_UNREACHABLE, silent)


def _peer(sock: socket.socket) -> tuple[int, int, int]:
    """Return pid, uid and gid of the peer. Source: unix(7), SO_PEERCRED."""
    pid, uid, gid = _UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    return pid, uid, gid
