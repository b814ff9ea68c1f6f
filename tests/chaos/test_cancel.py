"""A pivot is cancelled, and pivotd or both are killed on the way: a cancel that was answered holds.

A cancelled mirror and a completed one leave the same job behind, so the journal and the graph have to tell them apart.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.chaos import campaign
from tests.chaos.plan import Cancel, Plan, Setup, Victims
from tests.chaos.rounds import Result
from tests.chaos.test_kill import assert_kept, late
from tests.conftest import LONG
from tests.support.moves import Move
from tests.support.seeds import rng

pytestmark = [pytest.mark.qemu, pytest.mark.chaos, pytest.mark.timeout(900)]

MOMENTS = Setup().cancels
OTHERS = [Setup(move=move) for move in Move if move is not Move.COPY] + [
    Setup(adopted=True),
    pytest.param(Setup(move=Move.COMMIT, adopted=True), marks=pytest.mark.long),
    pytest.param(Setup(nbd=True), marks=pytest.mark.long),
]
MOMENTS_IN_CI = 1
ROUNDS_IN_CI = 2


def cancelled(setup: Setup) -> Result:
    """Cancel without a kill: before the switch began the source is kept, after it the switch stands."""
    result = campaign.clean(Plan(setup))
    assert result.cancelled_after is not None
    too_late = "switched" if setup.move.switches else "merged"
    assert result.outcome == (too_late if setup.cancel in {Cancel.PENDING, Cancel.SWITCHED} else "kept")
    return result


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.thinned(2)
def test_without_a_kill(moment: Cancel):
    """Before the first job-finalize the source is kept, after it the switch stands; the answer says which."""
    cancelled(Setup(disks=2, cancel=moment))


@pytest.mark.parametrize(
    ("moment", "victims"),
    [(Cancel.COMPLETING, Victims.PIVOTD), (Cancel.READY, Victims.PIVOTD), (Cancel.COMPLETING, Victims.BOTH)],
)
def test_killed_on_the_way(moment: Cancel, victims: Victims):
    """Verdict and images agree, the guest's run state is what it was.

    Every 24th command after the request; PIVOTD_LONG=1 plays every fourth.
    """
    plans = campaign.message_plans(Setup(cancel=moment), victims=victims, thin=True)[:: 4 if LONG else 24]
    assert_kept(plans, struck_min=len(plans) - 2)


@pytest.mark.long
def test_three_disks_killed_between_the_cancels():
    """A set of which some jobs were cancelled is cancelled as a whole."""
    plans = campaign.message_plans(Setup(disks=3, cancel=Cancel.COMPLETING), thin=True)
    wanted = late(plans, {"job-cancel", "cont"})[::3]
    assert_kept(wanted, struck_min=len(wanted) - 2)


@pytest.mark.thinned(2)
@pytest.mark.parametrize("setup", OTHERS, ids=str)
def test_other_pivots_killed_on_the_way(setup: Setup):
    """At any moment, with QEMU alive or killed too: kept, or what had been switched or merged; nothing is left.

    Some moments and some messages; PIVOTD_LONG=1 plays every moment, the campaign every message.
    """
    plans, chance = [], rng(setup)
    for moment in setup.cancels if LONG else chance.sample(setup.cancels, MOMENTS_IN_CI):
        at = replace(setup, cancel=moment)
        messages = campaign.after_cancel(cancelled(at))
        points = campaign.points(messages, thin=True)
        plans += [Plan(at, point, victims) for point in points for victims in (Victims.PIVOTD, Victims.BOTH)]
    chosen = plans[::6] if LONG else chance.sample(plans, ROUNDS_IN_CI)
    assert_kept(chosen, struck_min=max(1, len(chosen) * 9 // 10))
