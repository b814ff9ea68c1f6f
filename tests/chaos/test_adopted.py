"""pivotd killed at every point of a pivot whose jobs and nodes are somebody else's.

``python -m tests.chaos.campaign --only adopted`` plays every message.
"""

from __future__ import annotations

import pytest

from tests.chaos.plan import Setup
from tests.chaos.test_kill import assert_kept, some
from tests.conftest import LONG
from tests.support.moves import Move

pytestmark = [pytest.mark.qemu, pytest.mark.chaos, pytest.mark.timeout(600)]

ROUNDS_IN_CI = 2


@pytest.mark.parametrize("move", [Move.COPY, Move.COMMIT])
@pytest.mark.thinned(2)
def test_at_every_message(move: Move):
    """The verdict is what QEMU uses, with every block; before it was accepted the job is left to its owner."""
    chosen = some(Setup(adopted=True, move=move, disks=1 + LONG), ROUNDS_IN_CI)
    assert_kept(chosen, struck_min=len(chosen) - 1)
