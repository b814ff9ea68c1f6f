"""Whether QEMU and libvirt name one image of each disk, and the outcome once they do. Pure."""

from __future__ import annotations

from dataclasses import replace

from pivotd.core import kinds
from pivotd.core.actions import Action, Agree, RecordOutcome, Wait
from pivotd.core.attempt import Attempt
from pivotd.core.observation import (
    STATUS_ENDED,
    Belief,
    JobBelief,
    Observation,
    Qemu,
    Root,
)
from pivotd.core.pivot import Outcome, Phase, Pivot, PivotDisk
from pivotd.core.rules.endings import by_roots, root

SIDES = frozenset({Root.SOURCE, Root.DESTINATION})
CALLING = "a call to libvirt whose answer was lost may still be carried out"
_STUCK = "libvirt takes its job of {disk} for one that has not ended, and starts no other: "
_ENDING = frozenset({"aborting", "concluded"})
_NOTHING = Belief(Root.ABSENT, None)


def believed(seen: Observation, disk: PivotDisk) -> Belief:
    """Return what libvirt believes of a disk; of one that it does not have, that it is not there."""
    return seen.beliefs.get(disk.disk, _NOTHING)


def live_jobs(pivot: Pivot, seen: Observation) -> list[PivotDisk]:
    """Return the disks on their source whose job may still move them.

    QEMU decides, not libvirt. Before the record that names libvirt's jobs, only libvirt knows the job.
    """
    if not kinds.of(pivot).has_jobs:
        return []
    found = []
    for disk in pivot.disks:
        name = disk.job or believed(seen, disk).job_id or ""
        if root(seen, disk) is Root.SOURCE and seen.job(name).status not in STATUS_ENDED:
            found.append(disk)
    return found


def in_doubt(pivot: Pivot, seen: Observation, attempt: Attempt) -> bool:
    """Return whether a call to switch may still be carried out although its answer was lost.

    A job that has ended in QEMU ends the doubt; a snapshot has none.
    """
    late = bool(live_jobs(pivot, seen)) if kinds.of(pivot).has_jobs else seen.calling
    return attempt.ask_in_doubt and late


def restart(otherwise: str = "let the guest run (virsh resume), shut it down and start it") -> str:
    """Return what to do about a libvirtd that has not learnt how a job has ended.

    The hook repairs what libvirtd has in its files when it starts. A libvirtd that has started without the hook may
    have dropped a job from them; ``otherwise``: what helps then.
    """
    return (
        "restart libvirtd with pivotd's hook in place; if it has started without the hook meanwhile, and this does not "
        f"help, {otherwise}"
    )


def disbelief(pivot: Pivot, seen: Observation) -> str | None:
    """Return what libvirt does not know of the running guest, and what to do, in one sentence; None if it knows all."""
    if (what := unknown(pivot, seen)) is None:
        return None
    if kinds.of(pivot).has_jobs:
        return f"{what}: {restart()}"
    return (
        f"{what}, and will not learn it: neither save nor migrate the guest before it was shut down and started; if it "
        "is paused, let it run (virsh resume)"
    )


def unknown(pivot: Pivot, seen: Observation) -> str | None:
    """Return the first thing that libvirt does not know of the running guest; None if it knows all."""
    for disk in pivot.disks:
        now, belief = root(seen, disk), believed(seen, disk)
        if now not in SIDES:
            continue
        image = disk.destination if now is Root.DESTINATION else disk.source
        ours = belief.job is not JobBelief.NONE and belief.job_id in {None, disk.job}
        # A job that QEMU still lists makes libvirt act; one that is gone does not, but then the disk has not moved.
        ending = ours and seen.job(disk.job).status in _ENDING
        if belief.live is not now or ending or (ours and now is Root.DESTINATION):
            return f"QEMU uses {image.filename} as {disk.disk}, and libvirt does not know that"
    return None


def settle(pivot: Pivot, seen: Observation, attempt: Attempt, reason: str) -> Action:
    """Record each disk as the graph shows it, once libvirt agrees; only valid once no job can still move a root.

    The record comes at once where only one image may be complete: the guest runs, or has run since, a disk is lost, or
    somebody else has switched it.
    """
    known = {disk.disk: root(seen, disk) for disk in pivot.disks if root(seen, disk) in SIDES}
    still = seen.qemu is Qemu.SAME and not seen.executing and not attempt.may_have_written
    paused = still and pivot.asking and len(known) == len(pivot.disks)
    if paused and _may_learn(pivot, seen) and (doubt := disbelief(pivot, seen)) is not None:
        return Wait(doubt)
    # libvirt may take the end of an aborted commit for a switch, and defines the next boot so.
    taken = any(believed(seen, disk).live is Root.DESTINATION for disk in pivot.disks)
    touched = pivot.asking or pivot.options.abort or taken or Root.DESTINATION in known.values()
    if touched and (agree := _agree(pivot, seen, attempt, known, paused=paused)) is not None:
        return agree
    found = by_roots(pivot, seen, attempt, reason)
    if seen.qemu is Qemu.REPLACED:
        # Nothing of this process tells where an earlier one had a disk that this one lacks.
        lost = {disk.disk for disk in pivot.disks} - known.keys()
        outcomes = tuple((disk, Outcome.UNKNOWN if disk in lost else outcome) for disk, outcome in found.outcomes)
        found = replace(found, outcomes=outcomes)
    before = pivot.phase in {Phase.PREPARING, Phase.COPYING, Phase.READY} or seen.executing or attempt.may_have_written
    told = [reason] if before and Root.DESTINATION in known.values() else []
    warning = _warning(pivot, seen, attempt, known)
    return replace(found, warning="; ".join([*told, *([] if warning is None else [warning])]) or None)


def by_next_boot(pivot: Pivot, seen: Observation, attempt: Attempt) -> Action:
    """QEMU has ended: record for each disk what the next boot uses; the source is complete in any case.

    Without a call of pivotd's to switch, a next boot from the destination is somebody else's doing.
    """
    known = {disk.disk: next_ for disk in pivot.disks if (next_ := believed(seen, disk).next) in SIDES}
    moved = {disk for disk, next_ in known.items() if next_ is Root.DESTINATION}
    if moved and pivot.options.abort and pivot.attempt:
        # In the pause the source is right: libvirt has taken the end of a commit for a switch.
        known, moved = dict.fromkeys(known, Root.SOURCE), set()
    elif moved and not pivot.asking:
        outcomes = tuple((disk.disk, Outcome.UNKNOWN if disk.disk in moved else Outcome.KEPT) for disk in pivot.disks)
        return RecordOutcome(
            outcomes, "QEMU is gone, and the next boot uses a destination to which pivotd did not switch: compare both"
        )
    touched = pivot.asking or pivot.options.abort
    if touched and (agree := _agree(pivot, seen, attempt, known, paused=False)) is not None:
        return agree
    outcomes = tuple((disk.disk, Outcome.SWITCHED if disk.disk in moved else Outcome.KEPT) for disk in pivot.disks)
    reason = "QEMU is gone in the guarded pause, when both images were complete: the next boot's image is right"
    if not pivot.asking:
        reason = "QEMU is gone and libvirt was not asked to switch: the source has every write"
    sides = {disk.disk: known.get(disk.disk, Root.SOURCE) for disk in pivot.disks}
    return RecordOutcome(outcomes, reason, warning=_warning(pivot, seen, attempt, sides))


def may_run(pivot: Pivot, seen: Observation, attempt: Attempt) -> bool:
    """Return whether the guest may run although nothing more can be recorded: all that name an image name the same.

    Whatever becomes of this QEMU then, the next boot says which image is right; a transient guest has none.
    """
    if seen.qemu is not Qemu.SAME or in_doubt(pivot, seen, attempt) or disbelief(pivot, seen) is not None:
        return False
    for disk in pivot.disks:
        now, next_ = root(seen, disk), believed(seen, disk).next
        durable = next_ is now and (disk.disk, now) in attempt.agreed
        if now is not Root.SOURCE and not (now is Root.DESTINATION and durable):
            return False
    return True


def _agree(pivot: Pivot, seen: Observation, attempt: Attempt, images: dict[str, Root], *, paused: bool) -> Agree | None:
    """Return the definition of the next boot that is still to be written and made durable, None if there is none.

    It is written once in a pause: after that, another image in it is somebody's decision. If libvirt refuses, a paused
    guest waits for another try until its deadline.
    """
    given_up = attempt.agree_refused is not None and (attempt.deadline_passed or not paused)
    due = [
        (disk.disk, images[disk.disk])
        for disk in pivot.disks
        if disk.disk in images and believed(seen, disk).next in SIDES
    ]
    return None if given_up or attempt.agreed.issuperset(due) else Agree(tuple(due))


def _warning(pivot: Pivot, seen: Observation, attempt: Attempt, images: dict[str, Root]) -> str | None:
    """Return what a person has to know of libvirt's definitions, None if they name the images that are recorded."""
    parts = []
    if attempt.agree_refused is not None:
        parts.append(f"libvirt did not write the definition for the next boot: {attempt.agree_refused}")
    if attempt.define_raced:
        parts.append("somebody else defined the guest at the same moment: look at its definition")
    wrong = any(root(seen, disk) in SIDES - {believed(seen, disk).live} for disk in pivot.disks)
    if seen.qemu is Qemu.SAME and wrong and (doubt := disbelief(pivot, seen)) is not None:
        parts.append(doubt)
    parts += [_STUCK.format(disk=disk.disk) + restart() for disk in pivot.disks if _stuck(seen, disk)]
    for disk in pivot.disks:
        belief, now = believed(seen, disk), images.get(disk.disk)
        if now is None or belief.next in {None, now}:
            continue
        image = disk.destination if now is Root.DESTINATION else disk.source
        parts.append(f"the data of {disk.disk} is in {image.filename}, and {_of_next_boot(disk, belief)}")
    return "; ".join(parts) or None


def _of_next_boot(disk: PivotDisk, belief: Belief) -> str:
    """Return what the next boot has in place of the right image."""
    sides = {Root.SOURCE: disk.source.filename, Root.DESTINATION: disk.destination.filename}
    if belief.next is not Root.ABSENT:
        return f"the next boot names {sides.get(belief.next or Root.OTHER) or belief.next_image or 'another image'}"
    if not belief.next_has_disk:
        return f"the definition of the next boot has no disk {disk.disk}"
    return f"the definition of the next boot has no local image for {disk.disk}"


def _may_learn(pivot: Pivot, seen: Observation) -> bool:
    """Return whether libvirt can still learn of a switch, by QEMU's job or by a restart with the hook.

    Where it takes a disk for switched that has not moved, and the job is gone, it cannot. Of a snapshot it learns only
    when the guest starts again; until somebody has seen to that the guest stays paused.
    """
    jobs = {seen.job(disk.job).status for disk in pivot.disks}
    return any(root(seen, disk) is Root.DESTINATION for disk in pivot.disks) or not jobs.isdisjoint(_ENDING)


def _stuck(seen: Observation, disk: PivotDisk) -> bool:
    """Return whether libvirt has a job that QEMU does not have any more, on a disk that has not moved."""
    job = believed(seen, disk).job
    if seen.qemu is not Qemu.SAME or root(seen, disk) is not Root.SOURCE:
        return False
    return job is not JobBelief.NONE and seen.job(disk.job).status == "null"
