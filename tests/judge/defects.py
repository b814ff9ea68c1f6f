"""Deliberate defects, each a change of one line or two, and the tests that must turn red for it.

A test suite that stays green with one of these built in proves nothing. ``python -m tests.judge`` applies them one at a
time to a copy of the tree.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Defect:
    """One wrong build.

    ``old`` stands exactly once in ``file``; ``tests`` are arguments of pytest, and at least one test must fail.
    ``rung`` names what catches it, for the table in docs/reliability.md.
    """

    name: str
    promise: str
    file: str
    old: str
    new: str
    rung: str
    tests: tuple[str, ...]


KILL = "tests/chaos/test_kill.py"

DEFECTS = (
    Defect(
        "the intent is not awaited before stop",
        "G6",
        "pivotd/engine/driver.py",
        "        self.pivot = await self._journal.advance(before, event, facts, **changes)\n",
        "        late = self._journal.advance(before, event, facts, **changes)\n"
        "        if changes.get('phase') is Phase.PAUSING:\n"
        "            asyncio.get_running_loop().call_later(0.2, asyncio.ensure_future, late)\n"
        "            self.pivot = replace(before, **changes)\n"
        "        else:\n"
        "            self.pivot = await late\n",
        "kill at every message",
        (f"{KILL}::test_at_every_message_with_qemu_alive",),
    ),
    Defect(
        "cont before the result is durable",
        "G1",
        "pivotd/engine/driver.py",
        "        await self._record(self.pivot, event, facts, **changes)\n        if isinstance(action, actions.Retreat):",
        "        if isinstance(action, actions.RecordOutcome) and self._domain.session and self.pivot.owes_resume:\n"
        "            await self._domain.session.resume()\n"
        "        await self._record(self.pivot, event, facts, **changes)\n        if isinstance(action, actions.Retreat):",
        "kill at every message",
        (f"{KILL}::test_at_every_message_with_qemu_killed_too",),
    ),
    Defect(
        "a job that ended without an error counts as switched",
        "G2",
        "pivotd/core/decide.py",
        "    ended = [disk for disk in pivot.disks if status[disk.job] in STATUS_ENDED]\n    if ended:\n",
        "    ended = [disk for disk in pivot.disks if status[disk.job] in STATUS_ENDED]\n"
        "    if ended and not any(seen.job(disk.job).error for disk in ended):\n"
        "        return _record_all(pivot, Outcome.SWITCHED, 'completed')\n"
        "    if ended:\n",
        "decision table",
        ("tests/core/test_decide.py",),
    ),
    Defect(
        "job-complete before stop",
        "G1",
        "pivotd/qmp/session.py",
        'burst = [command("query-status"), command("stop"), *(command("job-complete", id=job) for job in complete)]',
        'burst = [command("query-status"), *(command("job-complete", id=job) for job in complete), command("stop")]',
        "kill at every message",
        (f"{KILL}::test_at_every_message_with_qemu_killed_too",),
    ),
    Defect(
        "jobs finalize themselves",
        "G1",
        "pivotd/qmp/preparation.py",
        "auto_finalize=False",
        "auto_finalize=True",
        "kill at every message",
        (f"{KILL}::test_at_every_message_with_qemu_alive", "tests/engine/test_copy.py"),
    ),
    Defect(
        "a guest that was paused before is resumed",
        "G3",
        "pivotd/engine/driver.py",
        'owes_resume=now.run_state == "running"',
        "owes_resume=True",
        "real QEMU",
        ("tests/engine/test_copy.py", "-k", "paused or prelaunch"),
    ),
)
