"""What pivotd.engine.ports.LibvirtSession promises, over the model of libvirtd; the driver on it is the real one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pivotd.core.actions import Step
from pivotd.core.observation import OUR_PAUSE, Asked, Belief, JobBelief, JobSeen, Observation, Qemu, Root
from pivotd.core.pivot import JsonObject, Pivot, PivotDisk
from pivotd.errors import QmpError, QmpRefusedError, QmpUnknownError, QmpUnsentError
from tests.model.libvirtd import CallFailedError, CallRefusedError, LibvirtdDiedError, job_id
from tests.model.points import PIVOTD, Alternative, Died
from tests.model.qemu import EXECUTING

if TYPE_CHECKING:
    from tests.model.libvirt_world import LibvirtWorld

QUEUED = frozenset({"suspend", "pivot", "abort", "snapshot"})
"""Calls that may wait in libvirtd while pivotd is gone already."""


class ModelLibvirtSession:
    """One connection to libvirtd. It takes the place of the monitor, too: events reach pivotd through libvirt."""

    version_text = "9.0.0"
    pid = 100

    def __init__(self, world: LibvirtWorld) -> None:
        self.world = world
        self.connected = True
        self.resumes = 0
        self.job_status: dict[str, str] = {}
        self.calling = bool(world.libvirtd.queued)

    # -- in place of the monitor ------------------------------------------------------------------------------------

    def subscribe(self, _callback: Callable[[], None]) -> Callable[[], None]:
        return lambda: None

    def hear(self, events: Sequence[tuple[str, str, str]]) -> None:
        """Take QEMU's events."""
        self.resumes += sum(event == "RESUME" for event, _, _ in events)

    def lose(self) -> None:
        """The connection is gone."""
        self.connected = False

    # -- looking ------------------------------------------------------------------------------------------------------

    async def look(self, _pivot: Pivot) -> Observation:
        world = self.world
        self._reach("look")
        world.point(world.looked_between())
        self._still()
        return self._seen()

    def _seen(self) -> Observation:
        world = self.world
        qemu, libvirtd = world.qemu, world.libvirtd
        calling = bool(libvirtd.queued)
        if qemu is None:
            if libvirtd.memory is not None:
                libvirtd.qemu_has_ended()
            return Observation(Qemu.GONE, beliefs=self._beliefs(), calling=calling)
        if libvirtd.memory is None:
            if not world.original:
                return Observation(Qemu.GONE, beliefs=self._beliefs(), calling=calling)
            return Observation(Qemu.SILENT, detail="QEMU still lives, and libvirt says that it does not run")
        jobs = {}
        for disk in world.durable.disks:
            job = qemu.jobs.get(job_id(disk))
            if job is not None and disk.job in {"", job_id(disk)}:
                jobs[job_id(disk)] = JobSeen(job.status, job.error, 0, 1)
        roots = {disk.disk: root for disk in world.durable.disks if (root := world.root(disk)) is not Root.ABSENT}
        return Observation(
            Qemu.SAME if world.original else Qemu.REPLACED,
            run_state=qemu.run_state,
            jobs=jobs,
            roots=roots,
            beliefs=self._beliefs(),
            calling=calling,
            saved=qemu.run_state == "postmigrate" and libvirtd.dumped,
            uses_source=Root.SOURCE in roots.values(),
            uses_destination=Root.DESTINATION in roots.values(),
        )

    def _beliefs(self) -> dict[str, Belief]:
        libvirtd = self.world.libvirtd
        found = {}
        for disk in self.world.durable.disks:
            next_ = None if libvirtd.transient else libvirtd.config[disk.index]
            if libvirtd.memory is None:
                found[disk.disk] = Belief(Root.ABSENT, next_)
                continue
            known = libvirtd.memory[disk.index]
            name = None if known.job is JobBelief.NONE else job_id(disk)
            found[disk.disk] = Belief(known.live, next_, known.job, name)
        return found

    async def writes(self, pivot: Pivot) -> Mapping[str, tuple[int, int]]:
        wrote = int(self.world.wrote)  # since it was counted last: 1 is as much as a thousand
        if not pivot.options.guest_writes:
            self.world.wrote, wrote = False, 0
        return {disk.qdev: (0, wrote) for disk in self.world.durable.disks}

    async def unwritten(self, _pivot: Pivot) -> frozenset[str]:
        """Return the disks whose overlay is as new."""
        images = self.world.storage.images
        return frozenset(disk.disk for disk in self.world.durable.disks if not images[disk.destination.filename].own)

    async def io_limits(self, _pivot: Pivot) -> Mapping[str, Any]:
        return {}

    async def intent_facts(self) -> JsonObject:
        self._still()
        return {}

    # -- calls --------------------------------------------------------------------------------------------------------

    async def prepare(self, _pivot: Pivot, disk: PivotDisk, step: Step) -> None:
        assert step is Step.START_JOB
        self._call("start", (disk.disk,))

    async def set_bandwidth(self, pivot: Pivot) -> None:
        """Set the bandwidth of each job; libvirt refuses it where it has none."""
        world = self.world
        self._reach("bandwidth")
        for disk in pivot.disks:
            self._start("bandwidth")
            known = None if world.libvirtd.memory is None else world.libvirtd.memory[disk.index]
            refused = known is None or known.job is JobBelief.NONE
            self._end("bandwidth")
            if refused:
                raise QmpRefusedError("no block job", command="bandwidth", text="no block job")

    async def stop(self, complete: Sequence[str], leaving: Callable[[], None]) -> tuple[str, bool, int]:
        world = self.world
        assert not complete
        self._reach("suspend")
        world.point(world.meddling())
        self._still()
        before, resumes = self._run_state(), self.resumes
        leaving()
        world.ghost.told(world, ["query-status", "stop"], before)
        if before in EXECUTING:  # else the answer to the call, if it was lost, would take the answer to this with it
            self._call("suspend", ())
        return before, self.resumes != resumes, self.resumes

    async def resume(self) -> None:
        self._reach("resume")
        if (state := self._run_state()) not in {*OUR_PAUSE, "postmigrate"}:  # by libvirt's word the latter is paused
            raise QmpRefusedError(f"the guest is {state}", command="resume", text=state)
        self._call("resume", ())

    async def ask_libvirt(self, _pivot: Pivot, disks: Sequence[str], *, switch: bool) -> Asked | None:
        world = self.world
        name = "pivot" if switch else "abort"
        self._call("snapshot" if not world.has_jobs else name, tuple(disks))
        if not switch:
            return None
        world.point(world.looked_between())
        if not (self.connected and world.libvirtd.running and world.original) or world.qemu is None:
            return None
        seen = self._seen()
        destinations = {disk.disk: Root.DESTINATION for disk in world.durable.disks}
        saved, raced = frozenset[str](), False
        if not world.libvirtd.transient and set(world.libvirtd.config) == {Root.DESTINATION}:
            try:
                saved, raced = await self.agree(_pivot, destinations)
            except QmpRefusedError:
                pass  # it is tried once more, and told, by itself
            except QmpError:
                return None
        return Asked(seen.roots, seen.beliefs, saved, raced)

    async def agree(self, _pivot: Pivot, images: Mapping[str, Root]) -> tuple[frozenset[str], bool]:
        """Compare, then write: somebody else may define the guest in between, and any write may fail."""
        world = self.world
        self._reach("define")
        self._start("define")
        libvirtd = world.libvirtd
        compared = libvirtd.config
        raced = world.point(world.defining())
        lost, written, names = False, frozenset[int](), frozenset[str]()
        disks = {disk.disk: disk for disk in world.durable.disks}
        for name, image in images.items():
            index = disks[name].index
            if compared[index] is Root.OTHER:
                continue
            lost = lost or libvirtd.config[index] is Root.OTHER
            written |= {index}
            names |= {name}
            libvirtd.define(index, image)
        if world.faults and world.point([Alternative("libvirt cannot save the definition", self._full)]):
            libvirtd.config = libvirtd.file
            raise QmpRefusedError("No space left on device", command="define", text="No space left on device")
        self._edge("libvirtd has written the definition")
        libvirtd.file = libvirtd.config
        world.redefined -= written
        self._edge("the definition is not durable yet")
        libvirtd.durable = libvirtd.file
        self._end("define")
        world.lost_definition = world.lost_definition or lost  # without an answer, nobody could know
        return names, raced

    async def reverse(self, _pivot: Pivot, disk: PivotDisk, resumes: int) -> bool:
        """Take a switch back in QEMU; both images are the same while the guest is still."""
        world = self.world
        self._reach("take back")
        world.point(world.meddling())
        self._still()
        if self.resumes != resumes or self._run_state() in EXECUTING:
            return False
        if world.faults and world.point([Alternative("QEMU does not take the switch back", self._full)]):
            return False
        self._edge("the switch is about to be taken back")
        if self._run_state() == "postmigrate":  # QEMU has let go of its images, and starts no job on them
            return False
        world.take_back(disk)
        self._edge("the switch was taken back")
        return True

    async def cancel(self, jobs: Sequence[str], *, resume: bool) -> None:
        raise AssertionError((jobs, resume))  # pivotd has no job of its own on a guest of libvirt's

    async def place_thresholds(self, _pivot: Pivot) -> None:
        self._still()

    async def clean_up(self, _pivot: Pivot) -> list[str]:
        raise AssertionError

    # -- one call -----------------------------------------------------------------------------------------------------

    def _call(self, name: str, disks: tuple[str, ...]) -> None:
        world = self.world
        self._reach(name)
        if name in QUEUED and self._start(name, (name, disks)):
            return
        try:
            world.libvirtd.perform(world, name, disks, PIVOTD)
        except LibvirtdDiedError:
            self._end(name)
            raise QmpUnknownError(f"{name}: libvirtd has ended") from None
        except CallRefusedError as error:
            self._end(name)
            raise QmpRefusedError(str(error), command=name, text=str(error)) from None
        except CallFailedError as error:
            self._end(name)
            raise QmpUnknownError(f"{name}: {error}") from None
        self._end(name)
        world.hear()

    def _start(self, name: str, call: tuple[str, tuple[str, ...]] | None = None) -> bool:
        """What may happen before a call is carried out. Raises: QmpUnknownError, Died."""
        world = self.world
        alternatives = world.crash_alternatives()
        if call is not None and world.crashes:
            alternatives.append(Alternative("pivotd dies, the call waits in libvirtd:", self._wait, (call, True), 1, 0))
        if world.faults:
            alternatives += world.meddling()
            alternatives.append(Alternative("the connection breaks before", self._lost, (name,)))
            if call is not None:
                alternatives.append(Alternative("no answer, the call waits in libvirtd:", self._wait, (call, False)))
        world.point(alternatives)
        self._still()
        return False

    def _end(self, name: str) -> None:
        """What may happen to the answer. Raises: QmpUnknownError, Died."""
        world = self.world
        if world.dying:
            world.dying = False
            raise Died
        if not world.libvirtd.running:
            self._lost(name)
        alternatives = world.crash_alternatives()
        if world.faults:
            alternatives.append(Alternative("the connection breaks before the answer to", self._lost, (name,)))
        world.point(alternatives)
        self._still()

    def _wait(self, call: tuple[str, tuple[str, ...]], dies: bool) -> None:
        self.world.libvirtd.queued += (call,)
        if dies:
            raise Died
        self._lost(call[0])

    def _edge(self, label: str) -> None:
        try:
            self.world.edge(label)
        except LibvirtdDiedError:
            self._end(label)
            raise QmpUnknownError(f"{label}: libvirtd has ended") from None

    def _reach(self, what: str) -> None:
        """Raises: QmpUnsentError: the connection is gone. Calls that wait are carried out first, or not yet."""
        self._still()
        world = self.world
        if world.libvirtd.queued:
            world.point([Alternative("the call that waits gets its turn", world.run_queued, (), 0, 0)])
            self._still()
        world.say(f"    pivotd: {what}")

    def _still(self) -> None:
        if not self.world.libvirtd.running:
            self.connected = False
        if not self.connected:
            self._drop()
            raise QmpUnsentError("libvirtd is not connected")

    def _lost(self, what: str) -> None:
        self.connected = False
        self._drop()
        raise QmpUnknownError(f"{what}: the connection to libvirtd has closed")

    def _drop(self) -> None:
        world = self.world
        if world.session is self:
            world.monitor = world.session = None
            if world.asked is None or world.asked.state.attempt.ours is None:
                world.ghost.not_told(world)

    def _run_state(self) -> str:
        if self.world.qemu is None:
            raise QmpUnknownError("QEMU has ended")
        return self.world.qemu.run_state

    def _full(self) -> None:
        """The alternative is that something fails."""
