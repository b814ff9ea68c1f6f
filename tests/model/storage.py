"""The images of a model host: which of them lacks something that a guest was told is written."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Image:
    """One image file, seen from the guest disk that it belongs to.

    ``missing`` counts the acknowledged guest writes that the image lacks, cut at one: one is as wrong as a thousand,
    and the number of states stays finite. ``untold`` counts those that another image got while the guest was still:
    they count once it runs and is told. ``unflushed`` counts those that it would lack after a power cut.
    ``own``: it holds data of its own, not only what is below it. ``cached``: 1 while QEMU keeps tables of it in memory
    that lead to data from below it, 2 once the image has also stopped naming what that data came from.
    """

    disk: str | None = None
    missing: int = 1
    untold: int = 0
    unflushed: int = 0
    own: int = 1
    cached: int = 0


COMPLETE = Image(missing=0)


class Storage:
    """Files by name; they outlive every QEMU."""

    __slots__ = ("images",)

    def __init__(self, images: dict[str, Image] | None = None) -> None:
        self.images = dict(images or {})

    def copy(self) -> Storage:
        """Return an independent copy."""
        return Storage(self.images)

    def key(self) -> object:
        """Return what tells two storages apart."""
        return frozenset(self.images.items())

    def exists(self, filename: str) -> bool:
        """Return whether there is such a file."""
        return filename in self.images

    def create(self, filename: str) -> None:
        """Make an empty file."""
        self.images[filename] = Image()

    def assign(self, filename: str, disk: str) -> None:
        """Note that a mirror of this disk writes into the image; an image of the disk already is left as it is."""
        if self.images[filename].disk != disk:
            self.images[filename] = Image(disk)

    def write(self, filename: str, disk: str, *, told: bool = True) -> None:
        """Have the guest write to its disk, flush and be told so, while this image is the root.

        Not told: a write that had waited ends while the guest is still.
        """
        for name, image in self.images.items():
            if image.disk == disk and name != filename and not image.missing:
                self.images[name] = replace(image, missing=1, untold=0) if told else replace(image, untold=1)
        root = self.images[filename]
        if told and root.untold:
            self.images[filename] = replace(root, missing=1, untold=0, unflushed=0)
        elif root.unflushed or not root.own:
            self.images[filename] = replace(root, unflushed=0, own=1)

    def mirrored(self, target: str, holds: Image, *, flush: bool) -> None:
        """A mirror has caught up: the target holds what ``holds`` says."""
        image = self.images[target]
        self.images[target] = replace(image, missing=holds.missing, untold=holds.untold, unflushed=0 if flush else 1)

    def put_over(self, overlay: str, below: str, disk: str) -> None:
        """A disk goes on with an overlay; what it reads from there is what is below, unless the overlay has its own."""
        image, base = self.images[overlay], self.images[below]
        if image.own and image.disk == disk:
            return
        self.images[overlay] = replace(image, disk=disk, missing=base.missing, untold=base.untold, unflushed=0)

    def merged(self, filename: str) -> None:
        """All that was below has been copied; the tables that lead to it are still in QEMU's memory."""
        self.images[filename] = replace(self.images[filename], cached=1)

    def detach(self, filename: str) -> None:
        """The image stops naming what it was copied from."""
        image = self.images[filename]
        self.images[filename] = replace(image, cached=2 if image.cached else 0)

    def lack(self, filename: str) -> None:
        """The image lacks what it was told to hold."""
        self.images[filename] = replace(self.images[filename], missing=1)

    def flush_tables(self) -> None:
        """QEMU writes its tables."""
        for name, image in self.images.items():
            if image.cached:
                self.images[name] = replace(image, cached=0)

    def lose_tables(self) -> None:
        """QEMU is dead, and what it had in memory only is lost."""
        for name, image in self.images.items():
            if image.cached:
                self.images[name] = replace(image, cached=0, missing=1 if image.cached == 2 else image.missing)

    def forget_untold(self) -> None:
        """QEMU is dead: what the guest was not told by now it will never be told."""
        for name, image in self.images.items():
            if image.untold:
                self.images[name] = replace(image, untold=0)

    def cut_power(self) -> None:
        """Lose what was not flushed."""
        for name, image in self.images.items():
            self.images[name] = replace(image, missing=max(image.missing, image.unflushed), unflushed=0)
