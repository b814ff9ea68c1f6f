"""One connected QEMU for the engine: what to query, and the commands of each step of a pivot."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence

from pivotd import limits
from pivotd.core import names
from pivotd.core.actions import Step
from pivotd.core.believed import DiskBelieved
from pivotd.core.dirty_bitmaps import Bitmaps
from pivotd.core.observation import OUR_PAUSE, Observation, Root
from pivotd.core.pivot import Identity, JsonObject, Pivot, PivotDisk
from pivotd.core.request import Limits, Manager
from pivotd.errors import QmpRefusedError, QmpUnknownError, UnsupportedQemuError
from pivotd.host import process
from pivotd.qmp import (
    bitmaps,
    blocks,
    cleaning,
    exports,
    libvirt_signs,
    looking,
    mirror_back,
    mirror_start,
    not_left,
    of_pivot,
    preparation,
    replies,
    rollback,
    secrets,
    throttle,
    write_thresholds,
    writers,
)
from pivotd.qmp.blocks import Blocks, DiskSeen
from pivotd.qmp.monitor import Monitor, ask, command

BEFORE_CONT = (replies.migrating.command, replies.run_state.command)


class Session:
    """Every operation of the engine on one QEMU process."""

    manager = Manager.PIVOTD
    """Who changes the guest."""

    def __init__(self, monitor: Monitor, path: str) -> None:
        self._monitor = monitor
        self.path = path
        self.pid = monitor.pid
        self.shown: Blocks | None = None
        """What QEMU has shown at the last look at its disks and graph."""

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
        """QEMU's version, empty where QEMU was not asked yet."""
        return self._monitor.version_text

    @property
    def resumes(self) -> int:
        """Number of RESUME events received."""
        return self._monitor.resumes

    @property
    def stops(self) -> int:
        """Number of STOP events received."""
        return self._monitor.stops

    @property
    def detached(self) -> int:
        """Number of events after which a node may have lost its last user."""
        return self._monitor.detached

    @property
    def job_status(self) -> Mapping[str, str]:
        """The last status of each job by events: a hint."""
        return self._monitor.job_status

    def subscribe(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Call callback at every relevant event; return a function that ends this."""
        return self._monitor.subscribe(callback)

    async def closed(self) -> None:
        """Return once the connection is lost."""
        await self._monitor.closed()

    async def close(self) -> None:
        """Disconnect."""
        await self._monitor.close()

    def end_unless_qemu(self) -> None:
        """Let the connection end if there is no QEMU behind it: only open pivots need one to libvirt alone."""

    # -- looking ------------------------------------------------------------------------------------------------

    async def run_state(self) -> str:
        """Return the guest's run state. Raises: UnsupportedQemuError: there is no guest."""
        try:
            return await ask(self._monitor, replies.run_state)
        except QmpRefusedError as error:
            if error.fields["qmp_class"] != "CommandNotFound":
                raise
            raise UnsupportedQemuError(
                "qemu-storage-daemon: it has no guest that could be paused, and its clients write to the new image "
                "before pivotd could record the switch"
            ) from error

    async def refuse_libvirts(self) -> None:
        """Raises: UnsupportedQemuError: libvirt manages this QEMU, and pivotd has reached it past libvirt."""
        await libvirt_signs.refuse(self._monitor, self.path)

    async def believed(self) -> Mapping[str, DiskBelieved]:
        """Return what libvirt believes of each disk; nothing, for this QEMU is not libvirt's."""
        return {}

    def was_switched(self, disk: str) -> bool:  # noqa: ARG002 - only libvirt tells
        """Return whether a job of libvirt's is known to have switched the device that this disk still is."""
        return False

    async def disks(self) -> Mapping[str, DiskSeen]:
        """Return every disk with a medium by its name."""
        return await ask(self._monitor, blocks.disks)

    async def blocks(self) -> Blocks:
        """Return every disk with a medium, the block graph, and every block job of any client."""
        self.shown = await looking.blocks_of(self._monitor)
        return self.shown

    async def writers(self, blocks: Blocks) -> Mapping[str, tuple[str, ...]]:
        """Return, by disk, what else may write to its image while the guest stands still, in words."""
        return await writers.of_disks(self._monitor, blocks)

    async def migrating(self) -> bool:
        """Return whether a migration is in progress."""
        return await ask(self._monitor, replies.migrating)

    async def takes_target_is_zero(self) -> bool:
        """Return whether a mirror can be told that its destination reads as zeroes."""
        return await mirror_start.takes_target_is_zero(self._monitor)

    async def chardevs(self) -> list[str]:
        """Return the labels of open character devices; these include other monitors."""
        return await ask(self._monitor, replies.open_chardevs)

    async def intent_facts(self) -> JsonObject:
        """Return what the record of an intent says of the guest besides what a look shows."""
        return {"chardevs": await self.chardevs()}

    def identity(self, pivot: str) -> Identity:
        """Return what distinguishes this QEMU process once the nonce of a pivot is in it."""
        return Identity(process.boot_id(), self.pid, process.start_ticks(self.pid), names.nonce_object(pivot))

    async def look(self, pivot: Pivot) -> Observation:
        """Look at run state, jobs and graph, in this order; identify the QEMU process."""
        return await looking.look(self._monitor, self.path, pivot)

    # -- preparation --------------------------------------------------------------------------------------------

    async def place_nonce(self, pivot: Pivot) -> None:
        """Put the nonce into the process, after the passphrase of its images; both may already be there.

        Raises: QmpRefusedError: QEMU cannot read the passphrase.
        """
        await secrets.place(self._monitor, pivot)

    async def prepare(self, pivot: Pivot, disk: PivotDisk, step: Step) -> None:
        """Do one step of the preparation of one disk. Raises: QmpRefusedError."""
        await preparation.prepare(self._monitor, pivot, disk, step)

    async def go_on(self, jobs: Sequence[str]) -> None:
        """Resume interrupted jobs; a job that already runs again refuses, which does no harm."""
        await self._monitor.burst([command("job-resume", id=job) for job in jobs], limits.COMMAND_TIMEOUT_S)

    async def write_blocking(self, pivot: Pivot) -> bool:
        """Let the mirrors copy each guest write at once; False if this QEMU (before 8.2) cannot change that."""
        changes = [
            command("block-job-change", id=disk.job, type="mirror", copy_mode="write-blocking") for disk in pivot.disks
        ]
        found = await self._monitor.burst(changes, limits.COMMAND_TIMEOUT_S)
        return not any(isinstance(reply, QmpRefusedError) for reply in found)

    async def set_bandwidth(self, pivot: Pivot) -> None:
        """Set the bandwidth of each running job of the pivot; a job that has ended refuses it."""
        speed = pivot.options.bandwidth_bytes_per_s
        changes = [command("block-job-set-speed", device=disk.job, speed=speed) for disk in pivot.disks]
        await self._monitor.burst(changes, limits.COMMAND_TIMEOUT_S)

    async def io_limits(self, pivot: Pivot) -> Mapping[str, Limits]:
        """Return the I/O limits of each disk that has limits of its own, by QOM path."""
        return await throttle.read(self._monitor, pivot)

    async def writes(self, pivot: Pivot) -> Mapping[str, tuple[int, int]]:
        """Return bytes and number of the guest's writes so far, by QOM path."""
        return await throttle.writes(self._monitor, pivot)

    async def unwritten(self, pivot: Pivot) -> frozenset[str]:
        """Return the disks to whose present root nothing was written since QEMU has opened it.

        Source: block/io.c, bdrv_co_write_req_finish(): each write, also of zeroes, counts for the node's highest one.
        """
        highest, disks = await ask(self._monitor, replies.highest_writes), await self.disks()
        return frozenset(
            disk.disk for disk in pivot.disks if disk.disk in disks and highest.get(disks[disk.disk].node) == 0
        )

    async def place_limits(self, pivot: Pivot) -> None:
        """Set the last limits of the pivot. Raises: QmpRefusedError."""
        await throttle.place(self._monitor, pivot)

    async def restore_limits(self, pivot: Pivot) -> list[str]:
        """Restore the earlier limits; return the disks on which another client has set limits since."""
        return await throttle.restore(self._monitor, pivot)

    async def place_thresholds(self, pivot: Pivot) -> None:
        """Set the write thresholds of the sources on the destinations of switched disks."""
        await write_thresholds.place(self._monitor, pivot)

    # -- the pause ----------------------------------------------------------------------------------------------

    async def stop(self, complete: Sequence[str], leaving: Callable[[], None]) -> tuple[str, bool, int]:
        """Pause the guest and complete these jobs in one write; call ``leaving`` right before that leaves.

        Returns: the run state right before, whether another client resumed the guest between that and ``stop``, and the
        number of RESUME events by then.

        ``stop`` has an effect only on a running guest, and its answer does not tell. If the guest has stopped by itself
        since the query before, the check before the resume finds that. A refused ``job-complete`` shows in the jobs.
        """
        completes = [command("job-complete", id=job) for job in dict.fromkeys(complete)]
        burst = [replies.run_state.command, command("stop"), *completes]
        (before, stopped, *_), resumes = await self._monitor.alone(burst, limits.COMMAND_TIMEOUT_S, leaving)
        if isinstance(stopped, QmpRefusedError):
            raise QmpUnknownError(f"a query failed: {stopped.message}") from stopped
        return replies.run_state(before), resumes[1] != resumes[0], resumes[1]

    async def complete(self, jobs: Sequence[str]) -> None:
        """Ask jobs to go to pending; the next look shows a job that refused."""
        burst = [command("job-complete", id=job) for job in dict.fromkeys(jobs)]
        await self._monitor.burst(burst, limits.COMMAND_TIMEOUT_S)

    async def refusal_of_bitmaps(self, pivot: Pivot) -> str | None:
        """Return why QEMU would not copy the bitmaps now, None if it would; nothing is changed."""
        return await bitmaps.refusal(self._monitor, pivot)

    async def carry_bitmaps(self, pivot: Pivot) -> Bitmaps:
        """Copy the dirty bitmaps of the sources to the destinations and return them. Raises: QmpRefusedError."""
        return await bitmaps.carry(self._monitor, pivot)

    async def finalize(self, pivot: Pivot, jobs: Sequence[str]) -> Mapping[str, Root]:
        """Finalize jobs and read the graph, in one write; return the roots.

        job-finalize has finished when it answers, so the graph shows its effect. The answer itself says nothing: it is
        positive even if finalizing has failed.
        """
        burst = [*(command("job-finalize", id=job) for job in dict.fromkeys(jobs)), blocks.disks.command]
        *_, shown = await self._monitor.burst(burst, limits.COMMAND_TIMEOUT_S)
        return of_pivot.roots(blocks.disks(shown), pivot)

    async def cancel(self, jobs: Sequence[str], *, resume: bool) -> None:
        """Cancel jobs, then resume the guest if ``resume``, in one write."""
        if resume:
            await self._refuse_to_start()
        burst = [command("job-cancel", id=job) for job in dict.fromkeys(jobs)]
        got = await self._monitor.burst(burst + [command("cont")] * resume, limits.COMMAND_TIMEOUT_S)
        if resume and isinstance(got[-1], QmpRefusedError):
            raise got[-1]

    async def resume(self) -> None:
        """Resume the guest. Raises: QmpRefusedError: it is no longer in a pause."""
        await self._refuse_to_start()
        await self._monitor.execute(command("cont"))

    async def _refuse_to_start(self) -> None:
        """Look right before ``cont``, whatever was seen earlier: ``cont`` also starts a guest that was migrated away.

        Raises: QmpRefusedError.
        """
        resumes = self._monitor.resumes
        for _ in range(limits.MIGRATION_LOOKS):
            migrate, status = await self._monitor.burst(BEFORE_CONT, limits.QUERY_TIMEOUT_S)
            if not replies.migrating(migrate):
                break
            await asyncio.sleep(limits.MIGRATION_LOOK_S)  # one that ends in the next moment must not be overlooked
        state = replies.run_state(status)
        if self._monitor.resumes != resumes:
            raise QmpRefusedError(f"another client has resumed the guest meanwhile: it is {state}")
        if state not in OUR_PAUSE and not await not_left.may_run_on(self._monitor, state, migrate):
            raise QmpRefusedError(f"the guest is {state}: it is not pivotd's to resume")

    async def snapshot(self, pivot: Pivot) -> Mapping[str, Root]:
        """Put every overlay on its disk in one transaction and read the graph, in one write; return the roots.

        Raises: QmpRefusedError: no disk was changed.
        """
        actions = [
            {"type": "blockdev-snapshot", "data": {"node": disk.source.node, "overlay": disk.destination.node}}
            for disk in pivot.movers
        ]
        burst = [command("transaction", actions=actions), blocks.disks.command]
        done, shown = await self._monitor.burst(burst, limits.COMMAND_TIMEOUT_S)
        if isinstance(done, QmpRefusedError):
            raise done
        return of_pivot.roots(blocks.disks(shown), pivot)

    async def keep_synced(self, pivot: Pivot, resumes: int) -> str | None:
        """Start the mirrors back to the sources; return why they cannot follow the guest, None if they do.

        Only while the guest is still; a guest resumed since ``resumes`` was counted has written data that they lack.
        """
        return await mirror_back.start(self._monitor, pivot, resumes)

    async def reverse(self, pivot: Pivot, disk: PivotDisk, resumes: int) -> bool:
        """Take a finished switch back; True when the source is the root again. Only while the guest is still.

        If the guest was resumed since ``resumes`` was counted, only the destination has its writes: then nothing is
        taken back.
        """
        if disk in pivot.movers:  # which come first
            await rollback.take_back(self._monitor, pivot, disk, resumes)
        return of_pivot.roots(await self.disks(), pivot)[disk.disk] is Root.SOURCE

    async def cut(self, pivot: Pivot, disks: Sequence[PivotDisk]) -> bool:
        """Cut the connections to the exports to which these disks are copied, out of band; return whether QEMU did."""
        return await exports.cut(self._monitor, pivot, disks)

    # -- after it -----------------------------------------------------------------------------------------------

    async def remove(self, nodes: Sequence[str]) -> list[str]:
        """Delete nodes that nobody uses, with what only they needed; return those that QEMU did not delete."""
        return await cleaning.remove(self._monitor, nodes)

    async def clean_up(self, pivot: Pivot) -> list[str]:
        """Remove what a decided pivot leaves in QEMU; return names that QEMU did not remove."""
        return await cleaning.clean_up(self._monitor, pivot)
