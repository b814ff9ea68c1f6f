"""The undo window: how long it lasts, and the pivot that undoes a switch. Pure.

That pivot is an ordinary copy in the other direction, which enters at READY: pivotd started its mirrors before it
resumed the guest. pivotd never starts them anew, because the guest's writes since then would be missing. Without them
it gives the undo up.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from pivotd.core import names
from pivotd.core.pivot import Phase, Pivot, PivotDisk
from pivotd.core.request import CopyMode, CopyOptions, Requester


@dataclass(frozen=True, slots=True)
class Undo:
    """The requester, and the id of the pivot that undoes; no client chooses this id."""

    pivot: str
    who: Requester


def window_left_s(pivot: Pivot, utc_now: str) -> float:
    """Return how many seconds of the undo window are left, by the wall clock; infinite if there is no window."""
    if not pivot.window_open or pivot.decided_at is None:
        return float("inf")
    age = datetime.fromisoformat(utc_now) - datetime.fromisoformat(pivot.decided_at)
    return pivot.options.keep_synced_s - age.total_seconds()


def window_ends(pivot: Pivot) -> str | None:
    """Return when the undo window expires, None if there is no window or the guest is still paused."""
    if not pivot.window_open or pivot.owes_resume or pivot.decided_at is None:
        return None
    end = datetime.fromisoformat(pivot.decided_at) + timedelta(seconds=pivot.options.keep_synced_s)
    return end.isoformat(timespec="seconds").replace("+00:00", "Z")


def successor(pivot: Pivot, undo: Undo, nodes: Collection[str], utc_now: str) -> Pivot:
    """Return the pivot that undoes this one; it inherits the nonce in the QEMU process. ``nodes``: of the pivot."""
    options = CopyOptions(
        reuse=True,
        max_pause_ms=pivot.options.max_pause_ms,
        attempts=pivot.options.attempts,
        copy_mode=CopyMode.WRITE_BLOCKING,
        force=pivot.options.force,
        drop_internal_snapshots=pivot.options.drop_internal_snapshots,
        nodes_below=pivot.options.nodes_below,
    )
    return Pivot(
        id=undo.pivot,
        request_id=undo.pivot,
        undo_of=pivot.id,
        domain=pivot.domain,
        qmp=pivot.qmp,
        kind=pivot.kind,
        phase=Phase.READY,
        requested_by=undo.who,
        options=options,
        disks=tuple(_back(pivot, disk, nodes) for disk in pivot.disks),
        created_at=utc_now,
        identity=pivot.identity,
    )


def _back(pivot: Pivot, disk: PivotDisk, nodes: Collection[str]) -> PivotDisk:
    again = names.reopened_source(pivot.id, disk.index)
    old = replace(disk.source, node=again) if again in nodes else disk.source
    return replace(
        disk, source=disk.destination, destination=old, job=names.back_job(pivot.id, disk.index), outcome=None
    )
