"""Changes the image of disks in the definition of a domain's next boot, and nothing else in it. Pure.

The text stays as libvirt has written it: parsed and written anew it would lose what this parser does not keep.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from xml.sax.saxutils import quoteattr

from pivotd.libvirt.domain_xml import parse

_DISK = re.compile(r"<disk\b[^>]*>.*?</disk>", re.DOTALL)
_SOURCE = re.compile(r"<source\b[^>]*/>|<source\b[^>]*>.*?</source>", re.DOTALL)
_ENCRYPTION = re.compile(r"\s*<encryption\b[^>]*>.*?</encryption>", re.DOTALL)
_CHAIN = re.compile(r"\s*<backingStore\b[^>]*/>|\s*<backingStore\b[^>]*>.*</backingStore>", re.DOTALL)


@dataclass(frozen=True, slots=True)
class NewImage:
    """The image of one disk: a path and a format. ``device``: it is a block device, not a file.

    ``source``: what libvirt itself says of it beside its name, see used_source(); empty: nothing.
    """

    path: str
    format: str
    device: bool = False
    source: str = ""


def with_images(text: str, images: dict[str, NewImage]) -> str:
    """Return the definition with these images, by target. Raises: ValueError: its text is not as libvirt writes it."""
    found = _DISK.sub(lambda match: _with_image(match[0], images), text)
    before, after = parse(text).disks, parse(found).disks
    for target, disk in before.items():
        image = images.get(target)
        wanted = (disk.image, disk.format) if image is None else (image.path, image.format)
        shown = after.get(target)
        if shown is None or (shown.image, shown.format) != wanted:
            raise ValueError(f"disk {target} could not be changed in the definition")
    if before.keys() != after.keys():
        raise ValueError("the definition has other disks after the change")
    return found


def used_source(text: str, target: str, path: str) -> str:
    """Return the <source> of a disk in a running guest's definition, with its secret and labels, if it names a path.

    Without its secret an encrypted image could not be opened at the next boot. Raises: ValueError.
    """
    if parse(text).disks[target].image != path:
        return ""
    element = disk_element(text, target)
    found = _SOURCE.search(element)
    if found is None:
        return ""
    source = re.sub(r"\s+index='\d+'", "", found[0], count=1)
    beside = _ENCRYPTION.search(_CHAIN.sub("", element[found.end() :]))
    if beside is None:
        return source
    if source.endswith("/>"):
        return f"{source[:-2]}>{beside[0]}</source>"
    return source.replace("</source>", f"{beside[0]}</source>")


def disk_element(text: str, target: str) -> str:
    """Return the text of one disk in a definition. Raises: ValueError: there is none."""
    for match in _DISK.finditer(text):
        if _target(match[0]) == target:
            return match[0]
    raise ValueError(f"there is no disk {target} in the definition")


def _target(element: str) -> str | None:
    found = re.search(r"<target\b[^>]*\bdev='([^']*)'", element)
    return None if found is None else found[1]


def _with_image(element: str, images: dict[str, NewImage]) -> str:
    """Return the text of one disk with its new image; layers and encryption of the old image go with that."""
    image = images.get(_target(element) or "")
    if image is None:
        return element
    kind, name = ("block", "dev") if image.device else ("file", "file")
    path, form = quoteattr(image.path), quoteattr(image.format)
    element = _CHAIN.sub("", element)
    if (found := _SOURCE.search(element)) is not None:
        source = image.source or f"<source {name}={path}/>"
        element = element[: found.start()] + source + _ENCRYPTION.sub("", element[found.end() :])
    head, end, rest = element.partition(">")
    head = re.sub(r"\btype='[^']*'", f"type='{kind}'", head, count=1)
    rest = re.sub(r"(<driver\b[^>]*?)\btype='[^']*'", lambda match: f"{match[1]}type={form}", rest, count=1)
    return head + end + rest
