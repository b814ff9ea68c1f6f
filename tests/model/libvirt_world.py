"""A model host whose guest is libvirt's: a World with a libvirtd between pivotd and QEMU, and with people at it.

The promises of a guarded pivot, beside those of every pivot:

- pivotd resumes no guest unless QEMU and libvirt's running definition name one image of each disk, and a next boot that
  pivotd could write names it too, also after a power cut; or the record says why not.
- A next boot to which somebody else has redefined the guest is not overwritten; where it was redefined in the very moment
  of pivotd's write, the record says so.
- No verdict names an image before the outcome is recorded.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

from pivotd.core import kinds
from pivotd.core.observation import Root
from pivotd.core.pivot import Identity, Outcome, Phase, Pivot, PivotDisk, Record
from pivotd.core.verdict import is_pending
from tests.model import invariants
from tests.model.invariants import ViolationError
from tests.model.libvirt_beside import ModelOwnMonitor
from tests.model.libvirt_session import ModelLibvirtSession
from tests.model.libvirtd import CallFailedError, CallRefusedError, Known, Libvirtd, LibvirtdDiedError, job_id
from tests.model.points import OTHER, PIVOTD, Alternative, Died
from tests.model.qemu import ENDED, EXECUTING, IO_ERROR, Job, Qemu
from tests.model.world import World

HANGS = 8
"""How often in a row a hung libvirtd does not answer; each step of pivotd's tries twice, and its pause has to pass."""


class LibvirtWorld(World):
    """A host with libvirtd; ``dying``: pivotd has died in a call that libvirtd still carries out."""

    def __init__(self, pivot: Pivot, qemu: Qemu, libvirtd: Libvirtd, *, bandwidth: bool = False) -> None:
        super().__init__(pivot, qemu, bandwidth=bandwidth)
        self.libvirtd = libvirtd
        self.redefined: frozenset[int] = frozenset()
        """Disks whose next boot somebody else has defined since pivotd last did."""
        self.lost_definition = False
        """Somebody's definition was overwritten in the moment between pivotd's look and its write."""
        self.unwritten = False
        """The record says that libvirt did not write the next boot."""
        self.wrote = False
        """The guest has run since QEMU's count of its writes was recorded."""
        self.told_wrong = False
        """The record says that libvirt does not know the image of the running guest."""
        self.own_monitor = False
        """QEMU has a monitor for pivotd."""
        self.hangs = 0
        """How often libvirtd will still not answer: it runs, and goes on later."""
        self.unguarded = False
        """The guest was started without a question to pivotd."""

    def refresh(self, path: Sequence[int]) -> None:
        super().refresh(path)
        self.dying = False

    def copy(self, path: Sequence[int] = ()) -> Self:
        other = super().copy(path)
        other.libvirtd = self.libvirtd.copy()
        other.redefined, other.lost_definition = self.redefined, self.lost_definition
        other.unwritten, other.unguarded = self.unwritten, self.unguarded
        other.wrote, other.told_wrong = self.wrote, self.told_wrong
        other.own_monitor, other.hangs = self.own_monitor, self.hangs
        return other

    def key(self) -> object:
        mine = (
            self.redefined,
            self.lost_definition,
            self.unwritten,
            self.unguarded,
            self.wrote,
            self.told_wrong,
            self.hangs,
        )
        return (super().key(), self.libvirtd.key(), mine)

    # -- what there is ------------------------------------------------------------------------------------------------

    @property
    def has_jobs(self) -> bool:
        return kinds.of(self.durable).has_jobs

    @property
    def jobs(self) -> dict[str, Job]:
        assert self.qemu is not None
        return self.qemu.jobs

    def root(self, disk: PivotDisk) -> Root:
        """Return which image QEMU uses."""
        assert self.qemu is not None
        node = self.qemu.disks[disk.disk].root if disk.disk in self.qemu.disks else None
        if node is None:
            return Root.ABSENT
        sides = {disk.source.filename: Root.SOURCE, disk.destination.filename: Root.DESTINATION}
        return sides.get(self.qemu.nodes[node].filename, Root.OTHER)

    # -- QEMU, through libvirtd ---------------------------------------------------------------------------------------

    def execute(self, name: str, arguments: dict[str, Any], who: str = PIVOTD) -> None:
        """Have QEMU run a command. Raises: RefusedError."""
        reply = self.run(name, arguments, who)
        if isinstance(reply, Exception):
            raise reply

    def run(self, name: str, arguments: dict[str, Any], who: str = PIVOTD) -> Any:
        reply = super().run(name, arguments, who)
        self.wrote = self.wrote or (self.qemu is not None and self.qemu.run_state in EXECUTING)
        return reply

    def settle_jobs(self) -> None:
        """Let every job go on; libvirtd hears of it."""
        super().settle_jobs()
        self._take_notice()

    def let_job_end(self, name: str) -> None:
        """Inside a call of libvirtd's: one job goes on to its end, unless its storage fails."""
        if self.faults and self.qemu is not None and name in self.jobs:
            self.point([Alternative("it fails:", self._doom, (name, IO_ERROR))])
        while self.qemu is not None and name in self.qemu.moving():
            self.qemu.progress(name)
        self.hear()
        invariants.at_every_instant(self)

    def _take_notice(self) -> None:
        try:
            if self.qemu is not None:
                self.libvirtd.process_events(self)
        except LibvirtdDiedError:
            self._disconnect()
        self._die_now()

    def _die_now(self) -> None:
        if self.dying:
            self.dying = False
            raise Died

    def _disconnect(self) -> None:
        if self.monitor is not None:
            self.monitor.lose()
        self.monitor = self.session = None

    def take_back(self, disk: PivotDisk) -> None:
        """QEMU takes one disk back to its source."""
        assert self.qemu is not None
        found = self.qemu.disks[disk.disk]
        self.qemu.disks[disk.disk] = type(found)(disk.source.node, found.device, found.queued)
        if not self.has_jobs:
            overlay = self.qemu.nodes[disk.destination.node]
            self.qemu.nodes[disk.destination.node] = type(overlay)(overlay.driver, overlay.filename, overlay.below)
        self.say(f"    pivotd: takes {disk.disk} back to its source")
        invariants.at_every_instant(self)

    def run_queued(self) -> None:
        """A call that waited in libvirtd gets its turn."""
        try:
            self.libvirtd.run_queued(self)
        except LibvirtdDiedError:
            self._disconnect()
        self.hear()
        self._die_now()

    # -- connections and time -----------------------------------------------------------------------------------------

    def connect(self) -> None:
        """Connect to libvirtd; the first to connect starts it."""
        if self.session is not None or self._is_hung():
            return
        if not self.libvirtd.running:
            if self.faults and self.point([Alternative("libvirtd stays away", self._nothing)]):
                return
            try:
                self.libvirtd.start(self)
            except LibvirtdDiedError:
                self._die_now()
                return
            self._die_now()
        session: Any = ModelLibvirtSession(self)
        self.monitor = self.session = session

    def _is_hung(self) -> bool:
        """Return whether libvirtd, or its whole host's start of it, does not answer for now; twice: a deadline passes."""
        if self.own_monitor and self.faults and not self.hangs:
            self.point([Alternative("libvirtd hangs", self._hang)])
        if self.hangs:
            self.hangs -= 1
            return True
        return False

    def _hang(self) -> None:
        self.hangs = HANGS

    async def beside(self, _identity: Identity) -> Any:
        """Return a connection to QEMU that does not go through libvirtd."""
        if not self.own_monitor or self.qemu is None or not self.original:
            return None
        return ModelOwnMonitor(self)

    async def pause(self, changed: Any, timeout_s: float) -> None:
        """Let time pass; a call that waits in libvirtd gets its turn."""
        if self.hangs:
            self.pass_time(max(timeout_s, self.durable.options.max_pause_ms / 1000))
            return
        if self.libvirtd.queued:
            if not self.point([Alternative("the call that waits in libvirtd times out", self._drop_queued, (), 0, 0)]):
                self.run_queued()
            return
        await super().pause(changed, timeout_s)

    def _drop_queued(self) -> None:
        self.libvirtd.queued = ()

    def _nothing(self) -> None:
        """The alternative is that something does not happen."""

    # -- who may do what ----------------------------------------------------------------------------------------------

    def edge(self, label: str) -> None:
        """A place inside libvirtd's own work at which it, or anybody else, may die. Raises: LibvirtdDiedError, Died."""
        if not self.crashes:
            return
        found = [
            Alternative(f"libvirtd dies ({label})", self._libvirtd_dies, (), 1, 0),
            Alternative(f"libvirtd and pivotd die ({label})", self._libvirtd_dies, (True,), 1, 0),
            Alternative(f"power cut ({label})", self.cut_power, (), 1, 0),
        ]
        if self.qemu is not None:
            found.append(Alternative(f"QEMU dies ({label})", self.kill_qemu, (), 1, 0))
            found.append(Alternative(f"libvirtd and QEMU die ({label})", self._libvirtd_and_qemu, (), 1, 0))
        if not self.down and not self.dying:
            found.append(Alternative(f"pivotd dies, libvirtd goes on ({label})", self._dies_later, (), 1, 0))
        self.point(found)

    def _libvirtd_dies(self, pivotd_too: bool = False) -> None:
        self.libvirtd.die()
        self._disconnect()
        self.dying = self.dying or (pivotd_too and not self.down)
        raise LibvirtdDiedError

    def _libvirtd_and_qemu(self) -> None:
        self.kill_qemu()
        self._libvirtd_dies()

    def _dies_later(self) -> None:
        self.dying = True

    def crash_alternatives(self) -> list[Alternative]:
        found = super().crash_alternatives()
        if self.crashes and self.libvirtd.running:
            found.append(Alternative("libvirtd dies", self._libvirtd_ends, (), 1, 0))
            if not self.down:
                found.append(Alternative("libvirtd and pivotd die", self._libvirtd_ends, (True,), 1, 0))
        return found

    def _libvirtd_ends(self, pivotd_too: bool = False) -> None:
        self.libvirtd.die()
        self._disconnect()
        if pivotd_too:
            raise Died

    def kill_qemu(self) -> None:
        self.qemu = None
        self.storage.forget_untold()
        self.storage.lose_tables()
        invariants.at_every_instant(self)

    def cut_power(self) -> None:
        """End everything. Whether a renamed definition was on disk already, nobody can tell before."""
        self.storage.cut_power()
        written = self.libvirtd.file
        self.libvirtd.power_cut()
        self._disconnect()
        self.kill_qemu()
        if written != self.libvirtd.file:
            self.point([Alternative("the definition is on disk after all", self._was_durable, (written,), 0, 0)])
        self.ghost.replaced_wrongly = self.ghost.replaced_wrongly or self.unguarded
        if not self.down:
            raise Died

    def _was_durable(self, written: tuple[Root, ...]) -> None:
        libvirtd = self.libvirtd
        libvirtd.config = libvirtd.file = libvirtd.durable = written

    def looked_between(self) -> list[Alternative]:
        """Return what may happen right before a look is answered."""
        found = self.meddling()
        if self.qemu is not None and self.qemu.moving():
            found.append(Alternative("time passes, jobs go on", self.settle_jobs, (), 0, 0))
        return found

    def meddling(self) -> list[Alternative]:
        found = super().meddling()
        if not self.faults or not self.libvirtd.running:
            return found
        return found + self.defining()

    def _others(self, qemu: Qemu) -> list[Alternative]:
        """What somebody else asks of libvirt."""
        if not self.libvirtd.running or self.libvirtd.memory is None:
            return []
        state = qemu.run_state
        found = [Alternative("virsh", self.virsh, ("suspend",))] if state == "running" else []
        if state not in EXECUTING and state != "shutdown":
            found.append(Alternative("virsh", self.virsh, ("resume",)))
        if state == "paused":
            found.append(Alternative("virsh", self.virsh, ("reset",)))
            if all(job.status in ENDED for job in qemu.jobs.values()):
                found.append(Alternative("virsh", self.virsh, ("dump",)))
        for disk in self.durable.disks:
            job = qemu.jobs.get(job_id(disk))
            if job is not None and job.status not in ENDED:
                found += [Alternative("virsh", self.virsh, (name, disk.disk)) for name in ("pivot", "abort")]
        return found

    def virsh(self, name: str, disk: str = "") -> None:
        """Somebody else calls libvirtd."""
        self.say(f"  other: virsh {name} {disk}")
        if name == "reset":
            self.execute("system_reset", {}, OTHER)
            return
        if name == "dump":
            assert self.qemu is not None
            self.qemu.run_state, self.libvirtd.dumped = "postmigrate", True
            return
        if name == "pivot":
            self.ghost.excused |= {disk}
        try:
            self.libvirtd.perform(self, name, (disk,) if disk else (), OTHER)
        except (CallRefusedError, CallFailedError) as error:
            self.say(f"  other: refused: {error}")
        except LibvirtdDiedError:
            self._disconnect()
        self.hear()
        self._die_now()

    def defining(self) -> list[Alternative]:
        """Return how somebody else may redefine the next boot."""
        libvirtd = self.libvirtd
        if not self.faults or libvirtd.transient or not libvirtd.running:
            return []
        found = []
        for disk in self.durable.disks:
            now = libvirtd.config[disk.index]
            if now is not Root.OTHER:
                found.append(Alternative("virsh define", self.redefine, (disk.index, Root.OTHER)))
            if now is Root.DESTINATION:
                found.append(Alternative("virsh define", self.redefine, (disk.index, Root.SOURCE)))
        return found

    def redefine(self, index: int, image: Root) -> None:
        """Somebody else defines the next boot of a disk."""
        self.say(f"  other: virsh define: disk{index} {image}")
        self.libvirtd.define(index, image)
        self.libvirtd.file = self.libvirtd.config
        self.redefined |= {index}

    def replacements(self) -> list[Alternative]:
        """Return how the guest may be started again: libvirt knows only its definition for the next boot."""
        libvirtd = self.libvirtd
        if self.qemu is not None or not self.original or not libvirtd.running or libvirtd.transient:
            return []
        if Root.OTHER in libvirtd.config:
            return []
        libvirtd.qemu_has_ended()
        return [Alternative("virsh start", self._virsh_start)]

    def _virsh_start(self) -> None:
        self.read_journal()
        qemu = Qemu(self.storage)
        self.qemu, self.original = qemu, False
        self.ghost.pause_of = None
        pending = any(is_pending(self.durable, disk) for disk in self.durable.disks)
        self.unguarded = self.unguarded or pending
        for disk in self.durable.disks:
            next_ = self.libvirtd.config[disk.index]
            image = disk.destination if next_ is Root.DESTINATION else disk.source
            right = invariants.image_by_rule(self.durable, disk)
            if not pending and image != right:
                self.ghost.replaced_wrongly = True
            missing = self.storage.images[image.filename]
            qemu.attach(disk.disk, f"new{disk.index}", image.filename)
            self.storage.images[image.filename] = missing
        self.libvirtd.memory = self.libvirtd.status = tuple(map(Known, self.libvirtd.config))
        qemu.guest_runs()

    # -- promises -----------------------------------------------------------------------------------------------------

    def may_resume(self, who: str) -> None:
        """Raises: ViolationError: pivotd resumes a guest of which somebody names a wrong image."""
        if who != PIVOTD or self.qemu is None or self.qemu.run_state in EXECUTING:
            return
        libvirtd, pivot = self.libvirtd, self.durable
        assert libvirtd.memory is not None
        for disk in pivot.disks:
            root, index = self.root(disk), disk.index
            if disk.disk in self.ghost.excused:
                continue
            if root not in {Root.SOURCE, Root.DESTINATION}:
                raise ViolationError(f"resumed on {root}")
            known = (libvirtd.memory[index].live, (libvirtd.status or libvirtd.memory)[index].live)
            if known != (root, root) and not self.told_wrong:
                raise ViolationError(f"resumed on the {root} of {disk.disk}, which libvirt does not know")
            job = self.jobs.get(job_id(disk))
            if job is not None and job.completing and root is Root.SOURCE:
                raise ViolationError(f"resumed while {disk.disk} is about to move")
            excused = libvirtd.transient or index in self.redefined or self.unwritten
            touched = pivot.asking or pivot.phase is Phase.DECIDED or root is Root.DESTINATION
            if touched and not excused and libvirtd.durable[index] is not root:
                raise ViolationError(
                    f"resumed on the {root} of {disk.disk}, and the next boot is another, or not durable"
                )

    def may_resume_alone(self) -> None:
        """Raises: ViolationError: pivotd resumes a guest without libvirt, and a disk is, or may soon be, elsewhere."""
        pivot = self.durable
        for disk in pivot.disks:
            root, job = self.root(disk), self.jobs.get(job_id(disk))
            right = Root.DESTINATION if disk.outcome is Outcome.SWITCHED else Root.SOURCE
            if root is not right and disk.disk not in self.ghost.excused:
                raise ViolationError(f"resumed without libvirt on the {root} of {disk.disk}")
            asked = pivot.asking or any(name in {"pivot", "snapshot"} for name, _ in self.libvirtd.queued)
            alive = job is not None and job.status not in ENDED
            if asked and root is Root.SOURCE and (alive or not self.has_jobs) and pivot.phase is not Phase.READY:
                raise ViolationError(f"resumed without libvirt, which may still switch {disk.disk}")

    def _write(self, before: Pivot, after: Pivot, event: str) -> Pivot:
        decides = after.phase is Phase.DECIDED and before.phase is not Phase.DECIDED
        told = after.error or ""
        if decides and self.lost_definition and "somebody else defined" not in told and self.original:
            raise ViolationError("somebody's definition was overwritten, and the record does not say so")
        if decides and before.asking and "did not write" not in told:
            self._check_next_boot(after)
        try:
            return super()._write(before, after, event)
        finally:  # whoever dies right after it
            if decides and self.durable.phase is Phase.DECIDED:
                self.unwritten = self.unwritten or "did not write" in told
                self.told_wrong = self.told_wrong or "does not know" in told

    def moved_by_others(self) -> frozenset[str]:
        if self.qemu is None:
            return self.ghost.excused
        completing = {job.disk for job in self.jobs.values() if job.completing}
        moved = {disk.disk for disk in self.durable.disks if self.root(disk) is Root.DESTINATION}
        return frozenset(completing | moved)

    def _check_next_boot(self, pivot: Pivot) -> None:
        """Raises: ViolationError: an outcome is recorded, and the guest would start from another image after a power cut."""
        libvirtd = self.libvirtd
        for disk in pivot.disks:
            image = {Outcome.KEPT: Root.SOURCE, Outcome.SWITCHED: Root.DESTINATION}.get(disk.outcome or Outcome.UNKNOWN)
            excused = libvirtd.transient or disk.index in self.redefined or disk.disk in self.ghost.excused
            if image is not None and not excused and libvirtd.durable[disk.index] is not image:
                raise ViolationError(
                    f"{disk.disk} is recorded on its {image}, and the next boot is another, or not durable"
                )

    async def note(self, event: str, facts: dict[str, Any], **whose: Any) -> Record:
        found = await super().note(event, facts, **whose)
        self.lost_definition = self.lost_definition and event != "define-raced"
        return found

    def forgotten(self) -> bool:
        """Return whether libvirtd runs and takes the guest, which still lives, for shut off."""
        libvirtd = self.libvirtd
        return self.qemu is not None and self.original and libvirtd.running and libvirtd.memory is None

    def stuck(self) -> bool:
        """Return whether the guest waits for a person: libvirt does not know its image, and it was not taken back."""
        if self.qemu is None or self.libvirtd.memory is None or not self.original:
            return False
        if self.qemu.run_state == "postmigrate" and not self.libvirtd.dumped and self.durable.owes_resume:
            return True  # by a dump, or by a migration to another host: nobody knows
        wrong = any(self.libvirtd.memory[disk.index].live is not self.root(disk) for disk in self.durable.disks)
        if self.durable.phase is Phase.DECIDED and not self.durable.owes_resume:
            return wrong  # somebody else has moved or resumed it
        tried = self.driver is not None and self.driver.attempt.rollback_failed
        tried = tried or self.qemu.run_state == "postmigrate"  # QEMU would start no mirror
        return wrong and tried and self.qemu.run_state not in EXECUTING
