"""A pivot is cancelled, and pivotd or both are killed on the way: a cancel that was answered holds.

A cancelled mirror and a completed one leave the same job behind, so the journal and the graph have to tell them apart.
"""

from __future__ import annotations

import pytest

from tests.chaos import campaign
from tests.chaos.plan import Cancel, Plan, Setup, Victims
from tests.chaos.test_kill import assert_kept

pytestmark = [pytest.mark.qemu, pytest.mark.chaos, pytest.mark.timeout(600)]

MOMENTS = [moment for moment in Cancel if moment is not Cancel.NEVER]


@pytest.mark.parametrize("disks", [1, 3])
@pytest.mark.parametrize("moment", MOMENTS)
def test_without_a_kill(moment: Cancel, disks: int):
    """Before the first job-finalize the source is kept, after it the switch stands; the answer says which."""
    result = campaign.clean(Plan(Setup(disks=disks, cancel=moment)))
    assert result.cancelled_after is not None
    assert result.outcome == ("switched" if moment in {Cancel.PENDING, Cancel.SWITCHED} else "kept")


@pytest.mark.parametrize("victims", [Victims.PIVOTD, Victims.BOTH], ids=["alive", "killed-too"])
@pytest.mark.parametrize("moment", [Cancel.READY, Cancel.COMPLETING])
def test_killed_on_the_way(moment: Cancel, victims: Victims):
    """Killed at every command after the request: verdict and images agree, the guest's run state is what it was."""
    plans = campaign.message_plans(Setup(cancel=moment), victims=victims, thin=True)
    assert_kept(plans, struck_min=10)


def test_three_disks_killed_between_the_cancels():
    """A set of which some jobs were cancelled is cancelled as a whole."""
    setup = Setup(disks=3, cancel=Cancel.COMPLETING)
    plans = campaign.message_plans(setup, thin=True)
    wanted = [plan for plan in plans if plan.point and plan.point.label.endswith(("job-cancel", "cont"))]
    assert_kept(wanted, struck_min=8)
