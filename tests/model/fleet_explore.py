"""Search the real driver on a host of a fleet: `python -m tests.model.fleet_explore --crashes 2 --on-silence wait`."""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, replace

from pivotd.core import names
from pivotd.core.fleet import OnSilence
from pivotd.core.pivot import Identity, Phase, Pivot
from pivotd.core.request import CopyOptions, Requester
from pivotd.core.rules.fleet_owners import meeting
from pivotd.core.rules.fleet_pivots import Here
from tests.model.explore import PIVOT, advance_to, search
from tests.model.fleet_world import HERE, FleetWorld
from tests.model.invariants import ViolationError
from tests.model.kinds import attach
from tests.model.qemu import Qemu
from tests.model.storage import Storage
from tests.support.moves import Move


@dataclass(frozen=True, slots=True)
class DriverBounds:
    """What one search covers."""

    on_silence: OnSilence = OnSilence.RESUME
    disks: int = 1
    crashes: int = 1
    faults: int = 0
    move: Move = Move.COPY
    attempts: int = 1
    keep_synced: bool = False
    from_phase: Phase = Phase.COPYING
    owned: bool = True
    """The fleet has met the guest on this host before."""

    def __str__(self) -> str:
        return (
            f"fleet {self.move}, {self.on_silence}, {self.disks} disk(s), {self.crashes} crash(es), {self.faults} fault(s), "
            f"from {self.from_phase}{', kept in sync and undone' * self.keep_synced}"
            f"{', never met' * (not self.owned)}"
        )


def first_world(bounds: DriverBounds) -> FleetWorld:
    """Return the world in which the search begins."""
    qemu = Qemu(Storage(), run_state="running")
    disks = [attach(qemu, bounds.move, PIVOT, index, legacy=False) for index in range(bounds.disks)]
    pivot = Pivot(
        id=PIVOT,
        request_id=PIVOT,
        domain="web1",
        qmp="/model",
        kind=bounds.move.kind,
        phase=Phase.PREPARING,
        requested_by=Requester(0, 0, 1),
        options=CopyOptions(attempts=bounds.attempts, keep_synced=bounds.keep_synced),
        disks=tuple(disks),
        created_at="2026-11-23T09:00:00.000000Z",
        identity=Identity("boot", 100, 100, names.nonce_object(PIVOT)),
    )
    world = FleetWorld(pivot, qemu, bounds.on_silence)
    if bounds.owned:
        world.view = meeting(world.view, Here(HERE, "boot", pivot.created_at))
    advance_to(world, bounds.from_phase)
    world.crashes, world.faults = bounds.crashes, bounds.faults
    return world


def main() -> None:
    """Run one search from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--on-silence", type=OnSilence, default=OnSilence.RESUME, choices=list(OnSilence))
    parser.add_argument("--move", type=Move, default=Move.COPY, choices=list(Move))
    parser.add_argument("--keep-synced", action="store_true", help="with the undo window, and an undo or a release")
    parser.add_argument("--from-phase", type=Phase, default=Phase.COPYING, choices=list(Phase))
    for name in ("disks", "crashes", "faults", "attempts"):
        parser.add_argument(f"--{name}", type=int, default=getattr(DriverBounds(), name))
    try:
        print(search(replace(DriverBounds(), **vars(parser.parse_args())), first_world))  # noqa: T201 - a command
    except ViolationError as error:
        print(error)  # noqa: T201 - a command
        sys.exit(1)


if __name__ == "__main__":
    main()
