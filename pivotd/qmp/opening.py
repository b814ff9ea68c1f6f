"""How QEMU opens a destination: the protocol, size, cache mode, discard, backing and secret."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from typing import Any

from pivotd import limits
from pivotd.core import names, nbd
from pivotd.core.pivot import Image, Outcome, Pivot, PivotDisk
from pivotd.core.request import Discard, Kind, past_cache
from pivotd.errors import QmpRefusedError
from pivotd.host import files
from pivotd.host.threads import in_thread
from pivotd.qmp import blocks
from pivotd.qmp.blocks import DiskSeen
from pivotd.qmp.burst import Command
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
        "cache": {"direct": past_cache(pivot.options, disk.cache_direct), "no-flush": False},
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
    options = _format_options(pivot, disk, await _detect_zeroes(monitor, pivot, disk))
    if pivot.options.secret_file is not None:
        options["encrypt"] = encryption(pivot)
    if pivot.kind is Kind.SNAPSHOT:
        # The snapshot itself puts the source below it.
        options["backing"] = None
    elif disk.base is not None:
        options["backing"] = disk.base.node
    elif disk.destination.format == "raw" and pivot.options.reuse:
        options |= await _size(monitor, pivot, disk)
    try:
        await monitor.execute(command("blockdev-add", **options))
    except QmpRefusedError as error:
        if "size" in options and TOO_SMALL in error.fields["text"]:
            name = disk.destination.filename
            raise QmpRefusedError(f"{name} is smaller than {disk.disk}, which has {disk.size_bytes} bytes") from error
        raise
    if pivot.kind is Kind.COPY and disk.base is None:
        await _refuse_backing(monitor, disk)


def _format_options(pivot: Pivot, disk: PivotDisk, detect_zeroes: str) -> dict[str, Any]:
    return {
        "driver": disk.destination.format,
        "node-name": disk.destination.node,
        "file": names.file_node(pivot.id, disk.index),
        "cache": {"direct": past_cache(pivot.options, disk.cache_direct), "no-flush": False},
        "discard": str(pivot.options.discard),
        "detect-zeroes": detect_zeroes,
    }


async def lift_sizes(monitor: Monitor, pivot: Pivot) -> list[str]:
    """Open raw destinations without the size that a mirror needed, so that these disks can be grown again.

    QEMU resizes no raw node that was opened with a size. The guest is not told: it sees the size of the device or
    export once it asks, at its next start or when a client sends block_resize. Returns: what QEMU has refused.
    """
    shown = await ask(monitor, blocks.disks)
    limited = [(disk, seen) for disk in pivot.movers if (seen := _limited(shown, disk)) is not None]
    options = [_format_options(pivot, disk, seen.detect_zeroes) for disk, seen in limited]
    done = await monitor.burst([command("blockdev-reopen", options=[one]) for one in options], limits.COMMAND_TIMEOUT_S)
    refused = [isinstance(reply, QmpRefusedError) for reply in done]
    return [f"the size of {disk.destination.node}" for (disk, _), no in zip(limited, refused, strict=True) if no]


def _limited(disks: Mapping[str, DiskSeen], disk: PivotDisk) -> DiskSeen | None:
    """Return the disk if its root is its new image, opened with a size."""
    seen = blocks.find(disks, disk)
    if disk.outcome is not Outcome.SWITCHED or seen is None or seen.node != disk.destination.node:
        return None
    return seen if seen.is_limited else None


async def _detect_zeroes(monitor: Monitor, pivot: Pivot, disk: PivotDisk) -> str:
    """Return the source's setting; if space may not be freed, ``unmap`` becomes ``on``."""
    seen = blocks.find(await ask(monitor, blocks.disks), disk)
    found = "off" if seen is None else seen.detect_zeroes
    return "on" if found == "unmap" and pivot.options.discard is not Discard.UNMAP else found


async def _size(monitor: Monitor, pivot: Pivot, disk: PivotDisk) -> dict[str, int]:
    """A mirror needs both sides to be of one size: a larger file is cut, a device opened as if it ended with the disk.

    A file of the right size is opened without one: QEMU then shows its plain name, and can resize it.
    """
    filename = disk.destination.filename
    found = None if nbd.is_uri(filename) else await _stat(filename)
    if found is not None and stat.S_ISREG(found.st_mode):
        cut = command("block_resize", node_name=names.file_node(pivot.id, disk.index), size=disk.size_bytes)
        if found.st_size == disk.size_bytes:
            return {}
        if found.st_size > disk.size_bytes and not isinstance(await _tried(monitor, cut), QmpRefusedError):
            return {}
    return {"size": disk.size_bytes}


async def _tried(monitor: Monitor, message: Command) -> object:
    (reply,) = await monitor.burst([message], limits.COMMAND_TIMEOUT_S)
    return reply


async def _refuse_backing(monitor: Monitor, disk: PivotDisk) -> None:
    """A full copy onto an image with a backing file would give a chain that nobody requested."""
    if disk.destination.node in (await ask(monitor, blocks.graph)).backing:
        await monitor.execute(command("blockdev-del", node_name=disk.destination.node))
        raise QmpRefusedError(
            f"{disk.destination.filename} has a backing file: a full copy needs an image that stands alone"
        )


async def is_untouched(image: Image, changed: Mapping[str, int]) -> bool:
    """Return whether the name leads to the very file of this image, and whether nobody has written to that since.

    ``changed``: the change time in ns, by path. Raises: QmpRefusedError: as protocol().
    """
    try:
        found = await in_thread(limits.FILE_TIMEOUT_S, files.change_times, [image], paths=[image.filename])
    except TimeoutError:
        raise QmpRefusedError(f"{image.filename}: its storage does not answer") from None
    now = found.get(image.filename)
    return now is not None and changed.get(image.filename, now) == now


async def _stat(filename: str) -> os.stat_result | None:
    """Return what exists there, None if pivotd may not look. Raises: QmpRefusedError: the storage does not answer."""
    try:
        return await in_thread(limits.FILE_TIMEOUT_S, os.stat, filename, paths=[filename])
    except TimeoutError:
        raise QmpRefusedError(f"{filename}: its storage does not answer") from None
    except OSError:
        return None
