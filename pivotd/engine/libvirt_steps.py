"""The steps that ask libvirt to move a disk, and to agree on what the guest starts with next."""

from __future__ import annotations

from dataclasses import replace

from pivotd import limits
from pivotd.core import actions
from pivotd.core.observation import OUR_PAUSE, Observation
from pivotd.core.pivot import Phase
from pivotd.core.request import Manager
from pivotd.core.rules.agreement import may_run
from pivotd.engine import pause_steps, record_shapes
from pivotd.engine.driver_state import DriverState, moment
from pivotd.engine.pause_steps import same_moment
from pivotd.engine.ports import LibvirtSession, Session
from pivotd.errors import QmpRefusedError

Seen = Observation | None


async def ask_libvirt(
    state: DriverState, session: LibvirtSession, action: actions.AskLibvirt, seen: Observation
) -> Seen:
    """Record that libvirt is asked to switch, then ask it; without a record of that, no disk moves."""
    if action.pivot and not state.pivot.asking:
        facts = record_shapes.facts(state.pivot, seen, state.attempt, "libvirt is asked to switch")
        options = replace(state.pivot.options, guest_writes=await _guest_writes(state, session))
        await state.record("asking", facts | {"disks": action.disks}, asking=True, options=options)
    if action.pivot and not same_moment(state, session):
        return None  # another client may have resumed the guest
    doubt = state.attempt.ask_in_doubt
    if action.pivot:
        state.remember(ask_in_doubt=True)  # without an answer it may still be carried out
    try:
        await session.ask_libvirt(state.pivot, action.disks, switch=action.pivot)
    except QmpRefusedError as error:
        state.remember(ask_in_doubt=doubt, ask_refused=error.message)
        if state.pivot.phase is Phase.CANCELLING:
            await state.sleep(limits.CANCEL_AGAIN_S)
        return None
    if action.pivot:
        state.remember(ask_in_doubt=False)
    return None


async def agree(state: DriverState, session: LibvirtSession, action: actions.Agree, seen: Observation) -> Seen:
    """Have libvirt write the definition for the next boot, durably.

    libvirt has compared and written under its own lock: unless something else has happened, another look would only
    lengthen the pause.
    """
    try:
        written, raced = await session.agree(state.pivot, dict(action.images))
    except QmpRefusedError as error:
        state.remember(agree_refused=error.message)
        await state.sleep(limits.CANCEL_AGAIN_S)
        return None
    images = {disk: image for disk, image in action.images if disk in written}
    agreed = state.attempt.agreed | set(images.items())
    state.remember(agreed=agreed, agree_refused=None, define_raced=raced or state.attempt.define_raced)
    if raced:
        # At once: whoever finds this pivot after a crash cannot know it.
        await state.note("define-raced", {"images": images})
    if raced or len(images) < len(action.images) or not same_moment(state, session):
        return None  # somebody else defines the guest, or has resumed it
    beliefs = {disk: replace(belief, next=images.get(disk, belief.next)) for disk, belief in seen.beliefs.items()}
    return replace(seen, beliefs=beliefs)


async def roll_back(state: DriverState, session: Session, action: actions.RollBack, seen: Observation) -> Seen:
    """Take disks back; of a guest of libvirt's only if QEMU shows that it has written nothing since libvirt was asked.

    Somebody may have resumed and suspended it unseen, while pivotd or libvirtd was dead: the source would lack that.
    """
    if state.pivot.manager is Manager.LIBVIRT:
        before, now = dict(state.pivot.options.guest_writes), dict(await _guest_writes(state, session))
        if any(disk not in before or before[disk] != now.get(disk) for disk in action.disks):
            state.remember(may_have_written=True)
            return None
    return await pause_steps.roll_back(state, session, action, seen)


async def _guest_writes(state: DriverState, session: Session) -> tuple[tuple[str, int], ...]:
    """Return how often the guest has written to each disk."""
    found = await session.writes(state.pivot)
    return tuple((disk.disk, found[disk.qdev][1]) for disk in state.pivot.disks if disk.qdev in found)


async def let_run(state: DriverState, session: Session) -> bool:
    """Resume the guest although nothing can be recorded, if QEMU and libvirt name one image of each disk.

    Returns: True if the guest is no longer in pivotd's pause. Raises: QmpError.
    """
    before = moment(session)
    now = await session.look(state.pivot)
    if now.run_state not in OUR_PAUSE:
        return True
    if before != moment(session) or not may_run(state.pivot, now, state.attempt):
        return False
    await session.resume()
    state.remember(resumed_at=state.clock.monotonic())
    return True
