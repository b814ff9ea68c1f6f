"""Guarded pivots of libvirt's: no crash of libvirtd, pivotd, QEMU or the host, no fault and nobody breaks a promise.

Bigger searches: python -m tests.model.libvirt_explore --crashes 2 --faults 1.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from pivotd.core.pivot import Phase
from tests.model.explore import search
from tests.model.libvirt_explore import LibvirtBounds, first_world
from tests.model.libvirt_world import LibvirtWorld
from tests.model.points import OTHER
from tests.support.moves import Move

pytestmark = pytest.mark.timeout(2400)

NEWEST = (12, 8)
SNAPSHOT = {"move": Move.SNAPSHOT, "from_phase": Phase.PREPARING}
SEARCHES = [
    LibvirtBounds(crashes=1),
    LibvirtBounds(crashes=1, hook=False),
    LibvirtBounds(crashes=1, **SNAPSHOT),
    LibvirtBounds(crashes=1, abort=True),
    LibvirtBounds(crashes=1, abort=True, move=Move.COMMIT),
    LibvirtBounds(crashes=1, disks=2),
    LibvirtBounds(crashes=0, faults=1),
    LibvirtBounds(crashes=0, faults=1, transient=True),
    LibvirtBounds(crashes=0, faults=1, disks=2),
    *(LibvirtBounds(crashes=crashes, faults=1 - crashes, monitor=True) for crashes in (0, 1)),
    LibvirtBounds(crashes=1, release=NEWEST),
    LibvirtBounds(crashes=1, hold=True),
    LibvirtBounds(crashes=1, adopted=True, abort=True, from_phase=Phase.PREPARING),
]
LONG = [
    *(LibvirtBounds(crashes=1, faults=1, monitor=monitor) for monitor in (False, True)),
    *(LibvirtBounds(crashes=crashes) for crashes in (2, 3)),
    LibvirtBounds(crashes=2, **SNAPSHOT),
    LibvirtBounds(crashes=2, hook=False),
    LibvirtBounds(crashes=2, abort=True),
    *(LibvirtBounds(crashes=2, disks=2, hook=hook) for hook in (True, False)),
    LibvirtBounds(crashes=1, faults=1, hook=False),
    *(LibvirtBounds(crashes=1, faults=1, move=Move.COMMIT, hook=hook) for hook in (True, False)),
    LibvirtBounds(crashes=1, faults=1, **SNAPSHOT),
    LibvirtBounds(crashes=1, faults=1, disks=2, **SNAPSHOT),
    *(LibvirtBounds(crashes=1, faults=1, abort=True, move=move) for move in (Move.COPY, Move.COMMIT)),
    LibvirtBounds(crashes=1, faults=1, transient=True),
    LibvirtBounds(crashes=1, faults=1, disks=2),
    LibvirtBounds(crashes=1, faults=1, from_phase=Phase.PREPARING),
    *(LibvirtBounds(crashes=1, faults=1, run_state=state) for state in ("paused", "io-error")),
    LibvirtBounds(crashes=0, faults=2),
    LibvirtBounds(crashes=0, faults=2, monitor=True),
    LibvirtBounds(crashes=2, faults=1, monitor=True),
    LibvirtBounds(crashes=1, faults=1, monitor=True, hook=False),
    LibvirtBounds(crashes=1, faults=1, monitor=True, disks=2),
    LibvirtBounds(crashes=1, faults=1, monitor=True, **SNAPSHOT),
    *(LibvirtBounds(crashes=1, faults=1, monitor=True, move=Move.COMMIT, abort=abort) for abort in (False, True)),
    LibvirtBounds(crashes=2, faults=1),
    LibvirtBounds(crashes=1, faults=1, hook=False, release=NEWEST),
    LibvirtBounds(crashes=1, faults=1, hold=True, bandwidth=True),
    LibvirtBounds(crashes=1, faults=1, adopted=True, from_phase=Phase.PREPARING),
    LibvirtBounds(crashes=1, faults=1, adopted=True, abort=True, move=Move.COMMIT, from_phase=Phase.PREPARING),
]


@pytest.mark.parametrize(
    "bounds", [*SEARCHES, *(pytest.param(bounds, marks=pytest.mark.long) for bounds in LONG)], ids=str
)
def test_every_state_of_a_guarded_pivot_keeps_every_promise(bounds: LibvirtBounds, capsys: pytest.CaptureFixture[str]):
    """G1, G2, G3 at every instant, agreement at every resume; every path comes to rest where libvirtd comes back."""
    found = search(bounds, first_world)
    with capsys.disabled():
        print(f"\n{found}", end="", flush=True)  # noqa: T201 - the size of the proof
    assert found.resting


@pytest.mark.parametrize("move", [Move.COPY, Move.COMMIT, Move.SNAPSHOT])
def test_the_search_reaches_every_phase_and_both_outcomes(move: Move):
    """What is never visited would be proven for nothing."""
    found = search(LibvirtBounds(crashes=1, faults=0, move=move, from_phase=Phase.PREPARING), first_world)
    assert found.phases >= {Phase.PREPARING, Phase.PAUSING, Phase.DECIDED, Phase.CLOSED}
    assert found.outcomes >= {"switched", "kept"}


def test_a_suspend_that_still_waits_in_libvirtd_does_not_leave_the_guest_paused():
    """Another one has paused the guest already: the resume after that is not the last that pivotd owes."""

    def killed(bounds: LibvirtBounds) -> LibvirtWorld:
        world = first_world(bounds)
        world.libvirtd.perform(world, "suspend", ())
        world.libvirtd.queued = (("suspend", ("disk0",)),)
        intent = {"owes_resume": True, "run_state_before": "running", "attempt": 1}
        world.durable = replace(world.durable, phase=Phase.READY, **intent)
        world.driver, world.down, world.session, world.monitor = None, True, None, None
        return world

    found = search(LibvirtBounds(crashes=0), killed)
    assert found.outcomes == {"switched"}


@pytest.mark.parametrize("move", [Move.COPY, Move.SNAPSHOT])
@pytest.mark.parametrize(
    ("resumed", "counted"),
    [(False, True), (True, True), (False, False)],
    ids=["still", "resumed and suspended", "killed before its writes were counted"],
)
def test_a_switch_of_which_libvirt_does_not_learn_is_taken_back_unless_the_guest_has_written(
    resumed: bool, counted: bool, move: Move
):
    """While pivotd and libvirtd were dead, nobody saw whether it ran; QEMU's count of its writes tells, if known.

    Of a snapshot the overlay tells, always.
    """

    def killed(bounds: LibvirtBounds) -> LibvirtWorld:
        world = first_world(bounds)
        world.libvirtd.perform(world, "suspend", ())
        options = replace(world.durable.options, guest_writes=(("disk0", 0),) if counted else ())
        intent = {"asking": True, "owes_resume": True, "run_state_before": "running", "attempt": 1}
        if world.has_jobs:
            world.execute("job-complete", {"id": "copy-disk0"})
        else:
            told = world.libvirtd.copy()
            world.libvirtd.perform(world, "snapshot", ("disk0",))
            world.libvirtd = told
        world.durable = replace(world.durable, phase=Phase.PAUSING, options=options, **intent)
        world.libvirtd.die()
        world.settle_jobs()
        world.wrote = False
        for command in ("cont", "stop") if resumed else ():
            world.execute(command, {}, OTHER)
        world.driver, world.down, world.session, world.monitor = None, True, None, None
        return world

    begins_at = Phase.PREPARING if move is Move.SNAPSHOT else Phase.COPYING
    found = search(LibvirtBounds(crashes=0, hook=False, move=move, from_phase=begins_at), killed)
    back = not resumed and (counted or move is Move.SNAPSHOT)
    assert found.outcomes == {"kept" if back else "switched"}
