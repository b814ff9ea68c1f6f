"""Records on the progress of a copy: it continues after an interruption, it stalls, it makes progress again."""

from __future__ import annotations

from pivotd.core.observation import Observation
from pivotd.core.pivot import Phase
from pivotd.engine.driver_state import DriverState
from pivotd.engine.pace import stalls_after_s


async def went_on(state: DriverState, seen: Observation) -> None:
    """Record that interrupted copies have continued for long enough."""
    if state.in_window or state.pivot.phase not in {Phase.COPYING, Phase.READY}:
        return
    facts = state.retry_target.end(state.pivot, seen, state.clock.monotonic())
    if facts is not None:
        await state.note("went-on", facts)


async def stalled(state: DriverState) -> None:
    """Record that a copy has stalled, and that it makes progress again: no wait may last for ever unreported."""
    pivot, pace = state.pivot, state.converger.pace
    copying = pivot.phase is Phase.COPYING or (pivot.phase is Phase.READY and not pivot.hold)
    if state.in_window or not copying:
        return
    stalled_s = pace.stalled_s(state.clock.monotonic())
    if state.stalled == (stalled_s >= stalls_after_s(pivot)):
        return
    state.stalled = not state.stalled
    facts = {
        "stalled_s": round(stalled_s, 1),
        "backlog_bytes": pace.backlog_bytes,
        "dirty_bytes_per_s": pace.dirty_bytes_per_s,
        "copy_bytes_per_s": pace.copy_bytes_per_s,
        "waits_for": state.waits_for,
    }
    await state.note("stalled" if state.stalled else "moving-again", facts)
