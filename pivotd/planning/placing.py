"""Directories as destinations: the new image gets the file name of the source."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import replace

from pivotd.core import nbd
from pivotd.core.pivot import PivotDisk
from pivotd.core.request import Target
from pivotd.errors import BadRequestError
from pivotd.host.threads import look_at


def inside(directory: str, source: str) -> str | None:
    """Return the path in a directory under the file name of the source, None if the source is no file."""
    return os.path.join(directory, os.path.basename(source)) if source.startswith("/") else None  # noqa: PTH118, PTH119


def placed(target: Target, source: str) -> Target:
    """Return the target with the path of a file where it names a directory; this looks at files, so it may block.

    Raises: BadRequestError: the source has no file name that the new image could have.
    """
    if not _is_directory(target.image):
        return target
    path = inside(target.image, source)
    if path is None:
        raise BadRequestError(
            f"{target.image} is a directory, and {source}, the image of {target.disk}, has no file name: name the file",
            disk=target.disk,
        )
    return replace(target, image=path)


def refuse_twice(targets: Iterable[Target]) -> None:
    """Raises: BadRequestError: two disks are to get one image; directories can take many."""
    named = [os.path.normpath(target.image) for target in targets if target.image and not _is_directory(target.image)]
    twice = next((name for name in named if named.count(name) > 1), None)
    if twice is not None:
        raise BadRequestError(f"image {twice} is named twice: name each once")


def refuse_one_name(planned: Iterable[PivotDisk]) -> None:
    """Raises: BadRequestError: two images have one name in one directory."""
    found: dict[str, str] = {}
    for disk in planned:
        name = os.path.normpath(disk.destination.filename)
        if name in found:
            raise BadRequestError(
                f"{found[name]} and {disk.disk} would both get {name}: name the file for one of them", disk=disk.disk
            )
        found[name] = disk.disk


def _is_directory(image: str) -> bool:
    if not image or nbd.is_uri(image):
        return False
    if image.endswith("/"):
        return True
    look_at(image)
    return os.path.isdir(image)  # noqa: PTH112
