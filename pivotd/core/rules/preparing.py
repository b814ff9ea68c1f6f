"""The rules while pivotd creates and opens destinations and starts jobs. Pure."""

from __future__ import annotations

from pivotd.core import kinds
from pivotd.core.actions import Abandon, Action, Advance, PlaceNonce
from pivotd.core.attempt import Attempt
from pivotd.core.observation import MIGRATION_STATES, Observation, Root
from pivotd.core.pivot import Phase, Pivot


def refused(pivot: Pivot, seen: Observation, attempt: Attempt) -> Abandon | None:
    """Return why the copy must not begin, None if it may; whoever carries it out."""
    if attempt.cancelled_by:
        return Abandon("cancelled before the copy began")
    if attempt.lost is not None:
        return Abandon(attempt.lost)
    if seen.run_state in MIGRATION_STATES:
        return Abandon(f"the guest is in state {seen.run_state}: another process may own the images")
    for disk in pivot.disks:
        if seen.roots.get(disk.disk) is not Root.SOURCE:
            return Abandon(f"{disk.disk} was changed or unplugged while the copy was being prepared")
    return None


def preparing(pivot: Pivot, seen: Observation, attempt: Attempt) -> Action:
    """Return the first step of the preparation that has left no evidence in QEMU."""
    if (refusal := refused(pivot, seen, attempt)) is not None:
        return refusal
    if not seen.has_nonce:
        return PlaceNonce()
    for disk in pivot.disks:
        action = kinds.of(pivot).prepare(pivot, disk, seen)
        if action is not None:
            return action
    return Advance(Phase.COPYING)
