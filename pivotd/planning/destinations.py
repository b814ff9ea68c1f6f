"""Destination images: the checks that pivotd can make before it asks QEMU to create or open them."""

from __future__ import annotations

from dataclasses import replace

from pivotd import limits
from pivotd.core import creation, names, nbd
from pivotd.core.pivot import Image, PivotDisk
from pivotd.core.request import CopyOptions, Sync, Target
from pivotd.errors import BadRequestError
from pivotd.host import files
from pivotd.host.qcow2 import is_blank
from pivotd.planning import destination_files, direct_io
from pivotd.planning.bitmap_refusals import refuse_bitmaps
from pivotd.planning.domain_snapshot import DomainSnapshot
from pivotd.planning.lasting_names import backing_name
from pivotd.qmp.blocks import DiskSeen
from pivotd.qmp.mirror_start import copies_at_once, has_all_allocated, reads_as_zeroes

FORMATS = ("qcow2", "raw")


def plan_copy(domain: DomainSnapshot, index: int, target: Target, seen: DiskSeen) -> PivotDisk:
    """Return the disk with its destination image. Raises: BadRequestError, DiskBusyError."""
    disk = domain.disk(index, seen)
    wanted = target.format or disk.source.format
    if wanted not in FORMATS:
        raise BadRequestError(f"format {wanted}: pivotd creates {' and '.join(FORMATS)}; name one with --format")
    if domain.options.sync is Sync.TOP:
        disk = _shallow(domain, seen, disk, target.image, wanted)
    disk = replace(disk, destination=_checked(domain, index, seen, Image(target.image, wanted, "")))
    if disk.base is None and copies_at_once(domain.options):
        _refuse_wiping(domain, seen, disk.destination)
    return disk


def plan_snapshot(domain: DomainSnapshot, index: int, target: Target, seen: DiskSeen) -> PivotDisk:
    """Return the disk with its new overlay, which must be qcow2. Raises: BadRequestError, DiskBusyError."""
    disk = domain.disk(index, seen)
    if nbd.is_uri(target.image):
        raise BadRequestError(f"{target.image} cannot become an overlay: pivotd creates overlays as image files")
    overlay = _checked(domain, index, seen, Image(target.image, "qcow2", ""), overlay=True)
    return replace(disk, destination=overlay, backing_file=disk.source.filename)


def _shallow(domain: DomainSnapshot, seen: DiskSeen, disk: PivotDisk, image: str, image_format: str) -> PivotDisk:
    """Return the disk for a copy of its active layer only: the new image gets the backing image of the source."""
    if domain.options.reuse:
        # What a file names as its backing file says nothing on whether QEMU's words and ours lead to the same image.
        raise BadRequestError("--sync top makes a new image: --reuse cannot prove that the one there is backed alike")
    if image_format != "qcow2":
        raise BadRequestError(f"--sync top needs qcow2: a {image_format} image cannot name a backing file")
    chain = domain.chain(seen)
    if len(chain) == 1:
        return disk
    below = chain[1]
    name = backing_name(below, image, seen.layers[0].backing_file)
    return replace(disk, base=below, backing_file=name)


def _refuse_wiping(domain: DomainSnapshot, seen: DiskSeen, image: Image) -> None:
    """Raises: BadRequestError: QEMU would wipe the destination while it already copies the guest's writes to it.

    QEMU wipes what may hold data. It wipes an empty image below a chain unless it is told not to, and even then if the
    image is opened with detect-zeroes=unmap, as the source is. It wipes nothing where the source, like every raw image,
    has all of the disk allocated.

    Source: measured on 7.2 (docs/reliability.md); block/mirror.c, mirror_iteration_done() clears the marks of
    writes that are under way when the wiping ends, so that older data can be copied over them.
    """
    chain = not domain.blocks.graph.stands_alone(seen.node)
    spared = domain.keeps_zeroes and seen.detect_zeroes != "unmap"
    there = domain.options.reuse and image.format == "qcow2" and is_blank(image.filename)
    zeroed = there or reads_as_zeroes(domain.options)
    if not has_all_allocated(seen) and not (zeroed and (spared or not chain)):
        raise BadRequestError(
            f"--copy-mode write-blocking from the start would let QEMU lose writes while it wipes the image for "
            f"{seen.disk} first. QEMU wipes an image that may hold data (--reuse), a new one that is encrypted and "
            "preallocated, and, before 10.1 or with detect-zeroes=unmap, any for a source with a backing file; none "
            "for a raw source: use --copy-mode auto or --discard ignore",
            disk=seen.disk,
        )


def _checked(domain: DomainSnapshot, index: int, seen: DiskSeen, image: Image, *, overlay: bool = False) -> Image:
    """Return the image with its future node name."""
    image = replace(image, filename=_name(image.filename))
    refuse_bitmaps(domain, seen.bitmaps, image, seen.disk)
    _check_options(domain.options, image.format, force=domain.options.force, overlay=overlay)
    domain.refuse_if_used(image, seen.disk)
    if domain.options.resumable and nbd.is_uri(image.filename):
        raise BadRequestError(
            f"{image.filename}: a copy to an NBD export is not resumable; a server that comes back does not say "
            "whether it still has what it had taken and not yet flushed"
        )
    if nbd.is_unix(image.filename) and (domain.options.granularity_bytes or 0) > limits.UNIX_EXPORT_BYTES:
        raise BadRequestError(
            f"{image.filename}: --granularity may be {limits.UNIX_EXPORT_BYTES >> 10}K at most for an export on a Unix "
            "socket; with more under way, a server that hangs could not be cut off"
        )
    if not nbd.is_uri(image.filename):
        options = domain.options
        if image.filename in domain.made:
            image = files.with_file(image)
        else:
            destination_files.check_path(image, seen, options, pid=domain.opener(image.filename))
        direct_io.refuse_without(options, seen, image.filename)
    else:
        _check_export(image.filename, reuse=domain.options.reuse)
    return replace(image, node=names.destination_node(domain.pivot, index))


def _name(name: str) -> str:
    if not nbd.is_uri(name):
        return name
    try:
        return nbd.parse(name).uri
    except ValueError as error:
        raise BadRequestError(str(error)) from None


def _check_export(uri: str, *, reuse: bool) -> None:
    """Try no connection: some servers end with their first client."""
    if not reuse:
        raise BadRequestError(f"{uri} is there already, as every export: use --reuse to overwrite it")
    socket = nbd.parse(uri).path
    if socket is not None and destination_files.missing(socket):
        raise BadRequestError(f"{uri}: there is no socket {socket}; start its server first")


def _check_options(options: CopyOptions, image_format: str, *, force: bool, overlay: bool) -> None:
    if options.reuse and options.image_options.given():
        raise BadRequestError("image options are for images that pivotd creates: leave out --option or --reuse")
    if options.secret_file is not None:
        if image_format != "qcow2":
            raise BadRequestError(f"--secret-file encrypts qcow2 images, not {image_format}")
        if destination_files.missing(options.secret_file):
            raise BadRequestError(f"{options.secret_file} does not exist: QEMU reads the passphrase from it")
    problem = creation.problem(options.image_options, image_format, encrypted=options.secret_file is not None)
    if problem is not None:
        raise BadRequestError(problem)
    if options.secret_file is not None and not options.reuse and not force:
        # Measured: 1.4 to 12 s, most of it a benchmark that iter-time does not shorten.
        before = "" if overlay else "make it with qemu-img and use --reuse, or "
        raise BadRequestError(
            "QEMU, and the guest with it, can stand still for seconds while it makes an encrypted image: "
            f"{before}use --force to go on all the same"
        )
