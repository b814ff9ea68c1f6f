"""The promises as checks on a model world, and what only a judge knows: whose pause it is, who has meddled.

G1: the image that the rule names holds every acknowledged write, at every instant.
G2: `unknown` only where facts contradict.
G3: a guest that ran is not left in a pause of pivotd's; a pause of somebody else is not ended.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pivotd.core.observation import OUR_PAUSE
from pivotd.core.phases import is_resting
from pivotd.core.pivot import FleetStage, Image, Outcome, Phase, Pivot, PivotDisk
from pivotd.core.request import Kind, Manager
from pivotd.core.verdict import is_pending
from tests.model.qemu import EXECUTING

if TYPE_CHECKING:
    from tests.model.world import World


class ViolationError(AssertionError):
    """A promise does not hold."""


@dataclass(slots=True)
class Ghost:
    """``excused``: disks on which somebody else let the guest write, or switched it, before a switch was recorded."""

    pause_of: str | None = None
    """Whose the present pause is, None while the guest runs."""
    excused: frozenset[str] = frozenset()
    unseen_stop: bool = False
    """Somebody else's `stop` that pivotd could not tell from its own: given after the look on which the intent rests,
    and not shown by the question that leaves in one write with its own `stop`."""
    blind: bool = False
    """Under this intent no living pivotd has seen the guest run: a pause may be that of an earlier one."""
    unplugged: bool = False
    merged_by_other: frozenset[str] = frozenset()
    """Disks whose merge somebody else finalized, without the flush that has to come before."""
    replaced_wrongly: bool = False
    shown: bool = False
    """QEMU's last answer has shown pivotd an internal snapshot that a disk would lose."""

    def key(self) -> object:
        """Return what tells two of them apart."""
        return (
            self.pause_of,
            self.excused,
            self.unseen_stop,
            self.blind,
            self.unplugged,
            self.merged_by_other,
            self.replaced_wrongly,
            self.shown,
        )

    def run_state_changed(self, world: World, before: str, after: str, who: str) -> None:
        """Keep account of whose pause it is; pivotd must not end one that is not its own."""
        if after in EXECUTING and before not in EXECUTING:
            if who == "pivotd" and self.pause_of != "pivotd" and not self.unseen_stop:
                raise ViolationError(f"G3: pivotd resumed a guest in state {before} that {self.pause_of} had stopped")
            self.pause_of = None
            self.unseen_stop = False
        elif before in EXECUTING and after not in EXECUTING:
            self.pause_of = who
            self.unseen_stop = who != "pivotd"

    def told(self, world: World, commands: list[str], run_state: str) -> None:
        """Pivotd has got an answer about the run state: without an intent, or with its own `stop`, it knows whose it is."""
        self.blind = self.blind and run_state not in EXECUTING and world.durable.owes_resume
        asked_in_time = "stop" in commands and not self.blind
        if run_state not in EXECUTING and (asked_in_time or not world.durable.owes_resume):
            self.unseen_stop = False

    def forgot(self, world: World) -> None:
        """Pivotd has died: what it knew and had not recorded is lost."""
        owes = world.durable.owes_resume
        self.blind = owes
        self.unseen_stop = self.unseen_stop or (self.pause_of == "other" and owes)
        self.not_told(world)

    def not_told(self, world: World) -> None:
        """Pivotd cannot know that it stopped a guest found paused, which somebody had resumed after the intent."""
        if self.pause_of == "pivotd" and not world.durable.owes_resume:
            self.pause_of = "other"

    def meddled(self, world: World, command: str) -> None:
        """Note where somebody else lets the guest write, or moves a root, before the switch can be recorded.

        The rule has no ground then until pivotd has looked and recorded what it sees.
        """
        qemu = world.qemu
        assert qemu is not None
        self.unplugged = self.unplugged or command == "device_del"
        jobs = {disk.job: disk for disk in world.durable.disks if not disk.switches}
        if command == "job-finalize":
            self.merged_by_other |= {
                disk.disk
                for name, disk in jobs.items()
                if name not in qemu.jobs or qemu.jobs[name].status == "concluded"
            }
        open_pause = world.durable.phase in {Phase.PAUSING, Phase.CANCELLING} and command == "cont"
        if open_pause or command in {"job-finalize", "cont"}:
            roots = {name: disk.root for name, disk in qemu.disks.items()}
            self.excused |= {
                disk.disk
                for disk in world.durable.disks
                if disk.switches
                and disk.outcome is None
                and (open_pause or roots.get(disk.disk) == disk.destination.node)
            }


def image_by_rule(pivot: Pivot, disk: PivotDisk) -> Image:
    """Return the image that holds the disk's data: the destination only with a durable ``switched``."""
    decided = pivot.phase in {Phase.DECIDED, Phase.CLOSED}
    return disk.destination if decided and disk.outcome is Outcome.SWITCHED else disk.source


def at_every_instant(world: World) -> None:
    """Raise ViolationError unless G1 holds now, with what is on disk and with what may be."""
    for pivot in (world.durable, world.maybe):
        for disk in pivot.disks if pivot is not None else ():
            if disk.outcome is Outcome.UNKNOWN or disk.disk in world.ghost.excused or world.ghost.replaced_wrongly:
                continue
            if disk.disk in world.ghost.merged_by_other or is_pending(pivot, disk):
                continue
            image = image_by_rule(pivot, disk)
            if world.storage.images[image.filename].missing:
                raise ViolationError(f"G1: {image.filename} is the image of {disk.disk} by the rule and lacks writes")


def when_recorded(world: World, before: Pivot) -> None:
    """Raise ViolationError for an outcome that is not so, or that nobody may record now."""
    pivot = world.durable
    ghost, qemu = world.ghost, world.qemu
    if pivot.phase is Phase.READY and before.phase is not Phase.READY:
        # pivotd has looked; what a person asks for at READY is recorded without a look
        ghost.excused &= world.moved_by_others()
    if pivot.phase is Phase.PAUSING and before.phase is Phase.READY and ghost.shown:
        raise ViolationError("a pause begins although QEMU has shown a snapshot that a disk would lose")
    if pivot.phase is not Phase.DECIDED or before.phase is Phase.DECIDED:
        return
    for disk in pivot.disks:
        if disk.outcome is Outcome.UNKNOWN and not (ghost.unplugged or ghost.replaced_wrongly or ghost.excused):
            raise ViolationError(f"G2: {disk.disk} is recorded as unknown though nothing contradicts")
        if disk.disk in ghost.excused and disk.outcome is not Outcome.UNKNOWN and world.original and qemu is not None:
            # Somebody else broke the rule's ground: from the record on, it must hold again.
            ghost.excused -= {disk.disk}


def at_rest(world: World) -> None:
    """Raise ViolationError if a pivot that goes no further has left the guest paused, or something undone."""
    pivot, qemu = world.durable, world.qemu
    if not is_resting(pivot) or pivot.fleet is FleetStage.SUPERSEDED:
        return  # a guest that another host has taken stays paused
    if qemu is not None and world.original and pivot.outcome != Outcome.UNKNOWN.value:
        if world.ghost.pause_of == "pivotd" and qemu.run_state in {*OUR_PAUSE, "postmigrate"}:
            raise ViolationError(f"G3: the guest was left {qemu.run_state}")
        if pivot.phase is Phase.CLOSED and any(job.status == "pending" for job in qemu.jobs.values()):
            raise ViolationError("a job was left pending: it holds the guest's I/O")
        theirs = pivot.options.adopted or world.ghost.unplugged or pivot.manager is Manager.LIBVIRT
        if pivot.phase is Phase.CLOSED and not theirs and (left := qemu.unused()):
            raise ViolationError(f"G5: these nodes were left, which no disk uses: {left}")
        if pivot.options.adopted and pivot.kind is Kind.COPY and pivot.manager is not Manager.LIBVIRT:
            for disk in pivot.disks:
                if disk.outcome is Outcome.KEPT and disk.destination.node not in qemu.nodes:
                    raise ViolationError(f"G5: {disk.destination.node} was closed, which somebody else had opened")
