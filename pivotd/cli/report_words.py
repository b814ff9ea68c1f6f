"""Sentences of a report: what a pivot did, how its guest fared, who asked. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pivotd.cli import render
from pivotd.cli.report_chains import is_merge
from pivotd.cli.report_data import Reported
from pivotd.cli.timeline import Timeline
from pivotd.cli.timeline_text import took
from pivotd.client import Pivot, PivotWithRecords

FLEET = {
    "announced": "etcd has the intent, and may not know the outcome: other hosts are not certain of these disks",
    "told": "etcd knows the outcome",
    "superseded": "another host has had the guest meanwhile: what this pivot found does not count any more",
}
NOT_TOLD = ("announced", "superseded")
"""What somebody has to know at once."""
DISKS_MAX = 4
"""Disks of one pivot that an overview names."""
REQUESTS = {
    "complete-requested": "told to switch",
    "cancel-requested": "cancelled",
    "undo-requested": "undone",
    "release-requested": "undo window ended",
    "bandwidth-requested": "bandwidth changed",
}
"""Records of what people asked of a pivot after its beginning."""


def title(pivot: Pivot) -> str:
    """Return a heading of one pivot."""
    disks = [disk.disk for disk in pivot.disks]
    return f"{pivot.domain}: {_deed(pivot)} of {listed(disks)}"


def state(pivot: Pivot) -> str:
    """Return one word: how the pivot ended, or its phase."""
    return pivot.outcome or pivot.phase


def _deed(pivot: Pivot) -> str:
    if pivot.undo_of is not None:
        return "undo"
    merges = pivot.kind == "commit" and any(is_merge(disk) for disk in pivot.disks)
    return "commit of inner layers" if merges else pivot.kind


def what_came_of_it(reported: Reported) -> str:
    """Return what holds the data after a pivot."""
    pivot = reported.pivot
    said = _outcome(pivot)
    if reported.words and pivot.outcome in {"unknown", "split"}:
        people = listed(sorted({f"uid {word.uid}" for word in reported.words.values()}))
        said += f" A person ({people}) has said since which image is right."
    if pivot.closed is not None:
        return said
    return f"This pivot is still open, in phase {pivot.phase}: what is told here can change. {said}"


def _outcome(pivot: Pivot) -> str:
    one = len(pivot.disks) == 1
    match pivot.outcome:
        case "switched" if pivot.undo_of is not None:
            return "The disk is back on its old image." if one else "All disks are back on their old images."
        case "switched" if pivot.kind == "snapshot":
            many = "Each disk writes to its new overlay; the image from before is the base of that, and is complete."
            return many.replace("Each", "The") if one else many
        case "switched" if pivot.kind == "commit":
            return "The layers were written into their base, and the base holds the data."
        case "switched":
            return "The data is in the new image." if one else "All disks have moved: the data is in the new images."
        case "merged":
            return "No disk has moved: the image is the same, on a shorter chain."
        case "kept":
            return f"Nothing has moved: the old {'image holds' if one else 'images hold'} the data."
        case "split":
            return "Not all disks have moved. Each disk is complete where it is: see below."
        case "unknown":
            return "The evidence contradicts itself: a person must compare the images before the guest starts again."
        case _ if pivot.asking:
            return "libvirt was asked to switch, and what came of it is not recorded yet: either image may be next."
        case _:
            return f"No switch is recorded: the old {'image holds' if one else 'images hold'} the data."


def where(one: Reported) -> list[str]:
    """Return where the data of each disk is after a pivot, in a line each."""
    found = []
    for disk in one.pivot.disks[:DISKS_MAX]:
        word = one.words.get(disk.disk)
        match disk.outcome:
            case _ if word is not None:
                said = f"{word.image}, says uid {word.uid}"
            case "switched":
                said = f"→ {disk.destination}"
            case "unknown":
                said = f"{disk.source} or {disk.destination}"
            case None if one.pivot.asking:
                said = f"{disk.source} or {disk.destination}"
            case _:
                said = f"stays {disk.source}"
        found.append(f"{disk.disk} {said}")
    more = len(one.pivot.disks) - DISKS_MAX
    return [*found, f"and {more} disks more"] if more > 0 else found


def how_the_guest_fared(pivot: Pivot, timeline: Timeline) -> str:
    """Return how long the guest stood still."""
    pauses = pivot.pauses  # what the journal counts, also where no record says when a pause was
    most = pivot.options.max_pause_ms
    if not pauses:
        return (
            "The guest is in its pause now, or was when this was written."
            if pivot.phase == "pausing"
            else ("The guest was never paused.")
        )
    lengths = listed([took(pause.pause_ms / 1000) for pause in pauses]) if len(pauses) <= 5 else f"{len(pauses)} pauses"
    together = "" if len(pauses) == 1 else f" ({took(paused_s(pivot))} together)"
    allowed = f"at most {most} ms were allowed" + ("" if len(pauses) == 1 else " for each pause")
    return f"The guest stood still for {lengths}{together} in {took(timeline.length_s)}; {allowed}."


def paused_s(pivot: Pivot) -> float:
    """Return how long the guest stood still in all of its pauses."""
    return sum(pause.pause_ms for pause in pivot.pauses) / 1000


def too_long(pivot: Pivot) -> bool:
    """Return whether a pause was longer than what was allowed."""
    return any(pause.pause_ms > pivot.options.max_pause_ms for pause in pivot.pauses)


def asked_by(pivot: Pivot, users: Mapping[int, str]) -> str:
    """Return who asked, as the kernel told pivotd."""
    who = pivot.requested_by
    return f"{user(who.uid, users)}, gid {who.gid}, process {who.pid}"


def user(uid: int, users: Mapping[int, str]) -> str:
    """Return a user, with the name if that is known."""
    return f"uid {uid} ({users[uid]})" if uid in users else f"uid {uid}"


def later_requests(pivot: PivotWithRecords, users: Mapping[int, str]) -> list[str]:
    """Return what people asked of the pivot later, and when."""
    found = []
    for record in pivot.records:
        if record.event in REQUESTS:
            uid = record.facts.get("uid")
            who = f" by {user(uid, users)}" if isinstance(uid, int) else ""
            found.append(f"{REQUESTS[record.event]}{who} at {render.when(record.at)}")
    return found


def choices(pivot: Pivot) -> list[str]:
    """Return the options of the request that are not what pivotd does by itself."""
    options = pivot.options
    return [
        said
        for chosen, said in (
            (options.force, "force: safety checks were overridden"),
            (options.adopted, "the block jobs were started by another program, and adopted"),
            (options.plain, "plain: encrypted data may land in images that are not"),
            (options.drop_internal_snapshots, "internal snapshots may be lost"),
            (options.reuse, "reuse: the destination was there before"),
            (options.sync == "top", "sync top: the layers below stay shared"),
            (options.bandwidth_bytes_per_s, f"at most {render.size(options.bandwidth_bytes_per_s)}/s"),
            (not options.pivot, "no pivot: waits at ready to be completed"),
            (options.keep_synced, f"keep synced for {render.duration(options.keep_synced_s)} after the switch"),
            (options.resumable, "resumable"),
            (options.copy_mode != "auto", f"copy mode {options.copy_mode}"),
        )
        if chosen
    ]


def listed(names: Sequence[str]) -> str:
    """Return names as a sentence has them."""
    if len(names) > 6:
        return f"{', '.join(names[:5])} and {len(names) - 5} more"
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
