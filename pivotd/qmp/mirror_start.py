"""How a copy's mirror begins: which data QEMU is told to copy, so that a new image is not filled with zeroes first.

With ``sync: full`` and a destination that may be unmapped, QEMU writes zeroes over all of it before it copies anything:
a qcow2 image gets tables for its whole size (128 MiB for each TiB), and write-blocking mirrors lose writes meanwhile.
A new image reads as zeroes already. Source: block/mirror.c, mirror_dirty_init(); docs/performance.md, "Thin disks".
"""

from __future__ import annotations

from pivotd import limits
from pivotd.core.pivot import Pivot, PivotDisk
from pivotd.core.request import CopyMode, CopyOptions, Discard, Sync
from pivotd.errors import QmpRefusedError
from pivotd.qmp import blocks, replies
from pivotd.qmp.burst import Command
from pivotd.qmp.monitor import Monitor, command

TARGET_IS_ZERO = "target-is-zero"
"""An argument of blockdev-mirror since QEMU 10.1."""


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
    if options.reuse:
        await monitor.execute(mirror)
        return
    questions = [blocks.graph.command, replies.highest_writes.command]
    shown, writes = await monitor.burst(questions, limits.QUERY_TIMEOUT_S)
    if replies.highest_writes(writes).get(disk.destination.node, 0):
        # Only if another client has dismissed the first job. QEMU was told that the image read as zeroes.
        raise QmpRefusedError(
            f"{disk.destination.filename}: a job that has gone has written to it already; copy to a new image"
        )
    if options.sync is Sync.TOP and disk.base is not None:
        await monitor.execute(mirror)
    elif not reads_as_zeroes(options):
        await _start_wiping(monitor, disk, options, _with(mirror, sync="full"))
    elif blocks.graph(shown).stands_alone(disk.source.node):
        await monitor.execute(_with(mirror, sync="top"))
    else:
        await _start_flat(monitor, disk, options, _with(mirror, sync="full"))


async def _start_flat(monitor: Monitor, disk: PivotDisk, options: CopyOptions, mirror: Command) -> None:
    """Start a full copy of a source with backing images; QEMU before 10.1 wipes the destination."""
    try:
        await monitor.execute(_with(mirror, target_is_zero=True))
    except QmpRefusedError as error:
        if TARGET_IS_ZERO not in error.fields["text"]:
            raise
        await _start_wiping(monitor, disk, options, mirror)


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
