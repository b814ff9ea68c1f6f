"""The disks of a model pivot, one shape for each way to move a disk."""

from __future__ import annotations

from dataclasses import replace

from pivotd.core import names
from pivotd.core.words import Image, PivotDisk
from tests.model.qemu import Qemu
from tests.support.moves import Move


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
