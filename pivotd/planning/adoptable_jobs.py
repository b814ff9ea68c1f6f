"""The block jobs that other clients started, and whether they could become pivots."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from pivotd.core import names
from pivotd.core.believed import DiskBelieved
from pivotd.core.pivot import Image, Pivot
from pivotd.core.request import CopyOptions, Kind, Target
from pivotd.errors import BadRequestError, ConflictError, RequestError
from pivotd.planning import lasting_names, libvirt_requests, properties, shared_images
from pivotd.planning.adopting import KINDS, NO_DISK, obstacle, plan_adopt
from pivotd.planning.domain_snapshot import DomainSnapshot
from pivotd.planning.plan import check_source
from pivotd.planning.second_writer import refuse_second_writer
from pivotd.qmp.blocks import BlockJob, DiskSeen

OPTIONS = CopyOptions(adopted=True, plain=True)
"""Nobody knows yet which image a mirror writes, and whether that one is encrypted."""


@dataclass(frozen=True, slots=True)
class AdoptableJob:
    """One job. ``disk`` None: it works on no disk. ``obstacle``: why it cannot be adopted, None if it can."""

    id: str
    job: BlockJob
    disk: str | None
    obstacle: str | None


def adoptable_jobs(
    domain: DomainSnapshot,
    pivots: Collection[Pivot],
    writers: Mapping[str, tuple[str, ...]],
    believed: Mapping[str, DiskBelieved] | None = None,
) -> list[AdoptableJob]:
    """Return every block job that belongs to none of the open pivots of the domain, sorted by id.

    ``domain``: with OPTIONS. ``writers``: what else may write to each disk. ``believed``: what libvirt believes of each
    disk, None if the guest is not libvirt's. It looks at files, so it may block.
    """
    own = {disk.job for pivot in pivots for disk in pivot.disks}
    family = [name for pivot in pivots for name in pivot.family]
    jobs = domain.blocks.jobs
    others = [name for name in sorted(jobs) if name not in own and not names.belongs_to(name, *family)]
    busy = {disk.disk: pivot.id for pivot in pivots for disk in pivot.disks}
    found = []
    for name in others:
        seen = domain.blocks.disk_of_job(name)
        if seen is None:
            why: str | None = NO_DISK
        elif believed is not None:
            why = _libvirts_obstacle(domain, seen, busy, believed)
        else:
            why = _obstacle(domain, name, seen, busy, writers)
        found.append(AdoptableJob(name, jobs[name], None if seen is None else seen.disk, why))
    return found


def _libvirts_obstacle(
    domain: DomainSnapshot, seen: DiskSeen, busy: Mapping[str, str], believed: Mapping[str, DiskBelieved]
) -> str | None:
    """Return why libvirt's job on a disk cannot be guarded, None if it can."""
    if seen.disk in busy:
        return f"disk {seen.disk} belongs to the open pivot {busy[seen.disk]}"
    try:
        libvirt_requests.plan_adopt(domain, 0, Target(seen.disk), seen, believed)
    except RequestError as error:
        return error.message
    return None


def _obstacle(
    domain: DomainSnapshot, name: str, seen: DiskSeen, busy: Mapping[str, str], writers: Mapping[str, tuple[str, ...]]
) -> str | None:
    """Return why a request to adopt this job alone would be refused, whatever image it names."""
    if (why := obstacle(name, domain.blocks, seen)) is not None:
        return why
    if seen.disk in busy:
        return f"disk {seen.disk} belongs to the open pivot {busy[seen.disk]}"
    try:
        check_source(seen, force=False)
        shared_images.refuse_two_nodes(domain, seen)
        if KINDS[domain.blocks.jobs[name].kind] is Kind.COMMIT:
            kind, disk = plan_adopt(domain, 0, Target("", job=name), seen)
        else:
            new = Image("its new image", "qcow2", domain.blocks.graph.targets[name])
            kind, disk = Kind.COPY, replace(domain.disk(0, seen), destination=new)
        disk = lasting_names.checked(domain, seen, disk)
        properties.check(domain, kind, [disk])
        refuse_second_writer([disk], writers)
    except (BadRequestError, ConflictError) as error:
        return error.message
    return None
