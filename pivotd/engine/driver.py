"""One pivot's driver: look, decide, act, repeat. It makes no decision itself: core.decide does.

The driver is an actor: only its own task changes the pivot, and users' requests come as messages to its inbox.
The same loop drives a new pivot and one that an earlier process left behind.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace

from pivotd import limits
from pivotd.core import actions
from pivotd.core.decide import decide
from pivotd.core.fleet import OnSilence
from pivotd.core.observation import OUR_PAUSE, Observation, Qemu
from pivotd.core.phases import is_decided
from pivotd.core.pivot import JsonObject, Phase, Pivot
from pivotd.core.request import Manager, Requester
from pivotd.core.undo import Undo
from pivotd.engine import fleet_steps, intent, progress_notes, record_shapes, record_steps, watchdog
from pivotd.engine.converge import Converger
from pivotd.engine.driver_state import DriverState, moment
from pivotd.engine.failures import Failures
from pivotd.engine.inbox import (
    Cancel,
    Complete,
    Message,
    Release,
    SetBandwidth,
    TakeBack,
    not_waiting,
    too_late,
)
from pivotd.engine.pace import Pace
from pivotd.engine.ports import Clock, Domain, Fleet, Journal, Session
from pivotd.engine.steps import REFUSABLE, STEPS
from pivotd.errors import BusyError, PhaseConflictError, PivotdError, QmpError, QmpRefusedError, UnansweredError
from pivotd.log import get_logger

RECORDS = (*record_shapes.RECORD_ONLY, actions.Close, actions.HandOver, actions.NoteResumed)
log = get_logger()


class Driver:
    """Drives one pivot to its end. Only run() changes ``state``."""

    def __init__(  # noqa: PLR0913, PLR0917 - the ports of one pivot
        self,
        pivot: Pivot,
        domain: Domain,
        journal: Journal,
        clock: Clock,
        converger: Converger,
        fleet: Fleet | None = None,
    ) -> None:
        self.state = DriverState(pivot, domain, journal, clock, converger, fleet)
        self._failures = Failures()
        self._overtaken = False
        self._ending_since: float | None = None
        self._seen: Observation | None = None
        """The last look."""

    # -- what others may see ------------------------------------------------------------------------------------

    @property
    def pivot(self) -> Pivot:
        """The pivot as the journal stores it."""
        return self.state.pivot

    @property
    def looked(self) -> asyncio.Event:
        """Set once QEMU has answered the first look, or its silence was reported."""
        return self.state.looked

    @property
    def advanced(self) -> asyncio.Event:
        """Set at each record, and then replaced by a new one."""
        return self.state.advanced

    @property
    def successor(self) -> Pivot | None:
        """The pivot that undoes this one; the supervisor then starts a driver for it."""
        return self.state.successor

    @property
    def pace(self) -> Pace:
        """The measured rates of the copy."""
        return self.state.converger.pace

    @property
    def waits_for(self) -> str:
        """One sentence that says what the pivot waits for."""
        return self._failures.text or self.state.waits_for

    @property
    def stalled(self) -> bool:
        """Whether the copy makes no progress."""
        return self.state.stalled

    @property
    def failing(self) -> str | None:
        """One sentence that says why this driver fails again and again, or leaves its guest paused; None: neither."""
        return self._failures.text or self.state.guest_waits_for

    # -- what others may ask ------------------------------------------------------------------------------------

    def wake(self) -> None:
        """Make the driver look again now."""
        self.state.inbox.woken.set()

    def end(self) -> None:
        """Make run() return as soon as the guest is not in a pause of pivotd's; the pivot stays open."""
        self.state.inbox.end()

    async def complete(self, who: Requester) -> Pivot:
        """Let a pivot that waits at READY continue.

        Raises: PhaseConflictError, BusyError, UnansweredError, JournalError.
        """
        if refusal := not_waiting(self.pivot):
            raise refusal
        return await self.ask(Complete(who))

    async def cancel(self, who: Requester) -> Pivot:
        """Keep the source; return once this or the switch is decided. Raises: PhaseConflictError, JournalError."""
        if is_decided(self.pivot):
            if refusal := too_late(self.pivot):
                raise refusal
            return self.pivot
        await self.state.note("cancel-requested", {"uid": who.uid})
        return await self.ask(Cancel(who), stays=True)

    async def set_bandwidth(self, bytes_per_s: int, who: Requester) -> Pivot:
        """Limit the bandwidth of the jobs from now on, 0 means no limit; return once this is durable.

        Raises: PhaseConflictError, BusyError, UnansweredError, JournalError.
        """
        return await self.ask(SetBandwidth(who, bytes_per_s=bytes_per_s))

    async def release(self, who: Requester) -> Pivot:
        """End the undo window; return once this is durable. Raises: JournalError."""
        await self.state.note("release-requested", {"uid": who.uid})
        return await self.ask(Release(who), stays=True)

    async def undo(self, asked: Undo) -> Pivot:
        """Undo the switch; return the pivot that does this. Raises: PhaseConflictError, BusyError, UnansweredError."""
        return await self.ask(TakeBack(asked.who, undo=asked))

    async def ask(self, message: Message, *, stays: bool = False) -> Pivot:
        """Send a message and return its answer.

        ``stays``: after the time limit the driver still acts on the message, and this returns the pivot as it is.
        Raises: the error that is the answer; BusyError: the driver was busy all the time, and nothing was changed;
        UnansweredError: it has begun with the request.
        """
        inbox = self.state.inbox
        inbox.post(message)
        inbox.settle(self.pivot, self.successor)
        if inbox.closed:
            inbox.close(self.pivot)
        try:
            async with asyncio.timeout(limits.COMMAND_TIMEOUT_S):
                return await message.future
        except TimeoutError:
            if stays:
                return self.pivot
            why = f"pivot {self.pivot.id} has not answered within {limits.COMMAND_TIMEOUT_S:g} s ({self.waits_for})"
            if message.taken:
                raise UnansweredError(f"{why}: look at it before you ask again", pivot=self.pivot.id) from None
            raise BusyError(f"{why}: nothing was changed; ask again", pivot=self.pivot.id) from None
        finally:
            if not stays and not message.taken:
                inbox.remove(message)

    # -- the loop -----------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Drive the pivot until it is closed or end() was called; an unexpected error makes it look again."""
        state = self.state
        try:
            while not self._done():
                await self._step_or_wait()
        finally:
            state.leave_window()
            state.inbox.close(self.pivot)

    async def _step_or_wait(self) -> None:
        """Take one step; after an error wait, longer each time, then look again: the guest may be paused."""
        state = self.state
        try:
            await self._step()
        except Exception as error:  # noqa: BLE001 - whatever it was, the guest may be paused: decide again
            # A conflict: a record of this driver was written after the driver had stopped waiting for it.
            self._overtaken = self._overtaken or isinstance(error, PhaseConflictError)
            wait_s = self._failures.failed(error, self.pivot, paused=state.in_window or state.inbox.ending)
            if not isinstance(error, PhaseConflictError) or self._failures.in_a_row > 1:
                await state.back_off(wait_s)
        else:
            self._failures.ended()

    def _done(self) -> bool:
        """Whether this process has nothing left to do. A pause that cannot be ended delays this for a while."""
        state = self.state
        if not state.inbox.ending or self.pivot.phase is Phase.CLOSED:
            return self.pivot.phase is Phase.CLOSED
        if not state.in_window:
            return True
        now = state.clock.monotonic()
        self._ending_since = self._ending_since or now
        leave_at = self._ending_since + self.pivot.options.max_pause_ms / 1000 + self._end_patience_s
        return now >= leave_at or (self._failures.in_a_row >= limits.FAILED_BEFORE_END and not self._may_hold)

    @property
    def _end_patience_s(self) -> float:
        """How long beyond max_pause the end of the daemon waits for this pause; less if only etcd can end it."""
        waits = self.state.attempt.fleet_silent is not None and self.pivot.options.on_silence != OnSilence.RESUME.value
        return limits.FLEET_END_PATIENCE_S if waits else limits.END_PATIENCE_S

    @property
    def _may_hold(self) -> bool:
        """Whether the guest may be in a pause that another try of this process could end."""
        seen, attempt = self._seen, self.state.attempt
        if attempt.resumed_at is not None or attempt.switch_in_doubt:
            return False
        return seen is None or seen.qemu is Qemu.SILENT or (seen.qemu is Qemu.SAME and seen.run_state in OUR_PAUSE)

    async def _step(self) -> None:
        state = self.state
        if self._overtaken:
            state.read_again(await state.journal.read(self.pivot.id))
            self._overtaken = False
        if state.in_window and not state.has_window:
            await state.enter_window()
            await intent.look_for_destinations(state, limits.RECORD_PATIENCE_S)
        await record_steps.note_whose_pause(state)
        await self._take_messages()
        seen, session = await self._look()
        await progress_notes.went_on(state, seen)
        if seen.qemu is Qemu.SILENT and state.in_window and self.pivot.manager is Manager.LIBVIRT:
            beside = await state.domain.beside(self.pivot)
            if beside is not None:
                await self._act_beside(beside)
                return
        await self._act(seen, session)

    async def _act_beside(self, beside: Session) -> None:
        """End the pause over a connection that does not go through libvirt, as far as that is safe."""
        try:
            for _ in range(limits.LOOKS_BESIDE_MAX):
                seen = await self._look_by(beside)
                if not await self._act(seen, beside) or not self.state.in_window:
                    return
        finally:
            await beside.close()

    async def _act(self, seen: Observation, session: Session | None) -> bool:
        """Decide and act until another look is needed; return False if QEMU or libvirt has to be waited for."""
        state = self.state
        while True:
            self._take_wishes()
            state.attempt = state.attempt.at(self.pivot, state.clock.monotonic(), state.clock.utc_now())
            action = decide(self.pivot, seen, state.attempt)
            known = await self._perform(action, seen, session)
            if known is None or self.pivot.phase is Phase.CLOSED or (state.inbox.ending and not state.in_window):
                return not isinstance(action, actions.AskAgain)
            seen = known

    async def _take_messages(self) -> None:
        """Record the requests; never in a pause, which must not wait for this."""
        for message in self.state.inbox:
            if self.state.in_window:
                return
            if message.future.done() or message.taken:
                continue  # answered with the one before, or no caller waits for it
            match message:
                case Complete(who):
                    disks = tuple(replace(disk, outcome=None) for disk in self.pivot.disks)
                    self.state.remember(retry_at=0.0)
                    changes = {"hold": False, "attempt": 0, "error": None, "disks": disks}
                    await self._record_asked(message, "complete-requested", {"uid": who.uid}, changes)
                case SetBandwidth(who, bytes_per_s=bytes_per_s):
                    options = replace(self.pivot.options, bandwidth_bytes_per_s=bytes_per_s, bandwidth_due=True)
                    facts = {"bandwidth_bytes_per_s": bytes_per_s, "uid": who.uid}
                    await self._record_asked(message, "bandwidth-requested", facts, {"options": options})

    async def _record_asked(self, message: Message, event: str, facts: JsonObject, changes: JsonObject) -> None:
        """Record the request of one message; if the record fails, the requester gets the error."""
        message.taken = True
        try:
            await self.state.record(event, facts, **changes)
        except PivotdError as error:
            self.state.inbox.answered(message, error)
            raise
        self.state.inbox.answered(message, self.pivot)

    def _take_wishes(self) -> None:
        """Put the requests that concern the next decision into the attempt."""
        for message in self.state.inbox:
            match message:
                case Cancel(who):
                    self.state.remember(cancelled_by=who)
                case Release(who):
                    self.state.remember(released_by=who)
                case TakeBack(undo=undo):
                    message.taken = True
                    self.state.remember(undo=undo)

    async def _look(self) -> tuple[Observation, Session | None]:
        """Return what was seen, and of whom: another QEMU may answer at the monitor by the time of the next step."""
        state = self.state
        state.inbox.woken.clear()
        session = state.domain.session
        if session is None:
            await state.domain.settled(limits.QUERY_TIMEOUT_S)
            session = state.domain.session
        if session is None:
            gone = state.domain.process_gone(self.pivot.identity)
            seen = Observation(Qemu.GONE if gone else Qemu.SILENT, detail=state.domain.detail)
        else:
            seen = await self._look_by(session)
        self._seen = seen
        if seen.qemu is not Qemu.SILENT:
            state.heard()
        if state.attempt.deadline is None and self.pivot.owes_resume:
            # An earlier process paused the guest: its deadline is gone, a new one counts from here.
            state.remember(deadline=state.clock.monotonic() + self.pivot.options.max_pause_ms / 1000)
        self.pace.note(self.pivot, seen, state.clock.monotonic())
        if seen.qemu is Qemu.SAME:
            await progress_notes.stalled(state)
        return seen, session

    async def _look_by(self, session: Session) -> Observation:
        state = self.state
        try:
            state.remember(looked=moment(session))
            seen = await watchdog.telling(state, session.look(self.pivot))
            state.remember(unwritten=state.attempt.unmoved == moment(session))
        except QmpError as error:
            return Observation(Qemu.SILENT, detail=error.message)
        return seen

    def _waiting(self, action: actions.Action) -> str | None:
        """Return what a guest waits for with this action; while the fleet is asked, for the same as before."""
        if isinstance(action, actions.TellFleet):
            return self.state.guest_waits_for
        return action.reason if isinstance(action, actions.Wait | actions.AskAgain) else None

    async def _perform(self, action: actions.Action, seen: Observation, session: Session | None) -> Observation | None:
        """Carry out one action; return the resulting observation, None to look again."""
        state = self.state
        if not isinstance(action, actions.AskAgain):
            state.looked.set()
        await state.note_guest_waits(self._waiting(action))
        match action:
            case actions.Done():
                return seen
            case actions.Wait(reason):
                await state.wait(reason)
                return None
            case actions.AskAgain(reason):
                await state.ask_again(reason)
                return None
            case actions.TellFleet():
                return await fleet_steps.tell(state, seen)
        if isinstance(action, RECORDS):
            await record_steps.record(state, action, seen)
            return seen
        if session is None:
            return None
        try:
            work = STEPS[type(action)](state, session, action, seen)
            return await watchdog.bound(state, work, action, seen)
        except QmpError as error:
            if isinstance(action, REFUSABLE) and isinstance(error, QmpRefusedError):
                await record_steps.record(state, actions.Abandon(error.message), seen)
                return None
            if isinstance(action, actions.Resume) and not error.fields.keys().isdisjoint({"code", "lasts"}):
                raise  # libvirt does not let the guest run: that has to be told, and is not over in a moment
            log.warning("qmp.trouble", domain=self.pivot.domain, pivot=self.pivot.id, error=error.message)
            await state.sleep(limits.RECONNECT_FIRST_S)
            return None
