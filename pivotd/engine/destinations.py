"""Images that a disk moves to: the checks that can be made before QEMU is asked to create or open them."""

from __future__ import annotations

import stat
from dataclasses import replace
from pathlib import Path

from pivotd.core import names
from pivotd.core.words import Image, PivotDisk
from pivotd.engine.scene import Scene, Target
from pivotd.errors import BadRequestError
from pivotd.qmp.replies import DiskSeen

FORMATS = ("qcow2", "raw")


def plan_copy(scene: Scene, index: int, target: Target, seen: DiskSeen) -> PivotDisk:
    """Return the disk with the image that it is copied to. Raises: BadRequestError, DiskBusyError."""
    disk = scene.disk(index, seen)
    wanted = target.format or disk.source.format
    if wanted not in FORMATS:
        raise BadRequestError(f"format {wanted}: pivotd creates {' and '.join(FORMATS)}; name one with --format")
    kept = [bitmap.name for bitmap in seen.bitmaps if bitmap.persistent]
    if kept and wanted != "qcow2" and not scene.options.force:
        raise BadRequestError(
            f"{wanted} cannot hold the dirty bitmaps of {seen.disk} ({', '.join(kept)}), and backups go on from them: "
            "choose qcow2, or --force to leave them behind",
            disk=seen.disk,
        )
    return replace(disk, destination=_checked(scene, index, seen, Image(target.image, wanted, "")))


def plan_snapshot(scene: Scene, index: int, target: Target, seen: DiskSeen) -> PivotDisk:
    """Return the disk with its new overlay, which only qcow2 can be. Raises: BadRequestError, DiskBusyError."""
    disk = scene.disk(index, seen)
    overlay = _checked(scene, index, seen, Image(target.image, "qcow2", ""))
    return replace(disk, destination=overlay, backing_file=disk.source.filename)


def _checked(scene: Scene, index: int, seen: DiskSeen, image: Image) -> Image:
    """Return the image with the node that it will have."""
    scene.refuse_if_used(image, seen.disk)
    _check_path(image.filename, reuse=scene.options.reuse)
    return replace(image, node=names.destination_node(scene.pivot, index))


def _check_path(filename: str, *, reuse: bool) -> None:
    """Refuse early what pivotd can see to be wrong; what it may not see, QEMU will refuse when it opens the image."""
    path = Path(filename)
    try:
        found = path.stat()
    except FileNotFoundError:
        if reuse:
            raise BadRequestError(f"{filename} does not exist: create it first, or leave out --reuse") from None
        if _missing(path.parent):
            raise BadRequestError(f"{filename}: directory {path.parent} does not exist") from None
        return
    except NotADirectoryError:
        raise BadRequestError(f"{filename}: {path.parent} is not a directory") from None
    except OSError:
        return
    if not reuse:
        raise BadRequestError(f"{filename} exists already: name a new image, or use --reuse to overwrite this one")
    if not stat.S_ISREG(found.st_mode):
        raise BadRequestError(f"{filename} is not a regular file: only image files can be destinations")


def _missing(directory: Path) -> bool:
    try:
        directory.stat()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return False
