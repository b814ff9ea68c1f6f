"""The steps that ask libvirt to move a disk, and to agree on what the guest starts with next."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from pivotd import limits
from pivotd.core import actions, kinds
from pivotd.core.observation import Asked, JobBelief, Observation, Root
from pivotd.core.pivot import Phase
from pivotd.core.request import Manager
from pivotd.engine import guest_writes, pause_steps, record_shapes
from pivotd.engine.driver_state import DriverState
from pivotd.engine.journal_failures import in_time
from pivotd.engine.pause_steps import same_moment
from pivotd.engine.ports import LibvirtSession, Session
from pivotd.errors import QmpRefusedError

Seen = Observation | None


async def ask_libvirt(
    state: DriverState, session: LibvirtSession, action: actions.AskLibvirt, seen: Observation
) -> Seen:
    """Record that libvirt is asked to switch, then ask it; without a record of that, no disk moves."""
    if action.pivot and not await _note_asking(state, session, action, seen):
        return None  # the guest may run on since the journal hung
    if action.pivot and not same_moment(state, session):
        return None  # another client may have resumed the guest
    doubt = state.attempt.ask_in_doubt
    if action.pivot:
        state.remember(ask_in_doubt=True)  # without an answer it may still be carried out
    try:
        asked = await session.ask_libvirt(state.pivot, action.disks, switch=action.pivot)
    except QmpRefusedError as error:
        state.remember(ask_in_doubt=doubt, ask_refused=error.message)
        if state.pivot.phase is Phase.CANCELLING:
            await state.sleep(limits.CANCEL_AGAIN_S)
        return None
    if not action.pivot:
        return None
    state.remember(ask_in_doubt=False)
    if asked is None:
        return None
    if asked.saved or asked.raced:
        await _note_written(state, dict.fromkeys(asked.saved, Root.DESTINATION), raced=asked.raced)
    return None if asked.raced else _moved(state, session, seen, asked)


async def _note_asking(
    state: DriverState, session: LibvirtSession, action: actions.AskLibvirt, seen: Observation
) -> bool:
    """Record that libvirt is asked to switch, and then how often the guest had written by then; see guest_writes.py.

    No disk moves before the first is on disk; it is written beside the question for the second. The second is written
    beside the switch: whoever does not find it takes no disk of a copy back. A snapshot needs only the first.

    Returns: False if the first took so long that pivotd may have resumed the guest.
    """
    if state.pivot.asking:
        return True
    if not state.is_recording:  # the question may have failed after the first was begun
        facts = record_shapes.facts(state.pivot, seen, state.attempt, "libvirt is asked to switch")
        state.begin_record("asking", facts | {"disks": action.disks}, asking=True)
    counts = kinds.of(state.pivot).has_jobs
    writes = await guest_writes.counted(state, session) if counts else ()
    if not await in_time(state, seen, state.finish_record()):
        return False
    if not counts:
        return True
    options = replace(state.pivot.options, guest_writes=writes)
    facts = {"guest_writes": dict(writes)}
    state.begin_record("writes-counted", facts, after_s=limits.CALL_LEAVES_S, options=options)
    return True


def _moved(state: DriverState, session: Session, seen: Observation, asked: Asked) -> Seen:
    """Return the observation if QEMU and libvirt name every disk's destination, and the guest is still; else look.

    libvirt lets go of a job before it answers, and no job moves a disk that is on its destination already.
    """
    if not same_moment(state, session):
        return None
    moved = all(asked.roots.get(disk.disk) is Root.DESTINATION for disk in state.pivot.disks)
    known = all((belief.live, belief.job) == (Root.DESTINATION, JobBelief.NONE) for belief in asked.beliefs.values())
    return replace(seen, roots=asked.roots, beliefs=asked.beliefs, jobs={}) if moved and known else None


async def _note_written(state: DriverState, images: Mapping[str, Root], *, raced: bool) -> None:
    """Remember that these images of disks are durable for the next boot; record if somebody else defined the guest."""
    agreed = state.attempt.agreed | set(images.items())
    state.remember(agreed=agreed, agree_refused=None, define_raced=raced or state.attempt.define_raced)
    if raced:
        # At once: whoever finds this pivot after a crash cannot know it.
        await state.note("define-raced", {"images": images})


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
    await _note_written(state, images, raced=raced)
    if raced or len(images) < len(action.images) or not same_moment(state, session):
        return None  # somebody else defines the guest, or has resumed it
    beliefs = {disk: replace(belief, next=images.get(disk, belief.next)) for disk, belief in seen.beliefs.items()}
    return replace(seen, beliefs=beliefs)


async def roll_back(state: DriverState, session: Session, action: actions.RollBack, seen: Observation) -> Seen:
    """Take disks back; of a guest of libvirt's only if QEMU shows that it has written nothing since libvirt was asked.

    Somebody may have resumed and suspended it unseen, while pivotd or libvirtd was dead: the source would lack that.
    """
    if state.pivot.manager is Manager.LIBVIRT:
        await state.finish_record()
        if not await guest_writes.none_since(state, session, action.disks):
            state.remember(may_have_written=True)
            return None
    return await pause_steps.roll_back(state, session, action, seen)
