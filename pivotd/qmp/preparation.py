"""Destinations are created and opened, jobs started: the steps that leave the guest alone."""

from __future__ import annotations

from typing import Any

from pivotd.core import names
from pivotd.core.actions import Step
from pivotd.core.words import CopyMode, Kind, Pivot, PivotDisk
from pivotd.errors import QmpRefusedError
from pivotd.qmp.client import Command
from pivotd.qmp.monitor import Monitor, command

NO_SUCH_FILE = "No such file or directory"


async def prepare(monitor: Monitor, pivot: Pivot, disk: PivotDisk, step: Step) -> None:
    """Do one step of the preparation of one disk.

    Raises: QmpRefusedError: QEMU said no, or the destination is not what it should be.
    """
    match step:
        case Step.CREATE_FILE:
            await _create_file(monitor, pivot, disk)
        case Step.OPEN_FILE:
            await monitor.execute(command("blockdev-add", **_file_options(pivot, disk)))
        case Step.CREATE_FORMAT:
            options = {
                "driver": disk.destination.format,
                "file": names.file_node(pivot.id, disk.index),
                "size": disk.size_bytes,
            }
            if pivot.kind is Kind.SNAPSHOT:
                options |= {"backing-file": disk.backing_file, "backing-fmt": disk.source.format}
            job = names.create_format_job(pivot.id, disk.index)
            await monitor.execute(command("blockdev-create", job_id=job, options=options))
        case Step.OPEN_FORMAT:
            await _open_format(monitor, pivot, disk)
        case Step.START_JOB:
            await monitor.execute(_job(pivot, disk))


def _file_options(pivot: Pivot, disk: PivotDisk) -> dict[str, Any]:
    return {
        "driver": "file",
        "filename": disk.destination.filename,
        "node-name": names.file_node(pivot.id, disk.index),
        "cache": {"direct": disk.cache_direct, "no-flush": False},
    }


async def _create_file(monitor: Monitor, pivot: Pivot, disk: PivotDisk) -> None:
    """Create the destination file, but only where there is none: QEMU would truncate it."""
    options = _file_options(pivot, disk) | {"read-only": True}
    try:
        await monitor.execute(command("blockdev-add", **options))
    except QmpRefusedError as error:
        if not error.fields["text"].endswith(NO_SUCH_FILE):
            raise
    else:
        await monitor.execute(command("blockdev-del", node_name=options["node-name"]))
        raise QmpRefusedError(f"{disk.destination.filename} exists already; name a new image or use --reuse")
    size = disk.size_bytes if disk.destination.format == "raw" else 0
    await monitor.execute(
        command(
            "blockdev-create",
            job_id=names.create_file_job(pivot.id, disk.index),
            options={"driver": "file", "filename": disk.destination.filename, "size": size},
        )
    )


async def _open_format(monitor: Monitor, pivot: Pivot, disk: PivotDisk) -> None:
    options: dict[str, Any] = {
        "driver": disk.destination.format,
        "node-name": disk.destination.node,
        "file": names.file_node(pivot.id, disk.index),
        "cache": {"direct": disk.cache_direct, "no-flush": False},
    }
    if pivot.kind is Kind.SNAPSHOT:
        # The snapshot itself puts the source below it.
        options["backing"] = None
    await monitor.execute(command("blockdev-add", **options))


def _job(pivot: Pivot, disk: PivotDisk) -> Command:
    """Return the command that starts the disk's job.

    The job may go only as far as `pending` by itself, and stays until its outcome is durable.
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
            blocking = pivot.options.copy_mode is CopyMode.WRITE_BLOCKING
            return command(
                "blockdev-mirror",
                **common,
                target=disk.destination.node,
                sync=str(pivot.options.sync),
                copy_mode="write-blocking" if blocking else "background",
                **({"on_target_error": "stop"} if pivot.options.resumable else {}),
            )
        case Kind.COMMIT:
            assert disk.base is not None
            assert disk.top is not None
            top = {} if pivot.switches else {"top_node": disk.top.node}
            return command("block-commit", **common, **top, **_backing_file(disk), base_node=disk.base.node)
        case Kind.PULL:
            base = {} if disk.base is None else {"base_node": disk.base.node}
            return command("block-stream", **common, **base, **_backing_file(disk))
    raise AssertionError(f"a {pivot.kind} has no job")


def _backing_file(disk: PivotDisk) -> dict[str, str]:
    return {} if disk.backing_file is None else {"backing_file": disk.backing_file}
