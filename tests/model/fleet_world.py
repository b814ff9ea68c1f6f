"""A model host that belongs to a fleet: a World whose driver tells a fleet of its pivots.

The promises beside those of every pivot:

- At every instant, with what the fleet holds and with every write that may still reach it: an image of which the fleet is
  certain has every write that the guest was told is complete. So this host may be lost at any of them, for good.
- A guest that another host has taken is not resumed after the fleet was heard.
- A pivot that has moved a disk is not closed before the fleet knows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Self

from pivotd.core.fleet import FleetView, OnSilence
from pivotd.core.pivot import FleetStage, Phase, Pivot
from pivotd.core.rules.fleet_local import DiskHere, together
from pivotd.core.rules.fleet_owners import take_over
from pivotd.core.rules.fleet_pivots import Here, moved
from pivotd.core.rules.fleet_words import fleet_verdict
from pivotd.core.verdict import of_pivot, right_image
from pivotd.errors import FleetConflictError, FleetSilentError
from tests.model.invariants import ViolationError
from tests.model.points import PIVOTD, Alternative, Died
from tests.model.qemu import Qemu
from tests.model.world import World

HERE, THERE = "H", "N"


class ModelFleet:
    """The port of one host, over the world's view of its one domain."""

    host = HERE
    boot_id = "boot"
    timeout_s = 2.0

    def __init__(self, world: FleetWorld) -> None:
        self.world = world
        self.on_silence = world.on_silence

    async def read(self, domain: str, timeout_s: float) -> FleetView:
        world = self.world
        world.point(
            [*world.landing(), *world.crash_alternatives(), *self._silences("the fleet does not answer", timeout_s)]
        )
        return world.view

    async def write(self, before: FleetView, after: FleetView, timeout_s: float) -> FleetView:
        """Land, or not, or later; the answer arrives, or not."""
        world = self.world
        world.say(f"  fleet: {_told(after)}")
        alternatives = [*world.landing(), *world.crash_alternatives()]
        alternatives += self._silences("the write is lost", timeout_s)
        if world.faults and before.revision == world.view.revision:
            alternatives.append(Alternative("the write is late", self._late, (after, timeout_s)))
        if world.crashes and before.revision == world.view.revision:
            alternatives.append(Alternative("pivotd dies, the write is on its way", self._dies, (after,), 1, 0))
        world.point(alternatives)
        if before.revision != world.view.revision:
            raise FleetConflictError("the domain has changed")
        world.land(after)
        world.point([*world.crash_alternatives(), *self._silences("the answer to the write is lost", timeout_s)])
        return world.view

    def _silences(self, label: str, timeout_s: float) -> list[Alternative]:
        return [Alternative(label, self._silent, (timeout_s,))] if self.world.faults else []

    def _silent(self, timeout_s: float) -> None:
        self.world.pass_time(max(timeout_s, 0.0))
        raise FleetSilentError("the fleet does not answer")

    def _late(self, after: FleetView, timeout_s: float) -> None:
        self.world.wire |= {replace(after, revision=0)}
        self._silent(timeout_s)

    def _dies(self, after: FleetView) -> None:
        self.world.wire |= {replace(after, revision=0)}
        raise Died


class FleetWorld(World):
    """``wire``: writes that may still land; all were read at the present revision, since no other can."""

    def __init__(self, pivot: Pivot, qemu: Qemu, on_silence: OnSilence, *, quick: bool = True) -> None:
        self.on_silence = on_silence
        self.view = FleetView(pivot.domain)
        self.wire: frozenset[FleetView] = frozenset()
        self.taken = False
        """Another host has taken the guest, although this one is alive."""
        self.unruly: frozenset[str] = frozenset()
        """Disks that somebody else has moved, or let run: the fleet hears of it only after the journal."""
        super().__init__(pivot, qemu, quick=quick)

    def refresh(self, path: Sequence[int]) -> None:
        """Count revisions from this step on: a view in memory is the last one, or is too old for good."""
        super().refresh(path)
        self.fleet = ModelFleet(self)
        driver = getattr(self, "driver", None)
        if driver is not None and (known := driver.attempt.fleet_view) is not None:
            last = known.revision == self.view.revision
            view = replace(known, revision=0 if last else -1)
            self.driver = replace(driver, attempt=replace(driver.attempt, fleet_view=view))
        self.view = replace(self.view, revision=0)

    def copy(self, path: Sequence[int] = ()) -> Self:
        found = type(self).__new__(type(self))
        found.on_silence, found.view, found.wire = self.on_silence, self.view, self.wire
        found.taken, found.unruly = self.taken, self.unruly
        return self._copied(found, path)

    def key(self) -> object:
        return (super().key(), self.view, self.wire, self.taken, self.unruly)

    # -- the fleet ------------------------------------------------------------------------------------------------

    def land(self, after: FleetView) -> None:
        """A write is applied, and no other one that was read before it will be."""
        self.view, self.wire = replace(after, revision=self.view.revision + 1), frozenset()
        self.check_fleet()

    def landing(self) -> list[Alternative]:
        """Return which late writes may land now."""
        return [Alternative("a late write lands", self.land, (after,), 0, 0) for after in self.wire]

    def meddling(self) -> list[Alternative]:
        found = [*super().meddling(), *self.landing()]
        told = self.driver is not None and self.driver.attempt.fleet_told
        still = self.qemu is not None and self.qemu.run_state == "paused" and self.durable.owes_resume
        if self.faults and still and not told and not self.stepping and self.view.owner is not None:
            found.append(Alternative("another host takes the guest", self.take))
        return found

    def stuck(self) -> bool:
        """Return whether the pivot waits for a person: the guest belongs to another host, or would lose a snapshot."""
        return super().stuck() or (self.taken and self.durable.phase is Phase.READY)

    def take(self) -> None:
        """A person takes the guest for another host, and chooses where the fleet does not know."""
        chosen = {}
        for disk in self.durable.disks:
            word = fleet_verdict(self.view, disk.disk)
            if not word.certain:
                chosen[disk.disk] = word.candidates[0]
        after = take_over(self.view, Here(THERE, "boot", self.utc_now()), chosen)
        if not isinstance(after, str) and self.view.owner is not None and self.view.owner.host == HERE:
            self.view, self.wire = replace(after, revision=self.view.revision + 1), frozenset()
            self.taken = True

    def replacements(self) -> list[Alternative]:
        """Return how the guest may be started here again: by what the journal and the fleet say together."""
        if self.qemu is not None or not self.original or self._words() is None:
            return []
        return [Alternative("the guest is started again by `pivotctl image`", self._start)]

    def _words(self) -> FleetView | None:
        """Return what the fleet has to hold before the guest may start here; None: it must not."""
        pivot, here = self.durable, Here(HERE, "boot", self.utc_now())
        found = together(self.view, here, [DiskHere(of_pivot(pivot, disk), (pivot, disk)) for disk in pivot.disks])
        named = [right_image(disk).filename for disk in pivot.disks]
        if not all(one.certain for one in found.verdicts) or [one.image for one in found.verdicts] != named:
            return None
        return self.view if found.tell is None else found.tell

    def _start(self, wrong: bool = False) -> None:
        after = self._words()
        assert after is not None
        if after != self.view:
            self.land(after)
        super()._start(wrong)
        self.check_fleet()

    # -- promises -------------------------------------------------------------------------------------------------

    def run(self, name: str, arguments: dict[str, Any], who: str = PIVOTD) -> Any:
        gave_up = self.asked is not None and self.asked.state.attempt.fleet_silent is not None
        if name == "cont" and who == PIVOTD and self.taken and moved(self.durable) and not gave_up:
            raise ViolationError("a guest that another host has taken was resumed")
        if name == "cont" and who != PIVOTD and self.durable.owes_resume:
            # Before the fleet knows of a switch, nobody else may let the guest run: pivotd tells it as soon as it can.
            self.unruly |= {disk.disk for disk in self.durable.disks}
        reply = super().run(name, arguments, who)
        self.check_fleet()
        return reply

    def _write(self, before: Pivot, after: Pivot, event: str) -> Pivot:
        found = super()._write(before, after, event)
        if after.phase is Phase.CLOSED and moved(after) and after.fleet in {FleetStage.NONE, FleetStage.ANNOUNCED}:
            raise ViolationError(f"closed as {after.outcome} and {after.fleet}: the fleet does not know")
        for view in (self.view, *self.wire):
            left = view.intent is not None and view.intent.pivot == after.id
            if left and after.phase is Phase.CLOSED and after.fleet is not FleetStage.SUPERSEDED:
                raise ViolationError("closed, and the fleet has its intent, or will have it")
        return found

    def check_fleet(self) -> None:
        """Raise ViolationError if the fleet is certain of an image that lacks writes, now or after a late write."""
        self.unruly |= self.ghost.excused | self.ghost.merged_by_other
        if self.taken or self.ghost.replaced_wrongly or self.ghost.unplugged:
            return
        for view in (self.view, *self.wire):
            for disk in self.durable.disks:
                word = fleet_verdict(view, disk.disk)
                if not word.certain or disk.disk in self.unruly:
                    continue
                image = disk.source.filename if word.image is None else word.image.filename
                if self.storage.images[image].missing:
                    raise ViolationError(f"the fleet is certain of {image} for {disk.disk}, and that lacks writes")


def _told(view: FleetView) -> str:
    intent = "no intent" if view.intent is None else f"intent of {view.intent.pivot[-4:]}"
    return f"{intent}; " + ", ".join(f"{one.disk} {one.outcome}" for one in view.disks)
