"""What is done to a paused guest, and right before: the steps between a small backlog and the outcome."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine, Sequence
from dataclasses import asdict, replace
from typing import Any, TypeVar

from pivotd import limits
from pivotd.core import actions, names
from pivotd.core.observation import (
    EXECUTING,
    PAUSABLE,
    STATUS_ENDED,
    STATUS_PENDING,
    JobSeen,
    Observation,
    Qemu,
    Root,
)
from pivotd.core.pivot import Phase, PivotDisk
from pivotd.engine.converge import Converged, NotYet, Slow
from pivotd.engine.ledger import Ledger
from pivotd.engine.ports import Session
from pivotd.errors import JournalError, QmpRefusedError
from pivotd.host.files import lost
from pivotd.host.threads import in_thread
from pivotd.log import get_logger

T = TypeVar("T")
log = get_logger()


class Pause(Ledger):
    """Carries out the actions of a pause; each returns what is known of QEMU then, None to look again."""

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
        await self._look_for_destinations(limits.FILE_TIMEOUT_S)
        if self._memory.lost is not None:
            return None
        await self._enter_window()
        try:
            return await self._record_intent(session, ready)
        finally:
            if not self._in_window:
                self._leave_window()

    async def _look_for_destinations(self, timeout_s: float) -> None:
        """Note whether the name of each destination still leads to its file; a pause may have outlived its process."""
        destinations = [disk.destination for disk in self.pivot.disks]
        with contextlib.suppress(TimeoutError):
            names = [image.filename for image in destinations]
            self._memory.lost = await in_thread(timeout_s, lost, destinations, paths=names)

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
                if self._memory.carried is not None:
                    return None  # what came along is read back by the look
                return self._moved(session, replace(seen, roots=roots))
            case actions.RollBack(disks, reason):
                self._memory.rolled_back = reason
                await self._roll_back(session, disks)
        return None

    async def _stop(self, session: Session, jobs: tuple[str, ...], seen: Observation) -> Observation | None:
        self._memory.stop_sent = None  # without an answer nobody knows: a guest that was paused before shows nothing
        self._memory.completing = frozenset(jobs)
        before, resumed, resumes = await session.stop(jobs, self._begin_pause)
        self._memory.stop_sent = True
        status = [session.job_status.get(disk.job) for disk in self.pivot.disks] if self.pivot.has_jobs else []
        if None not in status and STATUS_ENDED.isdisjoint(status):
            self._memory.still_unmoved = (session, resumes)
        ours = before in EXECUTING or resumed
        if not self.pivot.owes_resume and ours:
            # Paused when the intent was recorded, but somebody has resumed it since: this `stop` was in their way.
            facts = {"run_state": before}
            await self._record(self.pivot, "paused", facts, owes_resume=True, run_state_before="running")
        if not ours:
            # Somebody else paused it between the last look and here: it is not ours to resume. One that was seen
            # paused, and was not resumed since, is: an earlier process has sent this `stop` before.
            ran = seen.executing or session.resumes != self._memory.resumes
            self._memory.not_ours = before if self.pivot.owes_resume and ran else None
        if before != "running" or session.resumes != self._memory.resumes:
            return None
        seen = replace(seen, run_state="paused")
        return await self._await_pending(session, seen) if jobs else seen

    def _begin_pause(self) -> None:
        self._memory.paused_at = self._clock.monotonic()
        self._memory.deadline = self._memory.paused_at + self.pivot.options.max_pause_ms / 1000

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

    async def _finalize(self, session: Session, jobs: tuple[str, ...], seen: Observation) -> Observation | None:
        """Finalize and read the graph; anything but every disk on its destination, guest still, needs a full look.

        The jobs were read before the graph: their events come before the answer to job-finalize.
        """
        roots = await session.finalize(self.pivot, jobs)
        if not self.pivot.switches or self.pivot.options.adopted or self._memory.carried is not None:
            return None  # what came along is read back by the look, and what somebody else opened is named by it
        ended = {job: JobSeen(session.job_status.get(job, "null")) for job in jobs}
        return self._moved(session, replace(seen, jobs={**seen.jobs, **ended}, roots=roots))

    def _moved(self, session: Session, seen: Observation) -> Observation | None:
        """Return what was seen if every disk is on its destination and the guest still; else a full look is needed."""
        still = session.resumes == self._memory.resumes
        return seen if still and set(seen.roots.values()) == {Root.DESTINATION} else None

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

    async def _note_resumed(self, event: str, facts: dict[str, Any]) -> None:
        """Record the end of the pause; the guest runs already, so nothing waits for this but the next phase."""
        pivot = self.pivot
        pause = self._memory.pause(pivot, self._clock.monotonic(), self._clock.utc_now())
        await self._record(
            pivot, event, facts | {"pause_ms": pause.pause_ms}, owes_resume=False, pauses=(*pivot.pauses, pause)
        )
        self._memory.paused_at = self._memory.resumed_at = None
