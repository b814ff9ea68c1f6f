"""How a copy's mirror begins: which data QEMU is told to copy, so that it does not fill the image with zeroes first.

With ``sync: full`` and a destination that may be unmapped, QEMU writes zeroes over all of it before it copies anything:
a qcow2 image gets tables for its whole size (128 MiB for each TiB), and write-blocking mirrors lose writes meanwhile.
``sync: top`` copies what the active image has allocated, and nothing is wiped. That is the whole disk where the
destination reads as zeroes and nothing is below the source, or where the source has all of the disk allocated.
Source: block/mirror.c, mirror_dirty_init(); docs/performance.md, "Thin disks".
"""

from __future__ import annotations

from pivotd import limits
from pivotd.core import nbd
from pivotd.core.image_names import describe
from pivotd.core.pivot import Pivot, PivotDisk
from pivotd.core.request import CopyMode, CopyOptions, Discard, Sync
from pivotd.errors import QmpRefusedError
from pivotd.host import held
from pivotd.host.qcow2 import is_blank
from pivotd.host.threads import in_thread
from pivotd.qmp import blocks, replies
from pivotd.qmp.blocks import DiskSeen
from pivotd.qmp.burst import Command
from pivotd.qmp.monitor import Monitor, command

TARGET_IS_ZERO = "target-is-zero"
"""An argument of blockdev-mirror since QEMU 10.1."""
RAW = frozenset({"raw", "file", "host_device"})
"""Drivers of a root node that shows the bytes of a file or block device as they are."""


def reads_as_zeroes(options: CopyOptions) -> bool:
    """Return whether each image that pivotd creates with these options reads as zeroes until something writes to it.

    An encrypted image with preallocated clusters does not: what QEMU decrypts there was never encrypted.
    """
    preallocated = options.image_options.preallocation not in {None, "off"}
    return not options.reuse and not (options.secret_file is not None and preallocated)


def copies_at_once(options: CopyOptions) -> bool:
    """Return whether QEMU copies the guest's writes at once from the start, to an image that it could wipe.

    QEMU loses such writes while it wipes the image.
    """
    at_once = options.copy_mode is CopyMode.WRITE_BLOCKING and not options.adopted
    return at_once and options.discard is Discard.UNMAP


def has_all_allocated(seen: DiskSeen) -> bool:
    """Return whether a mirror with ``sync: top`` copies all of this disk, the holes of its image as zeroes.

    QEMU takes every byte of a raw file or device for allocated. What an export tells of itself may be otherwise.
    """
    return seen.format in RAW and describe(seen.filename, "/").path is not None


def buffer_bytes(seen: DiskSeen) -> int | None:
    """Return how much a mirror should copy in one step, None for QEMU's own choice.

    A mirror steps through the holes of a raw file, never further at once than its buffer is large. The buffer is QEMU's
    memory once as much was copied, and a sixteenth of it is one request: it is larger only where next to nothing but
    holes is to be copied, and the steps take longer than the data.
    """
    allocated = seen.layers[0].allocated_bytes
    if not allocated or not has_all_allocated(seen):
        return None  # QEMU shows 0 for a device
    holes = seen.size_bytes - allocated
    if holes < allocated * limits.MIRROR_HOLES_PER_DATA:
        return None
    wanted = 1 << (holes // limits.MIRROR_STEPS_MAX).bit_length()
    return min(wanted, limits.MIRROR_BUFFER_BYTES_MAX) if wanted > limits.MIRROR_BUFFER_BYTES else None


async def takes_target_is_zero(monitor: Monitor) -> bool:
    """Return whether QEMU can be told that a destination reads as zeroes.

    QEMU checks the names of the arguments before it looks for the node, which does not exist. query-qmp-schema would
    keep QEMU from everything else for about 50 ms.
    """
    probe = command("blockdev-mirror", job_id="pivotd", device="", target="", sync="full", target_is_zero=True)
    (reply,) = await monitor.burst([probe], limits.QUERY_TIMEOUT_S)
    return isinstance(reply, QmpRefusedError) and TARGET_IS_ZERO not in reply.fields["text"]


async def start(monitor: Monitor, pivot: Pivot, disk: PivotDisk, mirror: Command) -> None:
    """Start the mirror of one disk. Raises: QmpRefusedError: QEMU refused, or the destination is not as it should be.

    ``mirror``: the command as the request has it, with ``sync`` top if only the active layer is copied.
    """
    options = pivot.options
    questions = [blocks.graph.command, replies.highest_writes.command, blocks.disks.command]
    shown, writes, disks = await monitor.burst(questions, limits.QUERY_TIMEOUT_S)
    written = replies.highest_writes(writes).get(disk.destination.node, 0) > 0
    if not options.reuse and written:
        # Only if another client has dismissed the first job. QEMU was told that the image read as zeroes.
        raise QmpRefusedError(
            f"{disk.destination.filename}: a job that has gone has written to it already; copy to a new image"
        )
    seen = blocks.find(blocks.disks(disks), disk)
    larger = None if seen is None or nbd.is_uri(disk.destination.filename) else buffer_bytes(seen)
    if larger is not None:
        mirror = _with(mirror, buf_size=larger)
    zeroed = reads_as_zeroes(options) or (not written and await _is_blank(pivot, disk))
    if options.sync is Sync.TOP and disk.base is not None:
        await monitor.execute(mirror)
    elif zeroed and blocks.graph(shown).stands_alone(disk.source.node):
        await _start_on_zeroes(monitor, _with(mirror, sync="top"))
    elif seen is not None and seen.node == disk.source.node and has_all_allocated(seen):
        await monitor.execute(_with(mirror, sync="top"))
    elif not (zeroed and await _start_on_zeroes(monitor, _with(mirror, sync="full"), needed=True)):
        await _start_wiping(monitor, disk, options, _with(mirror, sync="full"))


async def _is_blank(pivot: Pivot, disk: PivotDisk) -> bool:
    """Return whether the image was there before, and holds nothing: it is the very file that QEMU has open."""
    filename = disk.destination.filename
    if disk.destination.format != "qcow2" or not pivot.options.reuse or nbd.is_uri(filename):
        return False

    def look() -> bool:
        return held.astray(filename, held.look(pivot.identity.pid)) is None and is_blank(filename)

    try:
        return await in_thread(limits.FILE_TIMEOUT_S, look, paths=[filename])
    except TimeoutError:
        return False


async def _start_on_zeroes(monitor: Monitor, mirror: Command, *, needed: bool = False) -> bool:
    """Start a mirror to an image that reads as zeroes, and say so: QEMU need not look through all of it.

    ``needed``: do not start it if QEMU cannot be told. Returns: whether it was started.
    """
    try:
        await monitor.execute(_with(mirror, target_is_zero=True))
    except QmpRefusedError as error:
        if TARGET_IS_ZERO not in error.fields["text"]:
            raise
        if needed:
            return False
        await monitor.execute(mirror)
    return True


async def _start_wiping(monitor: Monitor, disk: PivotDisk, options: CopyOptions, mirror: Command) -> None:
    if copies_at_once(options):
        raise QmpRefusedError(
            f"{disk.destination.filename}: QEMU would wipe it first, and lose writes of the guest meanwhile with "
            "--copy-mode write-blocking; use --copy-mode auto"
        )
    await monitor.execute(mirror)


def _with(mirror: Command, **changes: object) -> Command:
    """Return the command with these arguments instead."""
    more = {name.replace("_", "-"): value for name, value in changes.items()}
    return mirror | {"arguments": mirror["arguments"] | more}
