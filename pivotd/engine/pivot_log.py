"""What the log tells of a pivot, as its driver records it. While the guest is in its pause the log holds the events."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pivotd.core.pivot import JsonObject, Outcome, Phase, Pivot
from pivotd.core.request import Requester
from pivotd.host import users
from pivotd.log import get_logger

log = get_logger()

OUTCOMES: Mapping[str, tuple[str, str]] = {
    Outcome.SWITCHED.value: ("info", "pivot.switched"),
    Outcome.MERGED.value: ("info", "pivot.merged"),
    Outcome.KEPT.value: ("warning", "pivot.kept"),
    "split": ("error", "pivot.split"),
    Outcome.UNKNOWN.value: ("error", "pivot.unknown"),
}
RECORDS: Mapping[str, tuple[str, str]] = {
    "gave-up": ("warning", "pivot.gave-up"),
    "cancel-requested": ("info", "pivot.cancel-requested"),
    "complete-requested": ("info", "pivot.complete-requested"),
    "bandwidth-requested": ("info", "pivot.bandwidth-requested"),
    "release-requested": ("info", "pivot.release-requested"),
    "window-ended": ("info", "pivot.window-ended"),
    "interrupted": ("warning", "pivot.interrupted"),
    "went-on": ("info", "pivot.went-on"),
    "stalled": ("warning", "pivot.stalled"),
    "moving-again": ("info", "pivot.moving-again"),
}
"""Event of a record -> level and event of the log. All others are for those who look for a fault."""


def by(who: Requester) -> JsonObject:
    """Return the facts about a requester."""
    return {"uid": who.uid, "user": users.name_of(who.uid)}


def accepted(pivot: Pivot) -> None:
    """A new pivot is durable."""
    facts = {"request": pivot.request_id, "undo_of": pivot.undo_of}
    log.info("pivot.accepted", kind=pivot.kind.value, disks=_disks(pivot), **_of(pivot), **facts)


def taken_up(pivot: Pivot) -> None:
    """An earlier process has left a pivot open, and may not have lived to log its outcome."""
    phase = pivot.phase.value
    log.info("pivot.taken-up", kind=pivot.kind.value, disks=_disks(pivot), phase=phase, **_of(pivot))
    if pivot.phase is Phase.DECIDED:
        _outcome(pivot)


def changed(before: Pivot, after: Pivot) -> None:
    """A pivot is durable in another state: tell each pause, and the outcome."""
    for pause in after.pauses[len(before.pauses) :]:
        log.info(
            "pivot.paused", pause_ms=round(pause.pause_ms, 3), attempt=pause.attempt, ended=pause.ended, **_of(after)
        )
    if before.decided_at is None and after.decided_at is not None:
        _outcome(after)


def recorded(pivot: Pivot, event: str, facts: JsonObject) -> None:
    """A record of a pivot is durable."""
    level, name = RECORDS.get(event, ("debug", "pivot.record"))
    shown = {key: facts[key] for key in ("reason", "waits_for", "bandwidth_bytes_per_s") if key in facts}
    whose = _of(pivot)
    if "uid" in facts:
        whose |= {"uid": facts["uid"], "user": users.name_of(facts["uid"])}
    log.log(level, name, record=event, phase=pivot.phase.value, **whose, **shown)


def _outcome(pivot: Pivot) -> None:
    level, name = OUTCOMES[pivot.outcome or Outcome.UNKNOWN.value]
    if name == "pivot.kept" and (pivot.error or "").startswith("cancelled"):
        level = "info"  # as somebody wanted it
    log.log(level, name, disks=_images(pivot), reason=pivot.error, decided_at=pivot.decided_at, **_of(pivot))


def _of(pivot: Pivot) -> dict[str, Any]:
    return {"domain": pivot.domain, "pivot": pivot.id, **by(pivot.requested_by)}


def _disks(pivot: Pivot) -> list[str]:
    return [
        f"{disk.disk}: {disk.source.filename}" + (f" -> {disk.destination.filename}" if disk.switches else "")
        for disk in pivot.disks
    ]


def _images(pivot: Pivot) -> list[str]:
    """Return each disk with the image that holds its data, both where nobody can say."""
    found = []
    for disk in pivot.disks:
        names = [disk.destination.filename] if disk.outcome is Outcome.SWITCHED else [disk.source.filename]
        if disk.outcome is Outcome.UNKNOWN:
            names = [disk.source.filename, disk.destination.filename]
        found.append(f"{disk.disk}: {' or '.join(names)}")
    return found
