"""pivotd killed at every point of a switch whose old image is kept in sync, of the window, and of the way back.

``python -m tests.chaos.campaign`` has the same with more disks.
"""

from __future__ import annotations

import pytest

from tests.chaos import campaign
from tests.chaos.plan import Plan, Setup, Victims
from tests.conftest import LONG
from tests.support.seeds import rng

from .test_kill import assert_kept, late

pytestmark = [pytest.mark.qemu, pytest.mark.chaos, pytest.mark.timeout(900)]

ROUNDS_MIN = 60
STEP = 1 if LONG else 20
START = 0 if LONG else rng("undo").randrange(STEP - 1)
"""The part that is played; PIVOTD_LONG=1 plays all."""


def test_a_switch_that_is_undone_ends_on_its_old_image():
    """The round itself: switched there and back, with every block of the window."""
    result = campaign.clean(Plan(Setup(undo=True)))
    assert [label for _, label, _ in result.messages if label == "command:job-finalize"] == ["command:job-finalize"] * 2


@pytest.mark.long
def test_at_every_message_with_qemu_alive():
    """Switched, in the window, or back: the verdict is what QEMU uses, with every block, and nothing is left."""
    plans = campaign.message_plans(Setup(undo=True), thin=True)[START::STEP]
    assert_kept(plans, struck_min=ROUNDS_MIN // STEP)


def test_at_every_message_with_qemu_killed_too():
    """The journal alone names an image that holds every acknowledged block."""
    plans = campaign.message_plans(Setup(undo=True), victims=Victims.BOTH, thin=True)[START + 1 :: STEP]
    assert_kept(plans, struck_min=ROUNDS_MIN // STEP)


@pytest.mark.long
def test_a_bitmap_is_carried_there_and_back_whenever_pivotd_dies():
    """The image that the guest ends on has the bitmap, recording, with every block marked."""
    plans = campaign.message_plans(Setup(undo=True, bitmap=True, disks=2), thin=True)
    wanted = {"job-complete", "block-dirty-bitmap-add", "transaction", "job-finalize", "blockdev-mirror", "cont"}
    assert_kept(late(plans, wanted)[START::STEP], struck_min=30 // STEP)


@pytest.mark.parametrize(
    "victims",
    [pytest.param(victims, marks=pytest.mark.long, id=str(victims)) for victims in (Victims.PIVOTD, Victims.BOTH)],
)
def test_at_every_flush_of_the_journal(victims: Victims):
    """Also between the end of one pivot and the beginning of the one that takes it back: they are one record."""
    plans = campaign.syscall_plans(Setup(undo=True), "flush", victims=victims)
    assert_kept(plans, struck_min=10, until_unstruck=True)
