"""How an image stands to a disk of which no pivot has named it: by the chain that QEMU shows, or by headers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pivotd.core.standing import Finding, Standing
from pivotd.core.verdict import Verdict
from pivotd.host import backing, files, places
from pivotd.host.backing import Below
from pivotd.host.places import Place

if TYPE_CHECKING:
    from pivotd.qmp.blocks import DiskSeen


def in_chain(place: Place, seen: DiskSeen, directory: Path | None, right: Verdict) -> Finding | None:
    """Return how an image stands to a disk that its QEMU shows, None if it is not in the chain. It may block.

    ``directory``: the working directory of QEMU. ``right``: the verdict on the disk.
    """
    for number, layer in enumerate(seen.layers):
        for name in filter(None, (layer.filename, layer.data_file)):
            path = files.resolve(name, directory).path
            if path is None or not places.of(path).overlaps(place):
                continue
            if number == 0 and name == layer.filename:
                return _itself(right)
            return _below(right)
    return None


def by_headers(place: Place, right: Verdict, known: Mapping[str, Sequence[Below]] | None = None) -> Finding | None:
    """Return how an image stands to a disk whose right image no QEMU shows, None if that is not on it. It may block.

    ``known``: what is right below images that nobody can read, by name. Raises: BlindError.
    """
    if right.image is None:
        return None
    if places.of(right.image).overlaps(place):
        return _itself(right)
    below = backing.needed(right.image, right.format, known)
    return _below(right) if any(places.of(name).overlaps(place) for name in below) else None


def _itself(right: Verdict) -> Finding:
    standing = Standing.CURRENT if right.certain else Standing.UNKNOWN
    return Finding(standing, f"it is the file of {right.image}", right.since, right.pivot)


def _below(right: Verdict) -> Finding:
    return Finding(Standing.BASE, f"it is below {right.image}", right.since, right.pivot, right.image)
