"""Records that end a step of a pivot, and what becomes of a paused guest where they cannot be made."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace

from pivotd import limits
from pivotd.core import actions
from pivotd.core.observation import OUR_PAUSE, STATUS_ENDED, STATUS_PENDING, Observation, Qemu, Root
from pivotd.core.pivot import Phase, PivotDisk
from pivotd.engine import record_shapes
from pivotd.engine.pause import Pause
from pivotd.errors import JournalError, QmpError
from pivotd.host.files import file_id
from pivotd.host.threads import in_thread
from pivotd.log import get_logger

log = get_logger()


class Recording(Pause):
    """Carries out the actions that are a record and nothing else."""

    async def _perform_record(self, action: actions.Action, seen: Observation) -> None:
        """Record; RecordOutcome is the commit point: if it cannot be written, the guest must not run on."""
        event, facts, changes = record_shapes.written(self.pivot, action, seen, self._clock.utc_now())
        if changes["phase"] is Phase.COPYING:
            changes["disks"] = await self._with_file_ids()
        session, meanwhile = self._domain.session, None
        if session is not None and self.pivot.owes_resume and seen.run_state in OUR_PAUSE:
            meanwhile = session.look_ahead  # `cont` comes next
        await self._record(self.pivot, event, facts, meanwhile=meanwhile, **changes)
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

    async def _with_file_ids(self) -> tuple[PivotDisk, ...]:
        """Return the disks with what identifies each destination file, now that it is there."""
        found = []
        for disk in self.pivot.disks:
            known = disk.destination.file_id  # of an image that was there when the pivot was planned
            if known is not None:
                found.append(disk)
                continue
            name = disk.destination.filename
            with contextlib.suppress(TimeoutError):
                known = await in_thread(limits.FILE_TIMEOUT_S, file_id, name, paths=[name])
            found.append(replace(disk, destination=replace(disk.destination, file_id=known)))
        return tuple(found)
