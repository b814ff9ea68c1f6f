"""Results that the rules of all phases share: an outcome by the graph, the end of a pause, another try. Pure."""

from __future__ import annotations

from dataclasses import replace

from pivotd.core import kinds, names
from pivotd.core.actions import Action, NoteResumed, RecordOutcome, Resume, Retreat, Wait
from pivotd.core.attempt import Attempt
from pivotd.core.observation import OUR_PAUSE, PASSING, STATUS_ENDED, JobSeen, Observation, Root
from pivotd.core.pivot import Outcome, Pivot, PivotDisk


def resume(seen: Observation) -> Action:
    """Return the action that ends a pause for which pivotd owes a resume."""
    if seen.run_state in OUR_PAUSE or seen.saved:
        return Resume(owed=seen.calling)
    if seen.run_state in PASSING:
        return Wait(f"the guest is saved or migrated in its pause (QEMU: {seen.run_state}): if that fails, it runs on")
    return NoteResumed(seen.run_state or "unknown")


def retreat(pivot: Pivot, reason: str) -> Action:
    """Return the end of one attempt; after the last one the pivot waits for a user."""
    return Retreat(reason, hold=pivot.attempt >= pivot.options.attempts)


def root(seen: Observation, disk: PivotDisk) -> Root:
    """Return which image is under the disk."""
    return seen.roots.get(disk.disk, Root.ABSENT)


def reversing(pivot: Pivot, seen: Observation) -> tuple[str, ...]:
    """Return the reverse mirrors that may still move a root: no outcome is known before they have ended."""
    jobs = (names.reverse_job(pivot.id, disk.index) for disk in pivot.disks)
    return tuple(job for job in jobs if seen.job(job).status not in STATUS_ENDED)


def by_roots(pivot: Pivot, seen: Observation, attempt: Attempt, reason: str) -> RecordOutcome:
    """Record each disk as the graph shows it; only valid once no job of the pivot can still move a root."""
    return RecordOutcome(tuple((disk.disk, _outcome(pivot, seen, attempt, disk)) for disk in pivot.disks), reason)


def unguarded(pivot: Pivot, seen: Observation, attempt: Attempt, reason: str) -> RecordOutcome:
    """Record each disk as the graph shows it although the guest was not still at the switch; the pivot says so."""
    return replace(by_roots(pivot, seen, attempt, reason), warning=reason)


def by_others(pivot: Pivot, seen: Observation) -> str:
    """Return the sentence on disks that have moved before pivotd began a pause."""
    moved = [disk.disk for disk in pivot.disks if root(seen, disk) is Root.DESTINATION]
    return f"somebody else has switched {', '.join(moved)}, not in a pause of pivotd's"


def _outcome(pivot: Pivot, seen: Observation, attempt: Attempt, disk: PivotDisk) -> Outcome:
    if _never_moved(pivot, seen, attempt, disk):
        return Outcome.KEPT
    by_root = {Root.SOURCE: Outcome.KEPT, Root.DESTINATION: Outcome.SWITCHED}
    return by_root.get(root(seen, disk), Outcome.UNKNOWN)


def lost_sight(pivot: Pivot, seen: Observation, attempt: Attempt) -> bool:
    """Return whether a disk was unplugged and it is unknown to which image the guest wrote last."""
    return any(root(seen, disk) is Root.ABSENT and not _never_moved(pivot, seen, attempt, disk) for disk in pivot.disks)


def _never_moved(pivot: Pivot, seen: Observation, attempt: Attempt, disk: PivotDisk) -> bool:
    """Return whether an unplugged disk was on its source until the end.

    It was if its job has not ended, or has ended in an error. After any other end it was on the destination for a
    while, and the guest may have been resumed and have written there, even if it is still now; unless no RESUME was
    missed.
    """
    if root(seen, disk) is not Root.ABSENT:
        return False
    if attempt.unwritten and not seen.executing:
        return True
    if not kinds.of(pivot).has_jobs:
        # A guest that was found paused needs no `stop` before the transaction.
        return attempt.snapshot_sent is False or Root.SOURCE in seen.roots.values()
    job = seen.job(disk.job)
    if job.status not in STATUS_ENDED or job.error is not None:
        return True
    return job.status == "null" and not pivot.attempt  # there was no intent, and perhaps not even a job


def by_chains(pivot: Pivot, seen: Observation, reason: str) -> Action:
    """Record which chains were merged; no disk has got another image."""
    outcome = {disk.disk: Outcome.MERGED if disk.disk in seen.merged else Outcome.KEPT for disk in pivot.disks}
    return RecordOutcome(tuple(outcome.items()), reason)


def record_all(pivot: Pivot, outcome: Outcome, reason: str) -> Action:
    """Return the record of one outcome for every disk."""
    return RecordOutcome(tuple((disk.disk, outcome) for disk in pivot.disks), reason)


def replaced(pivot: Pivot, seen: Observation) -> Action:
    """Return the record of a pivot whose QEMU has ended and been replaced before a switch was recorded."""
    if seen.uses_destination and pivot.switches:
        return record_all(
            pivot,
            Outcome.UNKNOWN,
            "no switch was recorded, yet another QEMU process now uses the destination: compare both images",
        )
    where = "the source" if seen.uses_source else "neither image"
    return record_all(pivot, Outcome.KEPT, f"another QEMU process answers and uses {where}; no switch was recorded")


NO_JOB = JobSeen("ready")
"""The job of a disk whose pivot has no jobs."""
