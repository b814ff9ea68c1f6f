"""A real guest under random kills: the verdict is the image with its last acknowledged write, or the guest runs on.

``make chaos ROUNDS=1000 SEED=…`` runs as many as wanted and prints a table.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from tests.chaos.guest_plan import Aim, GuestRound, Kind, Summary
from tests.chaos.guest_rounds import campaign, rounds_on
from tests.conftest import LONG
from tests.support.seeds import seed

pytestmark = [pytest.mark.guest, pytest.mark.chaos, pytest.mark.timeout(1800)]

ROUNDS = 12 if LONG else 4


def test_random_kills_under_writes_with_fsync():
    """No verdict is wrong and no guest is left paused, on guests with one, two and three disks."""
    summary = campaign(ROUNDS, seed(), Path(tempfile.mkdtemp(prefix="pivotd-chaos-")))
    print(summary)  # noqa: T201 - the same
    assert (summary.wrong, summary.broken) == ([], [])
    assert sum(summary.rounds.values()) == ROUNDS


@pytest.mark.parametrize("kind", [pytest.param(Kind.KILL_QEMU, marks=pytest.mark.long), Kind.KILL_BOTH])
def test_the_judge_can_fail(kind: Kind):
    """Pointed at the image that the verdict does not name, it finds acknowledged writes missing."""
    summary = Summary()
    # Not tmp_path: Unix sockets need short paths.
    with (
        tempfile.TemporaryDirectory(prefix="pv") as name,
        rounds_on(Path(name), 1, summary, other_image=True) as rounds,
    ):
        rounds.play(GuestRound(kind, Aim.CLOSED, 0.0))
    assert len(summary.wrong) == 2, "right after the kill, and in the end"
    assert all("disk0-0.qcow2 lacks" in text for text in summary.wrong)
