"""The complete name of each image of a disk: opened by that name, it shows what the guest sees."""

from __future__ import annotations

import os.path
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from pivotd.core.image_names import describe, of_own_node, options, with_backing
from pivotd.core.pivot import Image
from pivotd.host import files
from pivotd.qmp.blocks import Layer

PROTOCOLS = {"file", "host_device", "nbd"}
"""Protocol drivers that QEMU shows as the format of a disk without a format layer."""
Same = Callable[[Image, str], bool]
"""Whether an image is the one of a name."""


def images_of(layers: Sequence[Layer], directory: Path | None, nodes: Sequence[str] = ()) -> list[Image]:
    """Return the images of a chain, the active one first; this looks at files, so it may block.

    Where the header of an image does not lead to the image that QEMU has below it, the name says both.
    """

    def same(image: Image, name: str) -> bool:
        return files.same(image, files.resolve(name, directory))

    def text(name: str) -> str:
        found = _text(name, directory)
        return files.normal(found) if found.startswith("/") else found

    found = _images(layers, text, nodes, same)
    return [
        replace(image, file_id=files.resolve(layer.filename, directory).file_id, born=files.made(image.filename))
        for image, layer in zip(found, layers, strict=True)
    ]


def name_of(layers: Sequence[Layer], directory: Path | None) -> str:
    """Return the complete name of the active image without a look at files: two names are one image if they agree."""

    def same(image: Image, name: str) -> bool:
        return os.path.normpath(image.filename) == os.path.normpath(_text(name, directory))

    return _images(layers, partial(_text, directory=directory), (), same)[0].filename


def shown_format(driver: str) -> str:
    """Return the format of an image whose top node has this driver."""
    return "raw" if driver in PROTOCOLS else driver


def _images(layers: Sequence[Layer], text: Callable[[str], str], nodes: Sequence[str], same: Same) -> list[Image]:
    """Return the images by the names that ``text`` makes of QEMU's."""
    found: list[Image] = []
    for place in reversed(range(len(layers))):
        layer, node = layers[place], nodes[place] if nodes else ""
        below = found[0] if found else None
        name, image_format = text(of_own_node(layer.filename, node)), shown_format(layer.format)
        if below is not None and name == describe(below.filename).text:
            name = below.filename  # QEMU shows a filter as an image above its own
        elif not _leads(layer, below, same):
            lower = None if below is None else below.filename
            name = with_backing(name, lower, image_format, "raw" if below is None else below.format)
        found.insert(0, Image(name, image_format, node))
    return found


def _text(name: str, directory: Path | None) -> str:
    return describe(name, None if directory is None else str(directory)).text


def _leads(layer: Layer, below: Image | None, same: Same) -> bool:
    """Return whether an image names by itself what QEMU has below it."""
    if below is None:
        return layer.backing_file is None
    if layer.names is None:
        return False
    if not below.filename.startswith("json:"):
        return same(below, layer.names)
    written = options(layer.names)
    if written is not None and written == options(below.filename):
        return True
    # A guest sees no more of a file than the image above it is long: the end of the part below does not matter then.
    part = describe(below.filename)
    longer = part.size_bytes is not None and not part.offset and layer.size_bytes <= part.size_bytes
    return longer and part.text == below.filename and same(Image(str(part.path), "", ""), layer.names)
