"""Creates and opens destinations, and starts jobs: the steps that do not affect the guest."""

from __future__ import annotations

from typing import Any

from pivotd import limits
from pivotd.core import names, nbd
from pivotd.core.actions import Step
from pivotd.core.pivot import Pivot, PivotDisk
from pivotd.core.request import CopyMode, Kind
from pivotd.errors import QmpRefusedError
from pivotd.qmp import load_guard, mirror_start, opening
from pivotd.qmp.burst import Command
from pivotd.qmp.monitor import Monitor, command

NO_SUCH_FILE = "No such file or directory"


async def prepare(monitor: Monitor, pivot: Pivot, disk: PivotDisk, step: Step) -> None:
    """Do one step of the preparation of one disk.

    Raises: QmpRefusedError: QEMU refused, or the destination is not as it should be.
    """
    match step:
        case Step.CREATE_FILE:
            await _create_file(monitor, pivot, disk)
        case Step.OPEN_FILE:
            await opening.open_file(monitor, pivot, disk)
        case Step.CREATE_FORMAT:
            await monitor.execute(_create_format(pivot, disk))
        case Step.OPEN_FORMAT:
            await opening.open_format(monitor, pivot, disk)
        case Step.START_JOB:
            await _start_job(monitor, pivot, disk)


def _create_format(pivot: Pivot, disk: PivotDisk) -> Command:
    """Return the command that formats the file as qcow2."""
    given = pivot.options.image_options.given()
    iter_ms = given.pop("luks_iter_ms", None)
    options: dict[str, Any] = {name.replace("_", "-"): value for name, value in given.items()} | {
        "driver": disk.destination.format,
        "file": names.file_node(pivot.id, disk.index),
        "size": disk.size_bytes,
    }
    if disk.backing_file is not None:
        below = disk.source if disk.base is None else disk.base
        options |= {"backing-file": disk.backing_file, "backing-fmt": below.format}
    if pivot.options.secret_file is not None:
        iter_time = {} if iter_ms is None else {"iter-time": iter_ms}
        options["encrypt"] = opening.encryption(pivot) | iter_time
    return command("blockdev-create", job_id=names.create_format_job(pivot.id, disk.index), options=options)


async def _refuse_existing(monitor: Monitor, pivot: Pivot, disk: PivotDisk) -> None:
    """Raises: QmpRefusedError: there is a file already."""
    options = await opening.file_options(pivot, disk) | {"read-only": True}
    try:
        await monitor.execute(command("blockdev-add", **options))
    except QmpRefusedError as error:
        if not error.fields["text"].endswith(NO_SUCH_FILE):
            raise
    else:
        await monitor.execute(command("blockdev-del", node_name=options["node-name"]))
        raise QmpRefusedError(f"{disk.destination.filename} exists already; name a new image or use --reuse")


async def _create_file(monitor: Monitor, pivot: Pivot, disk: PivotDisk) -> None:
    """Create the destination file, but only if it does not exist, or is pivotd's own: QEMU truncates it."""
    if disk.destination.file_id is None:
        await _refuse_existing(monitor, pivot, disk)
    elif not await opening.is_untouched(disk.destination, dict(pivot.options.made_before)):
        raise QmpRefusedError(
            f"{disk.destination.filename} is another file by now, or was written to; name a new image or use --reuse"
        )
    create: dict[str, Any] = {"driver": "file", "filename": disk.destination.filename, "size": 0}
    if disk.destination.format == "raw":
        preallocation = pivot.options.image_options.preallocation
        create |= {"size": disk.size_bytes} | ({} if preallocation is None else {"preallocation": preallocation})
    await monitor.execute(
        command("blockdev-create", job_id=names.create_file_job(pivot.id, disk.index), options=create)
    )


async def _start_job(monitor: Monitor, pivot: Pivot, disk: PivotDisk) -> None:
    await load_guard.place(monitor, pivot, disk)
    if pivot.kind is Kind.COPY:
        await mirror_start.start(monitor, pivot, disk, _job(pivot, disk))
    else:
        await monitor.execute(_job(pivot, disk))


def _job(pivot: Pivot, disk: PivotDisk) -> Command:
    """Return the command that starts the disk's job.

    By itself the job goes only to `pending`, and it stays until its outcome is durable.
    """
    common = {
        "job_id": disk.job,
        "device": disk.source.node,
        "speed": pivot.options.bandwidth_bytes_per_s,
        "auto_finalize": False,
        "auto_dismiss": False,
    }
    match pivot.kind:
        case Kind.COPY:
            options = pivot.options
            blocking = options.copy_mode is CopyMode.WRITE_BLOCKING
            return command(
                "blockdev-mirror",
                **common,
                target=disk.destination.node,
                sync=str(options.sync),
                copy_mode="write-blocking" if blocking else "background",
                on_target_error="stop" if options.resumable else "enospc",
                **({"buf_size": limits.UNIX_EXPORT_BYTES} if nbd.is_unix(disk.destination.filename) else {}),
                **({} if options.granularity_bytes is None else {"granularity": options.granularity_bytes}),
            )
        case Kind.COMMIT:
            assert disk.base is not None
            assert disk.top is not None
            top = {} if pivot.switches else {"top_node": disk.top.node}
            return command(
                "block-commit", **common, on_error="enospc", **top, **_backing_file(disk), base_node=disk.base.node
            )
        case Kind.PULL:
            # The guest itself writes into the image that a pull fills: one that waited would take what is freed for it.
            base = {} if disk.base is None else {"base_node": disk.base.node}
            return command("block-stream", **common, **base, **_backing_file(disk))
    raise AssertionError(f"a {pivot.kind} has no job")


def _backing_file(disk: PivotDisk) -> dict[str, str]:
    return {} if disk.backing_file is None else {"backing_file": disk.backing_file}
