"""The block jobs that other clients started, and whether they could become pivots."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from pivotd.core import names
from pivotd.core.pivot import Pivot
from pivotd.errors import BadRequestError
from pivotd.planning.adopting import NO_DISK, obstacle
from pivotd.planning.plan import check_source
from pivotd.qmp.blocks import BlockJob, Blocks


@dataclass(frozen=True, slots=True)
class AdoptableJob:
    """One job. ``disk`` None: it works on no disk. ``obstacle``: why it cannot be adopted, None if it can."""

    id: str
    job: BlockJob
    disk: str | None
    obstacle: str | None


def adoptable_jobs(blocks: Blocks, pivots: Collection[Pivot]) -> list[AdoptableJob]:
    """Return every block job that belongs to none of the open pivots of the domain, sorted by id."""
    own = {disk.job for pivot in pivots for disk in pivot.disks}
    family = [name for pivot in pivots for name in pivot.family]
    others = [name for name in sorted(blocks.jobs) if name not in own and not names.belongs_to(name, *family)]
    return [_adoptable(name, blocks) for name in others]


def _adoptable(name: str, blocks: Blocks) -> AdoptableJob:
    job, seen = blocks.jobs[name], blocks.disk_of_job(name)
    if seen is None:
        return AdoptableJob(name, job, None, NO_DISK)
    why = obstacle(name, blocks, seen)
    if why is None:
        try:
            check_source(seen, force=False)
        except BadRequestError as error:
            why = error.message
    return AdoptableJob(name, job, seen.disk, why)
