"""The block jobs that somebody else started, and whether they could become pivots."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from pivotd.core import names
from pivotd.core.pivot import Pivot
from pivotd.errors import BadRequestError
from pivotd.planning.adopting import NO_DISK, disk_of, obstacle
from pivotd.planning.plan import check_source
from pivotd.qmp.replies import BlockJob, DiskSeen, Graph


@dataclass(frozen=True, slots=True)
class Foreign:
    """One job. ``disk`` None: it works on none. ``obstacle``: why it cannot be adopted, None where it can."""

    id: str
    job: BlockJob
    disk: str | None
    obstacle: str | None


def foreign(
    jobs: Mapping[str, BlockJob], disks: Mapping[str, DiskSeen], graph: Graph, pivots: Collection[Pivot]
) -> list[Foreign]:
    """Return every block job that belongs to none of the open pivots of the domain, sorted by id."""
    own = {disk.job for pivot in pivots for disk in pivot.disks}
    family = [name for pivot in pivots for name in pivot.family]
    found = []
    for name in sorted(jobs):
        if name in own or names.belongs_to(name, *family):
            continue
        seen = disk_of(name, disks, graph)
        why = NO_DISK if seen is None else obstacle(name, jobs[name], graph.targets.get(name), seen) or _source(seen)
        found.append(Foreign(name, jobs[name], None if seen is None else seen.disk, why))
    return found


def _source(seen: DiskSeen) -> str | None:
    try:
        check_source(seen, force=False)
    except BadRequestError as error:
        return error.message
    return None
