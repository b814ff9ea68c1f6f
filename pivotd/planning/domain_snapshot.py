"""The input of a plan: the request, and everything that QEMU and the file system show at that moment."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from pivotd.core import names
from pivotd.core.dirty_bitmaps import Bitmap
from pivotd.core.image_names import describe
from pivotd.core.pivot import Image, PivotDisk
from pivotd.core.request import CopyOptions
from pivotd.errors import BadRequestError, DiskBusyError, NotFoundError
from pivotd.host import files, places
from pivotd.host.held import Held
from pivotd.host.places import Place
from pivotd.qmp.blocks import Blocks, DiskSeen
from pivotd.qmp.whole_names import images_of, shown_format


@dataclass(frozen=True, slots=True)
class DomainSnapshot:
    """One look at a domain. ``directory`` is QEMU's working directory; ``in_use`` marks what other pivots write to."""

    pivot: str
    name: str
    options: CopyOptions
    blocks: Blocks
    directory: Path | None
    in_use: frozenset[str]
    held: Held
    """The files that QEMU has open."""
    pid: int
    """QEMU's process."""
    made: Mapping[str, int] = field(default_factory=dict)
    """Files that pivotd has made for an earlier pivot and that hold nothing: new images may replace them. By path, with
    the change time in ns."""
    keeps_zeroes: bool = False
    """QEMU can be told not to wipe a new image; asked only where a copy would lose writes meanwhile."""
    libvirts: bool = False
    """libvirt manages the guest, and opens its images."""

    def opener(self, filename: str) -> int:
        """Return the process that has to see a new image where pivotd sees it; 0: nobody can compare.

        By default a QEMU of libvirt's has a /dev of its own, where libvirt makes the host's device for it.
        """
        return 0 if self.libvirts and filename.startswith("/dev/") else self.pid

    def find(self, name: str) -> DiskSeen:
        """Return a disk by its name, its drive id or its QOM path. Raises: NotFoundError."""
        same = (disk for disk in self.blocks.disks.values() if name and name in {disk.device, disk.qdev})
        found = self.blocks.disks.get(name) or next(same, None)
        if found is None:
            said = names.no_disk(self.name, name, self.blocks.disks)
            raise NotFoundError(said, domain=self.name, disk=name)
        return found

    def chain(self, seen: DiskSeen) -> list[Image]:
        """Return the images of a disk, the active one first. Raises: BadRequestError: it has filters."""
        nodes = self.blocks.graph.chain(seen.node)
        if len(nodes) != len(seen.layers):
            raise BadRequestError(f"{seen.disk} has filter nodes in its chain: pivotd cannot tell its layers apart")
        return self.images(seen)

    def images(self, seen: DiskSeen) -> list[Image]:
        """Return the images of a disk by their complete names, the active one first; without nodes if it has filters.

        Raises: BadRequestError: no name leads to the data of one.
        """
        nodes = self.blocks.graph.chain(seen.node)
        found = images_of(seen.layers, self.directory, nodes if len(nodes) == len(seen.layers) else ())
        for image in found:
            told = describe(image.filename)
            if told.fleeting is not None and told.path is None and ":" in told.text.split("/", 1)[0]:
                raise BadRequestError(f"{seen.disk} cannot be moved: {told.text}: {told.fleeting}", disk=seen.disk)
        return found

    def merged(self, seen: DiskSeen, above: int, base: int | None) -> Image:
        """Return the active image as it is after a merge: the header of the layer ``above`` then leads to ``base``."""
        kept = list(seen.layers[: above + 1])
        below = () if base is None else seen.layers[base:]
        name = self.images(seen)[base].filename if base is not None else None
        kept[-1] = replace(kept[-1], backing_file=name, names=name)
        image = images_of([*kept, *below], self.directory)[0]
        return replace(self.source(seen), filename=image.filename)

    def source(self, seen: DiskSeen) -> Image:
        """Return the active image of a disk. Raises: BadRequestError: no name leads to its data."""
        return replace(self.images(seen)[0], format=shown_format(seen.format), node=seen.node)

    def disk(self, index: int, seen: DiskSeen) -> PivotDisk:
        """Return the present disk, with every name that the pivot will use for it."""
        source = self.source(seen)
        return PivotDisk(
            disk=seen.disk,
            index=index,
            qdev=seen.qdev,
            size_bytes=seen.size_bytes,
            source=source,
            destination=source,
            job=names.mirror_job(self.pivot, index),
            cache_direct=seen.cache_direct,
        )

    def users(self, image: Image) -> list[str]:
        """Return the disks that have bytes of this file somewhere in their chain."""
        place = places.of(image.filename)
        return [
            other.disk
            for other in self.blocks.disks.values()
            if any(place.overlaps(self.place(layer.filename)) for layer in other.layers)
        ]

    def place(self, filename: str) -> Place:
        """Return where an image is stored that QEMU shows under this name."""
        name = files.resolve(filename, self.directory).path
        return Place(frozenset({filename})) if name is None else places.of(name)

    def refuse_if_used(self, image: Image, disk: str) -> None:
        """Raises: BadRequestError, DiskBusyError: the guest or another pivot uses this file."""
        for user in self.users(image):
            role = f"in use by {user}"
            if user == disk:
                active = places.of(image.filename).overlaps(self.place(self.blocks.disks[user].filename))
                role = "its present image" if active else "below its present image"
            raise BadRequestError(f"{image.filename} cannot take {disk}: it is {role}", disk=disk)
        if self.is_taken(image):
            raise DiskBusyError(f"{image.filename} is the destination of another open pivot", disk=disk)

    def refuse_to_lose(self, bitmaps: Collection[Bitmap], image_format: str, disk: str) -> None:
        """Raises: BadRequestError: an image of this format cannot take these bitmaps of the disk."""
        kept = [bitmap.name for bitmap in bitmaps if bitmap.persistent]
        if kept and image_format != "qcow2" and not self.options.force:
            raise BadRequestError(
                f"{image_format} cannot hold the dirty bitmaps of {disk} ({', '.join(kept)}), and backups go on from "
                "them: choose qcow2, or --force to leave them behind",
                disk=disk,
            )

    def is_taken(self, image: Image) -> bool:
        """Return whether an open pivot writes to this image, by whatever name."""
        return not self.in_use.isdisjoint(files.identities(image.filename))
