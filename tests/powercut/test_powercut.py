"""One power cut of a whole host in the pause of a pivot, and a judge that sees lost writes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.powercut.cut import Plan, Result, judge, run_cut
from tests.powercut.world import build_world
from tests.support.seeds import rng, seed


@pytest.mark.chaos
@pytest.mark.long
@pytest.mark.timeout(1200)
def test_a_cut_in_the_pause_loses_no_flushed_write(tmp_path: Path):
    """After the boot the verdict names images with every number that the guest was told is flushed."""
    chosen = seed()
    delay_ms = round(rng("power cut").uniform(0, 150), 1)
    plan = Plan(chosen, disks=2, point="STOP", nth=1, delay_ms=delay_ms)
    result = run_cut(plan, build_world(), keep=lambda directory: directory.rename(tmp_path / "kept"))
    assert result.problems == [], f"PIVOTD_SEED={chosen}: {result.row()}; everything is in {tmp_path}/kept"
    assert result.last_ack > 0, "the guest wrote before the cut"


def report(slots: list[int], *, status: int = 0, recovered: str = "/images/disk0-1.qcow2") -> dict[str, object]:
    image = {"status": status, "said": "", "slots": slots, "bytes": 1}
    disk = {"source": "/images/disk0-0.qcow2", "destination": "/images/disk0-1.qcow2"}
    named = {"disk": "disk0", "image": "/images/disk0-1.qcow2", "outcome": "switched"}
    return json.loads(json.dumps({
        "integrity": "ok", "offline": [named], "recovered": [named | {"image": recovered}], "open": [],
        "pivots": [{"phase": "decided", "disks": [disk]}],
        "images": {"disk0-1.qcow2": image, "disk0-0.qcow2": image},
    }))  # fmt: skip


PLAN = Plan(0, disks=1, point="STOP", nth=1, delay_ms=0)
WHOLE = [*range(256)]


@pytest.mark.parametrize(
    ("shown", "said"),
    [
        (report(WHOLE), ""),
        (report([*range(100), -1, *range(101, 256)]), "lacks flushed numbers [100]"),
        (report([256, *range(1, 256)]), ""),
        (report(WHOLE, status=2), "damaged"),
        (report(WHOLE, recovered="/images/disk0-0.qcow2"), "changed its mind"),
    ],
    ids=["whole", "one lost", "one newer", "damaged", "other verdict"],
)
def test_the_judge(shown: dict[str, object], said: str):
    """Each broken promise is named, and a whole image is not blamed."""
    result = Result(PLAN, last_ack=255)
    judge(PLAN, shown, result)
    assert said in "; ".join(result.problems)
    assert bool(said) == bool(result.problems)
