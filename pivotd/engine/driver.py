"""One pivot's driver: look, decide, act, again. It holds no decision: those are core.decide's.

The same loop carries a new pivot and one that an earlier process left behind.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine, Sequence
from dataclasses import asdict, replace
from typing import Any, TypeVar

from pivotd import limits
from pivotd.core import actions, names, phases, undo
from pivotd.core.decide import decide
from pivotd.core.observation import (
    EXECUTING,
    OUR_PAUSE,
    PAUSABLE,
    STATUS_ENDED,
    STATUS_PENDING,
    JobSeen,
    Observation,
    Qemu,
    Root,
)
from pivotd.core.undo import Undo
from pivotd.core.words import Outcome, Phase, Pivot, PivotDisk, Requester
from pivotd.engine import records
from pivotd.engine.converge import Converged, Converger, NotYet, Slow
from pivotd.engine.interruptions import Interruptions
from pivotd.engine.memory import Memory
from pivotd.engine.ports import Clock, Domain, Journal, Session
from pivotd.engine.watchdog import Watchdog
from pivotd.errors import JournalError, JournalFullError, PhaseConflictError, QmpError, QmpRefusedError
from pivotd.files import file_id, lost
from pivotd.log import get_logger
from pivotd.threads import in_thread

log = get_logger()

T = TypeVar("T")
REFUSABLE = (actions.Prepare, actions.PlaceNonce, actions.Snapshot)
"""Where QEMU says no to one of these, nothing was changed and the pivot is given up with QEMU's words."""


class Driver:
    """Drives one pivot to its end. ``pivot`` is always what the journal holds."""

    def __init__(self, pivot: Pivot, domain: Domain, journal: Journal, clock: Clock, converger: Converger) -> None:
        self.pivot = pivot
        self.looked = asyncio.Event()
        """Set after the first look that was not silent, or that was and was told."""
        self.advanced = asyncio.Event()
        """Set, and replaced by a new one, at each record."""
        self.waits_for = "its first look at QEMU"
        self.backlog: tuple[int, int] | None = None
        self.successor: Pivot | None = None
        """The pivot that takes this one back; whoever runs this driver then starts one for it."""
        self.pace = converger.pace
        self.stalled = False
        self._domain = domain
        self._journal = journal
        self._clock = clock
        self._converger = converger
        self._asked_bandwidth: tuple[int, Requester] | None = None
        self._woken = asyncio.Event()
        self._ending = False
        self._memory = Memory.of_earlier_process() if pivot.phase is Phase.PAUSING else Memory()
        self._interruptions = Interruptions()
        self._retry_at = 0.0
        self._silent_for_s = limits.RECONNECT_FIRST_S
        self._has_window = False
        self._watchdog = Watchdog(clock, self._cut)

    # -- from outside -------------------------------------------------------------------------------------------

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

    # -- the loop -----------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Drive the pivot until it is closed or end() was called; an unexpected error makes it look again."""
        try:
            if self._in_window:
                await self._enter_window()
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

    @property
    def _in_window(self) -> bool:
        return self.pivot.phase is Phase.PAUSING or self.pivot.owes_resume

    def _done(self) -> bool:
        return self.pivot.phase is Phase.CLOSED or (self._ending and not self._in_window)

    async def _step(self) -> None:
        if self._memory.not_ours is not None:
            await self._record(self.pivot, "not-our-pause", {"run_state": self._memory.not_ours}, owes_resume=False)
            self._memory.not_ours = None
        if self._asked_bandwidth is not None and self._may_set_bandwidth and not self._in_window:
            bytes_per_s, who = self._asked_bandwidth
            options = replace(self.pivot.options, bandwidth_bytes_per_s=bytes_per_s, bandwidth_due=True)
            facts = {"bandwidth_bytes_per_s": bytes_per_s, "uid": who.uid}
            self._asked_bandwidth = None
            await self._record(self.pivot, "bandwidth-requested", facts, options=options)
        seen = await self._look()
        if self.pivot.phase in {Phase.COPYING, Phase.READY}:
            await self._note_went_on(seen)
        while True:
            over = undo.window_left_s(self.pivot, self._clock.utc_now()) <= 0
            seen = replace(seen, window_over=over)
            action = decide(self.pivot, self._memory.add_to(seen, self._clock.monotonic()))
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

    # -- acting -------------------------------------------------------------------------------------------------

    async def _perform(self, action: actions.Action, seen: Observation) -> Observation | None:
        """Carry out one action; return what is known of QEMU after it, None to look again."""
        if not isinstance(action, actions.AskAgain):
            self.looked.set()
        if isinstance(action, records.RECORD_ONLY):
            try:
                await self._perform_record_in_time(action, seen)
            except JournalError as error:
                if isinstance(action, actions.RecordOutcome) and not isinstance(error, JournalFullError):
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

    async def _switch(self, session: Session, action: actions.Action, seen: Observation) -> Observation | None:
        """Carry out what may only be done while the guest is still."""
        match action:
            case actions.CarryBitmaps():
                return await self._carry_bitmaps(session, seen)
            case actions.Finalize(jobs):
                return await self._finalize(session, jobs, seen)
            case actions.KeepSynced():
                return await self._keep_synced(session, seen)
            case actions.Snapshot():
                roots = await session.snapshot(self.pivot)
                still = session.resumes == self._memory.resumes
                return replace(seen, roots=roots) if still and set(roots.values()) == {Root.DESTINATION} else None
            case actions.RollBack(disks, reason):
                self._memory.rolled_back = reason
                await self._roll_back(session, disks)
        return None

    async def _perform_record(self, action: actions.Action, seen: Observation) -> None:
        """Record; RecordOutcome is the commit point: if it cannot be written, the guest must not run on."""
        event, facts, changes = records.written(self.pivot, action, seen, self._clock.utc_now())
        if changes["phase"] is Phase.COPYING:
            changes["disks"] = await self._with_file_ids()
        await self._record(self.pivot, event, facts, **changes)
        if isinstance(action, actions.Retreat):
            delay_s = limits.RETRY_FIRST_S * 2 ** (self.pivot.attempt - 1)
            self._retry_at = self._clock.monotonic() + min(delay_s, limits.RETRY_MAX_S)

    async def _perform_record_in_time(self, action: actions.Action, seen: Observation) -> None:
        """Record; if the storage hangs beyond the deadline of a pause, let the guest run first where nothing moved.

        A ``switched`` that hangs has to be waited for: it may be on disk or not, and the guest can run on neither.
        """
        moved = isinstance(action, actions.RecordOutcome | actions.EndWindow) or Root.DESTINATION in seen.roots.values()
        if moved or not self.pivot.owes_resume:
            await self._perform_record(action, seen)
            return
        writing = asyncio.ensure_future(self._perform_record(action, seen))
        try:
            left_s = (self._memory.deadline or 0.0) - self._clock.monotonic()
            await asyncio.wait([writing], timeout=max(left_s, limits.RECORD_PATIENCE_S))
            if not writing.done():
                await self._without_record(seen, JournalError("the storage of the journal does not answer"))
            await writing
        finally:
            writing.cancel()

    async def _without_record(self, seen: Observation, error: JournalError) -> None:
        """Nothing can be recorded while the guest is in our pause: go back to the source and let it run there.

        Only a ``switched`` whose fate is unknown forbids that, however long ago it failed: it might be on disk after
        all, and whoever starts from that disk then goes on with the destination. So no disk is taken back before it
        certainly is not there: whoever finds it after a crash must find the disks on their destinations.
        """
        session = self._domain.session
        paused = self.pivot.owes_resume and seen.run_state in OUR_PAUSE and seen.qemu is Qemu.SAME
        if session is None or not paused:
            return
        log.error("journal.not-written", pivot=self.pivot.id, error=error.message)
        moved = tuple(disk.disk for disk in self.pivot.disks if seen.roots.get(disk.disk) is Root.DESTINATION)
        if self._memory.switch_in_doubt:
            self._memory.switch_in_doubt = not await self._journal.settle()
        if self._memory.switch_in_doubt:
            return
        with contextlib.suppress(QmpError):
            await self._roll_back(session, moved)
            now = await session.look(self.pivot)
            if set(now.roots.values()) == {Root.SOURCE} and now.run_state in OUR_PAUSE:
                live = [name for name, job in now.jobs.items() if job.status not in STATUS_ENDED]
                completing = self._memory.completing != frozenset() or any(
                    now.jobs[n].status == STATUS_PENDING for n in live
                )
                await session.cancel(live if completing else [], resume=True)
                self._memory.resumed_at = self._clock.monotonic()

    # -- interrupted copies -------------------------------------------------------------------------------------

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

    async def _note(self, event: str, facts: dict[str, Any]) -> None:
        await self._journal.note(event, facts, domain=self._domain.name, pivot=self.pivot.id)

    # -- the pause ----------------------------------------------------------------------------------------------

    async def _converge(self, session: Session, seen: Observation) -> Observation | None:
        """Wait for a small backlog, flush outside the pause, take the window, record the intent."""
        if self._ending:
            return None
        wait_s = self._retry_at - self._clock.monotonic()
        if wait_s > 0:
            await self._wait("the next attempt", wait_s)
            return None
        ready = await self._unless_told(self._converger.step(session, self.pivot, seen))
        if ready is None:
            return None
        if isinstance(ready, Slow):
            await self._slow(session, ready)
            return None
        if isinstance(ready, NotYet):
            await self._wait(ready.reason, ready.wait_s)
            return None
        destinations = [disk.destination for disk in self.pivot.disks]
        with contextlib.suppress(TimeoutError):
            self._memory.lost = await in_thread(limits.FILE_TIMEOUT_S, lost, destinations)
        if self._memory.lost is not None:
            return None
        await self._enter_window()
        try:
            return await self._record_intent(session, ready)
        finally:
            if not self._in_window:
                self._leave_window()

    async def _slow(self, session: Session, slow: Slow) -> None:
        """Slow the guest's writes; what was there before is on disk before anything is changed."""
        options = replace(self.pivot.options, write_limits=slow.write_limits)
        facts = {"write_limits": [asdict(limit) for limit in slow.write_limits]}
        await self._record(self.pivot, "slowing", facts, options=options)
        await session.place_limits(self.pivot)

    async def _unless_told(self, work: Coroutine[Any, Any, T]) -> T | None:
        """Return what work returns, None if the pivot is cancelled or the daemon ends meanwhile: flushes take long."""
        task = asyncio.ensure_future(work)
        try:
            while not task.done():
                if self._memory.cancel_requested or self._ending:
                    return None
                await asyncio.wait([task], timeout=limits.CONVERGE_CHECK_S)
            return task.result()
        finally:
            task.cancel()

    async def _with_file_ids(self) -> tuple[PivotDisk, ...]:
        """Return the disks with what identifies each destination file, now that it is there."""
        found = []
        for disk in self.pivot.disks:
            known = None
            with contextlib.suppress(TimeoutError):
                known = await in_thread(limits.FILE_TIMEOUT_S, file_id, disk.destination.filename)
            found.append(replace(disk, destination=replace(disk.destination, file_id=known)))
        return tuple(found)

    async def _record_intent(self, session: Session, ready: Converged) -> Observation | None:
        """Record the intent if the guest is still in a state that allows it; nothing follows it but ``stop``."""
        chardevs = await session.chardevs()
        resumes = session.resumes  # before the look: a resume in the middle of it must not pass for seen
        now = await session.look(self.pivot)
        if now.run_state not in PAUSABLE or now.qemu is not Qemu.SAME or self._memory.cancel_requested or self._ending:
            return None
        self._memory.begin(quick=ready.quick)
        self._memory.resumes = resumes
        self._memory.at_intent = (session, resumes)
        await self._record(
            self.pivot,
            "pausing",
            ready.facts | {"run_state": now.run_state, "chardevs": chardevs},
            phase=Phase.PAUSING,
            attempt=self.pivot.attempt + 1,
            run_state_before=now.run_state,
            owes_resume=now.run_state == "running",
            pausing_since=self._clock.utc_now(),
        )
        return now

    async def _stop(self, session: Session, jobs: tuple[str, ...], seen: Observation) -> Observation | None:
        self._memory.stop_sent = None  # without an answer nobody knows: a guest that was paused before shows nothing
        self._memory.completing = frozenset(jobs)
        self._memory.paused_at = self._clock.monotonic()
        self._memory.deadline = self._memory.paused_at + self.pivot.options.max_pause_ms / 1000
        before = await session.stop(jobs)
        self._memory.stop_sent = True
        if not self.pivot.owes_resume and (before == "running" or session.resumes != self._memory.resumes):
            # Paused when the intent was recorded, but somebody has resumed it since: this `stop` was in their way.
            changes = {"owes_resume": True, "run_state_before": "running"}
            await self._record(self.pivot, "paused", {"run_state": before}, **changes)
        if session.resumes != self._memory.resumes:
            return None
        if before not in EXECUTING:
            # Somebody else paused it between the last look and here: it is not ours to resume. One that was seen
            # paused is: an earlier process has sent this `stop` before.
            self._memory.not_ours = before if self.pivot.owes_resume and seen.executing else None
            return None
        if before != "running":
            return None
        seen = replace(seen, run_state="paused")
        return await self._await_pending(session, seen) if jobs else seen

    async def _finalize(self, session: Session, jobs: tuple[str, ...], seen: Observation) -> Observation | None:
        """Finalize and read the graph; anything but every disk on its destination, guest still, needs a full look.

        The jobs were read before the graph: their events come before the answer to job-finalize.
        """
        roots = await session.finalize(self.pivot, jobs)
        if not self.pivot.switches or self._memory.carried is not None:
            return None  # what came along is read back by the look
        if set(roots.values()) != {Root.DESTINATION} or session.resumes != self._memory.resumes:
            return None
        ended = {job: JobSeen(session.job_status.get(job, "null")) for job in jobs}
        return replace(seen, jobs={**seen.jobs, **ended}, roots=roots)

    async def _carry_bitmaps(self, session: Session, seen: Observation) -> Observation | None:
        try:
            self._memory.carried = await session.carry_bitmaps(self.pivot)
        except QmpRefusedError as error:
            self._memory.carry_refused = error.message
        return seen if session.resumes == self._memory.resumes else None

    async def _keep_synced(self, session: Session, seen: Observation) -> Observation:
        """Start the mirrors back. Where that fails the switch stands all the same, without a window."""
        resumes = self._memory.resumes
        if self._memory.at_intent == (session, resumes):
            self._memory.back_failed = await session.keep_synced(self.pivot, resumes)
        else:
            # Whoever let the guest write since has been missed, and what it wrote the old images would lack for ever.
            self._memory.back_failed = "the pause was not watched without a gap"
        if self._memory.back_failed is not None:
            return seen
        self._memory.back_started = True
        back = {names.back_job(self.pivot.id, disk.index): JobSeen("running") for disk in self.pivot.disks}
        return replace(seen, jobs={**seen.jobs, **back})

    async def _hand_over(self, seen: Observation) -> None:
        """Record the pivot that takes this one back, and the end of this one, as one."""
        assert self._memory.undo is not None
        successor = undo.successor(self.pivot, self._memory.undo, seen.nodes, self._clock.utc_now())
        facts = {"undo": successor.id, "uid": successor.requested_by.uid}
        self.pivot = await self._journal.hand_over(self.pivot, successor, facts)
        self.successor = successor
        self._announce()

    async def _await_pending(self, session: Session, seen: Observation) -> Observation | None:
        """Wait until events show every completing job at pending or ended; None where a full look is needed."""
        waiting = self._memory.completing or frozenset()
        while session.resumes == self._memory.resumes and session.connected:
            status = {job: session.job_status.get(job, "") for job in waiting}
            if set(status.values()) <= {STATUS_PENDING}:
                return replace(seen, jobs={**seen.jobs, **{job: JobSeen(STATUS_PENDING) for job in waiting}})
            if any(state in STATUS_ENDED or not state for state in status.values()) or self._memory.cancel_requested:
                return None
            if self.pivot.options.resumable and "standby" in status.values():
                return None  # its destination may have failed
            left_s = (
                limits.LOOK_AGAIN_S
                if self._memory.deadline is None
                else self._memory.deadline - self._clock.monotonic()
            )
            if left_s <= 0:
                return seen
            self._woken.clear()
            await self._sleep(left_s)
        return None

    async def _roll_back(self, session: Session, disks: tuple[str, ...]) -> None:
        """Take disks back; while the guest is still, source and destination hold the same."""
        if not disks:
            return
        await self._note_in_time("rolling-back", {"disks": disks})
        for disk in self.pivot.disks:
            if disk.disk in disks and not await session.reverse(self.pivot, disk, self._memory.resumes):
                self._memory.rollback_failed = True

    async def _cut(self, disks: Sequence[PivotDisk], *, hangs: bool) -> None:
        """Cut the connections to the exports of these disks; their copy ends in an error by that."""
        session = self._domain.session
        done = session is not None and await session.cut(self.pivot, disks)
        if not hangs:
            return
        exports = [disk.destination.filename for disk in disks]
        self._memory.lost = f"{exports[0]} does not answer: it was cut off"
        log.error("destination.hangs", pivot=self.pivot.id, exports=exports, cut=done)
        with contextlib.suppress(JournalError, TimeoutError):
            async with asyncio.timeout(limits.RECORD_PATIENCE_S):
                facts = {"exports": exports, "cut": done}
                await self._journal.note("destination-hangs", facts, domain=self._domain.name, pivot=self.pivot.id)

    async def _note_in_time(self, event: str, facts: dict[str, Any]) -> None:
        """Append a record that nothing rests on: the guest waits for it no longer than RECORD_PATIENCE_S."""
        with contextlib.suppress(JournalError, TimeoutError):
            async with asyncio.timeout(limits.RECORD_PATIENCE_S):
                await self._journal.note(event, facts, domain=self._domain.name, pivot=self.pivot.id)

    async def _note_resumed(self, event: str, facts: dict[str, Any]) -> None:
        """Record the end of the pause; the guest runs already, so nothing waits for this but the next phase."""
        pivot = self.pivot
        pause = self._memory.pause(pivot, self._clock.monotonic(), self._clock.utc_now())
        await self._record(
            pivot, event, facts | {"pause_ms": pause.pause_ms}, owes_resume=False, pauses=(*pivot.pauses, pause)
        )
        self._memory.paused_at = self._memory.resumed_at = None

    # -- small things -------------------------------------------------------------------------------------------

    async def _record(self, before: Pivot, event: str, facts: dict[str, Any], **changes: Any) -> None:
        assert phases.is_allowed(before.phase, changes.get("phase", before.phase)), (before.phase, changes)
        self.pivot = await self._journal.advance(before, event, facts, **changes)
        self._memory.switch_in_doubt = False
        self._announce()
        if not self._in_window:
            self._leave_window()

    def _announce(self) -> None:
        advanced, self.advanced = self.advanced, asyncio.Event()
        advanced.set()

    async def _enter_window(self) -> None:
        """One pause at a time per domain, and no checkpoint of the journal meanwhile."""
        if self._has_window:
            return
        await self._domain.window.acquire()
        self._journal.hold_checkpoints()
        self._has_window = True

    def _leave_window(self) -> None:
        self._memory.deadline = None
        if self._has_window:
            self._has_window = False
            self._journal.release_checkpoints()
            self._domain.window.release()

    async def _wait(self, reason: str, timeout_s: float | None = None) -> None:
        self.waits_for = reason
        if self.stalled:
            self.waits_for += f"; no progress for {self.pace.stalled_s(self._clock.monotonic()):.0f} s"
        if timeout_s is None:
            idle = phases.is_resting(self.pivot)
            left_s = undo.window_left_s(self.pivot, self._clock.utc_now())
            timeout_s = max(0.0, min(limits.HOLD_LOOK_S if idle else limits.LOOK_AGAIN_S, left_s))
        if self._memory.deadline is not None:
            timeout_s = min(timeout_s, max(0.0, self._memory.deadline - self._clock.monotonic()))
        await self._sleep(timeout_s)

    async def _ask_again(self, reason: str) -> None:
        self.waits_for = f"{reason}; nothing is decided until QEMU answers"
        if self._silent_for_s >= 1:
            self.looked.set()
        await self._sleep(self._silent_for_s)
        self._silent_for_s = min(self._silent_for_s * 2, limits.RECONNECT_MAX_S)

    async def _sleep(self, timeout_s: float) -> None:
        """Sleep until something has changed since the last look began, at most timeout_s."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._woken.wait()
