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


@pytest.mark.parametrize("moment", MOMENTS)
def test_without_a_kill(moment: Cancel):
    """Before the first job-finalize the source is kept, after it the switch stands; the answer says which."""
    result = campaign.clean(Plan(Setup(disks=2, cancel=moment)))
    assert result.cancelled_after is not None
    assert result.outcome == ("switched" if moment in {Cancel.PENDING, Cancel.SWITCHED} else "kept")


@pytest.mark.parametrize(
    ("moment", "victims"),
    [(Cancel.COMPLETING, Victims.PIVOTD), (Cancel.READY, Victims.PIVOTD), (Cancel.COMPLETING, Victims.BOTH)],
)
def test_killed_on_the_way(moment: Cancel, victims: Victims):
    """Verdict and images agree, the guest's run state is what it was: every fourth command after the request."""
    plans = campaign.message_plans(Setup(cancel=moment), victims=victims, thin=True)[::4]
    assert_kept(plans, struck_min=len(plans) - 2)


def test_three_disks_killed_between_the_cancels():
    """A set of which some jobs were cancelled is cancelled as a whole."""
    plans = campaign.message_plans(Setup(disks=3, cancel=Cancel.COMPLETING), thin=True)
    wanted = [plan for plan in plans if plan.point and plan.point.label.endswith(("job-cancel", "cont"))][::3]
    assert_kept(wanted, struck_min=len(wanted) - 2)
