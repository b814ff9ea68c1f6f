"""The public JSON shapes of pivots, records and verdicts; the API and the offline client give the same."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict

from pivotd.core import kinds, undo
from pivotd.core.pivot import JsonObject, Pivot, Record
from pivotd.core.verdict import Verdict


def pivot_to_json(pivot: Pivot, records: Iterable[Record] | None = None) -> JsonObject:
    """Return a pivot; with ``records`` where they are given."""
    shape: JsonObject = {
        "id": pivot.id,
        "request_id": pivot.request_id,
        "undo_of": pivot.undo_of,
        "domain": pivot.domain,
        "kind": pivot.kind.value,
        "phase": pivot.phase.value,
        "outcome": pivot.outcome,
        "requested_by": asdict(pivot.requested_by),
        "options": asdict(pivot.options),
        "disks": [
            {
                "disk": disk.disk,
                "source": disk.source.filename,
                "source_format": disk.source.format,
                "destination": disk.destination.filename,
                "destination_format": disk.destination.format,
                "top": None if disk.top is None else disk.top.filename,
                "base": None if disk.base is None else disk.base.filename,
                "between": list(disk.between),
                "size_bytes": disk.size_bytes,
                "job": disk.job,
                "outcome": disk.outcome,
                "stale": kinds.of(pivot).stale(pivot, disk),
            }
            for disk in pivot.disks
        ],
        "hold": pivot.hold,
        "undo_until": undo.window_ends(pivot),
        "attempt": pivot.attempt,
        "run_state_before": pivot.run_state_before,
        "pause_ms": pivot.pause_ms,
        "pauses": [asdict(pause) for pause in pivot.pauses],
        "created": pivot.created_at,
        "decided": pivot.decided_at,
        "closed": pivot.closed_at,
        "error": pivot.error,
    }
    if records is not None:
        shape["records"] = [record_to_json(record) for record in records]
    return shape


def record_to_json(record: Record) -> JsonObject:
    """Return one record of the journal."""
    return {
        "seq": record.seq,
        "at": record.at,
        "domain": record.domain,
        "pivot": record.pivot,
        "event": record.event,
        "phase": record.phase,
        "facts": record.facts,
    }


def verdict_to_json(verdict: Verdict) -> JsonObject:
    """Return one verdict."""
    return {**asdict(verdict), "evidence": list(verdict.evidence)}
