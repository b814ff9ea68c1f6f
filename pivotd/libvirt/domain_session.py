"""One domain of libvirt for the rest of pivotd: libvirt changes the guest, QEMU is asked through libvirt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pivotd import limits
from pivotd.core.believed import DiskBelieved
from pivotd.errors import DomainUnreachableError, QmpError, QmpUnknownError
from pivotd.libvirt import domain_xml, library, qemu_process
from pivotd.libvirt.connection import open_connection, translated, version_text
from pivotd.libvirt.domain_xml import DomainDefined
from pivotd.libvirt.line import Line
from pivotd.libvirt.passthrough import Passthrough
from pivotd.qmp import blocks, looking
from pivotd.qmp.blocks import Blocks, DiskSeen
from pivotd.qmp.monitor import ask
from pivotd.qmp.session import Session


class LibvirtSession(Session):
    """One running domain of libvirt. Its disks have libvirt's names for them, such as ``vda``."""

    def __init__(self, monitor: Passthrough, uri: str, domain: Any, uuid: str, mark: str) -> None:
        super().__init__(monitor, uri)
        self._libvirt = monitor
        self._domain = domain
        self.uuid = uuid
        self.mark = mark
        """What another QEMU process of the same domain does not have."""

    @classmethod
    async def open(cls, uri: str, name: str, line: Line) -> LibvirtSession:
        """Connect to a domain by its name. Raises: DomainUnreachableError."""
        try:
            connection, domain, uuid, version = await line.call(
                "a connection", limits.LIBVIRT_CONNECT_TIMEOUT_S, _open, uri, name
            )
            found = qemu_process.find(uri, name, uuid)
            if found is None:
                raise DomainUnreachableError(f"libvirt says that {name} runs, but its QEMU process is not to be found")
            monitor = Passthrough(line, connection, domain, found[0], version)
            await line.call("its events", limits.LIBVIRT_CONNECT_TIMEOUT_S, monitor.listen)
        except QmpError as error:
            raise DomainUnreachableError(f"{uri}: {error.message}", uri=uri) from error
        return cls(monitor, uri, domain, uuid, found[1])

    async def refuse_libvirts(self) -> None:
        """Nothing is refused: this session goes through libvirt."""

    # -- looking ------------------------------------------------------------------------------------------------

    async def run_state(self) -> str:
        """Return the guest's run state as libvirt knows it, in QEMU's words; QEMU itself is not asked."""
        state, reason = await self._ask("the state", self._domain.state)
        return run_state_of(library.load().api, state, reason)

    async def defined(self, *, inactive: bool = False) -> DomainDefined:
        """Return the live definition, or that of the next boot. Raises: QmpError."""
        flag = library.load().api.VIR_DOMAIN_XML_INACTIVE if inactive else 0
        return _parsed(await self._ask("the definition", lambda: self._domain.XMLDesc(flag)))

    async def persistent(self) -> bool:
        """Return whether the domain is defined for a next boot. Raises: QmpError."""
        return bool(await self._ask("whether it is persistent", self._domain.isPersistent))

    async def believed(self) -> Mapping[str, DiskBelieved]:
        """Return what libvirt believes of each disk. Raises: QmpError."""
        live, persistent = await self.defined(), await self.persistent()
        following = (await self.defined(inactive=True)).disks if persistent else {}
        return {
            name: DiskBelieved(
                disk.image, following[name].image if name in following else None, disk.job, persistent=persistent
            )
            for name, disk in live.disks.items()
        }

    async def disks(self) -> Mapping[str, DiskSeen]:
        """Return every disk with a medium by its name in libvirt."""
        return named(await ask(self._libvirt, blocks.disks), await self.defined())

    async def blocks(self) -> Blocks:
        """Return every disk with a medium, the block graph, and every block job."""
        seen = await looking.blocks_of(self._libvirt)
        return replace(seen, disks=named(seen.disks, await self.defined()))

    async def _ask(self, what: str, function: Any) -> Any:
        return await self._libvirt.call(what, limits.QUERY_TIMEOUT_S, function)


def _open(uri: str, name: str) -> tuple[Any, Any, str, tuple[int, int, int]]:
    """Connect, and find a running domain. Raises: DomainUnreachableError, QmpError."""
    connection = open_connection(uri)
    domain = translated(connection, "the domain", lambda: connection.lookupByName(name))
    if not translated(connection, "whether it runs", domain.isActive):
        raise DomainUnreachableError(f"{uri}: {name} does not run")
    version = translated(connection, "QEMU's version", connection.getVersion)
    major, minor, micro = map(int, version_text(version).split("."))
    return connection, domain, domain.UUIDString(), (major, minor, micro)


def _parsed(text: str) -> DomainDefined:
    try:
        return domain_xml.parse(text)
    except ValueError as error:
        raise QmpUnknownError(f"libvirt's definition of the domain cannot be read: {error}") from error


def named(disks: Mapping[str, DiskSeen], defined: DomainDefined) -> dict[str, DiskSeen]:
    """Return disks by their names in libvirt, where it knows them: QEMU knows the alias of the device."""
    targets = {disk.alias: disk.target for disk in defined.disks.values() if disk.alias is not None}
    found = {}
    for name, seen in disks.items():
        target = targets.get(name, name)
        found[target] = replace(seen, disk=target)
    return found


def run_state_of(api: Any, state: int, reason: int) -> str:
    """Return libvirt's state of a domain in QEMU's words. Source: libvirt-domain.h, virDomainState and its reasons."""
    paused = {
        api.VIR_DOMAIN_PAUSED_MIGRATION: "finish-migrate",
        api.VIR_DOMAIN_PAUSED_SAVE: "save-vm",
        api.VIR_DOMAIN_PAUSED_IOERROR: "io-error",
        api.VIR_DOMAIN_PAUSED_WATCHDOG: "watchdog",
        api.VIR_DOMAIN_PAUSED_SHUTTING_DOWN: "shutdown",
        api.VIR_DOMAIN_PAUSED_CRASHED: "guest-panicked",
    }
    states = {
        api.VIR_DOMAIN_RUNNING: "running",
        api.VIR_DOMAIN_BLOCKED: "running",
        api.VIR_DOMAIN_SHUTDOWN: "shutdown",
        api.VIR_DOMAIN_CRASHED: "guest-panicked",
        api.VIR_DOMAIN_PMSUSPENDED: "suspended",
    }
    return paused.get(reason, "paused") if state == api.VIR_DOMAIN_PAUSED else states.get(state, "internal-error")
