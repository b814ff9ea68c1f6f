"""A commit writes layers of the chain into a layer below them; with the active layer it is a switch. Pure."""

from __future__ import annotations

from pivotd.core.actions import Abandon, Action, Prepare, Step
from pivotd.core.kinds.kind_rules import KindRules
from pivotd.core.observation import Observation
from pivotd.core.pivot import Outcome, Pivot, PivotDisk


def start_job(pivot: Pivot, disk: PivotDisk, seen: Observation) -> Action | None:
    """Return the start of the job: pivotd need not create an image."""
    if disk.job in seen.jobs:
        return None
    if pivot.options.adopted:
        return Abandon(f"job {disk.job} of {disk.disk} ended, or was replaced, before it could be adopted")
    return Prepare(disk.index, Step.START_JOB)


def _stale(_pivot: Pivot, disk: PivotDisk) -> list[str]:
    committed = disk.outcome in {Outcome.SWITCHED, Outcome.MERGED}
    return [disk.top.filename, *disk.between] if committed and disk.top is not None else []


COMMIT = KindRules(start_job, _stale, bitmaps_may_differ=True)
