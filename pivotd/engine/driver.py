"""One pivot's driver: look, decide, act, again. It holds no decision: those are core.decide's.

The same loop carries a new pivot and one that an earlier process left behind.
"""

from __future__ import annotations

from dataclasses import replace

from pivotd import limits
from pivotd.core import actions, undo
from pivotd.core.decide import decide
from pivotd.core.observation import Observation, Qemu
from pivotd.core.pivot import Outcome, Phase, Pivot
from pivotd.core.request import Requester
from pivotd.core.undo import Undo
from pivotd.engine import record_shapes
from pivotd.engine.converge import Converger
from pivotd.engine.ports import Clock, Domain, Journal, Session
from pivotd.engine.recording import Recording
from pivotd.engine.retry_target import Interruptions
from pivotd.engine.watchdog import Watchdog
from pivotd.errors import JournalError, JournalWriteError, PhaseConflictError, QmpError, QmpRefusedError
from pivotd.log import get_logger

REFUSABLE = (actions.Prepare, actions.PlaceNonce, actions.Snapshot)
"""Where QEMU says no to one of these, nothing was changed and the pivot is given up with QEMU's words."""
log = get_logger()


class Driver(Recording):
    """Drives one pivot to its end. ``pivot`` is always what the journal holds."""

    def __init__(self, pivot: Pivot, domain: Domain, journal: Journal, clock: Clock, converger: Converger) -> None:
        super().__init__(pivot, domain, journal, clock, converger)
        self.backlog: tuple[int, int] | None = None
        self.successor: Pivot | None = None
        """The pivot that takes this one back; whoever runs this driver then starts one for it."""
        self._asked_bandwidth: tuple[int, Requester] | None = None
        self._interruptions = Interruptions()
        self._watchdog = Watchdog(clock, self._cut)

    def wake(self) -> None:
        """Make the driver look again now."""
        self._woken.set()

    def cancel(self) -> None:
        """Ask to keep the source; has no effect once a switch is final."""
        self._memory.cancel_requested = True
        self.wake()

    async def complete(self, who: Requester) -> None:
        """Let a pivot that waits at READY go on. Raises: PhaseConflictError."""
        before = self.pivot
        if before.phase is not Phase.READY or not before.hold:
            raise PhaseConflictError(
                f"pivot {before.id} is {before.phase}: only one that waits at ready can be completed"
            )
        disks = tuple(replace(disk, outcome=None) for disk in before.disks)
        await self._record(
            before, "complete-requested", {"uid": who.uid}, hold=False, attempt=0, error=None, disks=disks
        )
        self._retry_at = 0.0
        self.wake()

    def release(self) -> None:
        """Ask to end the undo window; has no effect where there is none."""
        self._memory.release_requested = True
        self.wake()

    def undo(self, asked: Undo) -> None:
        """Ask to be taken back; ``successor`` is the pivot that does it, once that is recorded."""
        self._memory.undo = asked
        self.wake()

    async def set_bandwidth(self, bytes_per_s: int, who: Requester) -> None:
        """Have the jobs copy at most so fast from now on, 0 means no limit; returns once that is durable.

        Raises: PhaseConflictError.
        """
        self._asked_bandwidth = (bytes_per_s, who)
        self.wake()
        while self._asked_bandwidth is not None and self._may_set_bandwidth:
            await self.advanced.wait()
        if self._asked_bandwidth is not None:
            self._asked_bandwidth = None
            raise PhaseConflictError(f"pivot {self.pivot.id} is {self.pivot.phase}: nothing is copied any more")

    @property
    def _may_set_bandwidth(self) -> bool:
        before_pause = {Phase.PREPARING, Phase.COPYING, Phase.READY, Phase.PAUSING}
        return self.pivot.has_jobs and self.pivot.phase in before_pause

    def end(self) -> None:
        """Return from run() as soon as the guest is not in a pause of ours; the pivot stays open."""
        self._ending = True
        self.wake()

    async def run(self) -> None:
        """Drive the pivot until it is closed or end() was called; an unexpected error makes it look again."""
        try:
            if self._in_window:
                await self._enter_window()
                await self._look_for_destinations(limits.RECORD_PATIENCE_S)
            while not self._done():
                await self._step_or_wait()
        finally:
            self._leave_window()

    async def _step_or_wait(self) -> None:
        try:
            await self._step()
        except PhaseConflictError:
            log.warning("pivot.raced", pivot=self.pivot.id)
            await self._sleep(limits.RECONNECT_FIRST_S)
        except Exception as error:
            # Whatever it was, the guest may be paused: say it, look again, decide again.
            log.exception("pivot.failed", pivot=self.pivot.id, error=repr(error))
            self.waits_for = f"another try after an error: {error}"
            self._woken.clear()
            await self._sleep(limits.FAILED_LOOP_S)

    def _done(self) -> bool:
        return self.pivot.phase is Phase.CLOSED or (self._ending and not self._in_window)

    async def _step(self) -> None:
        if self._memory.not_ours is not None:
            await self._record(self.pivot, "not-our-pause", {"run_state": self._memory.not_ours}, owes_resume=False)
            self._memory.not_ours = None
        if self._asked_bandwidth is not None and self._may_set_bandwidth and not self._in_window:
            asked = bytes_per_s, who = self._asked_bandwidth
            options = replace(self.pivot.options, bandwidth_bytes_per_s=bytes_per_s, bandwidth_due=True)
            facts = {"bandwidth_bytes_per_s": bytes_per_s, "uid": who.uid}
            try:
                await self._record(self.pivot, "bandwidth-requested", facts, options=options)
            finally:  # not before: whoever has asked would take another record for this one
                if self._asked_bandwidth is asked:
                    self._asked_bandwidth = None
        seen = await self._look()
        if self.pivot.phase in {Phase.COPYING, Phase.READY}:
            await self._note_went_on(seen)
        while True:
            over = undo.window_left_s(self.pivot, self._clock.utc_now()) <= 0
            seen = self._memory.add_to(seen, self._clock.monotonic(), window_over=over)
            action = decide(self.pivot, seen)
            known = await self._perform(action, seen)
            if known is None or self._done():
                return
            seen = known

    async def _look(self) -> Observation:
        self._woken.clear()
        session = self._domain.session
        if session is None:
            await self._domain.settled(limits.QUERY_TIMEOUT_S)
            session = self._domain.session
        if session is None:
            seen = self._without_session()
        else:
            try:
                self._memory.resumes = session.resumes
                seen = await session.look(self.pivot)
                self._memory.unwritten = self._memory.still_unmoved == (session, session.resumes)
            except QmpError as error:
                seen = Observation(Qemu.SILENT, detail=error.message)
        if seen.qemu is not Qemu.SILENT:
            self._silent_for_s = limits.RECONNECT_FIRST_S
        if self._memory.deadline is None and self.pivot.phase is Phase.PAUSING and self.pivot.owes_resume:
            # An earlier process paused the guest: its deadline is gone, a new one counts from here.
            self._memory.deadline = self._clock.monotonic() + self.pivot.options.max_pause_ms / 1000
        self._note_backlog(seen)
        if seen.qemu is Qemu.SAME:
            await self._note_stall()
        return seen

    def _without_session(self) -> Observation:
        if self._domain.process_gone(self.pivot.identity):
            return Observation(Qemu.GONE, detail=self._domain.detail)
        return Observation(Qemu.SILENT, detail=self._domain.detail)

    def _note_backlog(self, seen: Observation) -> None:
        self.pace.note(self.pivot, seen, self._clock.monotonic())
        jobs = [seen.job(disk.job) for disk in self.pivot.disks]
        if all(job.backlog_bytes is not None for job in jobs):
            total = sum(disk.size_bytes for disk in self.pivot.disks)
            self.backlog = (sum(job.backlog_bytes or 0 for job in jobs), total)

    async def _note_stall(self) -> None:
        """Record that a copy makes no progress any more, and that it does again: nothing may last for ever unsaid."""
        copying = self.pivot.phase is Phase.COPYING or (self.pivot.phase is Phase.READY and not self.pivot.hold)
        if self._in_window or not copying:
            return
        stalled_s = self.pace.stalled_s(self._clock.monotonic())
        if self.stalled == (stalled_s >= limits.STALL_S):
            return
        self.stalled = not self.stalled
        facts = {
            "stalled_s": round(stalled_s, 1),
            "backlog_bytes": self.pace.backlog_bytes,
            "dirty_bytes_per_s": self.pace.dirty_bytes_per_s,
            "copy_bytes_per_s": self.pace.copy_bytes_per_s,
            "waits_for": self.waits_for,
        }
        event = "stalled" if self.stalled else "moving-again"
        await self._journal.note(event, facts, domain=self._domain.name, pivot=self.pivot.id)

    async def _perform(self, action: actions.Action, seen: Observation) -> Observation | None:
        """Carry out one action; return what is known of QEMU after it, None to look again."""
        if not isinstance(action, actions.AskAgain):
            self.looked.set()
        if isinstance(action, record_shapes.RECORD_ONLY):
            try:
                await self._perform_record_in_time(action, seen)
            except JournalError as error:
                if isinstance(action, actions.RecordOutcome) and isinstance(error, JournalWriteError):
                    self._memory.switch_in_doubt |= Outcome.SWITCHED in dict(action.outcomes).values()
                await self._without_record(seen, error)
                raise
            return seen
        match action:
            case actions.Done():
                return seen
            case actions.Close():
                await self._record(self.pivot, "closed", {}, phase=Phase.CLOSED, closed_at=self._clock.utc_now())
                return seen
            case actions.HandOver():
                await self._hand_over(seen)
                return seen
            case actions.NoteResumed(run_state):
                await self._note_resumed("resume-not-needed", {"run_state": run_state})
                return seen
            case actions.Wait(reason):
                await self._wait(reason)
                return None
            case actions.AskAgain(reason):
                await self._ask_again(reason)
                return None
        session = self._domain.session
        if session is None:
            return None
        try:
            work = self._perform_on(session, action, seen)
            return await self._watchdog.bound(work, self.pivot, action, seen, self._memory.deadline)
        except QmpError as error:
            if isinstance(action, REFUSABLE) and isinstance(error, QmpRefusedError):
                await self._perform_record(actions.Abandon(error.message), seen)
                return None
            log.warning("qmp.trouble", pivot=self.pivot.id, error=error.message)
            await self._sleep(limits.RECONNECT_FIRST_S)
            return None

    async def _perform_on(self, session: Session, action: actions.Action, seen: Observation) -> Observation | None:
        match action:
            case actions.Snapshot() | actions.Finalize(_) if session.resumes != self._memory.resumes:
                return None  # somebody resumed the guest since the look, and it may be writing: look again
            case actions.PlaceNonce():
                await session.place_nonce(self.pivot)
            case actions.Prepare(index, step):
                await session.prepare(self.pivot, self.pivot.disks[index], step)
            case actions.GoOn(jobs, reason):
                await self._go_on(session, jobs, reason, seen)
            case actions.Converge():
                return await self._converge(session, seen)
            case actions.Stop(jobs):
                return await self._stop(session, jobs, seen)
            case actions.Complete(jobs):
                completing = (self._memory.completing or frozenset()) | set(jobs)
                self._memory.completing = None  # without an answer nobody knows, and asking twice does no harm
                await session.complete(jobs)
                self._memory.completing = completing
                return await self._await_pending(session, seen)
            case (
                actions.CarryBitmaps()
                | actions.Finalize()
                | actions.Snapshot()
                | actions.RollBack()
                | actions.KeepSynced()
            ):
                return await self._switch(session, action, seen)
            case actions.CancelJobs(_, True) | actions.Resume() if session.resumes != self._memory.resumes:
                return None  # somebody resumed the guest since the look: whatever holds it now may not be our pause
            case actions.CancelJobs(jobs, resume):
                await session.cancel(jobs, resume=resume)
                if resume:
                    await self._note_resumed("resumed", {})
                else:
                    await self._sleep(limits.CANCEL_AGAIN_S)
            case actions.Resume():
                await session.resume()
                await self._note_resumed("resumed", {})
                return replace(seen, run_state="running")
            case actions.SetBandwidth() | actions.RestoreLimits() | actions.CleanUp():
                await self._keep_house(session, action)
        return None

    async def _keep_house(self, session: Session, action: actions.Action) -> None:
        """Do what is not part of the switch itself."""
        match action:
            case actions.SetBandwidth():
                await session.set_bandwidth(self.pivot)
                self.pace.begin_again(self._clock.monotonic())
                options = replace(self.pivot.options, bandwidth_due=False)
                await self._record(self.pivot, "bandwidth-set", {}, options=options)
            case actions.RestoreLimits():
                others = await session.restore_limits(self.pivot)
                options = replace(self.pivot.options, write_limits=())
                await self._record(self.pivot, "limits-restored", {"left_alone": others}, options=options)
            case actions.CleanUp():
                left = await session.clean_up(self.pivot)
                self._memory.clean_up_failed = bool(left)
                if left:
                    log.warning("pivot.leftovers", pivot=self.pivot.id, names=left)
                    await self._journal.note(
                        "leftovers", {"names": left}, domain=self._domain.name, pivot=self.pivot.id
                    )

    async def _go_on(self, session: Session, jobs: tuple[str, ...], reason: str, seen: Observation) -> None:
        """Record the interruption, and let the jobs try again with back-off."""
        facts = self._interruptions.begin(self.pivot, jobs, seen, self._clock.monotonic())
        if facts is not None:
            await self._note("interrupted", facts | {"reason": reason})
        wait_s = self._interruptions.wait_s(self._clock.monotonic())
        if wait_s > 0:
            await self._wait(reason, wait_s)
            return
        await session.go_on(jobs)

    async def _note_went_on(self, seen: Observation) -> None:
        facts = self._interruptions.end(self.pivot, seen, self._clock.monotonic())
        if facts is not None:
            await self._note("went-on", facts)

    async def _hand_over(self, seen: Observation) -> None:
        """Record the pivot that takes this one back, and the end of this one, as one."""
        assert self._memory.undo is not None
        successor = undo.successor(self.pivot, self._memory.undo, seen.nodes, self._clock.utc_now())
        facts = {"undo": successor.id, "uid": successor.requested_by.uid}
        self.pivot = await self._journal.hand_over(self.pivot, successor, facts)
        self.successor = successor
        self._announce()
