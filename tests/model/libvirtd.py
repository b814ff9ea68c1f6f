"""A model of the part of libvirtd that a guarded pivot uses: two definitions of one guest, jobs, files, and its start.

What it does wrong is modelled on libvirt 9.0 to 12.8, killed at each point of a `blockcopy --pivot`. A call is carried
out to its end unless libvirtd dies in it: each ``edge`` is a place for that. QEMU's commands are run by the model of
QEMU. Of a disk, libvirt knows which image the running guest has, which the next one, and the state of its job:

- memory: lost with the process. - status file: what it reads when it starts again; gone with the host.
- config: the next boot, in memory, in the file, and in the file after a power cut (its directory is not fsynced).
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pivotd.core.observation import JobBelief, Root
from pivotd.core.pivot import PivotDisk
from pivotd.core.request import Kind
from tests.model.points import PIVOTD, Alternative, nothing
from tests.model.qemu import ENDED, Job, RefusedError
from tests.model.storage import Image

if TYPE_CHECKING:
    from tests.model.libvirt_world import LibvirtWorld

Call = tuple[str, tuple[str, ...]]
"""What libvirtd is asked to do, and the disks."""
Release = tuple[int, int]
OLDEST: Release = (9, 0)
KEEPS_ITS_NAME: Release = (11, 0)
"""From here on a mirror names its job until it goes: between 9.0 and 11.3 nothing was looked at."""


class CallRefusedError(Exception):
    """libvirtd answers with an error, and QEMU has no command that could still move the disk."""


class CallFailedError(Exception):
    """libvirtd answers with an error after QEMU may have got the command."""


class LibvirtdDiedError(Exception):
    """The process has ended."""


@dataclass(frozen=True, slots=True)
class Known:
    """What libvirt knows of one disk of the running guest."""

    live: Root
    job: JobBelief = JobBelief.NONE
    """What the disk's mirror says."""
    listed: bool = False
    """Its list of jobs has one of this disk; the mirror stays without it where QEMU did not have the job any more."""
    named: bool = True
    """The mirror names its job: libvirt 9.0 saves once that it does not, and then cannot read the file."""


def job_id(disk: PivotDisk) -> str:
    """Return libvirt's name of its job on a disk."""
    return f"copy-{disk.disk}"


class Libvirtd:
    """One libvirtd; what belongs to the process is None or empty while it does not run."""

    __slots__ = (
        "config", "dumped", "durable", "file", "hook", "memory", "queued", "release", "remembered", "running", "status", "transient",
        "written",
    )  # fmt: skip

    def __init__(
        self, disks: Sequence[PivotDisk], *, hook: bool, transient: bool = False, release: Release = OLDEST
    ) -> None:
        sources = tuple(Root.SOURCE for _ in disks)
        self.hook, self.transient, self.release = hook, transient, release
        self.running = True
        self.memory: tuple[Known, ...] | None = tuple(Known(Root.SOURCE) for _ in disks)
        """By index of the disk; None: the guest is not running as far as libvirtd knows, or libvirtd is not."""
        self.status: tuple[Known, ...] | None = self.memory
        self.config: tuple[Root, ...] = sources
        self.file: tuple[Root, ...] = sources
        self.durable: tuple[Root, ...] = sources
        self.remembered = self.written = not transient
        """It has a next boot in memory, and in a file: a guest that is undefined while it runs keeps the first."""
        self.queued: tuple[Call, ...] = ()
        """Calls that wait for their turn; whoever made them does not wait any more."""
        self.dumped = False
        """It knows that the guest's memory went to a file, and that QEMU is in ``postmigrate`` since."""

    def copy(self) -> Libvirtd:
        """Return an independent copy."""
        other = Libvirtd.__new__(Libvirtd)
        for name in Libvirtd.__slots__:
            setattr(other, name, getattr(self, name))
        return other

    def key(self) -> object:
        """Return what tells two of them apart."""
        return tuple(getattr(self, name) for name in Libvirtd.__slots__)

    # -- what it knows ------------------------------------------------------------------------------------------------

    def set(self, index: int, **changes: object) -> None:
        """Change what is in memory of a disk."""
        assert self.memory is not None
        memory = list(self.memory)
        memory[index] = replace(memory[index], **changes)  # type: ignore[arg-type]
        self.memory = tuple(memory)

    def define(self, index: int, image: Root) -> None:
        """Change the next boot of a disk in memory; save_config() writes it."""
        self.config = (*self.config[:index], image, *self.config[index + 1 :])

    def save_config(self, world: LibvirtWorld) -> None:
        """Write the definition of the next boot after a job, whatever has changed; libvirt ignores that it cannot.

        Also of a guest that was undefined meanwhile: its file is back, and the next libvirtd has it defined again.
        """
        full = Alternative("libvirt cannot save the definition, and says nothing", nothing)
        if not (world.faults and world.point([full])):
            self.file, self.written = self.config, self.remembered

    # -- its life -----------------------------------------------------------------------------------------------------

    def die(self) -> None:
        """End the process: what it had in memory is lost."""
        self.running, self.memory, self.queued, self.dumped = False, None, (), False
        self.config, self.remembered = self.file, self.written

    def crash(self, world: LibvirtWorld) -> None:
        """Die by a fault of its own: it looks for the mirror of a job that it has lost. Raises: LibvirtdDiedError."""
        world.say("libvirtd: crashes")
        self.die()
        raise LibvirtdDiedError

    def power_cut(self) -> None:
        """Lose the status files, and each name that was not made durable."""
        self.die()
        self.status, self.file, self.config = None, self.durable, self.durable

    def start(self, world: LibvirtWorld) -> None:
        """Start; with the hook, repair the status file first. Then connect to QEMU and finish what it lists."""
        world.say("--- libvirtd starts")
        self.running, self.transient = True, not self.written
        if self.hook and world.original and world.qemu is not None and self.status is not None:
            self._repair(world)
        if self.status is not None and not all(known.named for known in self.status):
            world.say("libvirtd: cannot read the status file, and takes the guest for shut off")
            return
        if world.qemu is None or self.status is None:
            self.status = self.memory = None
            return
        self.memory = self.status
        for disk in world.durable.disks:
            if job_id(disk) not in world.jobs:
                self.set(disk.index, listed=False)
        self.status = self.memory
        self.process_events(world)

    def _repair(self, world: LibvirtWorld) -> None:
        """The hook: where libvirtd would not end a job as QEMU has, make the status file and QEMU's jobs say so.

        Source: pivotd/libvirt_hook.py, decide().
        """
        assert self.status is not None
        for disk in world.durable.disks:
            if world.qemu is None:
                return
            known, root = self.status[disk.index], world.root(disk)
            job = world.jobs.get(job_id(disk))
            if known.job is JobBelief.NONE or (job is not None and job.status not in ENDED):
                continue
            moved = root is Root.DESTINATION
            failed = job is not None and job.error is not None
            if root not in {Root.SOURCE, Root.DESTINATION} or (failed and moved):
                continue
            if job is not None and known.named and self._switched(world, known.job, job) == moved:
                continue
            if not known.listed and world.jobs.keys() - {job_id(disk)}:
                continue
            status = list(self.status)
            ending = JobBelief.PIVOTING if moved else JobBelief.ABORTING
            status[disk.index] = replace(known, named=True, listed=True, job=ending)
            self.status = tuple(status)
            world.edge("the hook is at work")
            if world.qemu is not None and job is None:
                world.jobs[job_id(disk)] = Job("create", disk=disk.disk, status="concluded", auto_dismiss=False)
            world.edge("the hook has repaired")

    @staticmethod
    def _switched(world: LibvirtWorld, belief: JobBelief, job: Job) -> bool:
        """Return whether libvirtd takes a job that has ended for a switch.

        Of a copy only if it remembers that it asked for one. Source: qemu_blockjob.c,
        qemuBlockJobEventProcessConcludedTransition.
        """
        takes = {JobBelief.PIVOTING, JobBelief.READY} if world.durable.kind is Kind.COMMIT else {JobBelief.PIVOTING}
        return belief in takes and job.error is None

    def qemu_has_ended(self) -> None:
        """QEMU's monitor has closed: the guest is shut off. One that libvirtd does not know of it leaves alone."""
        if self.memory is not None:
            self.memory = self.status = None
        self.queued = ()

    # -- events of QEMU -----------------------------------------------------------------------------------------------

    def process_events(self, world: LibvirtWorld) -> None:
        """Take notice of jobs that are ready or have ended."""
        if not self.running or self.memory is None:
            return
        for disk in world.durable.disks:
            if world.qemu is None:
                return
            job = world.jobs.get(job_id(disk))
            if self.memory[disk.index].job is JobBelief.COPYING and job is not None and job.status == "ready":
                self.set(disk.index, job=JobBelief.READY)
                self.status = self.memory
            if self.memory[disk.index].job is not JobBelief.NONE and job is not None and job.status == "concluded":
                self._finish(world, disk, job)

    def _finish(self, world: LibvirtWorld, disk: PivotDisk, job: Job) -> None:
        """A job has ended."""
        assert self.memory is not None
        switched = self._switched(world, self.memory[disk.index].job, job)
        world.execute("job-dismiss", {"id": job_id(disk)})
        world.edge("libvirtd has dismissed the job")
        if self.memory is None:
            return
        if self.release < KEEPS_ITS_NAME:
            self.set(disk.index, named=False)
        self.status = self.memory
        world.edge("libvirtd has saved that the job has ended")
        if self.memory is None:
            return
        self._close(world, disk, switched=switched)
        live = Root.DESTINATION if switched else Root.SOURCE
        self.set(disk.index, job=JobBelief.NONE, live=live, listed=False, named=True)
        self.status = self.memory
        world.edge("libvirtd has saved the status")
        if switched and self.config[disk.index] is Root.SOURCE:
            self.define(disk.index, Root.DESTINATION)
        self.save_config(world)
        world.edge("libvirtd has saved the definition")

    def _close(self, world: LibvirtWorld, disk: PivotDisk, *, switched: bool) -> None:
        """Have QEMU close what is not needed after a job; what QEMU still uses it keeps."""
        node = disk.source.node if switched else disk.destination.node
        if world.qemu is not None and (switched or world.durable.kind is Kind.COPY):
            with contextlib.suppress(RefusedError):
                world.execute("blockdev-del", {"node-name": node})

    # -- calls --------------------------------------------------------------------------------------------------------

    def perform(self, world: LibvirtWorld, name: str, disks: tuple[str, ...], who: str = PIVOTD) -> None:
        """Carry out a call. Raises: CallRefusedError, CallFailedError, LibvirtdDiedError."""
        if self.memory is None or world.qemu is None:
            raise CallRefusedError("domain is not running")
        chosen = [disk for disk in world.durable.disks if disk.disk in disks]
        match name:
            case "suspend" | "resume":
                if name == "resume":
                    if world.qemu.run_state == "running":
                        raise CallRefusedError("domain is already running")
                    world.may_resume(who)
                world.execute("stop" if name == "suspend" else "cont", {}, who)
            case "start":
                self._start_job(world, chosen[0])
            case "pivot" | "abort":
                for disk in chosen:
                    self._end_job(world, disk, switch=name == "pivot")
            case "snapshot":
                self._snapshot(world, chosen)

    def _start_job(self, world: LibvirtWorld, disk: PivotDisk) -> None:
        qemu = world.qemu
        assert qemu is not None
        assert self.memory is not None
        if self.memory[disk.index].job is not JobBelief.NONE or self.memory[disk.index].listed:
            raise CallRefusedError("another job is on this disk")
        job = {"job-id": job_id(disk), "device": disk.source.node, "auto-dismiss": False}
        command, target = "block-commit", {}
        try:
            if world.durable.kind is not Kind.COMMIT:
                command, target = "blockdev-mirror", {"target": disk.destination.node, "sync": "full"}
                if not world.storage.exists(disk.destination.filename):
                    world.storage.create(disk.destination.filename)
                file = {"driver": "file", "filename": disk.destination.filename}
                node = {"driver": "qcow2", "node-name": disk.destination.node, "file": file}
                world.execute("blockdev-add", node)
            self.set(disk.index, listed=True)
            self.status = self.memory
            world.edge("libvirtd is about to tell QEMU")
            self._told(world, disk)
            world.execute(command, job | target)
        except RefusedError as error:
            if self.memory is not None:
                self.set(disk.index, listed=False)
                self.status = self.memory
            raise CallRefusedError(str(error)) from None
        world.edge("QEMU has been told")
        if self.memory is not None:
            self.set(disk.index, job=JobBelief.COPYING, listed=True)
            self.status = self.memory
            world.edge("libvirtd has saved the job")

    def _end_job(self, world: LibvirtWorld, disk: PivotDisk, *, switch: bool) -> None:
        assert self.memory is not None
        known, name = self.memory[disk.index], job_id(disk)
        wanted = {JobBelief.READY} if switch else {JobBelief.READY, JobBelief.COPYING}
        if known.job is JobBelief.NONE and known.listed and name in world.jobs:
            self._end_without_mirror(world, disk, switch=switch)
            return
        if known.job not in wanted:
            raise CallRefusedError(f"its job is {known.job}")
        self.set(disk.index, job=JobBelief.PIVOTING if switch else JobBelief.ABORTING)
        world.edge("libvirtd is about to tell QEMU")
        self._told(world, disk)
        try:
            command = "job-complete" if switch else "block-job-cancel"  # soft: such a job ends without an error
            world.execute(command, {"id": name, "device": name})
        except RefusedError as error:
            if self.memory is not None:
                self.set(disk.index, job=known.job)
            raise CallRefusedError(str(error)) from None
        world.edge("QEMU has been told")
        self._told(world, disk)
        self.status = self.memory
        world.edge("libvirtd has saved that it asked")
        self._told(world, disk)
        world.let_job_end(name)
        self._told(world, disk)
        if (job := world.jobs.get(name)) is not None and job.status == "concluded":
            self._finish(world, disk, job)

    def _end_without_mirror(self, world: LibvirtWorld, disk: PivotDisk, *, switch: bool) -> None:
        """End a job of which libvirtd has lost the mirror: it died between QEMU's start of the job and its own save.

        The switch of a copy and the abort of a commit look for the mirror, and crash. Other deaths are left out here.
        """
        name, commit = job_id(disk), world.durable.kind is Kind.COMMIT
        if switch and not commit:
            self.crash(world)
        try:
            world.execute("job-complete" if switch else "block-job-cancel", {"id": name, "device": name})
        except RefusedError as error:
            raise CallRefusedError(str(error)) from None
        world.let_job_end(name)
        self._told(world, disk)
        if (job := world.jobs.get(name)) is None or job.status != "concluded":
            return
        world.execute("job-dismiss", {"id": name})
        if commit and not switch:
            self.crash(world)
        self.set(disk.index, listed=False, live=Root.DESTINATION if switch else Root.SOURCE)
        self.status = self.memory
        if switch and self.config[disk.index] is Root.SOURCE:
            self.define(disk.index, Root.DESTINATION)
            self.save_config(world)

    def _told(self, world: LibvirtWorld, disk: PivotDisk) -> None:
        """Raises: CallFailedError: QEMU has ended."""
        if world.qemu is None or self.memory is None:
            raise CallFailedError(f"{disk.disk}: the monitor has closed")

    def _snapshot(self, world: LibvirtWorld, disks: Sequence[PivotDisk]) -> None:
        qemu = world.qemu
        assert qemu is not None
        if any(world.root(disk) is not Root.SOURCE for disk in disks):
            raise CallRefusedError("the image is in use")
        if any(world.storage.exists(disk.destination.filename) for disk in disks):
            raise CallRefusedError("the external snapshot file exists")
        for disk in disks:
            world.storage.images[disk.destination.filename] = Image(own=0)
        world.edge("libvirtd is about to tell QEMU")
        self._told(world, disks[0])
        for disk in disks:
            if disk.destination.node not in qemu.nodes:
                file = {"driver": "file", "filename": disk.destination.filename}
                world.execute(
                    "blockdev-add",
                    {"driver": "qcow2", "node-name": disk.destination.node, "file": file, "backing": None},
                )
        actions = [
            {"type": "blockdev-snapshot", "data": {"node": disk.source.node, "overlay": disk.destination.node}}
            for disk in disks
        ]
        try:
            world.execute("transaction", {"actions": actions})
        except RefusedError as error:
            for disk in disks:
                del world.storage.images[disk.destination.filename]
            raise CallRefusedError(str(error)) from None
        world.edge("QEMU has been told")
        self._told(world, disks[0])
        for disk in disks:
            self.set(disk.index, live=Root.DESTINATION)
        self.status = self.memory
        world.edge("libvirtd has saved the status")
        for disk in disks:
            if self.config[disk.index] is Root.SOURCE:
                self.define(disk.index, Root.DESTINATION)
        self.save_config(world)
        world.edge("libvirtd has saved the definition")

    def run_queued(self, world: LibvirtWorld) -> None:
        """Carry out the first call that waits."""
        (name, disks), self.queued = self.queued[0], self.queued[1:]
        world.say(f"libvirtd: carries out {name} {' '.join(disks)}, for which nobody waits")
        try:
            self.perform(world, name, disks)
        except (CallRefusedError, CallFailedError) as error:
            world.say(f"libvirtd: {error}")
