"""The rules for a guest in its pause while libvirt does not answer, seen by a monitor of pivotd's own. Pure.

Only what stays right whatever libvirt does when it goes on: its call may still be carried out then.
"""

from __future__ import annotations

from pivotd.core import kinds
from pivotd.core.actions import Abandon, Action, AskAgain, CancelJobs, Resume
from pivotd.core.attempt import Attempt
from pivotd.core.observation import OUR_PAUSE, Observation, Qemu, Root
from pivotd.core.pivot import Outcome, Phase, Pivot
from pivotd.core.rules.agreement import live_jobs
from pivotd.core.rules.endings import by_roots, retreat, reversing, root

_RIGHT = {Outcome.KEPT: Root.SOURCE, Outcome.SWITCHED: Root.DESTINATION}
HANGS = "libvirt does not answer"


def alone(pivot: Pivot, seen: Observation, attempt: Attempt) -> Action:
    """Return how to let the guest run without libvirt, AskAgain if that is not safe or not due.

    Without a call to switch, the source is right for as long as nobody calls for one. With one, libvirt's job is
    cancelled first: libvirt then finds that it has failed. After the switch only libvirt can define the next boot.
    """
    if seen.qemu is not Qemu.SAME or not pivot.owes_resume or seen.run_state not in OUR_PAUSE:
        return AskAgain(seen.detail or HANGS)
    if pivot.phase is Phase.DECIDED:
        # The record was made once libvirt agreed. A guest of which nobody knows the image stays as it is.
        right = all(root(seen, disk) is _RIGHT.get(disk.outcome or Outcome.UNKNOWN) for disk in pivot.disks)
        return Resume() if right else AskAgain(f"{HANGS}, and a disk is not where the record has it")
    if pivot.phase is Phase.PAUSING and not attempt.deadline_passed:
        return AskAgain(HANGS)
    away = next((disk for disk in pivot.disks if root(seen, disk) is not Root.SOURCE), None)
    if away is not None or reversing(pivot, seen):
        image = "" if away is None else f" ({away.disk} is not on {away.source.filename} any more)"
        return AskAgain(f"{HANGS} in the middle of the switch{image}, and the guest waits for it: restart libvirtd")
    return _on_the_source(pivot, seen, attempt)


def _on_the_source(pivot: Pivot, seen: Observation, attempt: Attempt) -> Action:
    """Every disk is on its source."""
    if pivot.asking and not kinds.of(pivot).has_jobs:
        return AskAgain(f"{HANGS}, and may still take the snapshot: the guest waits for it: restart libvirtd")
    live = live_jobs(pivot, seen)
    if pivot.asking and live:
        return CancelJobs(tuple(disk.job for disk in live), resume=False)
    reason = f"{HANGS}: the guest runs on"
    match pivot.phase:
        case Phase.PAUSING:
            return Abandon(f"{HANGS}: its job was cancelled") if pivot.asking else retreat(pivot, reason)
        case Phase.CANCELLING if pivot.asking:
            return by_roots(pivot, seen, attempt, pivot.error or reason)
    return Resume()
