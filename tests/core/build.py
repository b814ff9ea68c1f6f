"""Pivots and observations in one line, for tests of the decision."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from pivotd.core import names
from pivotd.core.observation import JobSeen, Observation, Qemu, Root
from pivotd.core.pivot import Identity, Image, Outcome, Phase, Pivot, PivotDisk
from pivotd.core.request import CopyOptions, Kind, Requester

PIVOT = "01K9ABCDEFGHJKMNPQRSTVWXYZ"


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
) -> Observation:
    """Return an observation; one word for all disks or one for each. A job "failed" is concluded with an error."""
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
    return replace(base, **rest)


def jobs(*indexes: int) -> tuple[str, ...]:
    return tuple(names.mirror_job(PIVOT, index) for index in indexes)
