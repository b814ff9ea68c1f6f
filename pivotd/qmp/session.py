"""One connected QEMU, in the engine's words: what to look at and which commands make up each step of a pivot."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from pivotd import limits
from pivotd.core import names, nbd
from pivotd.core.actions import Step
from pivotd.core.dirty_bitmaps import Bitmaps
from pivotd.core.observation import OUR_PAUSE, STATUS_ENDED, Observation, Qemu, Root
from pivotd.core.pivot import Outcome, Phase, Pivot, PivotDisk
from pivotd.core.request import Limits
from pivotd.errors import QmpRefusedError, QmpUnknownError, UnsupportedQemuError
from pivotd.host import files, process
from pivotd.host.threads import in_thread
from pivotd.qmp import bitmaps, mirror_back, preparation, replies, rollback, secrets, throttle
from pivotd.qmp.monitor import Monitor, command, yank

LOOK = (
    command("query-status"),
    command("query-jobs"),
    command("query-block-jobs"),
    command("query-block"),
    command("x-debug-query-block-graph"),
    command("qom-list", path="/objects"),
    command("query-migrate"),
)
"""Jobs before the graph: a job seen as ended has its final effect in the graph that is read after it.

Never query-named-block-nodes: it aborts QEMU while a qcow2 image is being created (tests/qmp/test_hazards.py).
"""
BEFORE_CONT = (command("query-migrate"), command("query-status"))


class Session:
    """Everything that the engine asks of one QEMU process."""

    def __init__(self, monitor: Monitor, path: str) -> None:
        self._monitor = monitor
        self.path = path
        self.pid = monitor.pid

    @classmethod
    async def connect(cls, path: str) -> Session:
        """Connect. Raises: DomainUnreachableError, MonitorBusyError, UnsupportedQemuError."""
        return cls(await Monitor.connect(path), path)

    @property
    def connected(self) -> bool:
        """Whether commands can be sent."""
        return self._monitor.connected

    @property
    def version_text(self) -> str:
        """QEMU's version."""
        return self._monitor.version_text

    @property
    def resumes(self) -> int:
        """How many RESUME events have come."""
        return self._monitor.resumes

    @property
    def job_status(self) -> Mapping[str, str]:
        """What events have said of each job: a hint."""
        return self._monitor.job_status

    def subscribe(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Have callback run at every event of note; return how to end that."""
        return self._monitor.subscribe(callback)

    async def closed(self) -> None:
        """Return once the connection is lost."""
        await self._monitor.closed()

    async def close(self) -> None:
        """Disconnect."""
        await self._monitor.close()

    # -- looking ------------------------------------------------------------------------------------------------

    async def run_state(self) -> str:
        """Return the guest's run state. Raises: UnsupportedQemuError: there is no guest."""
        try:
            return replies.run_state(await self._monitor.execute(command("query-status"), limits.QUERY_TIMEOUT_S))
        except QmpRefusedError as error:
            if error.fields["qmp_class"] != "CommandNotFound":
                raise
            raise UnsupportedQemuError(
                "qemu-storage-daemon: it has no guest that could be paused, and its clients write to the new image "
                "before pivotd could record the switch"
            ) from error

    async def disks(self) -> dict[str, replies.DiskSeen]:
        """Return every disk with a medium by its name."""
        return replies.disks(await self._monitor.execute(command("query-block"), limits.QUERY_TIMEOUT_S))

    async def graph(self) -> replies.Graph:
        """Return the block graph."""
        reply = await self._monitor.execute(command("x-debug-query-block-graph"), limits.QUERY_TIMEOUT_S)
        return replies.graph(reply)

    async def block_jobs(self) -> dict[str, replies.BlockJob]:
        """Return every block job of anybody."""
        reply = await self._monitor.execute(command("query-block-jobs"), limits.QUERY_TIMEOUT_S)
        return replies.block_jobs(reply)

    async def migrating(self) -> bool:
        """Return whether a migration is under way."""
        return replies.migrating(await self._monitor.execute(command("query-migrate"), limits.QUERY_TIMEOUT_S))

    async def chardevs(self) -> list[str]:
        """Return the labels of open character devices: other monitors are among them."""
        reply = await self._monitor.execute(command("query-chardev"), limits.QUERY_TIMEOUT_S)
        return replies.open_chardevs(reply)

    async def look(self, pivot: Pivot) -> Observation:
        """Look at run state, jobs and graph, in this order; tell the same QEMU from another one.

        The nonce, or any job or node named after the pivot, proves that it is the same process.
        """
        status, jobs, block_jobs, block, graph, objects, migrate = self._all(
            await self._monitor.burst(LOOK, limits.QUERY_TIMEOUT_S)
        )
        nodes, roots = replies.graph(graph), replies.roots(block, pivot)
        jobs_seen = replies.pivot_jobs(replies.jobs(jobs, block_jobs), nodes, pivot)
        marks = [name for name in jobs_seen if names.belongs_to(name, *pivot.family)]
        own_nodes = frozenset(name for name in nodes.nodes if names.belongs_to(name, *pivot.family))
        images = {
            disk.disk: (seen_disk.filename, seen_disk.format)
            for disk in (pivot.disks if pivot.options.adopted else ())
            if (seen_disk := replies.disks(block).get(disk.disk)) is not None
        }
        has_nonce = pivot.identity.nonce in replies.object_names(objects)
        seen = Observation(
            qemu=Qemu.SAME,
            run_state=replies.run_state(status),
            jobs=jobs_seen,
            roots=roots,
            images=images,
            nodes=own_nodes,
            nodes_below=_nodes_below(nodes, pivot) if pivot.phase is Phase.PREPARING else (),
            merged=replies.merged(nodes, roots, pivot),
            has_nonce=has_nonce,
            migrating=replies.migrating(migrate),
            bitmaps=replies.bitmaps(block, nodes, pivot),
        )
        if has_nonce or marks or own_nodes or self._same_process(pivot):
            return seen
        if not process.is_gone(pivot.identity.pid, pivot.identity.start_ticks, pivot.identity.boot_id):
            return Observation(
                Qemu.SILENT,
                detail=f"another QEMU answers on {self.path} while process {pivot.identity.pid}, in which the pivot "
                "began, still lives",
            )
        try:
            shown = replies.disks(block)
            paths = [disk.filename for disk in shown.values()]
            paths += [image.filename for disk in pivot.disks for image in (disk.source, disk.destination)]
            users = await in_thread(limits.FILE_TIMEOUT_S, self._uses, pivot, shown, paths=paths)
        except TimeoutError as error:
            return Observation(Qemu.SILENT, detail=f"another QEMU answers, but {error}")
        return replace(seen, qemu=Qemu.REPLACED, uses_source=users[0], uses_destination=users[1])

    def _same_process(self, pivot: Pivot) -> bool:
        """Without a mark in the process, pid and start time count only while a mark need not be there.

        A pivot may be cancelled before its mark was put there.
        """
        may_be_unmarked = pivot.phase in {Phase.PREPARING, Phase.CANCELLING, Phase.DECIDED}
        known = pivot.identity
        return (
            may_be_unmarked
            and (known.pid, known.boot_id) == (self.pid, process.boot_id())
            and known.start_ticks == process.start_ticks(self.pid)
        )

    def _uses(self, pivot: Pivot, disks: Mapping[str, replies.DiskSeen]) -> tuple[bool, bool]:
        directory = process.working_directory(self.pid)
        roots = [files.resolve(disk.filename, directory) for disk in disks.values()]
        return (
            any(files.same(disk.source, root) for disk in pivot.disks for root in roots),
            any(files.same(disk.destination, root) for disk in pivot.disks for root in roots),
        )

    # -- preparation --------------------------------------------------------------------------------------------

    async def place_nonce(self, pivot: Pivot) -> None:
        """Put the nonce into the process, after the passphrase of its images; what is there already, may be.

        Raises: QmpRefusedError: QEMU cannot read the passphrase.
        """
        await secrets.place(self._monitor, pivot)

    async def prepare(self, pivot: Pivot, disk: PivotDisk, step: Step) -> None:
        """Do one step of the preparation of one disk. Raises: QmpRefusedError."""
        await preparation.prepare(self._monitor, pivot, disk, step)

    async def go_on(self, jobs: Sequence[str]) -> None:
        """Let interrupted jobs try again; one that runs again already refuses, which does no harm."""
        await self._monitor.burst([command("job-resume", id=job) for job in jobs], limits.COMMAND_TIMEOUT_S)

    async def write_blocking(self, pivot: Pivot) -> bool:
        """Let the mirrors copy each guest write at once; False where this QEMU (before 8.2) cannot change that."""
        changes = [
            command("block-job-change", id=disk.job, type="mirror", copy_mode="write-blocking") for disk in pivot.disks
        ]
        found = await self._monitor.burst(changes, limits.COMMAND_TIMEOUT_S)
        return not any(isinstance(reply, QmpRefusedError) for reply in found)

    async def set_bandwidth(self, pivot: Pivot) -> None:
        """Give each job of the pivot that still runs its bandwidth; one that has ended refuses it."""
        speed = pivot.options.bandwidth_bytes_per_s
        changes = [command("block-job-set-speed", device=disk.job, speed=speed) for disk in pivot.disks]
        await self._monitor.burst(changes, limits.COMMAND_TIMEOUT_S)

    async def io_limits(self, pivot: Pivot) -> Mapping[str, Limits]:
        """Return the limits of the I/O of each disk that has its own, by QOM path."""
        return await throttle.read(self._monitor, pivot)

    async def writes(self, pivot: Pivot) -> Mapping[str, tuple[int, int]]:
        """Return bytes and number of the guest's writes so far, by QOM path."""
        return await throttle.writes(self._monitor, pivot)

    async def place_limits(self, pivot: Pivot) -> None:
        """Put the last limits of the pivot in place. Raises: QmpRefusedError."""
        await throttle.place(self._monitor, pivot)

    async def restore_limits(self, pivot: Pivot) -> list[str]:
        """Put the limits from before back; return the disks that somebody else has limited since."""
        return await throttle.restore(self._monitor, pivot)

    # -- the pause ----------------------------------------------------------------------------------------------

    async def stop(self, complete: Sequence[str], leaving: Callable[[], None]) -> tuple[str, bool, int]:
        """Pause the guest and complete these jobs in one write; call ``leaving`` right before that leaves.

        Returns: the run state right before, whether somebody resumed the guest between that and ``stop``, and how many
        RESUME events there were by then.

        ``stop`` does nothing but to a guest that runs, and says nothing of that. One that has stopped by itself since
        the question before shows it when it is to be resumed. A ``job-complete`` that is refused shows in the jobs.
        """
        burst = [command("query-status"), command("stop"), *(command("job-complete", id=job) for job in complete)]
        got, resumes = await self._monitor.alone(burst, limits.COMMAND_TIMEOUT_S, leaving)
        before, _ = self._all(got[:2])
        return replies.run_state(before), resumes[1] != resumes[0], resumes[1]

    async def complete(self, jobs: Sequence[str]) -> None:
        """Ask jobs to go to pending; a job that refuses shows it in the next look."""
        await self._monitor.burst([command("job-complete", id=job) for job in jobs], limits.COMMAND_TIMEOUT_S)

    async def carry_bitmaps(self, pivot: Pivot) -> Bitmaps:
        """Give the destinations the dirty bitmaps of the sources and return these. Raises: QmpRefusedError."""
        return await bitmaps.carry(self._monitor, pivot)

    async def finalize(self, pivot: Pivot, jobs: Sequence[str]) -> Mapping[str, Root]:
        """Finalize jobs and read the graph, in one write; return the roots.

        job-finalize is done when it answers, so the graph shows its effect. Its answer itself says nothing: it is
        positive also where finalizing has failed.
        """
        burst = [*(command("job-finalize", id=job) for job in jobs), command("query-block")]
        (block,) = self._all((await self._monitor.burst(burst, limits.COMMAND_TIMEOUT_S))[-1:])
        return replies.roots(block, pivot)

    async def cancel(self, jobs: Sequence[str], *, resume: bool) -> None:
        """Cancel jobs, then let the guest run if asked, in one write."""
        if resume:
            await self._refuse_to_start()
        burst = [command("job-cancel", id=job) for job in jobs]
        got = await self._monitor.burst(burst + [command("cont")] * resume, limits.COMMAND_TIMEOUT_S)
        if resume and isinstance(got[-1], QmpRefusedError):
            raise got[-1]

    async def resume(self) -> None:
        """Let the guest run. Raises: QmpRefusedError: it is in no pause any more."""
        await self._refuse_to_start()
        await self._monitor.execute(command("cont"))

    async def _refuse_to_start(self) -> None:
        """``cont`` starts a guest also after it was migrated away: look right before, whatever was seen earlier.

        Raises: QmpRefusedError.
        """
        resumes = self._monitor.resumes
        for _ in range(limits.MIGRATION_LOOKS):
            migrate, status = self._all(await self._monitor.burst(BEFORE_CONT, limits.QUERY_TIMEOUT_S))
            if not replies.migrating(migrate):
                break
            await asyncio.sleep(limits.MIGRATION_LOOK_S)  # one that ends in the next moment must not be overlooked
        state = replies.run_state(status)
        if self._monitor.resumes != resumes:
            raise QmpRefusedError(f"somebody else has resumed the guest meanwhile: it is {state}")
        if state not in OUR_PAUSE:
            raise QmpRefusedError(f"the guest is {state}: it is not pivotd's to resume")

    async def snapshot(self, pivot: Pivot) -> Mapping[str, Root]:
        """Put every overlay on its disk in one transaction and read the graph, in one write; return the roots.

        Raises: QmpRefusedError: no disk was changed.
        """
        actions = [
            {"type": "blockdev-snapshot", "data": {"node": disk.source.node, "overlay": disk.destination.node}}
            for disk in pivot.disks
        ]
        burst = [command("transaction", actions=actions), command("query-block")]
        done, block = await self._monitor.burst(burst, limits.COMMAND_TIMEOUT_S)
        if isinstance(done, QmpRefusedError):
            raise done
        (block,) = self._all([block])
        return replies.roots(block, pivot)

    async def keep_synced(self, pivot: Pivot, resumes: int) -> str | None:
        """Start the mirrors back to the sources; return why they cannot follow the guest, None where they do.

        Only while the guest is still; one that was resumed since ``resumes`` was counted has written what they lack.
        """
        return await mirror_back.start(self._monitor, pivot, resumes)

    async def reverse(self, pivot: Pivot, disk: PivotDisk, resumes: int) -> bool:
        """Take a finished switch back; True when the source is the root again. Only while the guest is still.

        One that was resumed since ``resumes`` was counted has written what only the destination has: then nothing is
        taken back.
        """
        await rollback.take_back(self._monitor, pivot, disk, resumes)
        block = await self._monitor.execute(command("query-block"), limits.QUERY_TIMEOUT_S)
        return replies.roots(block, pivot)[disk.disk] is Root.SOURCE

    async def cut(self, pivot: Pivot, disks: Sequence[PivotDisk]) -> bool:
        """Cut the connections to the exports that these disks are copied to, out of band; return whether QEMU did.

        That works also while QEMU's main loop hangs on such a server: whatever waits for it then fails. An export that
        is closed is cut off too: to close it in order would wait for the server.
        """
        exports = [disk for disk in disks if nbd.is_uri(disk.destination.filename)]
        if not exports or not self._monitor.out_of_band:
            return False
        burst = [yank(names.file_node(pivot.id, disk.index)) for disk in exports]
        done = await self._monitor.burst(burst, limits.YANK_TIMEOUT_S)
        return not any(isinstance(reply, QmpRefusedError) for reply in done)

    # -- after it -----------------------------------------------------------------------------------------------

    async def clean_up(self, pivot: Pivot) -> list[str]:
        """Dismiss jobs, delete the nodes that are no longer a disk's, remove the nonce; each may be done already.

        Returns: names that QEMU did not let go of.
        """
        jobs = replies.jobs(await self._monitor.execute(command("query-jobs"), limits.QUERY_TIMEOUT_S))
        own = replies.pivot_jobs(jobs, await self.graph(), pivot)
        live = [name for name, job in own.items() if job.status not in STATUS_ENDED]
        if live:
            await self._monitor.burst([command("job-cancel", id=name) for name in live], limits.COMMAND_TIMEOUT_S)
            for name in live:
                await rollback.await_job(self._monitor, name, {"concluded"})
        await self._monitor.burst([command("job-dismiss", id=name) for name in own], limits.COMMAND_TIMEOUT_S)
        doomed = await self._unwanted(pivot)
        await self.cut(pivot, [disk for disk in pivot.disks if names.file_node(pivot.id, disk.index) in doomed])
        await self._monitor.burst([command("blockdev-del", node_name=node) for node in doomed], 20.0)
        await secrets.remove_unused(self._monitor, pivot)
        await self._monitor.burst([command("object-del", id=pivot.identity.nonce)], limits.COMMAND_TIMEOUT_S)
        left = await self._node_names()
        jobs = replies.jobs(await self._monitor.execute(command("query-jobs"), limits.QUERY_TIMEOUT_S))
        ours = {disk.source.node for disk in pivot.disks} | {n for n in doomed if names.belongs_to(n, *pivot.family)}
        return [name for name in (*doomed, *own) if (name in left and name in ours) or name in jobs]

    async def _unwanted(self, pivot: Pivot) -> list[str]:
        """Return the nodes that no disk needs any more, each before its children."""
        block = await self._monitor.execute(command("query-block"), limits.QUERY_TIMEOUT_S)
        graph = await self.graph()
        used = {node for disk in replies.disks(block).values() for node in graph.below(disk.node)}
        found: list[str] = []
        for disk in pivot.disks:
            heads = _heads(pivot, disk)
            found += [node for head in heads for node in graph.below(head)] if heads else _own(pivot, disk)
        found += pivot.options.nodes_below
        return [node for node in dict.fromkeys(found) if node in graph.nodes and node not in used]

    async def _node_names(self) -> frozenset[str]:
        return (await self.graph()).nodes

    @staticmethod
    def _all(got: Sequence[Any]) -> Sequence[Any]:
        """Queries do not fail on a healthy QEMU; one that does leaves us without facts."""
        for reply in got:
            if isinstance(reply, QmpRefusedError):
                raise QmpUnknownError(f"a query failed: {reply.message}") from reply
        return got


def _nodes_below(graph: replies.Graph, pivot: Pivot) -> tuple[str, ...]:
    """Return the nodes below the images of the disks, but for those that QEMU has named: these go by themselves."""
    below = [node for disk in pivot.disks for node in graph.below(disk.source.node)[1:]]
    return tuple(node for node in dict.fromkeys(below) if not node.startswith("#"))


def _heads(pivot: Pivot, disk: PivotDisk) -> list[str]:
    """Return the nodes that a disk has lost, by name: they go, and what is below them."""
    match disk.outcome:
        case Outcome.SWITCHED:
            return [names.reopened_source(pivot.id, disk.index), *_with_file(disk.source.node)]
        case Outcome.MERGED if disk.top is not None:
            return [disk.top.node]
        case _ if pivot.undo_of is not None:
            return _with_file(disk.destination.node)
    return []


def _own(pivot: Pivot, disk: PivotDisk) -> list[str]:
    """Return the nodes of a destination, as far as they are pivotd's."""
    own = [disk.destination.node, names.file_node(pivot.id, disk.index)]
    return [node for node in own if names.belongs_to(node, pivot.id)]


def _with_file(node: str) -> list[str]:
    """Return a node and the file of an earlier pivot's image, whose node may be gone already."""
    file = names.file_below(node)
    return [node, file] if file is not None else [node]
