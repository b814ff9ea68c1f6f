"""Search the states of a guarded pivot of libvirt's: `python -m tests.model.libvirt_explore --crashes 2 --no-hook`."""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, replace

from pivotd.core.pivot import Identity, Phase, Pivot
from pivotd.core.request import CopyOptions, Manager, Requester
from tests.model.explore import PIVOT, advance_to, search
from tests.model.invariants import ViolationError
from tests.model.kinds import attach
from tests.model.libvirt_world import LibvirtWorld
from tests.model.libvirtd import OLDEST, Libvirtd, Release, job_id
from tests.model.points import OTHER
from tests.model.qemu import Qemu
from tests.model.storage import Storage
from tests.support.moves import Move


@dataclass(frozen=True, slots=True)
class LibvirtBounds:
    """What one search covers."""

    disks: int = 1
    crashes: int = 1
    faults: int = 0
    move: Move = Move.COPY
    hook: bool = True
    """libvirtd repairs its status file when it starts."""
    abort: bool = False
    """The job is somebody else's, and is to end without a switch."""
    transient: bool = False
    """The guest has no definition for its next boot."""
    monitor: bool = False
    """QEMU has a monitor for pivotd, and libvirtd may hang."""
    run_state: str = "running"
    from_phase: Phase = Phase.COPYING
    attempts: int = 2
    hold: bool = False
    """The pivot waits at READY for a person."""
    bandwidth: bool = False
    """Somebody may set the bandwidth at any moment, too."""
    adopted: bool = False
    """The jobs were started by somebody else; the pivot takes them over."""
    release: Release = OLDEST

    def __str__(self) -> str:
        return (
            f"libvirt {self.move}{' to be aborted' * self.abort}, {self.disks} disk(s), {self.crashes} crash(es), "
            f"{self.faults} fault(s), found {self.run_state}, from {self.from_phase}"
            f"{', no hook' * (not self.hook)}{', transient' * self.transient}{', a monitor' * self.monitor}"
            f"{', waits for a person' * self.hold}{', bandwidth set' * self.bandwidth}{', adopted' * self.adopted}"
            f"{f', libvirt {self.release[0]}' * (self.release != OLDEST)}"
        )


def first_world(bounds: LibvirtBounds) -> LibvirtWorld:
    """Return the world in which the search begins."""
    qemu = Qemu(Storage(), run_state=bounds.run_state)
    disks = [replace(attach(qemu, bounds.move, PIVOT, index, legacy=False), job="") for index in range(bounds.disks)]
    pivot = Pivot(
        id=PIVOT,
        request_id=PIVOT,
        domain="web1",
        qmp="/model",
        kind=bounds.move.kind,
        manager=Manager.LIBVIRT,
        phase=Phase.PREPARING,
        requested_by=Requester(0, 0, 1),
        options=CopyOptions(
            attempts=bounds.attempts, abort=bounds.abort, pivot=not bounds.hold, adopted=bounds.adopted
        ),
        disks=tuple(replace(disk, job=job_id(disk)) for disk in disks) if bounds.adopted else tuple(disks),
        created_at="2026-11-23T09:00:00.000000Z",
        identity=Identity("boot", 100, 100, ""),
    )
    libvirtd = Libvirtd(disks, hook=bounds.hook, transient=bounds.transient, release=bounds.release)
    world = LibvirtWorld(pivot, qemu, libvirtd, bandwidth=bounds.bandwidth)
    for disk in disks * bounds.adopted:
        libvirtd.perform(world, "start", (disk.disk,), OTHER)
    advance_to(world, bounds.from_phase)
    world.own_monitor = bounds.monitor
    world.crashes, world.faults = bounds.crashes, bounds.faults
    return world


def main() -> None:
    """Run one search from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--disks", type=int, default=1)
    parser.add_argument("--crashes", type=int, default=1)
    parser.add_argument("--faults", type=int, default=0)
    parser.add_argument("--attempts", type=int, default=2)
    parser.add_argument("--move", type=Move, default=Move.COPY, choices=list(Move))
    parser.add_argument("--no-hook", action="store_true", help="libvirtd repairs nothing when it starts")
    parser.add_argument("--abort", action="store_true", help="the job is to end without a switch")
    parser.add_argument("--transient", action="store_true", help="the guest has no definition for its next boot")
    parser.add_argument("--monitor", action="store_true", help="QEMU has a monitor for pivotd, and libvirtd may hang")
    parser.add_argument("--hold", action="store_true", help="the pivot waits at ready for a person")
    parser.add_argument("--bandwidth", action="store_true", help="somebody may set the bandwidth at any moment")
    parser.add_argument("--adopted", action="store_true", help="the jobs are somebody else's")
    parser.add_argument("--release", type=int, nargs=2, default=OLDEST, metavar=("MAJOR", "MINOR"))
    parser.add_argument("--found", default="running", help="the run state in which the guest is found")
    parser.add_argument("--from-phase", type=Phase, default=Phase.COPYING, choices=list(Phase))
    chosen = vars(parser.parse_args())
    release = tuple(chosen.pop("release"))
    bounds = LibvirtBounds(hook=not chosen.pop("no_hook"), release=release, run_state=chosen.pop("found"), **chosen)
    try:
        print(search(bounds, first_world))  # noqa: T201 - a command
    except ViolationError as error:
        print(error)  # noqa: T201 - a command
        sys.exit(1)


if __name__ == "__main__":
    main()
