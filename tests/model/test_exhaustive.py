"""Rung 1: no crash, fault or other person leads the real driver into a state in which a promise does not hold.

Each search is complete within its bounds; bigger ones: python -m tests.model.explore --crashes 3 --faults 1 --disks 2.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from pivotd.core.pivot import Phase
from tests.model.explore import Bounds, first_world, search
from tests.model.invariants import ViolationError
from tests.model.world import World
from tests.support.moves import Move

pytestmark = pytest.mark.timeout(900)

CHAINS = [move for move in Move if move is not Move.COPY]
FOUND = ("paused", "io-error", "shutdown")
SEARCHES = [
    Bounds(disks=1, crashes=3, faults=0),
    Bounds(disks=2, crashes=2, faults=0, quick=False),
    Bounds(disks=1, crashes=0, faults=1, bandwidth=True),
    Bounds(disks=1, crashes=2, faults=0, keep_synced=True),
    Bounds(disks=1, crashes=0, faults=1, keep_synced=True),
    *(Bounds(disks=1, crashes=c, faults=1 - c, run_state=state) for c in (0, 1) for state in FOUND),
    *(Bounds(disks=1, crashes=c, faults=1 - c, adopted=True, from_phase=Phase.COPYING) for c in (0, 1)),
    Bounds(disks=2, crashes=2, faults=0, adopted=True),
    *(Bounds(disks=2, crashes=2, faults=0, move=move) for move in CHAINS),
    *(Bounds(disks=1, crashes=2, faults=0, move=move, named=True) for move in Move),
    *(Bounds(disks=1, crashes=0, faults=1, move=move, named=True) for move in (Move.COPY, Move.COMMIT)),
    *(Bounds(disks=2, crashes=0, faults=1, move=move) for move in CHAINS),
    Bounds(disks=1, crashes=1, faults=1, move=Move.PULL, run_state="paused"),
]
LONG = [
    Bounds(disks=1, crashes=1, faults=1),
    Bounds(disks=2, crashes=3, faults=0),
    Bounds(disks=3, crashes=0, faults=1),
    Bounds(disks=3, crashes=3, faults=0),
    Bounds(disks=3, crashes=3, faults=0, quick=False),
    *(Bounds(disks=1, crashes=1, faults=1, run_state=state) for state in FOUND),
    Bounds(disks=1, crashes=1, faults=1, adopted=True, from_phase=Phase.COPYING),
    Bounds(disks=1, crashes=1, faults=1, quick=False, from_phase=Phase.COPYING),
    Bounds(disks=1, crashes=1, faults=1, hold=True, from_phase=Phase.COPYING),
    Bounds(disks=1, crashes=1, faults=1, move=Move.SNAPSHOT, run_state="paused"),
    *(Bounds(disks=1, crashes=1, faults=1, move=move) for move in CHAINS),
    *(Bounds(disks=1, crashes=1, faults=1, move=move, named=True) for move in Move),
    Bounds(disks=1, crashes=0, faults=2, from_phase=Phase.COPYING),
    *(Bounds(disks=1, crashes=0, faults=2, move=move, run_state="paused") for move in Move),
    Bounds(disks=2, crashes=1, faults=1, from_phase=Phase.COPYING),
    Bounds(disks=1, crashes=1, faults=1, bandwidth=True),
    Bounds(disks=1, crashes=0, faults=2, hold=True, from_phase=Phase.COPYING),
    Bounds(disks=1, crashes=1, faults=1, keep_synced=True),
    Bounds(disks=1, crashes=1, faults=1, legacy=True),
    Bounds(disks=1, crashes=2, faults=1, from_phase=Phase.COPYING),
    Bounds(disks=1, crashes=1, faults=1, keep_synced=True, legacy=True),
    Bounds(disks=2, crashes=3, faults=0, keep_synced=True),
    *(Bounds(disks=1, crashes=1, faults=1, move=move, quick=False) for move in (Move.PULL, Move.SNAPSHOT)),
    Bounds(disks=1, crashes=1, faults=1, move=Move.COMMIT, legacy=True),
    *(Bounds(disks=1, crashes=1, faults=1, move=move, adopted=True) for move in (Move.COPY, Move.COMMIT)),
]


@pytest.mark.parametrize(
    "bounds", [*SEARCHES, *(pytest.param(bounds, marks=pytest.mark.long) for bounds in LONG)], ids=str
)
def test_every_state_within_the_bounds_keeps_every_promise(bounds: Bounds, capsys: pytest.CaptureFixture[str]):
    """G1, G2 and G3 at every instant; a decision in every state; every path comes to rest within its bound."""
    found = search(bounds)
    with capsys.disabled():
        print(f"\n{found}", end="", flush=True)  # noqa: T201 - the size of the proof
    assert found.resting


@pytest.mark.parametrize("move", Move)
def test_the_search_reaches_every_phase_and_both_outcomes(move: Move):
    """What is never visited would be proven for nothing."""
    found = search(Bounds(crashes=0, faults=1, move=move))
    assert found.phases == set(Phase)
    assert found.outcomes >= {"merged" if move in {Move.PULL, Move.INNER_COMMIT} else "switched", "kept"}


def test_the_search_reaches_undone_switches_and_undos_that_kept_the_new_image():
    """The way back is searched, not only the window."""
    found = search(Bounds(crashes=1, faults=0, keep_synced=True))
    assert found.outcomes >= {"switched", "undo switched", "undo kept"}


def test_a_broken_promise_is_told_as_a_story():
    """The judge itself: an image that lacks a write from the beginning is found, with the path to it."""

    def spoiled(bounds: Bounds) -> World:
        world = first_world(bounds)
        images = world.storage.images
        images["/old/disk0"] = replace(images["/old/disk0"], missing=1)
        return world

    with pytest.raises(ViolationError, match=r"G1.*\n.*\n.*path:"):
        search(Bounds(), spoiled)
