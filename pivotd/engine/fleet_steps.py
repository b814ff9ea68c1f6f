"""What a pivot's driver tells the fleet: the pivot before its pause, and the outcome before the guest runs on."""

from __future__ import annotations

from dataclasses import replace

from pivotd import limits
from pivotd.core.fleet import FleetView, OnSilence
from pivotd.core.observation import Observation
from pivotd.core.pivot import FleetStage, Phase
from pivotd.core.rules.fleet_pivots import Here, Superseded, after_outcome, before_intent, moved
from pivotd.engine.driver_state import DriverState
from pivotd.engine.ports import Fleet
from pivotd.errors import FleetConflictError, FleetError
from pivotd.log import get_logger

log = get_logger()


async def announced(state: DriverState, seen: Observation) -> bool:
    """Return whether the fleet has just answered that it holds the intent; say what the pivot waits for if not.

    The guest still runs. After a slow answer the pivot converges again first, with the intent in place.
    """
    if state.fleet is None or not state.pivot.switches:
        return True
    if is_fresh(state):
        return True
    began = state.clock.monotonic()
    try:
        refusal = await _announce(state, state.fleet, seen)
    except FleetError as error:
        refusal = f"ready: the fleet has to know before the guest is paused: {error.message}"
        if isinstance(error, FleetConflictError):
            return False
    if refusal is not None:
        await state.wait(refusal, limits.FLEET_AGAIN_S)
        return False
    return state.clock.monotonic() - began < limits.FLEET_QUICK_S


def is_fresh(state: DriverState) -> bool:
    """Return whether the answer of the fleet is recent enough for a pause to begin."""
    asked = state.attempt.fleet_asked_at
    if state.fleet is None or not state.pivot.switches:
        return True
    return asked is not None and state.clock.monotonic() - asked < limits.FLEET_FRESH_S


async def _announce(state: DriverState, fleet: Fleet, seen: Observation) -> str | None:
    """Record that the fleet may have the intent, then write it there; return why the pivot must wait, if it must."""
    view = await _known(state, fleet, fleet.timeout_s)
    wanted = before_intent(view, state.pivot, _here(state, fleet, present=_is_here(seen)), fleet.on_silence)
    if isinstance(wanted, str):
        state.remember(fleet_view=None)
        return wanted
    assert wanted.owner is not None
    changes = {
        "fleet": FleetStage.ANNOUNCED,
        "fleet_epoch": wanted.owner.epoch,
        "options": replace(state.pivot.options, on_silence=fleet.on_silence.value),
    }
    if any(getattr(state.pivot, name) != value for name, value in changes.items()):
        facts = {"epoch": wanted.owner.epoch, "on_silence": fleet.on_silence.value}
        await state.record("announcing", facts, **changes)
    await _write(state, fleet, view, wanted, fleet.timeout_s)
    state.remember(fleet_asked_at=state.clock.monotonic())
    return None


async def tell(state: DriverState, seen: Observation) -> Observation | None:
    """Tell the fleet what became of the pivot; return the observation if a paused guest can go on by it."""
    fleet = state.fleet
    assert fleet is not None
    paused = state.pivot.owes_resume
    if paused and state.attempt.fleet_since is None:
        state.remember(fleet_since=state.clock.monotonic())
    until = state.clock.monotonic() + _patience_s(state, fleet)
    try:
        view = await _known(state, fleet, until - state.clock.monotonic())
        wanted = after_outcome(view, state.pivot, _here(state, fleet, present=_is_here(seen)))
        if isinstance(wanted, Superseded):
            await _superseded(state, wanted)
            return None
        if wanted != view or not moved(state.pivot):
            # Also if there is no intent to remove: a late one would land, and nobody would remove it.
            left_s = max(until - state.clock.monotonic(), limits.FLEET_GRACE_S)
            await _write(state, fleet, view, wanted, left_s)
    except FleetError as error:
        woken = state.clock.monotonic() > until + limits.FLEET_WOKEN_S
        await _not_told(state, error, woken=woken)
        return None
    await _told(state)
    return seen if paused else None


def _patience_s(state: DriverState, fleet: Fleet) -> float:
    """Return how long the fleet may take to answer; within the longest pause, where the guest runs on after that.

    Long after that pause this process, or QEMU, has stood still: another host may have taken the guest meanwhile.
    """
    waits = state.pivot.options.on_silence != OnSilence.RESUME.value
    if not state.pivot.owes_resume or waits or state.attempt.deadline is None:
        return fleet.timeout_s
    left_s = state.attempt.deadline - state.clock.monotonic()
    woken = left_s < -limits.FLEET_WOKEN_S
    return min(fleet.timeout_s, max(left_s, limits.FLEET_WOKEN_TRY_S if woken else limits.FLEET_GRACE_S))


async def _told(state: DriverState) -> None:
    """Record what the fleet knows, unless the record of the resume is about to do that."""
    if state.pivot.phase is Phase.READY:
        state.remember(fleet_asked_at=None)
        await state.record("withdrawn", {}, fleet=FleetStage.NONE)
        return
    state.remember(fleet_told=True, fleet_silent=None)
    if not state.pivot.owes_resume:
        await state.record("fleet-told", {}, fleet=FleetStage.TOLD)


async def _not_told(state: DriverState, error: FleetError, *, woken: bool) -> None:
    """Wait before the next try: not for long with a paused guest, and not at all if only something has changed.

    ``woken``: the try took so long that this process was frozen in it; nobody has asked the fleet as it is now.
    """
    state.remember(fleet_silent=error.message, fleet_silent_at=None if woken else state.clock.monotonic())
    if isinstance(error, FleetConflictError):
        return
    if state.pivot.owes_resume:
        reason = f"the guest stays paused until the fleet knows of the switch: {error.message}"
        await state.note_guest_waits(reason)
        await state.wait(reason, limits.FLEET_PAUSED_AGAIN_S)
        return
    state.remember(fleet_retry_at=state.clock.monotonic() + limits.FLEET_AGAIN_S)


async def _superseded(state: DriverState, found: Superseded) -> None:
    """Record that the guest is not this host's any more; pivotd never resumes it."""
    pivot = state.pivot
    left = pivot.owes_resume and not state.domain.process_gone(pivot.identity)
    log.error("pivot.superseded", domain=pivot.domain, pivot=pivot.id, reason=found.reason, left_paused=left)
    text = f"superseded: {found.reason}" + ("; its QEMU here is left paused: end it" if left else "")
    await state.record(
        "superseded", {"reason": found.reason, "left_paused": left},
        fleet=FleetStage.SUPERSEDED, owes_resume=False, hold=False, error=text,
    )  # fmt: skip


async def _known(state: DriverState, fleet: Fleet, timeout_s: float) -> FleetView:
    """Return what the fleet holds, asked for only if this process cannot know it. Raises: FleetSilentError."""
    if state.attempt.fleet_view is None:
        state.remember(fleet_view=await fleet.read(state.pivot.domain, timeout_s))
    assert state.attempt.fleet_view is not None
    return state.attempt.fleet_view


async def _write(state: DriverState, fleet: Fleet, before: FleetView, after: FleetView, timeout_s: float) -> None:
    """Write to the fleet; without an answer, what it holds is no longer known. Raises: FleetError."""
    state.remember(fleet_view=None)
    state.remember(fleet_view=await fleet.write(before, after, timeout_s))


def _is_here(seen: Observation) -> bool:
    return seen.run_state is not None and not seen.leaving


def _here(state: DriverState, fleet: Fleet, *, present: bool) -> Here:
    return Here(fleet.host, fleet.boot_id, state.clock.utc_now(), present)
