"""Pivots, and what a process sees and remembers, in one line, for tests of the decision."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any

from pivotd.core import actions, names
from pivotd.core import decide as rules
from pivotd.core.attempt import Attempt
from pivotd.core.observation import JobSeen, Observation, Qemu, Root
from pivotd.core.pivot import Identity, Image, Outcome, Phase, Pivot, PivotDisk
from pivotd.core.request import CopyOptions, Kind, Requester

PIVOT = "01K9ABCDEFGHJKMNPQRSTVWXYZ"


ASKED = Requester(0, 0, 1)
REMEMBERED = {one.name for one in fields(Attempt)}


@dataclass(frozen=True, slots=True)
class Known:
    """What a process sees of QEMU and what it remembers."""

    seen: Observation
    attempt: Attempt = field(default_factory=Attempt)

    def but(self, **changes: Any) -> Known:
        """Return the same with changes of either."""
        of_attempt = {name: value for name, value in changes.items() if name in REMEMBERED}
        of_seen = {name: value for name, value in changes.items() if name not in REMEMBERED}
        return Known(replace(self.seen, **of_seen), replace(self.attempt, **of_attempt))


def decide(pivot: Pivot, known: Known | Observation) -> actions.Action:
    """Return what is decided; of an observation alone with nothing remembered."""
    known = known if isinstance(known, Known) else Known(known)
    return rules.decide(pivot, known.seen, known.attempt)


def disk(index: int, outcome: Outcome | None = None) -> PivotDisk:
    return PivotDisk(
        disk=f"disk{index}",
        index=index,
        qdev=f"/machine/peripheral/disk{index}/virtio-backend",
        size_bytes=64 << 20,
        source=Image(f"/old/disk{index}.qcow2", "qcow2", f"src{index}", f"1:{index}"),
        destination=Image(f"/new/disk{index}.qcow2", "qcow2", names.destination_node(PIVOT, index), f"2:{index}"),
        job=names.mirror_job(PIVOT, index),
        outcome=outcome,
    )


def pivot(phase: Phase, n: int = 1, **changes: Any) -> Pivot:
    base = Pivot(
        id=PIVOT,
        request_id=PIVOT,
        domain="web1",
        qmp="/run/qemu/web1.qmp",
        kind=Kind.COPY,
        phase=phase,
        requested_by=Requester(0, 0, 1),
        options=CopyOptions(),
        disks=tuple(disk(index) for index in range(n)),
        created_at="2026-11-23T09:00:00.000000Z",
        identity=Identity("boot", 100, 5, names.nonce_object(PIVOT)),
    )
    if phase is Phase.PAUSING:
        base = replace(base, run_state_before="running", owes_resume=True, attempt=1, pausing_since=base.created_at)
    return replace(base, **changes)


def seen(
    run_state: str = "running",
    jobs: str | list[str] = "ready",
    roots: str | list[str] = "source",
    n: int = 1,
    **rest: Any,
) -> Known:
    """Return what is known; one word for all disks or one for each. A job "failed" is concluded with an error."""
    statuses = [jobs] * n if isinstance(jobs, str) else jobs
    places = [roots] * len(statuses) if isinstance(roots, str) else roots
    by_name = {}
    for index, status in enumerate(statuses):
        if status == "failed":
            by_name[names.mirror_job(PIVOT, index)] = JobSeen("concluded", "Input/output error")
        elif status != "gone":
            by_name[names.mirror_job(PIVOT, index)] = JobSeen(status)
    base = Observation(
        qemu=Qemu.SAME,
        run_state=run_state,
        jobs=by_name,
        roots={f"disk{index}": Root(place) for index, place in enumerate(places)},
    )
    return Known(base).but(**rest)


def jobs(*indexes: int) -> tuple[str, ...]:
    return tuple(names.mirror_job(PIVOT, index) for index in indexes)
