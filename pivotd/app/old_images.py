"""Guests on images that other disks have left: the same guest under another name, or a copy that somebody starts."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, replace

from pivotd.app.live_verdicts import Key, LiveVerdicts, Moved
from pivotd.core.fleet import FleetImage
from pivotd.core.pivot import Outcome
from pivotd.core.standing import Asked, Finding
from pivotd.core.verdict import Verdict, of_pivot, right_image

LeftBy = Callable[[str], Awaitable[tuple[Asked, list[tuple[Moved, Finding]]]]]
"""Returns an image by all its names, and the last pivots of the disks that have left it, and how."""
RunsRight = Callable[[Key], Awaitable[bool]]
"""Returns whether QEMU shows a disk of another domain on its right image."""


@dataclass(frozen=True, slots=True)
class OldImage:
    """A disk, as QEMU shows it, that runs on an image which another disk has left. ``why``: that it has, in words."""

    key: Key
    image: FleetImage
    asked: Asked
    left: Moved
    """The last pivot of the disk that has left the image."""
    why: str
    is_copy: bool
    """The guest of that disk runs on its right image: this is another guest."""

    @property
    def of(self) -> Key:
        """The disk that has left the image."""
        pivot, disk = self.left
        return pivot.domain, disk.disk

    @property
    def doubt(self) -> Verdict:
        """Return the verdict on the disk that has left the image: it may be this one, under another name."""
        reason = (
            f"{self.key[1]} runs on {self.image.filename}, but {self.why}: somebody changed the disk without pivotd; "
            "compare the images before you trust either."
        )
        return replace(of_pivot(*self.left), outcome=Outcome.UNKNOWN, certain=False, reason=reason)


async def old_images(live: LiveVerdicts, left_by: LeftBy, runs_right: RunsRight) -> list[OldImage]:
    """Return the disks that run on images which other disks have left, or on top of one that QEMU shows no more."""
    found: list[OldImage] = []
    for key in [key for key in live.shown if live.has_run(key) and not live.own(key)]:
        image = live.shown[key]
        asked, left = await left_by(image.filename)
        for last, finding in left:
            other = (last[0].domain, last[1].disk)
            # One that has left this host may be where another host has moved it, but not on what it had left before.
            if other != key or last[1].left_at is not None:
                is_copy = other in live.seen if other[0] == key[0] else await runs_right(other)
                found.append(OldImage(key, image, asked, last, finding.why, is_copy))
        for last in live.hidden(key[0]):
            right = right_image(last[1]).filename
            if right in {layer.filename for layer in live.disks[key].layers[1:]}:
                why = f"that lies above {right}, the right image of {last[0].domain} {last[1].disk}"
                found.append(OldImage(key, image, asked, last, why, is_copy=False))
    return found


def of_old(found: Iterable[OldImage]) -> dict[str, Verdict]:
    """Return, by the disk that QEMU shows, the doubts that such images mean."""
    return {one.key[1]: one.doubt for one in found if not one.is_copy}
