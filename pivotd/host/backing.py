"""The files that a qcow2 image needs, read from headers, without QEMU: the images below it, and external data files.

A header can say anything, and leads no further than a name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from pivotd import limits
from pivotd.core.image_names import PROTOCOLS, describe, options
from pivotd.host import files, qcow2, view

_ALONE = frozenset({"raw", "vdi", "vhdx", "vpc", "dmg", "luks", "bochs", "cloop"}) | PROTOCOLS
"""Formats whose images QEMU never puts on others."""


Below = tuple[str, str | None]
"""The name of an image, and its format; None: decided by its content, as QEMU would."""


class BlindError(Exception):
    """This process may not look at ``image``, which is there, or may be there; the text is one sentence."""

    def __init__(self, text: str, image: str) -> None:
        super().__init__(text)
        self.image = image


def needed(image: str, image_format: str | None, known: Mapping[str, Sequence[Below]] | None = None) -> list[str]:
    """Return the names of all images and data files below an image, as absolute paths and addresses, nearest first.

    ``known``: what is right below images that nobody can read, by name. It looks at storage, so it may block.

    Raises: BlindError.
    """
    found: list[str] = []
    queue: list[Below] = [(image, image_format)]
    while queue and len(found) < limits.IMAGES_BELOW_MAX:
        name, kind = queue.pop(0)
        try:
            right_below = _right_below(name, kind)
        except BlindError:
            if known is None or name not in known:
                raise
            right_below = known[name]
        for below in right_below:
            if below[0] not in found:
                found.append(below[0])
                queue.append(below)
    return found


def _right_below(name: str, image_format: str | None) -> Sequence[Below]:
    asked = name
    described = options(name)
    if described is not None and "backing" in described:
        below = described["backing"]
        if below is not None and not isinstance(below, dict):
            raise BlindError(f"pivotd cannot read what is below {name}", asked)
        return [] if below is None else [(f"json:{json.dumps(below)}", below.get("driver"))]
    if described is not None and image_format is None:
        image_format = described.get("driver")
    if image_format in _ALONE:
        return []
    name = describe(name).text
    if name.startswith("json:"):
        raise BlindError(f"pivotd cannot read what is below {name}", asked)
    if not name.startswith("/"):
        return []
    if (hidden := view.hidden(name)) is not None:
        raise BlindError(hidden, asked)
    if image_format not in {None, "qcow", "qcow2"}:
        raise BlindError(f"pivotd cannot read what is below {name}, a {image_format} image", asked)
    try:
        head = qcow2.look(name)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except (OSError, ValueError) as error:
        raise BlindError(f"pivotd cannot read what is below {name}: {error}", asked) from None
    header = None if head is None else head.header
    if header is None:
        return []
    # QEMU opens a relative name of a data file from its working directory: that of a service is the root.
    named = (
        (header.data_file, "raw", name),
        (header.data_file, "raw", "/x"),
        (header.backing_file, header.backing_format, name),
    )
    found = [(_path(text, at), kind) for text, kind, at in named if text is not None]
    return [(path, kind) for path, kind in dict.fromkeys(found) if path is not None]


def _path(text: str, image: str) -> str | None:
    """Return what a header of an image names: relative names start where the image is named."""
    return files.resolve(text.removeprefix("file:"), Path(image).parent).path
