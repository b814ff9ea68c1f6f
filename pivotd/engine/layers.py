"""Layers of a backing chain that are to be merged: which go, which stays below, and what names it afterwards."""

from __future__ import annotations

import os
from dataclasses import replace

from pivotd import files
from pivotd.core.words import Image, PivotDisk, Target
from pivotd.engine.scene import Scene
from pivotd.errors import BadRequestError, DiskBusyError, NotFoundError
from pivotd.qmp.replies import DiskSeen


def plan_commit(scene: Scene, index: int, target: Target, seen: DiskSeen) -> PivotDisk:
    """Return the disk whose layers from ``top`` down are written into ``base``.

    With the active layer as ``top`` the disk moves to the base. Raises: NotFoundError, BadRequestError, DiskBusyError.
    """
    chain = _chain(scene, seen)
    top = 0 if target.top is None else _find(scene, chain, target.top, seen)
    base = len(chain) - 1 if target.base is None else _find(scene, chain, target.base, seen)
    if base <= top:
        raise BadRequestError(f"{chain[base].filename} is not below {chain[top].filename}: nothing can be committed")
    # Everything from below top down to base is wrong by itself once base has been written to.
    for image in chain[top + 1 : base + 1]:
        _refuse_shared(scene, image, seen.disk)
    inner = top > 0
    scene.refuse_to_lose(seen.layers[top].bitmaps if inner else seen.bitmaps, chain[base].format, seen.disk)
    return replace(
        scene.disk(index, seen),
        destination=chain[0] if inner else chain[base],
        top=chain[top],
        base=chain[base],
        between=_names(chain[top + 1 : base]),
        backing_file=_backing_file(seen, chain, top - 1, base) if inner else None,
    )


def plan_pull(scene: Scene, index: int, target: Target, seen: DiskSeen) -> PivotDisk:
    """Return the disk whose active image takes in what lies between it and ``base``, or everything.

    Raises: NotFoundError, BadRequestError.
    """
    chain = _chain(scene, seen)
    base = None if target.base is None else _find(scene, chain, target.base, seen)
    if base is not None and base < 2:
        raise BadRequestError(f"{chain[base].filename} is {('the active image', 'next to it')[base]}: nothing to pull")
    return replace(
        scene.disk(index, seen),
        top=chain[1],
        base=None if base is None else chain[base],
        between=_names(chain[2:base]),
        backing_file=None if base is None else _backing_file(seen, chain, 0, base),
    )


def _chain(scene: Scene, seen: DiskSeen) -> list[Image]:
    chain = scene.chain(seen)
    if len(chain) == 1:
        raise BadRequestError(f"{seen.disk} has no backing chain: {chain[0].filename} stands alone", disk=seen.disk)
    return chain


def _names(images: list[Image]) -> tuple[str, ...]:
    return tuple(image.filename for image in images)


def _find(scene: Scene, chain: list[Image], name: str, seen: DiskSeen) -> int:
    wanted = files.resolve(name, scene.directory)
    for index, image in enumerate(chain):
        if image.filename == name or files.same(image, wanted):
            return index
    layers = ", ".join(image.filename for image in chain)
    raise NotFoundError(f"{name} is not in the chain of {seen.disk}; its layers are: {layers}", disk=seen.disk)


def _refuse_shared(scene: Scene, image: Image, disk: str) -> None:
    other = next((user for user in scene.users(image) if user != disk), None)
    if other is not None:
        raise BadRequestError(f"{image.filename} is also below {other}: a commit into it would change that disk")
    if scene.is_taken(image):
        raise DiskBusyError(f"{image.filename} belongs to another open pivot", disk=disk)


def _backing_file(seen: DiskSeen, chain: list[Image], above: int, base: int) -> str | None:
    """Return what the image ``above`` shall name as its backing file: relative if base was named so before.

    None leaves the name to QEMU, which writes the path by which it knows the base.
    """
    written = seen.layers[base - 1].backing_file
    if written is None or written.startswith("/") or ":" in written.split("/", 1)[0]:
        return None
    return os.path.relpath(chain[base].filename, os.path.dirname(chain[above].filename))  # noqa: PTH120
