"""Makes a pivot of a block job that another client started, if its flags allow the protocol."""

from __future__ import annotations

from dataclasses import replace

from pivotd import limits
from pivotd.core.pivot import Image, PivotDisk
from pivotd.core.request import Kind, Target
from pivotd.errors import BadRequestError, ConflictError, NotFoundError
from pivotd.host import files
from pivotd.planning.domain_snapshot import DomainSnapshot
from pivotd.qmp.blocks import Blocks, DiskSeen
from pivotd.qmp.whole_names import PROTOCOLS

FORMATS = {"qcow2", "raw", *PROTOCOLS}
"""If the root is a filter, it could stay while the node below is replaced: then no node shows what happened."""
RUNNING = {"running", "paused", "ready", "standby"}
NO_DISK = "it does not work on the image of a disk"
KINDS = {"mirror": Kind.COPY, "commit": Kind.COMMIT}


def plan_adopt(domain: DomainSnapshot, index: int, target: Target, seen: DiskSeen) -> tuple[Kind, PivotDisk]:
    """Return the disk with the job that works on it, and the kind of the pivot.

    Raises: NotFoundError (no job), ConflictError (a job that cannot be adopted), BadRequestError (image).
    """
    blocks = domain.blocks
    names = [name for name in blocks.graph.jobs.get(seen.node, ()) if name in blocks.jobs]
    if not names:
        raise NotFoundError(f"no block job works on {seen.disk}: there is nothing to adopt", disk=seen.disk)
    name = target.job or names[0]
    job, node = blocks.jobs[name], blocks.graph.targets.get(name)
    if (why := obstacle(name, blocks, seen)) is not None:
        raise ConflictError(f"job {name} of {seen.disk} cannot be adopted: {why}", disk=seen.disk, job=name)
    assert node is not None
    disk = replace(domain.disk(index, seen), job=name)
    if KINDS[job.kind] is Kind.COPY:
        destination = _destination(domain, target, seen, node)
        domain.refuse_to_lose(seen.bitmaps, destination.format, seen.disk)
        return Kind.COPY, replace(disk, destination=destination)
    if target.image:
        raise BadRequestError(f"job {name} commits into a layer of {seen.disk}: name the disk alone", disk=seen.disk)
    chain = domain.chain(seen)
    base = next((image for image in chain[1:] if image.node == node), None)
    if base is None:
        raise ConflictError(f"job {name} of {seen.disk} commits into a node that is not in its chain", job=name)
    domain.refuse_to_lose(seen.bitmaps, base.format, seen.disk)
    between = tuple(image.filename for image in chain[1 : chain.index(base)])
    return Kind.COMMIT, replace(disk, destination=base, top=chain[0], base=base, between=between)


def find_by_job(domain: DomainSnapshot, job: str) -> DiskSeen:
    """Return the disk on which a block job works. Raises: NotFoundError, ConflictError."""
    if job not in domain.blocks.jobs:
        known = ", ".join(sorted(domain.blocks.jobs)) or "none"
        raise NotFoundError(f"{domain.name} has no block job {job}; its block jobs are: {known}", job=job)
    seen = domain.blocks.disk_of_job(job)
    if seen is None:
        raise ConflictError(f"job {job} cannot be adopted: {NO_DISK}", job=job)
    return seen


def obstacle(name: str, blocks: Blocks, seen: DiskSeen) -> str | None:
    """Return why the protocol is impossible with this job, None if it is possible."""
    job, node = blocks.jobs[name], blocks.graph.targets.get(name)
    if job.kind not in KINDS:
        return f"it is a {job.kind} job, which switches nothing"
    if job.auto_finalize:
        return "it was started with auto-finalize=true, so it would switch the disk by itself"
    if job.auto_dismiss:
        return "it was started with auto-dismiss=true, so its end could not be seen"
    if job.status not in RUNNING:
        return f"it is {job.status} already"
    if len(name) > limits.ADOPTED_JOB_LENGTH_MAX:
        return (
            f"its id has more than {limits.ADOPTED_JOB_LENGTH_MAX} characters, and it is sent while the guest is paused"
        )
    if seen.format not in FORMATS:
        return f"the root of the disk is a {seen.format} node: what the job replaces below it could not be seen"
    if job.kind == "commit" and node is None:
        return "it merges layers below the active one, which switches nothing"
    if node is None:
        return "its target is not in the block graph"
    return None


def _destination(domain: DomainSnapshot, target: Target, seen: DiskSeen, node: str) -> Image:
    """Return the image that the requester names. After the switch QEMU shows it, and pivotd records that."""
    if not target.image:
        raise BadRequestError(
            f"QEMU does not show which image the mirror of {seen.disk} writes: name it as {seen.disk}=IMAGE",
            disk=seen.disk,
        )
    file = files.resolve(target.image, domain.directory)
    name, image_format = file.path or target.image, target.format or domain.source(seen).format
    image = Image(name, image_format, node, file.file_id, None if file.path is None else files.made(file.path))
    domain.refuse_if_used(image, seen.disk)
    if domain.held.opened is not None and image.file_id not in domain.held.opened:
        raise BadRequestError(
            f"QEMU has not opened {image.filename}: the mirror of {seen.disk} writes another image", disk=seen.disk
        )
    return image
