"""The decision: one pure, total function from (journal record, observation, attempt) to the next action.

It drives a normal pivot and a recovery alike. Every rule of docs/protocol.md is one case below, and no other code in
pivotd decides anything about a pivot. The rule behind all cases: without a durable ``switched``, the source holds the
guest's data. So pivotd records an outcome from the graph alone, before the guest may run again.
"""

from __future__ import annotations

from collections.abc import Callable

from pivotd.core.actions import Action, AskAgain, Done, RestoreLimits, SetBandwidth
from pivotd.core.attempt import Attempt
from pivotd.core.observation import STATUS_READY, Observation, Qemu
from pivotd.core.pivot import Outcome, Phase, Pivot
from pivotd.core.request import Manager
from pivotd.core.rules import fleet_pivots
from pivotd.core.rules.cancelling import cancelling
from pivotd.core.rules.copying import copying, ready
from pivotd.core.rules.decided import decided
from pivotd.core.rules.endings import record_all, replaced
from pivotd.core.rules.libvirt_phases import guarded
from pivotd.core.rules.pausing import pausing
from pivotd.core.rules.preparing import preparing


def decide(pivot: Pivot, seen: Observation, attempt: Attempt) -> Action:
    """Return the next action; total over every phase and everything QEMU can show.

    Source: docs/protocol.md, the decision table.
    """
    if pivot.phase is Phase.CLOSED:
        return Done()
    # The fleet must be told whatever QEMU does: another host may have to start the guest.
    return fleet_pivots.telling(pivot, attempt) or fleet_pivots.held(pivot, attempt, _alone(pivot, seen, attempt))


def _alone(pivot: Pivot, seen: Observation, attempt: Attempt) -> Action:
    """Return the next action of a host that belongs to no fleet."""
    if seen.qemu is Qemu.SILENT:
        return AskAgain(seen.detail or "QEMU does not answer")
    if seen.qemu is Qemu.SAME and (owed := _owed(pivot, seen)) is not None:
        return owed
    if pivot.manager is Manager.LIBVIRT:
        return guarded(pivot, seen, attempt)
    if pivot.phase is Phase.DECIDED:
        return decided(pivot, seen, attempt)
    if seen.qemu is Qemu.GONE:
        return record_all(pivot, Outcome.KEPT, "QEMU is gone and no switch was recorded: the source has every write")
    if seen.qemu is Qemu.REPLACED:
        return replaced(pivot, seen)
    return _PHASES[pivot.phase](pivot, seen, attempt)


def _owed(pivot: Pivot, seen: Observation) -> Action | None:
    """Return the command that QEMU must get first; none in a pause, which must not wait for it."""
    if pivot.owes_resume or pivot.phase is Phase.PAUSING:
        return None
    resting = pivot.phase is Phase.DECIDED or (pivot.phase is Phase.READY and pivot.hold)
    if pivot.options.write_limits and resting:
        return RestoreLimits()
    running = any(seen.job(disk.job).status in {"running", "paused", *STATUS_READY} for disk in pivot.disks)
    if pivot.options.bandwidth_due and pivot.phase in {Phase.COPYING, Phase.READY} and running:
        return SetBandwidth()
    return None


_PHASES: dict[Phase, Callable[[Pivot, Observation, Attempt], Action]] = {
    Phase.PREPARING: preparing,
    Phase.COPYING: copying,
    Phase.READY: ready,
    Phase.PAUSING: pausing,
    Phase.CANCELLING: cancelling,
}
