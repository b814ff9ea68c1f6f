"""pivotd killed while it slows a guest that outruns its copy: the limits of its disks come back exactly.

``python -m tests.chaos.campaign --move copy --only outrun`` plays every message.
"""

from __future__ import annotations

import pytest

from tests.chaos import campaign
from tests.chaos.plan import Cancel, Plan, Point, Setup, Victims
from tests.chaos.test_kill import assert_kept
from tests.conftest import LONG
from tests.support.proxy import Direction, When
from tests.support.qemus import number, qemus
from tests.support.seeds import rng

WRITE_BLOCKING_FROM = (8, 2)
OLD = next((binary for version, binary in qemus().items() if number(version) < WRITE_BLOCKING_FROM), None)

pytestmark = [
    pytest.mark.qemu,
    pytest.mark.chaos,
    pytest.mark.timeout(900),
    pytest.mark.skipif(OLD is None, reason="no QEMU before 8.2 at hand: later ones slow no guest"),
]

THROTTLE = "block_set_io_throttle"
PLACED = [
    Point(f"command:{THROTTLE}", 1, Direction.TO_QEMU, When.BEFORE),
    Point(f"command:{THROTTLE}", 1, Direction.TO_QEMU, When.AFTER),
    Point(f"return:{THROTTLE}", 1, Direction.FROM_QEMU, When.BEFORE),
    Point(f"return:{THROTTLE}", 1, Direction.FROM_QEMU, When.AFTER),
    Point("command:stop", 1, Direction.TO_QEMU, When.BEFORE),
    Point("return:job-finalize", 1, Direction.FROM_QEMU, When.BEFORE),
    Point("return:cont", 1, Direction.FROM_QEMU, When.BEFORE),
]
"""From the first step of slowing to the guest's running on its new image."""
RESTORED = [
    Point(f"command:{THROTTLE}", 2, Direction.TO_QEMU, When.BEFORE),
    Point(f"return:{THROTTLE}", 2, Direction.FROM_QEMU, When.BEFORE),
    Point(f"return:{THROTTLE}", 2, Direction.FROM_QEMU, When.AFTER),
]


def test_switched():
    """Killed where the limits were placed or put back: switched, and they are what they were."""
    setup = Setup(outrun=True, binary=OLD)
    points = PLACED + RESTORED if LONG else [rng("slowed").choice(PLACED), rng("slowed").choice(RESTORED)]
    assert_kept([Plan(setup, point) for point in points], struck_min=len(points))


@pytest.mark.long
def test_kept():
    """Cancelled right after the guest was slowed, and killed on the way: kept, and the limits are what they were."""
    setup = Setup(outrun=True, cancel=Cancel.SLOWED, binary=OLD)
    plans = campaign.message_plans(setup, thin=True)
    late = [plan for plan in plans if plan.point is not None and plan.point.label.endswith(THROTTLE)]
    assert late
    chosen = plans[::4] + late
    assert_kept(chosen, struck_min=len(chosen) * 9 // 10)


@pytest.mark.long
def test_with_qemu_killed_too():
    """The journal alone names an image that holds every block."""
    setup = Setup(outrun=True, binary=OLD)
    assert_kept([Plan(setup, point, Victims.BOTH) for point in PLACED + RESTORED], struck_min=8)
