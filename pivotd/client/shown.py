"""Pivots of the journal as the API and pivotctl show them: without pivotd's internal fields."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from pivotd.client import answers
from pivotd.core import kinds, undo
from pivotd.core.pivot import Pivot, PivotDisk, Record
from pivotd.core.standing import ImageFound
from pivotd.core.verdict import Verdict


def pivot(known: Pivot) -> answers.Pivot:
    """Return a pivot of the journal without its records."""
    return answers.Pivot(**_fields(known))


def pivot_with_records(known: Pivot, records: Iterable[Record]) -> answers.PivotWithRecords:
    """Return a pivot of the journal with its records, oldest first."""
    told = msgspec.convert(tuple(records), tuple[answers.Record, ...], from_attributes=True)
    return answers.PivotWithRecords(**_fields(known), records=told)


def verdict(found: Verdict) -> answers.Verdict:
    """Return a verdict."""
    return msgspec.convert(found, answers.Verdict, from_attributes=True)


def image(found: ImageFound) -> answers.ImageVerdict:
    """Return what history says of an image and one disk."""
    known, finding, (boot_id, file_id) = found.verdict, found.finding, found.known or (None, None)
    return answers.ImageVerdict(
        **{name: getattr(known, name) for name in answers.Verdict.__struct_fields__},
        asked=found.asked,
        standing=finding.standing.value,
        standing_reason=finding.why,
        standing_since=finding.since,
        standing_pivot=finding.pivot,
        above=finding.of,
        known_boot_id=boot_id,
        known_file_id=file_id,
    )


def _fields(known: Pivot) -> dict[str, Any]:
    return {
        "id": known.id,
        "request_id": known.request_id,
        "undo_of": known.undo_of,
        "domain": known.domain,
        "kind": known.kind.value,
        "manager": known.manager.value,
        "phase": known.phase.value,
        "outcome": known.outcome,
        "requested_by": msgspec.convert(known.requested_by, answers.Requester, from_attributes=True),
        "options": msgspec.convert(known.options, answers.PivotOptions, from_attributes=True),
        "disks": tuple(_disk(known, disk) for disk in known.disks),
        "hold": known.hold,
        "undo_until": undo.window_ends(known),
        "asking": known.asking,
        "attempt": known.attempt,
        "run_state_before": known.run_state_before,
        "pause_ms": known.pause_ms,
        "pauses": msgspec.convert(known.pauses, tuple[answers.Pause, ...], from_attributes=True),
        "created": known.created_at,
        "decided": known.decided_at,
        "closed": known.closed_at,
        "error": known.error,
        "fleet": known.fleet.value,
    }


def _disk(known: Pivot, disk: PivotDisk) -> answers.PivotDisk:
    return answers.PivotDisk(
        disk=disk.disk,
        source=disk.source.filename,
        source_format=disk.source.format,
        destination=disk.destination.filename,
        destination_format=disk.destination.format,
        top=None if disk.top is None else disk.top.filename,
        base=None if disk.base is None else disk.base.filename,
        between=disk.between,
        size_bytes=disk.size_bytes,
        job=disk.job,
        outcome=None if disk.outcome is None else disk.outcome.value,
        stale=tuple(kinds.of(known).stale(known, disk)),
    )
