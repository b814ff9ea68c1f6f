"""What a verdict says of a guest that has run on something else than its right image."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pivotd.core import verdict
from pivotd.core.pivot import Outcome, Phase, RanOn
from tests.core.build import disk, pivot

RIGHT, AT = "/new/disk0.qcow2", "2026-11-24T09:00:00.000000Z"


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (RanOn("/old/disk0.qcow2", "qcow2", AT), "the guest ran on /old/disk0.qcow2 at"),
        (RanOn(RIGHT, "qcow2", AT), "the guest ran on another file of that name at"),
        (RanOn(RIGHT, "raw", AT), f"The journal names {RIGHT} as qcow2, but the guest ran on it as raw at"),
        (RanOn(RIGHT, "qcow2", AT, by_fleet=True), "in the fleet another host had moved the disk on"),
    ],
    ids=["another image", "another file", "another format", "another host"],
)
def test_the_cause_is_named(other: RanOn, said: str) -> None:
    """And no other one: with a wrong cause, a person looks in the wrong place."""
    moved = disk(0, Outcome.SWITCHED)
    known = verdict.of_pivot(pivot(Phase.CLOSED, disks=(moved,), decided_at=AT), moved)
    found = verdict.doubtful(known, replace(moved, ran_on=other))
    assert (found.outcome, found.certain) == (Outcome.UNKNOWN, False)
    assert said in found.reason
    assert ("fleet" in found.reason) == other.by_fleet
