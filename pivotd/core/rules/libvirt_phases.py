"""The rules of a pivot that libvirt carries out and pivotd guards. Pure.

libvirt moves the disk and keeps two definitions of the guest: of the running one, and of the one that starts next. A
libvirtd that is killed in the middle may come back with either of them wrong. While the guest stands still, source and
destination are both complete. So pivotd resumes it only when QEMU's graph and both definitions name one image.
"""

from __future__ import annotations

from collections.abc import Callable

from pivotd.core import kinds
from pivotd.core.actions import (
    Abandon,
    Action,
    Advance,
    AskAgain,
    AskLibvirt,
    Close,
    Converge,
    Prepare,
    Step,
    Wait,
)
from pivotd.core.attempt import Attempt
from pivotd.core.observation import (
    OUR_PAUSE,
    JobBelief,
    Observation,
    Qemu,
    Root,
)
from pivotd.core.pivot import Outcome, Phase, Pivot
from pivotd.core.rules import agreement, libvirt_hangs, libvirt_pause
from pivotd.core.rules.agreement import believed, live_jobs
from pivotd.core.rules.copying import held_up
from pivotd.core.rules.endings import by_others, replaced, resume, root
from pivotd.core.rules.preparing import refused


def guarded(pivot: Pivot, seen: Observation, attempt: Attempt) -> Action:
    """Return the next action of an open pivot of a guest of libvirt's, from an observation that is not silent."""
    if seen.by_monitor:
        return libvirt_hangs.alone(pivot, seen, attempt)
    if pivot.phase is Phase.DECIDED:
        return _decided(pivot, seen)
    if seen.qemu is Qemu.GONE:
        return _gone(pivot, seen, attempt)
    if seen.qemu is Qemu.REPLACED:
        return agreement.settle(pivot, seen, attempt, _REPLACED) if pivot.asking else replaced(pivot, seen)
    return _PHASES[pivot.phase](pivot, seen, attempt)


_REPLACED = "another QEMU process goes on from what the one before had when it ended"


def _gone(pivot: Pivot, seen: Observation, attempt: Attempt) -> Action:
    """QEMU has ended. If libvirt was asked to switch, both images are complete, and the next boot's is right."""
    if any(disk.disk not in seen.beliefs for disk in pivot.disks):
        return AskAgain("QEMU has ended, and libvirt, which knows the image of the next boot, does not answer")
    if any(believed(seen, disk).live is not Root.ABSENT for disk in pivot.disks):
        return AskAgain("libvirt has not noticed yet that QEMU has ended")
    return agreement.by_next_boot(pivot, seen, attempt)


def _preparing(pivot: Pivot, seen: Observation, attempt: Attempt) -> Action:
    """Start the jobs that libvirt does not have; a snapshot and an adopted job need nothing."""
    if (refusal := refused(pivot, seen, attempt)) is not None:
        return refusal
    for disk in pivot.disks:
        belief = believed(seen, disk)
        if not kinds.of(pivot).has_jobs:
            continue
        if pivot.options.adopted and belief.job_id != disk.job:
            return Abandon(f"job {disk.job} of {disk.disk} ended, or was replaced, before it could be adopted")
        if belief.job is JobBelief.NONE and disk.index in attempt.started:
            return Abandon(f"libvirt's job of {disk.disk} ended as soon as it was started")
        if belief.job is JobBelief.NONE:
            return Prepare(disk.index, Step.START_JOB)
    return Advance(Phase.COPYING)


def _copying(pivot: Pivot, seen: Observation, attempt: Attempt) -> Action:
    trouble = _trouble(pivot, seen, attempt)
    if trouble is not None:
        return trouble
    return Advance(Phase.READY) if _all_ready(pivot, seen) else Wait("copying")


def _ready(pivot: Pivot, seen: Observation, attempt: Attempt) -> Action:
    trouble = _trouble(pivot, seen, attempt)
    if trouble is not None:
        return trouble
    if pivot.owes_resume:
        return _resume(pivot, seen)
    if (wait := held_up(pivot, seen)) is not None:
        return wait
    if (doubt := agreement.disbelief(pivot, seen)) is not None:
        return Wait(doubt)
    if not _all_ready(pivot, seen):
        return Wait("libvirt's job is not ready, or somebody else has it end")
    return Converge()


def _all_ready(pivot: Pivot, seen: Observation) -> bool:
    """Return whether libvirt takes every job for ready and QEMU shows it so."""
    if not kinds.of(pivot).has_jobs:
        return True
    ready = [believed(seen, disk).job is JobBelief.READY for disk in pivot.disks]
    return all(ready) and all(seen.job(disk.job).status == "ready" for disk in pivot.disks)


def _trouble(pivot: Pivot, seen: Observation, attempt: Attempt) -> Action | None:
    """Return the action if the copy cannot continue, None if it can. Common to COPYING and READY."""
    live = live_jobs(pivot, seen)
    if any(root(seen, disk) is Root.DESTINATION for disk in pivot.disks):
        why = by_others(pivot, seen)
        return Abandon(why) if live else agreement.settle(pivot, seen, attempt, why)
    for disk in pivot.disks:
        if root(seen, disk) is not Root.SOURCE:
            return Abandon(f"{disk.disk} was changed or unplugged by somebody else")
        if kinds.of(pivot).has_jobs and disk not in live:
            error = seen.job(disk.job).error
            return Abandon(f"the copy of {disk.disk} ended: {error or 'its job failed or was cancelled'}")
    if seen.run_state == "postmigrate" and not seen.saved:
        return Abandon("the guest has been migrated away")
    if attempt.lost is not None:
        return Abandon(attempt.lost)
    return Abandon("cancelled") if attempt.cancelled_by else None


def _cancelling(pivot: Pivot, seen: Observation, attempt: Attempt) -> Action:
    """End the jobs, then record what the graph shows; a switch that libvirt was asked for may still come.

    A guest in pivotd's pause is resumed first only if libvirt was not asked for one.
    """
    live = live_jobs(pivot, seen)
    moved = any(root(seen, disk) is Root.DESTINATION for disk in pivot.disks)
    if pivot.owes_resume and not moved and not pivot.asking and agreement.disbelief(pivot, seen) is None:
        return _resume(pivot, seen)
    if live:
        busy = {JobBelief.PIVOTING, JobBelief.ABORTING}
        due = tuple(disk.disk for disk in live if believed(seen, disk).job not in busy)
        return AskLibvirt(due, pivot=False) if due else Wait(libvirt_pause.ending(live[0].disk))
    if agreement.in_doubt(pivot, seen, attempt):
        return Wait(agreement.CALLING)
    still = moved and pivot.owes_resume and not seen.executing
    if still and (back := libvirt_pause.unknown_to_libvirt(pivot, seen, attempt)) is not None:
        return back
    return agreement.settle(pivot, seen, attempt, pivot.error or "cancelled")


def _decided(pivot: Pivot, seen: Observation) -> Action:
    """Every outcome is durable: resume the guest, and see to it that libvirt knows."""
    if seen.qemu is not Qemu.SAME or pivot.outcome == Outcome.UNKNOWN.value:
        return Close()
    doubt = agreement.disbelief(pivot, seen)
    if pivot.owes_resume:
        if (leaving := _leaving(seen)) is not None:
            return leaving
        # An error of a switch is what a person has to know: the record has said that libvirt does not.
        told = (what := agreement.unknown(pivot, seen)) is not None and what in (pivot.error or "")
        return resume(seen) if told and not seen.calling else _resume(pivot, seen)
    return Close() if doubt is None else Wait(doubt)


def _leaving(seen: Observation) -> Action | None:
    """Return how to wait for the end of a save or migration; the resume stays owed, for either may fail."""
    if not seen.leaving:
        return None
    return Wait(
        f"the guest was saved or migrated in its pause (QEMU: {seen.run_state}): if that has failed, and it runs on no "
        "other host, let it run (virsh resume)"
    )


def _resume(pivot: Pivot, seen: Observation) -> Action:
    """Resume the guest, unless libvirt takes another image for the running guest's.

    A guest that runs may still be paused by a call whose answer was lost: the resume is owed for as long. A paused one
    is resumed meanwhile.
    """
    if (leaving := _leaving(seen)) is not None:
        return leaving
    paused = seen.run_state in OUR_PAUSE or seen.saved
    doubt = agreement.disbelief(pivot, seen) if paused else None
    if not paused and seen.calling:
        doubt = agreement.CALLING
    return resume(seen) if doubt is None else Wait(doubt)


_PHASES: dict[Phase, Callable[[Pivot, Observation, Attempt], Action]] = {
    Phase.PREPARING: _preparing,
    Phase.COPYING: _copying,
    Phase.READY: _ready,
    Phase.PAUSING: libvirt_pause.pausing,
    Phase.CANCELLING: _cancelling,
}
