"""Requests about domains: show, add and forget domains, and list their disks."""

from __future__ import annotations

import asyncio
import contextlib
import os.path
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Any

from msgspec.structs import replace

from pivotd import limits
from pivotd.app.live_verdicts import image_names
from pivotd.app.registry import CONFIG, DISCOVERED, LIBVIRT, RUNTIME, Host
from pivotd.client.answers import DataFile, DiskView, DomainView, InternalSnapshots, JobView, LibvirtImages
from pivotd.core import verdict
from pivotd.core.believed import DiskBelieved
from pivotd.core.image_names import describe
from pivotd.core.pivot import Phase, Pivot, PivotDisk
from pivotd.core.request import Manager, Requester
from pivotd.engine import pivot_log, processes
from pivotd.engine.supervisor import MonitorConnector, Supervisor
from pivotd.errors import ConflictError, DomainUnreachableError, QmpError
from pivotd.host import held, process
from pivotd.host.threads import in_thread
from pivotd.journal.journal import Journal
from pivotd.planning.adoptable_jobs import OPTIONS, AdoptableJob, adoptable_jobs
from pivotd.planning.domain_snapshot import DomainSnapshot
from pivotd.qmp.blocks import Blocks

Latest = Callable[[str], Awaitable[list[tuple[Pivot, PivotDisk]]]]
"""Returns the last pivot of each disk of a domain."""


class Domains:
    """The domains of this host, for requests."""

    def __init__(self, host: Host, journal: Journal, latest: Latest) -> None:
        self._host = host
        self._journal = journal
        self._latest = latest

    async def all(self) -> list[DomainView]:
        """Return all domains, sorted by name, also those of libvirt whose name is of no use."""
        # Side by side: one QEMU that hangs must not hold up what is known of the others.
        found = await asyncio.gather(*map(_view, self._host.supervisors.values()))
        unusable = (
            DomainView(name, uri, LIBVIRT, "refused", detail=why, manager=Manager.LIBVIRT.value)
            for name, (uri, why) in self._host.libvirts_unusable.items()
        )
        return sorted((*found, *unusable), key=lambda view: view.name)

    async def one(self, name: str) -> DomainView:
        """Return one domain with the block jobs that other clients started. Raises: NotFoundError."""
        supervisor = self._host.get(name)
        view = await _view(supervisor)
        if view.run_state is None:
            return view
        jobs, session = await _jobs(supervisor), supervisor.session
        return replace(view, jobs=jobs, qemu_version=(session and session.version_text) or view.qemu_version)

    async def add(self, name: str, qmp: str, who: Requester) -> DomainView:
        """Add a domain durably; repeating it is not an error. Raises: BadRequestError, ConflictError."""
        supervisor = await self._host.finish(self._add(name, qmp, who))
        await supervisor.settled(limits.GREETING_TIMEOUT_S + limits.CONNECT_TIMEOUT_S)
        return await _view(supervisor)

    async def _add(self, name: str, qmp: str, who: Requester) -> Supervisor:
        async with self._host.lock(name):
            known = self._host.supervisors.get(name)
            if known is not None and known.path == qmp:
                return known
            if known is not None and known.manager is Manager.LIBVIRT:
                raise ConflictError(
                    f"domain {name} is libvirt's, and pivotd reaches it by {known.path}: it needs no monitor",
                    domain=name,
                )
            if known is not None:
                raise ConflictError(f"domain {name} exists with {known.path}; remove it first", domain=name)
            async with self._host.claim({name: qmp}) as owners:
                if name in owners:
                    raise ConflictError(
                        f"{qmp} belongs to domain {owners[name]} already: a monitor has one owner", domain=owners[name]
                    )
                await self._refuse_others(qmp)
                await self._journal.add_domain(name, qmp, who.uid)
                return self._host.add(name, qmp, RUNTIME, by=pivot_log.by(who))

    async def _refuse_others(self, qmp: str) -> None:
        """Look before a domain is recorded; a QEMU that does not answer is asked when it does.

        Raises: UnsupportedQemuError: libvirt manages the QEMU behind this monitor. ConflictError: it is another domain.
        """
        with contextlib.suppress(DomainUnreachableError, QmpError, TimeoutError):
            session = await MonitorConnector(qmp).connect(wanted=False)
            try:
                await session.refuse_libvirts()
                of = processes.of_pid(session.pid)
            finally:
                await session.close()
            if (owner := self._host.processes.owner(of)) is not None:
                raise ConflictError(processes.belongs(qmp, of, owner), domain=owner.name)

    async def remove(self, name: str, who: Requester) -> None:
        """Forget a domain durably; its pivots stay in the journal. Raises: NotFoundError, ConflictError."""
        await self._host.finish(self._remove(name, who))

    async def _remove(self, name: str, who: Requester) -> None:
        async with self._host.lock(name):
            if self._host.left_out.get(name) and name not in self._host.supervisors:
                await self._journal.remove_domain(name, who.uid)
                path = self._host.left_out.pop(name).path
                self._host.say_removed(name, path, RUNTIME, pivot_log.by(who))
                return
            supervisor = self._host.get(name)
            if supervisor.drivers:
                pivot = next(iter(supervisor.drivers))
                raise ConflictError(f"domain {name} has an open pivot, {pivot}: cancel it or wait for it", pivot=pivot)
            if supervisor.origin == CONFIG:
                raise ConflictError(f"domain {name} stands in the configuration: remove it there and reload pivotd")
            if supervisor.manager is Manager.LIBVIRT:
                raise ConflictError(
                    f"domain {name} is libvirt's: it goes when it is shut down, or [libvirt] leaves the configuration"
                )
            if supervisor.origin == DISCOVERED:
                raise ConflictError(f"domain {name} was discovered by its socket {supervisor.path}: it goes with that")
            await self._journal.remove_domain(name, who.uid)
            self._host.left_out.pop(name, None)
            self._host.remove(name, by=pivot_log.by(who))

    async def disks(self, domain: str) -> list[DiskView]:
        """Query QEMU for the disks of a domain, and then the journal for its verdict on each.

        Raises: NotFoundError, DomainUnreachableError, QmpError.
        """
        session = await self._host.get(domain).connected()
        blocks = await session.blocks()
        seen, graph = blocks.disks, blocks.graph
        writers = await session.writers(blocks)
        believed = await session.believed()
        latest = await self._latest(domain)
        said = {disk.disk: verdict.of_pivot(pivot, disk) for pivot, disk in latest}
        phases: dict[str, Any] = {
            disk.disk: pivot.phase.value for pivot, disk in latest if pivot.phase is not Phase.CLOSED
        }
        # Side by side: where storage hangs, all disks are waited for together.
        found = await asyncio.gather(*(image_names(disk, session) for disk in seen.values()))
        images = {disk: [describe(image).text for image in chain] for disk, chain in zip(seen, found, strict=True)}
        directory = process.working_directory(session.pid) or ""  # from there QEMU opens a relative name of a data file
        views = []
        for name in sorted(seen):
            disk, last = seen[name], said.get(name)
            jobs = graph.jobs.get(disk.node, ())
            views.append(
                DiskView(
                    disk=name,
                    qdev=disk.qdev,
                    image=images[name][0],
                    format=disk.format,
                    size_bytes=disk.size_bytes,
                    node=disk.node,
                    read_only=disk.read_only,
                    backing_chain=tuple(images[name][1:]),
                    backing_formats=tuple(layer.format for layer in disk.layers[1:]),
                    job=jobs[0] if jobs else None,
                    pivot=last.pivot if last else None,
                    phase=phases.get(name),
                    outcome=last.outcome if last else None,
                    other_writers=writers.get(name, ()),
                    libvirt=_libvirt(believed.get(name), images[name][0]),
                    internal_snapshots=tuple(
                        InternalSnapshots(image, layer.snapshots)
                        for image, layer in zip(images[name], disk.layers, strict=True)
                        if layer.snapshots
                    ),
                    data_files=tuple(
                        DataFile(image, os.path.join(directory, describe(layer.data_file).text))  # noqa: PTH118
                        for image, layer in zip(images[name], disk.layers, strict=True)
                        if layer.data_file is not None
                    ),
                )
            )
        return views


def _libvirt(believed: DiskBelieved | None, root: str) -> LibvirtImages | None:
    if believed is None or believed.elsewhere:
        return None
    return LibvirtImages(
        believed.live, believed.next, believed.job.value, persistent=believed.persistent, agree=believed.agrees(root)
    )


async def _jobs(supervisor: Supervisor) -> tuple[JobView, ...] | None:
    session = supervisor.session
    try:
        if session is None:
            return None
        blocks = await session.blocks()
        writers = await session.writers(blocks) if blocks.jobs else {}
        pivots = [driver.pivot for driver in supervisor.drivers.values()]
        believed = await session.believed() if supervisor.manager is Manager.LIBVIRT else None
        found = await in_thread(
            limits.FILE_TIMEOUT_S, _adoptable, supervisor.name, session.pid, blocks, pivots, writers,
            believed,
            paths=[layer.filename for seen in blocks.disks.values() for layer in seen.layers],
        )  # fmt: skip
    except (QmpError, TimeoutError):
        return None
    return tuple(
        JobView(one.id, one.job.kind, one.job.status, one.disk, one.obstacle is None, one.obstacle) for one in found
    )


def _adoptable(  # noqa: PLR0913, PLR0917 - what it is made from, each from another place
    name: str,
    pid: int,
    blocks: Blocks,
    pivots: Collection[Pivot],
    writers: Mapping[str, tuple[str, ...]],
    believed: Mapping[str, DiskBelieved] | None,
) -> list[AdoptableJob]:
    """Return the jobs of other clients; this looks at files."""
    directory, has = process.working_directory(pid), held.look(pid)
    domain = DomainSnapshot("", name, OPTIONS, blocks, directory, frozenset(), has, pid)
    return adoptable_jobs(domain, pivots, writers, believed)


async def _view(supervisor: Supervisor) -> DomainView:
    session, connection, run_state = supervisor.session, supervisor.connection, None
    detail = [] if session else [supervisor.detail]
    if session is not None:
        try:
            run_state = await session.run_state()
        except QmpError as error:
            session, connection, detail = None, "unreachable", [error.message]
    detail += [f"pivot {pivot}: {why}" for pivot, why in failing(supervisor).items()]
    alarms = tuple(supervisor.alarms[disk] for disk in sorted(supervisor.alarms))
    return DomainView(
        name=supervisor.name,
        qmp=supervisor.path,
        manager=supervisor.manager.value,
        origin=supervisor.origin,
        connection=connection,
        detail="; ".join(detail) or None,
        run_state=run_state,
        qemu_version=(session.version_text or None) if session else None,
        pid=session.pid if session else None,
        uptime_s=process.uptime_s(session.pid) if session else None,
        open_pivots=tuple(sorted(supervisor.drivers)),
        alarms=alarms,
    )


def failing(supervisor: Supervisor) -> dict[str, str]:
    """Return one sentence for each open pivot whose driver fails again and again."""
    found = {pivot: driver.failing for pivot, driver in sorted(supervisor.drivers.items())}
    return {pivot: why for pivot, why in found.items() if why is not None}
