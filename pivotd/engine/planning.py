"""From a request to a pivot: every check that can be made before anything is recorded or changed."""

from __future__ import annotations

import stat
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from pivotd import files, limits
from pivotd.core import names
from pivotd.core.observation import PAUSABLE
from pivotd.core.words import CopyOptions, Identity, Image, Kind, Phase, Pivot, PivotDisk, Requester
from pivotd.errors import BadRequestError, ConflictError, DiskBusyError, NotFoundError
from pivotd.qmp import identity
from pivotd.qmp.replies import DiskSeen, Graph
from pivotd.qmp.session import Session
from pivotd.threads import in_thread

FORMATS = ("qcow2", "raw")
WORKING = {"file", "host_device"}
"""Protocol drivers that QEMU shows as the format of a disk without a format layer."""


@dataclass(frozen=True, slots=True)
class Target:
    """One DISK=IMAGE. ``format`` None: that of the source."""

    disk: str
    image: str
    format: str | None


@dataclass(frozen=True, slots=True)
class Wish:
    """A copy request whose words have been checked, but not yet its facts."""

    pivot: str
    request_id: str
    domain: str
    targets: tuple[Target, ...]
    options: CopyOptions
    who: Requester
    created_at: str
    force: bool


async def plan_copy(wish: Wish, session: Session, in_use: Collection[str]) -> Pivot:
    """Return the pivot to record. ``in_use``: names of images that other open pivots write to.

    Raises: NotFoundError (disk), BadRequestError (image), ConflictError (state), DiskBusyError (job).
    """
    run_state = await session.run_state()
    if run_state not in PAUSABLE:
        raise ConflictError(f"{wish.domain} is {run_state}: a switch is not possible in this state; try again later")
    if await session.migrating():
        raise ConflictError(f"{wish.domain} is being migrated: try again when that has ended")
    disks = await session.disks()
    graph = await session.graph()
    try:
        planned = await in_thread(limits.FILE_TIMEOUT_S, _plan_disks, wish, disks, graph, session.pid, in_use)
    except TimeoutError:
        raise BadRequestError("the storage of an image does not answer: try again when it does") from None
    return Pivot(
        id=wish.pivot,
        request_id=wish.request_id,
        domain=wish.domain,
        qmp=session.path,
        kind=Kind.COPY,
        phase=Phase.PREPARING,
        requested_by=wish.who,
        options=wish.options,
        disks=planned,
        created_at=wish.created_at,
        identity=Identity(
            boot_id=identity.boot_id(),
            pid=session.pid,
            start_ticks=identity.start_ticks(session.pid),
            nonce=names.nonce_object(wish.pivot),
        ),
    )


def _plan_disks(
    wish: Wish, disks: dict[str, DiskSeen], graph: Graph, pid: int, in_use: Collection[str]
) -> tuple[PivotDisk, ...]:
    """Return the disks to move; looks at files, so it may block."""
    directory = identity.working_directory(pid)
    planned = []
    for index, target in enumerate(wish.targets):
        seen = _find(disks, target.disk, wish.domain)
        jobs = graph.jobs.get(seen.node, ())
        if jobs:
            raise DiskBusyError(
                f"{seen.disk} is used by block job {jobs[0]}: wait for it or cancel it first",
                disk=seen.disk,
                job=jobs[0],
            )
        _check_source(seen, force=wish.force)
        planned.append(_disk(wish, index, target, seen, directory))
    for disk in planned:
        _check_destination(disk, wish, disks, directory, in_use)
    return tuple(planned)


def _find(disks: dict[str, DiskSeen], name: str, domain: str) -> DiskSeen:
    found = disks.get(name) or next((d for d in disks.values() if name in {d.device, d.qdev} and name), None)
    if found is None:
        known = ", ".join(sorted(disks)) or "none"
        raise NotFoundError(f"{domain} has no disk {name}; its disks are: {known}", domain=domain, disk=name)
    return found


def _check_source(seen: DiskSeen, *, force: bool) -> None:
    if seen.read_only:
        raise BadRequestError(f"{seen.disk} is read-only: there is nothing that a guest could write", disk=seen.disk)
    if seen.cache_no_flush and not force:
        raise BadRequestError(
            f"{seen.disk} uses cache=unsafe: its writes survive no host crash, so no image can be right after one; "
            "use --force to copy it all the same",
            disk=seen.disk,
        )


def _disk(wish: Wish, index: int, target: Target, seen: DiskSeen, directory: Path | None) -> PivotDisk:
    source_format = "raw" if seen.format in WORKING else seen.format
    wanted = target.format or source_format
    if wanted not in FORMATS:
        raise BadRequestError(f"format {wanted}: pivotd creates {' and '.join(FORMATS)}; name one with --format")
    source = files.resolve(seen.filename, directory)
    return PivotDisk(
        disk=seen.disk,
        index=index,
        qdev=seen.qdev,
        size_bytes=seen.size_bytes,
        source=Image(source.path or seen.filename, source_format, seen.node, source.file_id),
        destination=Image(target.image, wanted, names.destination_node(wish.pivot, index)),
        job=names.mirror_job(wish.pivot, index),
        cache_direct=seen.cache_direct,
    )


def _check_destination(
    disk: PivotDisk, wish: Wish, disks: dict[str, DiskSeen], directory: Path | None, in_use: Collection[str]
) -> None:
    image = disk.destination
    for other in disks.values():
        chain = [files.resolve(name, directory) for name in (other.filename, *other.backing_chain)]
        if any(files.same(image, file) for file in chain):
            role = "its present image" if other.disk == disk.disk else f"in use by {other.disk}"
            raise BadRequestError(f"{image.filename} cannot take {disk.disk}: it is {role}", disk=disk.disk)
    if image.filename in in_use:
        raise DiskBusyError(f"{image.filename} is the destination of another open pivot", disk=disk.disk)
    _check_path(image.filename, reuse=wish.options.reuse)


def _check_path(filename: str, *, reuse: bool) -> None:
    """Refuse early what pivotd can see to be wrong; what it may not see, QEMU will refuse when it opens the image."""
    path = Path(filename)
    try:
        found = path.stat()
    except FileNotFoundError:
        if reuse:
            raise BadRequestError(f"{filename} does not exist: create it first, or leave out --reuse") from None
        if _missing(path.parent):
            raise BadRequestError(f"{filename}: directory {path.parent} does not exist") from None
        return
    except NotADirectoryError:
        raise BadRequestError(f"{filename}: {path.parent} is not a directory") from None
    except OSError:
        return
    if not reuse:
        raise BadRequestError(f"{filename} exists already: name a new image, or use --reuse to overwrite this one")
    if not stat.S_ISREG(found.st_mode):
        raise BadRequestError(f"{filename} is not a regular file: only image files can be destinations")


def _missing(directory: Path) -> bool:
    try:
        directory.stat()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return False
