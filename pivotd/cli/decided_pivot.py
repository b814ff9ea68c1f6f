"""What the command of `events --exec` reads: one decided pivot, with nothing in it that changes after the decision.

docs/hooks.md shows an example, and a test compares the two.
"""

from __future__ import annotations

from msgspec import Struct
from msgspec.structs import replace

from pivotd.client import Pivot, PivotDisk, Record, Requester

DECISIONS = frozenset({"switched", "kept", "merged", "split", "unknown"})
ACCEPTED = "image-accepted"
"""The record of a person's word on one disk of a pivot that has been closed."""


class DecidedDisk(Struct, frozen=True):
    """One disk: the image that it was to leave, the one that it was to move to, and the one that holds its data."""

    disk: str
    outcome: str
    source: str
    source_format: str
    destination: str
    destination_format: str
    image: str | None
    """The right image; None if the outcome is ``unknown``: a person must look."""
    format: str | None


class DecidedPivot(Struct, frozen=True):
    """One decided pivot. ``seq``: its decision's sequence number in the journal.

    With the outcome ``accepted``: a person's word on the one disk in it, some time after the pivot.
    """

    seq: int
    id: str
    request_id: str
    undo_of: str | None
    domain: str
    kind: str
    outcome: str
    requested_by: Requester
    created: str
    decided: str
    reason: str | None
    disks: tuple[DecidedDisk, ...]


def is_decision(record: Record) -> bool:
    """Return whether this record is the decision on a pivot, of which each has one, or a person's word after it."""
    return (record.phase == "decided" and record.event in DECISIONS) or record.event == ACCEPTED


def decided_pivot(pivot: Pivot, decision: Record) -> DecidedPivot:
    """Return the document on a pivot and its decision; it is the same whenever it is made."""
    reason = decision.facts.get("reason")
    accepted = decision.event == ACCEPTED
    return DecidedPivot(
        seq=decision.seq,
        id=pivot.id,
        request_id=pivot.request_id,
        undo_of=pivot.undo_of,
        domain=pivot.domain,
        kind=pivot.kind,
        outcome="accepted" if accepted else decision.event,
        requested_by=pivot.requested_by,
        created=pivot.created,
        decided=decision.at if accepted or not pivot.decided else pivot.decided,
        reason=reason if isinstance(reason, str) else None,
        disks=_accepted(pivot, decision) if accepted else tuple(map(_disk, pivot.disks)),
    )


def _accepted(pivot: Pivot, word: Record) -> tuple[DecidedDisk, ...]:
    disk, image, image_format = (word.facts.get(name) for name in ("disk", "image", "format"))
    named = [one for one in map(_disk, pivot.disks) if one.disk == disk]
    return tuple(replace(one, outcome="accepted", image=image, format=image_format) for one in named)


def _disk(disk: PivotDisk) -> DecidedDisk:
    image, image_format = {
        "switched": (disk.destination, disk.destination_format),
        "kept": (disk.source, disk.source_format),
        "merged": (disk.source, disk.source_format),
    }.get(disk.outcome or "unknown", (None, None))
    return DecidedDisk(
        disk=disk.disk,
        outcome=disk.outcome or "unknown",
        source=disk.source,
        source_format=disk.source_format,
        destination=disk.destination,
        destination_format=disk.destination_format,
        image=image,
        format=image_format,
    )
