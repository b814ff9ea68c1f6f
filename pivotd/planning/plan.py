"""From a request to a pivot: every check that pivotd can make before it records or changes anything."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace

from pivotd import limits
from pivotd.core import nbd
from pivotd.core.believed import DiskBelieved
from pivotd.core.observation import PAUSABLE
from pivotd.core.pivot import Image, Phase, Pivot, PivotDisk
from pivotd.core.request import Kind, Manager, PivotRequest, Requester, Target
from pivotd.errors import BadRequestError, ConflictError, DiskBusyError
from pivotd.host import files, held, process
from pivotd.host.threads import in_thread
from pivotd.journal.changes import utc_now
from pivotd.planning import filters, lasting_names, libvirt_requests, placing, properties, shared_images
from pivotd.planning.adopting import find_by_job, plan_adopt
from pivotd.planning.destinations import plan_copy, plan_snapshot
from pivotd.planning.domain_snapshot import DomainSnapshot
from pivotd.planning.internal_snapshots import Left
from pivotd.planning.layers import plan_commit, plan_pull
from pivotd.planning.room import refuse_full
from pivotd.planning.second_writer import refuse_second_writer
from pivotd.qmp.blocks import DiskSeen
from pivotd.qmp.mirror_start import copies_at_once
from pivotd.qmp.session import Session

PLANS: dict[Kind, Callable[[DomainSnapshot, int, Target, DiskSeen], PivotDisk]] = {
    Kind.COPY: plan_copy,
    Kind.COMMIT: plan_commit,
    Kind.PULL: plan_pull,
    Kind.SNAPSHOT: plan_snapshot,
}


async def plan(  # noqa: PLR0913 - what a plan is made from, each from another place
    request: PivotRequest,
    session: Session,
    others: Collection[Pivot],
    *,
    pivot: str,
    who: Requester,
    made: Mapping[str, int] | None = None,
) -> Pivot:
    """Return the pivot to record, with this id. ``others``: pivots of all domains; what open ones use is in use.

    ``made``: DomainSnapshot.made.

    Raises: NotFoundError (disk, layer), BadRequestError (image), ConflictError (state), DiskBusyError (job).
    """
    others = [other for other in others if other.phase is not Phase.CLOSED]
    await session.refuse_libvirts()
    await refuse_run_state(request.domain, session)
    if await session.migrating():
        raise ConflictError(f"{request.domain} is being migrated: try again when that has ended")
    options = request.options
    guarded = session.manager is Manager.LIBVIRT
    if guarded:
        libvirt_requests.refuse(request)
    elif options.abort:
        raise BadRequestError(f"{request.domain} is not libvirt's: cancel the pivot, or the job, instead")
    blocks, believed = await session.blocks(), await session.believed()
    if guarded:
        libvirt_requests.refuse_unfit([target.disk for target in request.targets], believed)
    directory = process.working_directory(session.pid)
    in_use = await written_by(others)
    layered = any(not blocks.graph.stands_alone(seen.node) for seen in blocks.disks.values())
    keeps_zeroes = layered and copies_at_once(options) and await session.takes_target_is_zero()
    busy = {disk.disk: other for other in others if other.domain == request.domain for disk in other.disks}

    def look() -> tuple[Kind, tuple[PivotDisk, ...], tuple[Left, ...]]:
        has = held.look(session.pid)
        domain = request.domain
        snapshot = DomainSnapshot(
            pivot, domain, options, blocks, directory, in_use, has, session.pid, made or {}, keeps_zeroes, guarded
        )
        if request.options.adopted:
            kind, planned = _plan_adopted(request, snapshot, busy, believed if guarded else None)
        else:
            kind, planned = request.kind, _plan_disks(request, snapshot, busy)
        if guarded:
            planned = libvirt_requests.checked(domain, kind, planned, believed, options)
        return kind, planned, properties.check(snapshot, kind, planned)

    paths = [layer.filename for seen in blocks.disks.values() for layer in seen.layers]
    paths += [target.image for target in request.targets if target.image]
    try:
        kind, planned, left = await in_thread(limits.FILE_TIMEOUT_S, look, paths=paths)
    except TimeoutError as error:
        raise BadRequestError(f"{error}: try again when it does") from None
    if not options.force:
        refuse_second_writer(planned, await session.writers(blocks))
    options = replace(options, snapshots_left=left, made_before=tuple((made or {}).items()))
    return Pivot(
        id=pivot,
        request_id=request.request_id or pivot,
        domain=request.domain,
        qmp=session.path,
        kind=kind,
        phase=Phase.PREPARING,
        requested_by=who,
        options=options,
        disks=planned,
        created_at=utc_now(),
        identity=session.identity(pivot),
        manager=session.manager,
    )


async def refuse_run_state(domain: str, session: Session) -> None:
    """Raises: ConflictError: the guest leaves by a migration, or cannot be paused for another reason."""
    run_state = await session.run_state()
    if run_state not in PAUSABLE:
        raise ConflictError(f"{domain} is {run_state}: a switch is not possible in this state; try again later")


def written(pivot: Pivot) -> list[Image]:
    """Return the images that an open pivot may write to."""
    found = [disk.destination for disk in pivot.disks]
    if pivot.kind is Kind.COMMIT:
        found += [disk.base for disk in pivot.disks if disk.base is not None]
    if pivot.window_open:
        found += [disk.source for disk in pivot.disks]
    return found


async def marks(images: Collection[Image]) -> list[frozenset[str]]:
    """Return the files.identities() of each image. Raises: BadRequestError: a storage does not answer."""
    names = [image.filename for image in images]
    try:
        look = (in_thread(limits.FILE_TIMEOUT_S, files.identities, name, paths=[name]) for name in names)
        return list(await asyncio.gather(*look))
    except TimeoutError as error:
        raise BadRequestError(f"{error}: try again when it does") from None


async def written_by(others: Collection[Pivot]) -> frozenset[str]:
    """Return the files.identities() of the images that other pivots may write to.

    Storage of other pivots that does not answer delays no request: an image that can be checked now is not on it.
    """

    async def known(image: Image) -> frozenset[str]:
        name = image.filename
        with contextlib.suppress(TimeoutError):
            return await in_thread(limits.OTHERS_FILE_TIMEOUT_S, files.identities, name, paths=[name])
        return frozenset({nbd.canonical(name) or name})

    images = [image for pivot in others for image in written(pivot)]
    found = await asyncio.gather(*map(known, images))
    return frozenset().union(*found, (image.file_id for image in images if image.file_id))


def _plan_disks(request: PivotRequest, snapshot: DomainSnapshot, busy: Mapping[str, Pivot]) -> tuple[PivotDisk, ...]:
    """Return the disks of the pivot; this looks at files, so it may block."""
    planned = []
    creates = request.kind in {Kind.COPY, Kind.SNAPSHOT}
    targets = shared_images.once(snapshot, request.targets)
    if creates:
        placing.refuse_twice(targets)
    for index, asked in enumerate(targets):
        seen = snapshot.find(asked.disk)
        _refuse_busy(request, seen, busy)
        target = placing.placed(asked, snapshot.source(seen).filename) if creates else asked
        jobs = snapshot.blocks.graph.jobs.get(seen.node, ())
        if jobs:
            raise DiskBusyError(
                f"{seen.disk} is used by block job {jobs[0]}: wait for it or cancel it first",
                disk=seen.disk,
                job=jobs[0],
            )
        check_source(seen, force=request.options.force)
        shared_images.refuse_two_nodes(snapshot, seen)
        filters.refuse_above(snapshot, seen)
        disk = PLANS[request.kind](snapshot, index, target, seen)
        planned.append(lasting_names.checked(snapshot, seen, disk))
    if creates:
        placing.refuse_one_name(planned)
    if any(disk.switches != planned[0].switches for disk in planned):
        raise BadRequestError("some disks would be switched and others not: commit them as two requests")
    refuse_full(snapshot, request.kind, planned)
    return tuple(shared_images.with_companions(snapshot, planned))


def _plan_adopted(
    request: PivotRequest,
    snapshot: DomainSnapshot,
    busy: Mapping[str, Pivot],
    believed: Mapping[str, DiskBelieved] | None,
) -> tuple[Kind, tuple[PivotDisk, ...]]:
    """Return the kind of pivot for other clients' jobs, and its disks; this looks at files, so it may block.

    ``believed``: what libvirt believes of each disk; None: the guest is not libvirt's.
    """
    kinds: set[Kind] = set()
    planned: list[PivotDisk] = []
    for index, target in enumerate(request.targets):
        seen = snapshot.find(target.disk) if target.job is None else find_by_job(snapshot, target.job)
        _refuse_busy(request, seen, busy)
        if any(disk.disk == seen.disk for disk in planned):
            raise BadRequestError(f"disk {seen.disk} is named twice: name each once", disk=seen.disk)
        if any(disk.source.node == seen.node for disk in planned):
            raise BadRequestError(f"{seen.disk} is on an image that is named already: name one of its devices")
        check_source(seen, force=request.options.force)
        shared_images.refuse_two_nodes(snapshot, seen)
        if believed is None:
            kind, disk = plan_adopt(snapshot, index, target, seen)
        else:
            kind, disk = libvirt_requests.plan_adopt(snapshot, index, target, seen, believed)
        kinds.add(kind)
        planned.append(lasting_names.checked(snapshot, seen, disk))
    if len(kinds) > 1:
        raise BadRequestError("some jobs are mirrors and others commits: adopt them as two requests")
    return kinds.pop(), tuple(shared_images.with_companions(snapshot, planned))


def _refuse_busy(request: PivotRequest, seen: DiskSeen, busy: Mapping[str, Pivot]) -> None:
    if seen.disk in busy:
        pivot = busy[seen.disk].id
        what = "release or undo" if busy[seen.disk].window_open else "wait for that one or cancel"
        raise DiskBusyError(
            f"disk {seen.disk} of {request.domain} belongs to the open pivot {pivot}; {what} it",
            pivot=pivot,
            disk=seen.disk,
        )


def check_source(seen: DiskSeen, *, force: bool) -> None:
    """Raises: BadRequestError: a disk cannot be moved in its present state."""
    if seen.read_only:
        raise BadRequestError(f"{seen.disk} is read-only: there is nothing that a guest could write", disk=seen.disk)
    if seen.cache_no_flush and not force:
        raise BadRequestError(
            f"{seen.disk} uses cache=unsafe: its writes survive no host crash, so no image can be right after one; "
            "use --force to go on all the same",
            disk=seen.disk,
        )
