"""A copy mirrors each disk to another image and switches to it. Pure."""

from __future__ import annotations

from pivotd.core.actions import Abandon, Action, Prepare, Step
from pivotd.core.kinds.kind_rules import KindRules
from pivotd.core.kinds.new_image import half_made, next_step
from pivotd.core.observation import Observation
from pivotd.core.pivot import Outcome, Pivot, PivotDisk


def _prepare(pivot: Pivot, disk: PivotDisk, seen: Observation) -> Action | None:
    if disk.job in seen.jobs:
        return None
    if pivot.options.adopted:
        return Abandon(f"job {disk.job} of {disk.disk} ended, or was replaced, before it could be adopted")
    return next_step(pivot, disk, seen) or Prepare(disk.index, Step.START_JOB)


def _stale(pivot: Pivot, disk: PivotDisk) -> list[str]:
    """A source that is kept in sync is not stale yet."""
    if disk.outcome is Outcome.SWITCHED:
        return [] if pivot.window_open else [disk.source.filename]
    return half_made(pivot, disk)


COPY = KindRules(_prepare, _stale, may_hang=True)
