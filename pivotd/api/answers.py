"""The shapes of answers, for the OpenAPI document; core.shapes makes them, for the offline client too."""

from __future__ import annotations

import msgspec

from pivotd.core.pivot import Outcome, Pause, Phase, Record
from pivotd.core.request import CopyOptions, Kind, Requester


class PivotDisk(msgspec.Struct):
    """One disk of a pivot. ``stale``: images that do not hold its data any more."""

    disk: str
    source: str
    source_format: str
    destination: str
    destination_format: str
    top: str | None
    base: str | None
    between: list[str]
    size_bytes: int
    job: str
    outcome: Outcome | None
    stale: list[str]


class Pivot(msgspec.Struct):
    """One pivot. ``outcome``: an outcome, ``split`` where disks differ, null while open.

    ``undo_of``: the pivot that this one takes back.
    """

    id: str
    request_id: str
    undo_of: str | None
    domain: str
    kind: Kind
    phase: Phase
    outcome: str | None
    requested_by: Requester
    options: CopyOptions
    disks: list[PivotDisk]
    hold: bool
    undo_until: str | None
    attempt: int
    run_state_before: str | None
    pause_ms: float | None
    pauses: list[Pause]
    created: str
    decided: str | None
    closed: str | None
    error: str | None
    records: list[Record] | msgspec.UnsetType = msgspec.UNSET
    """Only where one pivot is asked for."""


class JournalHealth(msgspec.Struct):
    """The journal of the daemon. ``healthy``: the last record could be written."""

    path: str
    healthy: bool
    last_seq: int


class FailingDomain(msgspec.Struct):
    """A domain with a pivot that fails again and again."""

    domain: str
    reason: str


class SkippedMonitor(msgspec.Struct):
    """A monitor that was configured or found and belongs to no domain."""

    qmp: str
    reason: str


class DomainsHealth(msgspec.Struct):
    """How many domains there are. ``silent_with_open_pivots``: those with work to do whose QEMU is not reached."""

    total: int
    connected: int
    with_open_pivots: int
    silent_with_open_pivots: list[str]
    failing: list[FailingDomain]
    pivots_without_driver: list[str]
    """Open in the journal, and nobody works on them."""
    skipped: list[SkippedMonitor]


class Health(msgspec.Struct):
    """What a monitoring system asks for. ``status``: ``ok`` or ``degraded``."""

    status: str
    version: str
    journal: JournalHealth
    domains: DomainsHealth
