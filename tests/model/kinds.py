"""The disks of a model pivot, one shape for each way to move a disk."""

from __future__ import annotations

from dataclasses import replace

from pivotd.core import names
from pivotd.core.pivot import Image, PivotDisk
from tests.model.qemu import Qemu
from tests.support.moves import Move

MANUAL = {"auto-finalize": False, "auto-dismiss": False}


def adopt(qemu: Qemu, move: Move, pivot: str, index: int, *, legacy: bool) -> PivotDisk:
    """Give the guest a disk with a job of somebody else's on it; return how the pivot that takes it over names it."""
    disk = attach(qemu, move, pivot, index, legacy=legacy)
    theirs = f"theirs{index}"
    job = {"job-id": theirs, "device": disk.source.node, **MANUAL}
    if move is Move.COMMIT:
        qemu.execute("block-commit", job)
        return replace(disk, job=theirs)
    destination = replace(disk.destination, node=theirs)
    qemu.storage.create(destination.filename)
    file = {"driver": "file", "filename": destination.filename}
    qemu.execute("blockdev-add", {"driver": destination.format, "node-name": theirs, "file": file})
    qemu.execute("blockdev-mirror", job | {"target": theirs, "sync": "full"})
    return replace(disk, job=theirs, destination=destination)


def attach(qemu: Qemu, move: Move, pivot: str, index: int, *, legacy: bool) -> PivotDisk:
    """Give the guest a disk as the move needs it; return how the pivot names it."""
    node = f"#block{index}" if legacy else f"src{index}"
    qemu.attach(f"disk{index}", node, f"/old/disk{index}", legacy=legacy)
    source = Image(f"/old/disk{index}", "qcow2", node)
    disk = PivotDisk(
        disk=f"disk{index}",
        index=index,
        qdev=f"/machine/peripheral/disk{index}/virtio-backend",
        size_bytes=64 << 20,
        source=source,
        destination=source,
        job=names.mirror_job(pivot, index),
    )
    new = names.destination_node(pivot, index)
    if move is Move.COPY:
        return replace(disk, destination=Image(f"/new/disk{index}", "raw", new))
    if move is Move.SNAPSHOT:
        return replace(
            disk, destination=Image(f"/new/disk{index}", "qcow2", new), backing_file=source.filename
        )  # fmt: skip
    middle, base = (Image(f"/{name}/disk{index}", "qcow2", f"{name}{index}") for name in ("mid", "base"))
    qemu.back(node, [(image.node, image.filename) for image in (middle, base)], disk.disk)
    match move:
        case Move.COMMIT:
            return replace(disk, destination=base, top=source, base=base)
        case Move.INNER_COMMIT:
            return replace(disk, top=middle, base=base)
    return replace(disk, top=middle)
