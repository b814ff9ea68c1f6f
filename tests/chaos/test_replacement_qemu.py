"""QEMU is killed, alone or too, and somebody starts another one on the same socket: pivotd is never fooled."""

from __future__ import annotations

import pytest

from tests.chaos import campaign
from tests.chaos.plan import Heir, Plan, Point, Setup, Victims
from tests.chaos.test_kill import assert_kept, late, one_of_each
from tests.conftest import LONG
from tests.support.seeds import rng

pytestmark = [pytest.mark.qemu, pytest.mark.chaos, pytest.mark.timeout(600)]

PAUSED, HALF_WAY, SWITCHED, RECORDED = campaign.PAUSE_POINTS


def test_at_every_message_of_the_pause_qemu_alone_is_killed():
    """A pivotd that lives sees that QEMU is gone, and the journal names an image that holds every block."""
    plans = campaign.message_plans(Setup(), victims=Victims.QEMU, thin=True)
    plans = one_of_each(late(plans, {"stop", "job-complete", "job-finalize", "cont"}))
    assert_kept(plans, struck_min=len(plans) - 1)


@pytest.mark.parametrize(
    ("victims", "heir", "disks"),
    [
        (Victims.BOTH, Heir.SOURCE, 1),
        (Victims.BOTH, Heir.DESTINATION, 1),
        (Victims.BOTH, Heir.DESTINATION, 3),
        (Victims.QEMU, Heir.SOURCE, 3),
        (Victims.QEMU, Heir.DESTINATION, 1),
    ],
)
@pytest.mark.thinned(2)
def test_in_the_pause(victims: Victims, heir: Heir, disks: int):
    """Without a record the source is kept, and unknown if the other QEMU uses the destination; a record stays.

    One point before the record and the one after it; PIVOTD_LONG=1 plays all.
    """
    unrecorded = [PAUSED, HALF_WAY, SWITCHED]
    chosen = unrecorded if LONG else [rng("another QEMU", victims, heir, disks).choice(unrecorded)]
    plans = [Plan(Setup(disks=disks), point, victims, heir) for point in (*chosen, RECORDED)]
    assert_kept(plans, struck_min=len(plans))


@pytest.mark.parametrize(
    ("first", "heir"),
    [
        pytest.param(SWITCHED, Heir.DESTINATION, id="unrecorded"),
        pytest.param(RECORDED, Heir.SOURCE, id="recorded", marks=pytest.mark.long),
    ],
)
def test_killed_again_while_it_looks_at_the_other(first: Point, heir: Heir):
    """Wherever the recovery is killed, the next one comes to the same end: every fourth message and flush of it, in CI every 24th."""
    plans = campaign.heir_plans(Setup(), first, heir)[:: 4 if LONG else 24]
    assert_kept(plans, struck_min=len(plans))
