"""pivotd killed while a disk moves to an NBD export, and while the export's server hangs.

``python -m tests.chaos.campaign --move copy --only NBD`` plays every message.
"""

from __future__ import annotations

import pytest

from tests.chaos import campaign
from tests.chaos.plan import Heir, Plan, Point, Setup, Victims
from tests.chaos.rounds import run_round
from tests.chaos.test_kill import assert_kept, some
from tests.conftest import LONG
from tests.support.proxy import Direction, When

pytestmark = [pytest.mark.qemu, pytest.mark.chaos, pytest.mark.timeout(600)]

ROUNDS_IN_CI = 3
TOLD = [
    Point("return:yank", 1, Direction.FROM_QEMU, When.BEFORE),
    Point("return:yank", 1, Direction.FROM_QEMU, When.AFTER),
    Point("command:job-cancel", 1, Direction.TO_QEMU, When.BEFORE),
    Point("return:cont", 1, Direction.FROM_QEMU, When.BEFORE),
]
"""QEMU has cut the connection: the first two before pivotd can have recorded that."""
UNTOLD = [
    Point("command:stop", 1, Direction.TO_QEMU, When.AFTER),
    Point("command:yank", 1, Direction.TO_QEMU, When.BEFORE),
]


def test_at_every_message():
    """The verdict is what QEMU uses, and holds every block; of a dead QEMU the journal alone tells."""
    chosen = some(Setup(nbd=True, disks=1 + LONG), ROUNDS_IN_CI)
    assert_kept(chosen, struck_min=len(chosen) - 1)


def test_another_qemu_with_the_source():
    """It is told from the old one whose copy had been switched to the export, and left alone."""
    plans = [
        Plan(Setup(nbd=True), point, Victims.BOTH, Heir.SOURCE) for point in campaign.PAUSE_POINTS[2 + (not LONG) :]
    ]
    assert_kept(plans, struck_min=len(plans))


@pytest.mark.parametrize(
    "point", [*TOLD[:2], *(pytest.param(point, marks=pytest.mark.long) for point in TOLD[2:])], ids=str
)
def test_between_the_yank_and_its_record(point: Point):
    """The next pivotd finds a job that has ended: kept, and the guest runs on while the server still hangs."""
    result = run_round(Plan(Setup(nbd=True, hangs=True), point))
    assert (result.problems, result.struck, result.outcome) == ([], True, "kept")
    assert not result.helped


@pytest.mark.long
@pytest.mark.parametrize("point", UNTOLD, ids=str)
def test_before_the_yank(point: Point):
    """Nobody can talk to a QEMU whose main loop hangs: kept, and the guest runs on as soon as the server has ended."""
    result = run_round(Plan(Setup(nbd=True, hangs=True), point))
    assert (result.problems, result.struck, result.outcome) == ([], True, "kept")
    assert result.helped
