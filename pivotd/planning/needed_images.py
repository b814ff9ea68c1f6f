"""Which other disks need an image that a pivot is about to write to: by what QEMUs have open, and by headers."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pivotd.core.image_names import describe
from pivotd.core.pivot import Image, Pivot, PivotDisk
from pivotd.core.request import Kind
from pivotd.host import backing, files, locks, places, view
from pivotd.host.backing import Below
from pivotd.host.places import Place
from pivotd.host.process import working_directory
from pivotd.host.threads import look_at
from pivotd.qmp.blocks import Blocks

Wanted = Mapping[str, Place]
"""The images that a pivot is about to write to, by name."""


@dataclass(frozen=True, slots=True)
class Holder:
    """A disk, and one sentence on what ``image`` is to it. ``own``: of the pivot's own guest, which nothing permits.

    ``disk`` empty: its QEMU has the image, and no disk of it needs that.
    """

    image: str
    domain: str
    disk: str
    why: str
    own: bool = False

    @property
    def name(self) -> str:
        """Domain and disk."""
        return f"{self.domain} {self.disk}".rstrip()


@dataclass(frozen=True, slots=True)
class Process:
    """A running QEMU: what it shows, its working directory, and the files that it has open, None if nobody may look."""

    domain: str
    blocks: Blocks
    directory: Path | None
    opened: frozenset[str] | None


def targets(pivot: Pivot) -> list[tuple[PivotDisk, Image]]:
    """Return each disk with the image that the pivot fills; the active image belongs to the guest that writes to it."""
    if pivot.kind in {Kind.COPY, Kind.SNAPSHOT}:
        return [(disk, disk.destination) for disk in pivot.disks]
    return [(disk, disk.base) for disk in pivot.disks if disk.base is not None and pivot.kind is Kind.COMMIT]


def is_there(pivot: Pivot) -> bool:
    """Return whether the pivot writes to images that exist: a new one can be in nobody's chain, and open nowhere."""
    return pivot.options.reuse or pivot.options.adopted or pivot.kind is Kind.COMMIT


def wanted(images: Iterable[Image]) -> Wanted:
    """Return the images with their places; it looks at storage, so it may block."""
    return {image.filename: places.of(image.filename) for image in images}


def in_use(process: Process, images: Wanted, pivot: Pivot) -> tuple[list[Holder], list[str]]:
    """Return the disks of a QEMU that have one of the images in their chain, and sentences on what cannot be seen.

    Source: query-block, and the descriptors of the process, which also show what has no disk or no plain name.
    """
    own = process.domain == pivot.domain
    chains = {disk.disk for disk in pivot.disks} if own and pivot.kind is Kind.COMMIT else set()
    found: list[Holder] = []
    blind: list[str] = []
    for seen in process.blocks.disks.values():
        for layer in () if seen.disk in chains else seen.layers:
            name = files.resolve(layer.filename, process.directory).path
            place = Place(frozenset()) if name is None else places.of(name)
            taken = [image for image, at in images.items() if at.overlaps(place)]
            found += [Holder(image, process.domain, seen.disk, "is in use by", own) for image in taken]
            if process.opened is None and (why := _unseen(name, layer.filename)) is not None:
                blind.append(f"{process.domain} {seen.disk}: {why}")
    if own and (chains or pivot.options.adopted):
        return found, blind
    known = {one.image for one in found}
    for image in (image for image, at in images.items() if image not in known and _is_open(at, process.opened)):
        found += [Holder(image, process.domain, disk, "is open in QEMU of", own) for disk in _may_have(process.blocks)]
    return found, blind


def of_silent(
    domain: str, pid: int, shown: Blocks | None, images: Wanted, pivot: Pivot
) -> tuple[list[Holder], list[str]] | None:
    """Return what ``in_use`` returns for a QEMU that does not answer; None: nobody can tell. It may block.

    Its descriptors say it all, but for exports. Where nobody may see them, two things together do: no QEMU has locked
    the image, and this one did not have it when it answered last (``shown``), without locks perhaps.
    """
    opened, directory = files.opened(pid), working_directory(pid)
    if opened is None:
        seen = None if shown is None else in_use(Process(domain, shown, directory, None), images, pivot)
        free = all(_is_unlocked(image) for image in images)
        return seen if seen is not None and (free or seen[0]) else None
    if any(describe(image).path is None for image in images):
        return None
    is_open = [image for image, place in images.items() if _is_open(place, opened)]
    # Which of its disks, only its last answer says; it may have got the image since.
    disks = [""] if shown is None else shown.disks or [""]
    return [Holder(image, domain, disk, "is open in QEMU of") for image in is_open for disk in disks], []


def _may_have(blocks: Blocks) -> list[str]:
    """Return the disks that may need a file which is open and which no layer's name shows; ``[""]``: no disk does.

    Such a file is below a node that has more files than its layers have names (``data-file``, quorum), or a job works
    with it. Otherwise a node has it that no disk uses.
    """
    graph, found = blocks.graph, []
    for seen in blocks.disks.values():
        below = graph.below(seen.node)
        files_below = [node for node in below if not graph.children.get(node)]
        if len(files_below) > len({layer.filename for layer in seen.layers}) or any(graph.jobs.get(n) for n in below):
            found.append(seen.disk)
    return found or [""]


def _is_unlocked(image: str) -> bool:
    """Return whether certainly no QEMU has locked the file of an image."""
    path = describe(image).path
    if path is None or view.hidden(path) is not None:
        return False
    look_at(path)
    try:
        return locks.ask(path, os.stat(path)) is False  # noqa: PTH116
    except OSError:
        return False


def below_right(
    moved: tuple[Pivot, PivotDisk], right: Image, images: Wanted, known: Mapping[str, Sequence[Below]]
) -> list[Holder]:
    """Return a disk that no QEMU was seen to have if its right image is, or lies on, one of the images.

    ``known``: what is right below images that nobody can read. It reads headers, so it may block. Raises: BlindError.
    """
    pivot, disk = moved
    found = _matching(right.filename, images, pivot, disk, "is the right image of")
    for name in () if found else backing.needed(right.filename, right.format, known):
        found += _matching(name, images, pivot, disk, f"lies below {right.filename}, the right image of")
    return found


def _matching(name: str, images: Wanted, pivot: Pivot, disk: PivotDisk, why: str) -> list[Holder]:
    place = places.of(name)
    return [Holder(image, pivot.domain, disk.disk, why) for image, at in images.items() if at.overlaps(place)]


def _is_open(place: Place, opened: frozenset[str] | None) -> bool:
    """Return whether a process has the image open, or a device on it or below it."""
    if opened is None:
        return False
    devices = (places.of_file(one) for one in opened if one.startswith("block:"))
    return not opened.isdisjoint(place.itself | place.below) or any(place.overlaps(device) for device in devices)


def _unseen(path: str | None, shown: str) -> str | None:
    """Return why nobody can tell which file QEMU has under a name, None if that can be told."""
    found = describe(shown if path is None else path)
    if found.path is None:
        if shown and not shown.startswith("json:") and ":" not in shown.split("/", 1)[0]:
            return f"pivotd cannot see the directory of QEMU at which {shown} starts"
        lost = shown.startswith("json:") and found.export is None and not found.is_elsewhere
        return f"pivotd cannot tell which file {shown} is" if lost else None
    path = found.path
    if path.startswith("/dev/fdset/"):
        return f"pivotd cannot tell which file {path} is"
    if (hidden := view.hidden(path)) is not None:
        return hidden
    look_at(path)
    try:
        os.stat(path)  # noqa: PTH116 - one system call, no object
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        return f"pivotd may not look at {path}: {error.strerror or error}"
    return None
