"""What each recording action writes: the event, the facts, and the changes of the pivot. Pure."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

from pivotd.core import actions
from pivotd.core.attempt import Attempt
from pivotd.core.observation import Observation, Root
from pivotd.core.pivot import Image, JsonObject, Outcome, Phase, Pivot, PivotDisk, outcome_of

RECORD_ONLY = (actions.Advance, actions.Retreat, actions.Abandon, actions.RecordOutcome, actions.EndWindow)
"""These actions do not change QEMU: the same observation serves the next decision."""

Written = tuple[str, JsonObject, dict[str, Any]]


def written(pivot: Pivot, action: actions.Action, seen: Observation, attempt: Attempt, utc_now: str) -> Written:
    """Return (event, facts, changes) of a RECORD_ONLY action."""
    match action:
        case actions.Advance(phase):
            hold = pivot.hold or (phase is Phase.READY and not pivot.options.pivot)
            changes: dict[str, Any] = {"phase": phase, "hold": hold}
            if phase is Phase.COPYING:
                changes["options"] = replace(pivot.options, nodes_below=seen.nodes_below)
                changes["disks"] = tuple(_with_job(disk, seen) for disk in pivot.disks)
            return phase.value, {}, changes
        case actions.Retreat(reason, hold):
            changes = {"phase": Phase.READY, "hold": hold, "asking": False}
            if hold:
                kept = tuple(replace(disk, outcome=Outcome.KEPT) for disk in pivot.disks)
                changes |= {"disks": kept, "error": reason}
            return "gave-up", facts(pivot, seen, attempt, reason), changes
        case actions.Abandon(reason):
            return "cancelling", facts(pivot, seen, attempt, reason), {"phase": Phase.CANCELLING, "error": reason}
        case actions.RecordOutcome(outcomes, reason, hold, warning):
            outcome_by_disk = dict(outcomes)
            disks = tuple(_decided(_as_seen(pivot, disk, seen), outcome_by_disk[disk.disk]) for disk in pivot.disks)
            event = outcome_of(disks)
            assert event is not None, "every disk has one"
            told = [] if event == Outcome.SWITCHED.value or (warning or "").startswith(reason) else [reason]
            error = "; ".join(text for text in (*told, warning) if text is not None) or None
            changes = {"phase": Phase.DECIDED, "disks": disks, "decided_at": utc_now, "error": error, "hold": hold}
            more = {} if warning is None else {"warning": warning}
            return event, facts(pivot, seen, attempt, reason) | more, changes | {"asking": False}
        case actions.EndWindow(reason):
            return "window-ended", {"reason": reason}, {"phase": Phase.DECIDED, "hold": False}
    raise AssertionError(action)


def _with_job(disk: PivotDisk, seen: Observation) -> PivotDisk:
    """Return the disk with QEMU's name of its job, which libvirt has chosen if it has started the job."""
    belief = seen.beliefs.get(disk.disk)
    return disk if belief is None or belief.job_id is None else replace(disk, job=belief.job_id)


def _decided(disk: PivotDisk, outcome: Outcome) -> PivotDisk:
    """Return the disk with its outcome; merging layers below an image can change its complete name."""
    if not disk.switches:
        image = disk.destination if outcome is Outcome.MERGED else disk.source
        disk = replace(disk, source=image, destination=image)
    return replace(disk, outcome=outcome)


def _as_seen(pivot: Pivot, disk: PivotDisk, seen: Observation) -> PivotDisk:
    """A user named an adopted mirror's destination; once it is the disk's root, QEMU shows which image it is."""
    if not pivot.options.adopted or disk.base is not None or seen.roots.get(disk.disk) is not Root.DESTINATION:
        return disk  # the base of a commit is in the chain that was seen
    filename, image_format = seen.images.get(disk.disk, (disk.destination.filename, disk.destination.format))
    image_format = "raw" if image_format in {"file", "host_device"} else image_format
    known = disk.destination
    if filename != known.filename:
        return replace(disk, destination=Image(filename, image_format, known.node))
    return replace(disk, destination=replace(known, format=image_format))


def facts(pivot: Pivot, seen: Observation, attempt: Attempt, reason: str) -> JsonObject:
    """Return what was seen, for users and for the evidence of a verdict."""
    jobs = {disk.job: seen.job(disk.job) for disk in pivot.disks}
    carried = {disk: [bitmap.name for bitmap in bitmaps] for disk, bitmaps in (attempt.carried or {}).items()}
    return {
        **({"bitmaps": carried} if carried else {}),
        **({"libvirt": {disk: asdict(belief) for disk, belief in seen.beliefs.items()}} if seen.beliefs else {}),
        "reason": reason,
        "qemu": seen.qemu.value,
        "run_state": seen.run_state,
        "roots": {disk: root.value for disk, root in seen.roots.items()},
        "jobs": {name: {"status": job.status, "error": job.error} for name, job in jobs.items()},
    }
