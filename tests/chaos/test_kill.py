"""pivotd killed at every point of a pivot: real QEMU, real SIGKILL, one claim for each way to kill.

``python -m tests.chaos.campaign`` runs the same with every query message too, with more disks, with ``-drive`` disks.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace

import pytest

from tests.chaos import campaign
from tests.chaos.plan import Plan, Point, Setup, Victims
from tests.conftest import LONG
from tests.support.moves import Move
from tests.support.proxy import Direction, When
from tests.support.seeds import rng

pytestmark = [pytest.mark.qemu, pytest.mark.chaos, pytest.mark.timeout(600)]

STEP = 1 if LONG else 3
START = rng("kill").randrange(STEP)
"""Every third point, another third with another PIVOTD_SEED; each command of a pause of one disk always."""
PAUSE = frozenset({"stop", "job-complete", "job-finalize", "transaction", "cont"})


def assert_kept(plans: Iterable[Plan], *, struck_min: int, until_unstruck: bool = False) -> None:
    tally = campaign.run(plans, until_unstruck=until_unstruck)
    assert tally.problems == []
    assert tally.struck >= struck_min, f"too few rounds reached their point: {tally}"


def late(plans: Iterable[Plan], wanted: Collection[str]) -> list[Plan]:
    """Return the rounds whose point is a message of one of these commands."""
    return [plan for plan in plans if plan.point is not None and plan.point.label.partition(":")[2] in wanted]


def one_of_each(plans: list[Plan]) -> list[Plan]:
    """Return one round for each command: at any of its places before and after it and its answer; all with PIVOTD_LONG=1."""
    if LONG or not plans:
        return plans
    chance, places = rng("one of each", plans[0].setup, plans[0].victims), dict[str, list[Plan]]()
    for plan in plans:
        assert plan.point is not None
        places.setdefault(plan.point.label.partition(":")[2], []).append(plan)
    return [chance.choice(of_one) for of_one in places.values()]


def thinned(plans: list[Plan]) -> list[Plan]:
    """Return one round for each command of the pause, and few others: there the source is right whatever happens."""
    pause = late(plans, PAUSE)
    others = [plan for plan in plans if plan not in pause]
    return one_of_each(pause) + others[START :: 6 * STEP**2]


def first(plans: Iterator[Plan]) -> Iterator[Plan]:
    """Return the first batch of rounds at system calls, without the batch that shows that there is no further call."""
    return plans if LONG else itertools.islice(plans, campaign.BATCH)


def some(setup: Setup, count: int) -> list[Plan]:
    """Return so many rounds, with QEMU alive or killed too; all with PIVOTD_LONG=1."""
    plans = [
        replace(plan, victims=victims)
        for plan in campaign.message_plans(setup, thin=True)
        for victims in (Victims.PIVOTD, Victims.BOTH)
    ]
    return plans if LONG else rng(setup).sample(plans, count)


def test_at_every_message_with_qemu_alive():
    """After the restart the verdict is the image QEMU uses, the run state is what it was, nothing is left behind."""
    plans = thinned(campaign.message_plans(Setup(), thin=True))
    assert_kept(plans, struck_min=len(plans) - 2)


def test_at_every_message_with_qemu_killed_too():
    """The journal alone names an image that holds every acknowledged block."""
    plans = thinned(campaign.message_plans(Setup(), victims=Victims.BOTH, thin=True))
    assert_kept(plans, struck_min=len(plans) - 2)


@pytest.mark.parametrize(
    "victims",
    [pytest.param(Victims.PIVOTD, marks=pytest.mark.long, id="alive"), pytest.param(Victims.BOTH, id="killed-too")],
)
def test_at_every_flush_of_the_journal(victims: Victims):
    """Killed at the entry of each fdatasync of the writer's thread, before it took effect."""
    plans = campaign.syscall_plans(Setup(), "flush", victims=victims, stride=1 if LONG else 3)
    assert_kept(first(plans), struck_min=7 if LONG else 3, until_unstruck=True)


@pytest.mark.parametrize(
    "point", [pytest.param(campaign.PAUSE_POINTS[0], marks=pytest.mark.long), campaign.PAUSE_POINTS[2]], ids=str
)
def test_again_at_every_step_of_the_recovery(point: Point):
    """Killed in the pause, and killed again wherever the recovery is."""
    assert_kept(campaign.recovery_plans(Setup(), point, thin=True)[START :: STEP**2], struck_min=10 // STEP**2)


def test_a_guest_that_was_paused_before_stays_so():
    """Killed at every step of a pivot of a paused guest: it is never started."""
    plans = campaign.message_plans(Setup(paused=True), thin=True)
    wanted = {"job-complete", "job-finalize", "query-block", "job-dismiss", "blockdev-mirror"}
    assert_kept(late(plans, wanted)[START :: STEP**2], struck_min=10 // STEP**2)


@pytest.mark.long
def test_three_disks_killed_between_the_switches():
    """A set that was half switched is finished or taken back as one."""
    plans = campaign.message_plans(Setup(disks=3), thin=True)
    assert_kept(late(plans, {"job-complete", "job-finalize"})[START :: STEP**2], struck_min=15 // STEP**2)


@pytest.mark.parametrize(
    "move",
    [Move.COPY, *(pytest.param(move, marks=pytest.mark.long) for move in (Move.COMMIT, Move.INNER_COMMIT, Move.PULL))],
)
def test_in_the_middle_of_the_clean_up(move: Move):
    """Whatever is below a node that is gone goes too: nothing in QEMU tells any more that it was below."""
    setup = Setup(disks=2, move=move, named=True)
    points = [
        Point("command:blockdev-del", nth, Direction.TO_QEMU, When.BEFORE) for nth in ((2, 3, 4) if LONG else (2, 4))
    ]
    plans = [Plan(setup, point) for point in points]
    assert_kept(plans, struck_min=len(plans))
