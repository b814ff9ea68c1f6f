"""Where an image is stored: two names are one place if they share an identity, or if one lies on the other.

A loop device lies on its file, a partition on its disk, a device-mapper device on the devices below it. Two partitions
of one disk share nothing, nor do two parts of one file that have no byte in common.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

from pivotd import limits
from pivotd.core.image_names import describe
from pivotd.core.standing import Asked
from pivotd.host import devices, files


@dataclass(frozen=True, slots=True)
class Place:
    """``itself``: files.identities(); ``below``: the ids of the files and devices on which it lies.

    ``start``, ``end``: the bytes of the file that are the image, ``end`` None: to the last one.
    """

    itself: frozenset[str]
    below: frozenset[str] = frozenset()
    start: int = 0
    end: int | None = None

    def overlaps(self, other: Place) -> bool:
        """Return whether writing to one may change the other."""
        if not (self.itself.isdisjoint(other.below) and self.below.isdisjoint(other.itself)):
            return True
        meet = (other.end is None or self.start < other.end) and (self.end is None or other.start < self.end)
        return meet and not self.itself.isdisjoint(other.itself)


def of(name: str) -> Place:
    """Return the place of a path or an NBD address. It looks at storage, so it may block."""
    itself, image = files.identities(name), describe(name)
    end = None if image.size_bytes is None else image.offset + image.size_bytes
    return Place(itself, _below(itself), image.offset, end)


def of_file(file_id: str) -> Place:
    """Return the place of a file that a process has open."""
    itself = frozenset({file_id})
    return Place(itself, _below(itself))


def asked(name: str) -> Asked:
    """Return an image that a user asks about, by all its names and by its file: a loop device is its file, too.

    Not a volume or a partition: what it lies on holds other data as well, and may have been an image before.
    """
    found, path = files.asked(name), describe(name).path
    file = None if path is None else backing_file_of(path)
    if file is None:
        return found
    below = asked(file)
    return replace(found, names=found.names | below.names, below=below)


def backing_file_of(path: str) -> str | None:
    """Return the path of the file behind a loop device, None if it is no such device, or has no file."""
    device = files.file_id(path)
    return None if device is None else devices.backing_file(device)


def loop_devices() -> list[tuple[str, Place]]:
    """Return the loop devices that have a file, by their names in /dev. It looks at storage, so it may block."""
    found = []
    for one in _entries(Path("/sys/block")):
        device = _device(one)
        if device is not None and devices.backing_file(device) is not None:
            found.append((f"/dev/{one.name}", of_file(device)))
    return sorted(found, key=lambda one: one[0])


def _is_device(file_id: str) -> bool:
    return file_id.startswith("block:")


def _below(itself: frozenset[str]) -> frozenset[str]:
    """Return everything below block devices, as far as the kernel shows it. Source: sysfs(5), Documentation/ABI."""
    found: set[str] = set()
    queue = [one for one in itself if _is_device(one)]
    while queue and len(found) < limits.DEVICES_BELOW_MAX:
        new = _right_below(queue.pop()) - found
        found |= new
        queue += [one for one in new if _is_device(one)]
    return frozenset(found)


def _right_below(device: str) -> set[str]:
    place = Path(devices.SYSFS) / device.removeprefix("block:")
    found = {_device(path) for path in _entries(place / "slaves")}
    if (place / "partition").exists():
        found.add(_device(Path(os.path.realpath(place)).parent))
    file = devices.backing_file(device)
    if file is not None:
        found |= {file, files.file_id(file)}
    return {one for one in found if one is not None}


def _entries(directory: Path) -> list[Path]:
    try:
        return list(directory.iterdir())
    except OSError:
        return []


def _device(place: Path) -> str | None:
    number = _text(place / "dev")
    return None if number is None else f"block:{number}"


def _text(path: Path) -> str | None:
    try:
        return path.read_text(errors="surrogateescape").rstrip("\n")
    except OSError:
        return None
