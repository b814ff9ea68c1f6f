"""pivotd killed at every point of a pivot whose jobs and nodes are somebody else's.

``python -m tests.chaos.campaign --only adopted`` plays every message.
"""

from __future__ import annotations

import random

import pytest

from tests.chaos import campaign
from tests.chaos.plan import Setup, Victims
from tests.chaos.test_kill import assert_kept
from tests.conftest import LONG
from tests.support.moves import Move

pytestmark = [pytest.mark.qemu, pytest.mark.chaos, pytest.mark.timeout(600)]

ROUNDS_IN_CI = 3


@pytest.mark.parametrize("victims", [Victims.PIVOTD, Victims.BOTH])
@pytest.mark.parametrize("move", [Move.COPY, Move.COMMIT])
def test_at_every_message(move: Move, victims: Victims):
    """The verdict is what QEMU uses, with every block; before it was accepted the job is left to its owner."""
    plans = campaign.message_plans(Setup(adopted=True, move=move, disks=1 + LONG), victims=victims, thin=True)
    chosen = plans if LONG else random.sample(plans, ROUNDS_IN_CI)
    assert_kept(chosen, struck_min=len(chosen) - 1)
