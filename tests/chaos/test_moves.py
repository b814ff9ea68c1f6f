"""Commits, pulls and snapshots killed at every point: real QEMU, real SIGKILL.

``python -m tests.chaos.campaign --move pull`` runs the rest too: each query, each system call, each recovery.
"""

from __future__ import annotations

import pytest

from tests.chaos import campaign
from tests.chaos.image_check import CHANGING
from tests.chaos.plan import Plan, Setup, Victims
from tests.chaos.test_kill import PAUSE, assert_kept, late, one_of_each
from tests.conftest import LONG
from tests.support.moves import Move
from tests.support.seeds import rng

pytestmark = [pytest.mark.qemu, pytest.mark.chaos, pytest.mark.timeout(600)]

CHAINS = [move for move in Move if move is not Move.COPY]
IN_ORDER = {
    Move.COPY: "blockdev-mirror stop job-complete job-finalize cont job-dismiss",
    Move.COMMIT: "block-commit stop job-complete job-finalize cont job-dismiss",
    Move.INNER_COMMIT: "block-commit stop job-finalize cont job-dismiss",
    Move.PULL: "block-stream stop job-finalize cont job-dismiss",
    Move.SNAPSHOT: "stop transaction cont job-dismiss",
}


@pytest.mark.parametrize("move", Move)
def test_the_commands_come_in_the_order_of_the_protocol(move: Move):
    """What changes something, from the job on: docs/protocol.md, the steps; of several pauses in the last one."""
    seen = [label for _, label, _ in campaign.clean(Plan(Setup(move=move))).messages]
    asked = [name for kind, _, name in (label.partition(":") for label in seen) if kind == "command"]
    wanted = IN_ORDER[move].split()
    changing = [name for name in asked if name in CHANGING]
    first, last = (changing.index("stop"), len(changing) - 1 - changing[::-1].index("stop"))
    begun = changing[changing.index(wanted[0]) : first]
    assert list(dict.fromkeys([*begun, *changing[last:]]))[: len(wanted)] == wanted


@pytest.mark.parametrize(
    "move", [Move.COMMIT, *(pytest.param(move, marks=pytest.mark.long) for move in (Move.PULL, Move.SNAPSHOT))]
)
def test_in_the_pause_with_qemu_alive(move: Move):
    """After the restart the guest runs again, on the image and the chain that the journal tells."""
    plans = one_of_each(late(campaign.message_plans(Setup(move=move), thin=True), PAUSE))
    assert_kept(plans, struck_min=len(plans) - 1)


@pytest.mark.thinned(2)
@pytest.mark.parametrize("move", CHAINS)
def test_in_the_pause_with_qemu_killed_too(move: Move):
    """The journal alone names an image that holds every acknowledged block, those of merged layers too."""
    plans = one_of_each(late(campaign.message_plans(Setup(move=move), victims=Victims.BOTH, thin=True), PAUSE))
    assert_kept(plans, struck_min=len(plans) - 1)


@pytest.mark.thinned(2)
@pytest.mark.parametrize("move", [Move.PULL, Move.SNAPSHOT])
def test_two_disks(move: Move):
    """Killed between two merges, and around the one transaction."""
    plans = late(campaign.message_plans(Setup(disks=2, move=move), thin=True), {"job-finalize", "transaction"})
    plans = plans if LONG else rng("two disks", move).sample(plans, 2)
    assert_kept(plans, struck_min=len(plans))


@pytest.mark.long
@pytest.mark.parametrize("move", [Move.COMMIT, Move.SNAPSHOT])
def test_a_bitmap_stays_with_the_disk_whenever_pivotd_dies(move: Move):
    """The image that the guest ends on has the bitmap, recording, with every block marked."""
    plans = late(campaign.message_plans(Setup(move=move, bitmap=True), thin=True), {*PAUSE, "block-dirty-bitmap-add"})
    assert_kept(plans, struck_min=len(plans) - 2)
