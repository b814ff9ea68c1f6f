"""Pivots of guests that libvirt manages: what libvirt cannot do, and its own jobs that are to be guarded."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from pivotd.core import names
from pivotd.core.believed import DiskBelieved
from pivotd.core.creation import ImageOptions
from pivotd.core.observation import JobBelief
from pivotd.core.pivot import Image, PivotDisk
from pivotd.core.request import CopyOptions, Discard, Kind, PivotRequest, Target
from pivotd.core.rules.agreement import restart
from pivotd.errors import BadRequestError, ConflictError, NotFoundError
from pivotd.host import files, leases
from pivotd.planning.domain_snapshot import DomainSnapshot
from pivotd.qmp.blocks import DiskSeen

KINDS = {"copy": Kind.COPY, "active-commit": Kind.COMMIT}
ENDING = frozenset({JobBelief.PIVOTING, JobBelief.ABORTING})
CANNOT: tuple[tuple[Callable[[CopyOptions], bool], str], ...] = (
    (lambda o: o.keep_synced, "--keep-synced: libvirt does not know a mirror back"),
    (lambda o: o.resumable, "--resumable: libvirt ends a copy whose destination fails"),
    (
        lambda o: o.image_options != ImageOptions(),
        "--option: libvirt makes images without options; make it, and --reuse",
    ),
    (lambda o: o.secret_file is not None, "--secret-file: libvirt has secrets of its own"),
    (lambda o: o.discard is not Discard.UNMAP, "--discard: the new image gets what the definition of the disk says"),
    (lambda o: o.aio is not None, "--aio: the new image gets what the definition of the disk says"),
    (lambda o: o.cache is not None, "--cache: the new image gets what the definition of the disk says"),
)
"""What a request may not ask for, and why, in the words of the command line."""
UNFIT: tuple[tuple[Callable[[DiskBelieved], bool], str], ...] = (
    (
        lambda known: known.elsewhere,
        "on the network, in a storage pool or in another process: pivotd guards disks on files and block devices alone",
    ),
    (lambda known: known.transient, "as a transient disk, whose changes it throws away: it moves none of those"),
    (
        lambda known: known.shareable,
        "as a shareable disk: another guest may write to it, and would go on with the old image",
    ),
)
"""Which disks pivotd does not move, and why."""


def refuse(request: PivotRequest) -> None:
    """Raises: BadRequestError: libvirt cannot do this."""
    domain = request.domain
    if request.kind is Kind.PULL:
        raise BadRequestError(f"{domain} is libvirt's: pull with `virsh blockpull`, which switches no disk")
    if any(target.top is not None for target in request.targets):
        raise BadRequestError(f"{domain} is libvirt's: commit layers below the active one with `virsh blockcommit`")
    if any(not target.image.startswith("/") for target in request.targets if target.image):
        raise BadRequestError(f"{domain} is libvirt's: pivotd has it copy to files and block devices alone")
    why = next((why for is_asked, why in CANNOT if is_asked(request.options)), None)
    if why is not None:
        raise BadRequestError(f"{domain} is libvirt's, which cannot do {why}")
    if request.kind is not Kind.SNAPSHOT and not request.options.abort and leases.virtlockd_holds():
        raise BadRequestError(
            f"{domain} is libvirt's, and virtlockd locks images here (lock_manager): libvirt could not resume the "
            "guest after a switch in a pause, since it would lock the new image twice; switch with virsh, unguarded"
        )


def refuse_unfit(disks: Iterable[str], believed: Mapping[str, DiskBelieved]) -> None:
    """Raises: BadRequestError: libvirt cannot move such a disk, or not all of its writers with it."""
    for disk in disks:
        known = believed.get(disk)
        why = None if known is None else next((why for is_so, why in UNFIT if is_so(known)), None)
        if why is not None:
            raise BadRequestError(f"libvirt has {disk} {why}", disk=disk)


def refuse_disbelief(disk: PivotDisk, believed: Mapping[str, DiskBelieved]) -> None:
    """Raises: ConflictError: libvirt names another image of a disk than QEMU uses, or none."""
    known = believed.get(disk.disk)
    if known is None:
        raise ConflictError(f"libvirt has no disk {disk.disk} in this guest", disk=disk.disk)
    if known.live != disk.source.filename:
        raise ConflictError(
            f"QEMU uses {disk.source.filename} as {disk.disk}, and libvirt takes {known.live or 'no image'} for it: "
            + restart(f"define {disk.source.filename} for its next boot (virsh edit), shut it down and start it"),
            disk=disk.disk,
        )


def _refuse_other_next_boot(domain: str, disk: PivotDisk, known: DiskBelieved, options: CopyOptions) -> None:
    """Refuse a disk whose next boot is from another image than the guest runs on: the switch would not change that.

    A job that is to be aborted switches nothing, and a next boot from the image of a job that is there becomes right.

    Raises: ConflictError.
    """
    right = {disk.source.filename, *([disk.destination.filename] if options.adopted else [])}
    if not known.persistent or known.next in right or options.force or options.abort:
        return
    has = f"starts with {known.next}" if known.next else "has no local image"
    what = f"{has} as {disk.disk}" if known.next_has_disk else f"has no disk {disk.disk}"
    raise ConflictError(
        f"the next boot of {domain} {what}, and the running guest uses {disk.source.filename}: pivotd would leave that "
        f"definition alone; define the guest with {disk.source.filename} first (virsh edit {domain}), or use --force",
        disk=disk.disk,
    )


def checked(
    domain: str, kind: Kind, disks: tuple[PivotDisk, ...], believed: Mapping[str, DiskBelieved], options: CopyOptions
) -> tuple[PivotDisk, ...]:
    """Return planned disks whose jobs libvirt will name. Raises: BadRequestError, ConflictError: libvirt cannot."""
    refuse_unfit((disk.disk for disk in disks), believed)
    for disk in disks:
        refuse_disbelief(disk, believed)
        _refuse_other_next_boot(domain, disk, believed[disk.disk], options)
    if kind is Kind.COMMIT and not all(disk.switches for disk in disks):
        raise BadRequestError(f"{domain} is libvirt's: commit layers below the active one with `virsh blockcommit`")
    return disks if options.adopted else tuple(replace(disk, job="") for disk in disks)


def plan_adopt(
    domain: DomainSnapshot, index: int, target: Target, seen: DiskSeen, believed: Mapping[str, DiskBelieved]
) -> tuple[Kind, PivotDisk]:
    """Return the disk with libvirt's job on it, and the kind of the pivot.

    Raises: NotFoundError (no job), ConflictError (a job that cannot be guarded), BadRequestError (another image).
    """
    known = believed.get(seen.disk)
    if known is None or known.job is JobBelief.NONE or known.job_kind not in KINDS:
        raise NotFoundError(f"no copy or active commit of libvirt works on {seen.disk}: there is nothing to adopt")
    if known.job in ENDING:
        raise ConflictError(f"libvirt is ending its job of {seen.disk} already", disk=seen.disk)
    names_of_job = [name for name in domain.blocks.graph.jobs.get(seen.node, ()) if name in domain.blocks.jobs]
    if not names_of_job or known.mirror is None:
        raise ConflictError(f"the job of {seen.disk} does not write to a local file or device", disk=seen.disk)
    if target.image and not files.same(Image(known.mirror, "", ""), files.resolve(target.image, domain.directory)):
        raise BadRequestError(f"the job of {seen.disk} writes to {known.mirror}, not to {target.image}", disk=seen.disk)
    disk = replace(domain.disk(index, seen), job=names_of_job[0])
    kind = KINDS[known.job_kind]
    if kind is Kind.COPY:
        node = names.destination_node(domain.pivot, index)
        destination = files.with_file(Image(known.mirror, known.mirror_format or disk.source.format, node))
        domain.refuse_if_used(destination, seen.disk)
        return kind, replace(disk, destination=destination)
    chain = domain.chain(seen)
    base = next((image for image in chain[1:] if image.filename == known.mirror), None)
    if base is None:
        raise ConflictError(f"libvirt commits {seen.disk} into {known.mirror}, which is not in its chain")
    between = tuple(image.filename for image in chain[1 : chain.index(base)])
    return kind, replace(disk, destination=base, top=chain[0], base=base, between=between)
