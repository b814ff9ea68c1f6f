"""How QEMU opens a destination: the protocol, size, cache mode, discard, backing and secret."""

from __future__ import annotations

import os
import stat
from typing import Any

from pivotd import limits
from pivotd.core import names, nbd
from pivotd.core.pivot import Pivot, PivotDisk
from pivotd.core.request import Discard, Kind
from pivotd.errors import QmpRefusedError
from pivotd.host.threads import in_thread
from pivotd.qmp import blocks
from pivotd.qmp.monitor import Monitor, ask, command

TOO_SMALL = "actual size of the containing file"
"""Part of QEMU's message for a raw image that is shorter than the size with which it is opened."""


async def protocol(filename: str) -> dict[str, Any]:
    """Return driver and address for the image with this name.

    Raises: QmpRefusedError: its storage does not answer.
    """
    if nbd.is_uri(filename):
        return nbd.parse(filename).options
    found = await _stat(filename)
    device = found is not None and stat.S_ISBLK(found.st_mode)
    return {"driver": "host_device" if device else "file", "filename": filename}


async def file_options(pivot: Pivot, disk: PivotDisk) -> dict[str, Any]:
    """Return the options that open the protocol layer of the destination."""
    found = await protocol(disk.destination.filename)
    aio = pivot.options.aio
    return {
        **found,
        **({} if aio is None or found["driver"] == "nbd" else {"aio": str(aio)}),
        "node-name": names.file_node(pivot.id, disk.index),
        "cache": {"direct": disk.cache_direct, "no-flush": False},
        "discard": str(pivot.options.discard),
    }


async def open_file(monitor: Monitor, pivot: Pivot, disk: PivotDisk) -> None:
    """Open the protocol layer of the destination. Raises: QmpRefusedError."""
    options = await file_options(pivot, disk)
    if options["driver"] == "nbd":
        try:
            await monitor.execute(command("blockdev-add", **options, open_timeout=limits.OPEN_EXPORT_S))
        except QmpRefusedError as error:
            if "open-timeout" not in error.fields["text"]:
                raise
        else:
            return  # QEMU 6.2 does not know it
    await monitor.execute(command("blockdev-add", **options))


def encryption(pivot: Pivot) -> dict[str, Any]:
    """Return the options that give qcow2 the passphrase."""
    return {"format": "luks", "key-secret": names.secret_object(pivot.id)}


async def open_format(monitor: Monitor, pivot: Pivot, disk: PivotDisk) -> None:
    """Open the format layer of the destination. Raises: QmpRefusedError."""
    options: dict[str, Any] = {
        "driver": disk.destination.format,
        "node-name": disk.destination.node,
        "file": names.file_node(pivot.id, disk.index),
        "cache": {"direct": disk.cache_direct, "no-flush": False},
        "discard": str(pivot.options.discard),
        "detect-zeroes": await _detect_zeroes(monitor, pivot, disk),
    }
    if pivot.options.secret_file is not None:
        options["encrypt"] = encryption(pivot)
    if pivot.kind is Kind.SNAPSHOT:
        # The snapshot itself puts the source below it.
        options["backing"] = None
    elif disk.base is not None:
        options["backing"] = disk.base.node
    elif disk.destination.format == "raw" and pivot.options.reuse:
        options |= await _size(disk)
    try:
        await monitor.execute(command("blockdev-add", **options))
    except QmpRefusedError as error:
        if "size" in options and TOO_SMALL in error.fields["text"]:
            name = disk.destination.filename
            raise QmpRefusedError(f"{name} is smaller than {disk.disk}, which has {disk.size_bytes} bytes") from error
        raise
    if pivot.kind is Kind.COPY and disk.base is None:
        await _refuse_backing(monitor, disk)


async def _detect_zeroes(monitor: Monitor, pivot: Pivot, disk: PivotDisk) -> str:
    """Return the source's setting; if space may not be freed, ``unmap`` becomes ``on``."""
    seen = blocks.find(await ask(monitor, blocks.disks), disk)
    found = "off" if seen is None else seen.detect_zeroes
    return "on" if found == "unmap" and pivot.options.discard is not Discard.UNMAP else found


async def _size(disk: PivotDisk) -> dict[str, int]:
    """A mirror needs both sides to be of one size: a larger raw image is opened as if it ended where the disk does.

    Not if the size is known to be right: QEMU then shows the plain name of the image.
    """
    filename = disk.destination.filename
    found = None if nbd.is_uri(filename) else await _stat(filename)
    if found is not None and stat.S_ISREG(found.st_mode) and found.st_size == disk.size_bytes:
        return {}
    return {"size": disk.size_bytes}


async def _refuse_backing(monitor: Monitor, disk: PivotDisk) -> None:
    """A full copy onto an image with a backing file would give a chain that nobody requested."""
    if disk.destination.node in (await ask(monitor, blocks.graph)).backing:
        await monitor.execute(command("blockdev-del", node_name=disk.destination.node))
        raise QmpRefusedError(
            f"{disk.destination.filename} has a backing file: a full copy needs an image that stands alone"
        )


async def _stat(filename: str) -> os.stat_result | None:
    """Return what exists there, None if pivotd may not look. Raises: QmpRefusedError: the storage does not answer."""
    try:
        return await in_thread(limits.FILE_TIMEOUT_S, os.stat, filename, paths=[filename])
    except TimeoutError:
        raise QmpRefusedError(f"{filename}: its storage does not answer") from None
    except OSError:
        return None
