"""What QEMU's name of an image says: a plain name, or ``json:{…}`` where a plain name would not say everything.

Each description is brought into one spelling: without what changes no data (throttling, fault injection, copy on read,
a raw node that hides nothing), and without the backing image, which its own header names. Source: block.c of QEMU,
bdrv_refresh_filename(). Pure.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from pivotd.core import names, nbd

Node = dict[str, Any]

_PASSES = dict.fromkeys(
    ("throttle", "copy-on-read", "preallocate", "compress", "copy-before-write", "blklogwrites"), "file"
) | {"blkdebug": "image"}
"""Drivers that show the data of one child as it is, and its name in the description."""
_FILES = frozenset({"file", "host_device", "host_cdrom"})
_REMOTE = frozenset({"nbd", "rbd", "iscsi", "nfs", "ssh", "gluster", "http", "https", "ftp", "ftps", "nvme"})
PROTOCOLS = _FILES | _REMOTE | {"null-co", "null-aio"}
"""Drivers of the lowest node; an image of such a format is raw."""
_FORMATS = frozenset({"raw", "qcow2", "qcow", "qed", "luks", "vmdk", "vdi", "vpc", "vhdx", "parallels", "bochs"})
_DESCRIBED = _FILES | _REMOTE | _FORMATS
"""With these a description leads to the data again. Not with ``null-co``, which keeps none, or ``vvfat``."""
_OF_HEADER = frozenset({"driver", "file", "backing", "data-file", "encrypt"})
"""What an image's own header says too, or what every node has."""
_BY_DESCRIPTOR = re.compile(r"/dev/(fdset|fd)/|/dev/std|/proc/[^/]+/(task/\d+/)?fd/")
_TEMPORARY = re.compile(r"/(var/)?tmp/vl\.\w{6}")
"""The file that ``snapshot=on`` makes and unlinks. Source: block.c of QEMU, create_tmp_file()."""
_UNITS = ("", "k", "m", "g", "t", "p", "e")
"""Of powers of 1024; ``b`` after a number is refused as unknown. Source: util/cutils.c of QEMU."""
_TEXT_ONLY = re.compile(r"(null-co|null-aio|fat|blkverify|blkreplay|quorum):")


@dataclass(frozen=True, slots=True)
class Description:
    """One image, without what is below it.

    ``text``: its complete name, an absolute path if a path says everything. ``path``: the file at its bottom, None if
    there is none. ``offset``, ``size_bytes``: the part of the file that holds it, None: to the end.
    ``fleeting``: why no name leads to the data once QEMU has ended, in one clause; None if this one does.
    """

    text: str
    path: str | None = None
    offset: int = 0
    size_bytes: int | None = None
    fleeting: str | None = None
    export: str | None = None
    """The address of the NBD export at its bottom, if there is one."""
    is_elsewhere: bool = False
    """Its lowest node is certainly no file or device of this host, nor an NBD export."""

    @property
    def is_part(self) -> bool:
        """Whether it is a part of its file only."""
        return bool(self.offset) or self.size_bytes is not None


def image_format(drivers: Iterable[str]) -> str | None:
    """Return the format of an image by the drivers of its nodes, from the top: filters are above it.

    A file or device without a format is raw. None: QEMU shows no format that pivotd knows.
    """
    known = (one for one in drivers if one in _FORMATS or one in PROTOCOLS)
    found = next(known, None)
    return "raw" if found in PROTOCOLS else found


def same_format(one: str, other: str) -> bool:
    """Return whether two formats, by the drivers of their nodes, may be one: of one that pivotd does not know, too."""
    formats = {image_format([one]), image_format([other])}
    return None in formats or len(formats) == 1


def describe(filename: str, directory: str | None = None) -> Description:
    """Return what a name says that QEMU shows; relative paths start at ``directory``, QEMU's working directory."""
    if not filename.startswith("json:"):
        return _plain(filename, directory)
    node = options(filename)
    try:
        if node is not None:
            return _described(_reduced(node, directory, top=True))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        pass  # something stands in it that no node has
    return Description(filename, fleeting="QEMU's description of it is one that pivotd does not know")


def of_own_node(filename: str, node: str) -> str:
    """Return the name of an image at a node; pivotd opens a longer raw image only as far as the disk goes."""
    own = options(filename) if names.file_below(node) is not None else None
    if own is None or own.get("driver") != "raw" or own.get("offset"):
        return filename
    return _text({key: value for key, value in own.items() if key != "size"})


def with_backing(image: str, below: str | None, image_format: str, below_format: str) -> str:
    """Return the complete name of an image that does not name the image below it; both by complete names."""
    node = _as_node(image, image_format)
    return _text({**node, "backing": None if below is None else _as_node(below, below_format)})


def options(filename: str) -> Node | None:
    """Return the options of the node that a ``json:`` name describes, None for any other name, or one that is cut."""
    if not filename.startswith("json:"):
        return None
    try:
        found = json.loads(filename.removeprefix("json:"))
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _plain(filename: str, directory: str | None) -> Description:
    if filename.startswith("blkdebug:"):
        filename = filename.split(":", 2)[-1]
    if nbd.is_uri(filename):
        address = nbd.canonical(filename)
        return Description(address or filename, export=address)
    if not filename or ":" in filename.split("/", 1)[0]:
        none = _TEXT_ONLY.match(filename) is not None
        return Description(filename, fleeting="QEMU does not keep its data in one image" if none else None)
    if not filename.startswith("/") and not directory:
        return Description(filename, fleeting="pivotd cannot see the directory of QEMU's at which this name starts")
    path = str(PurePosixPath(directory or "/", filename))
    fleeting = "QEMU has it by a file descriptor, which ends with QEMU" if _BY_DESCRIPTOR.match(path) else None
    if _TEMPORARY.fullmatch(path):
        fleeting = "it is a file of snapshot=on, which ends with QEMU"
    return Description(path, path, fleeting=fleeting)


def _reduced(node: Node, directory: str | None, *, top: bool) -> Node:
    """Return a node with absolute paths, and without the nodes below it that change nothing."""
    driver = _driver(node)
    child = node.get(_PASSES.get(driver, "file"))
    if driver in _PASSES and isinstance(child, dict):
        return _reduced(child, directory, top=top)
    if driver in _FILES:
        return node | {"filename": _plain(str(node["filename"]), directory).text}
    if not isinstance(child, dict):
        return node
    if driver == "raw" and not top and not _bytes(node.get("offset") or 0) and node.get("size") is None:
        return _reduced(child, directory, top=False)
    if driver == "raw":
        node = node | {key: _bytes(node[key]) for key in ("offset", "size") if node.get(key) is not None}
    kept = {key: value for key, value in node.items() if key != "backing" and (key, value) != ("offset", 0)}
    return kept | {"file": _reduced(child, directory, top=False)}


def _bytes(value: Any) -> int:
    """Return a size; QEMU repeats what stood after ``-drive`` as it was typed. Raises: ValueError."""
    text = str(value)
    unit = _UNITS.index(text[-1:].lower()) if text[-1:].lower() in _UNITS else 0
    return int(text[:-1] if unit else text) << 10 * unit


def _described(node: Node) -> Description:
    chain = [node]
    while isinstance(chain[-1].get("file"), dict):
        chain.append(chain[-1]["file"])
    drivers = [_driver(one) for one in chain]
    end = chain[-1]
    bottom = _plain(str(end["filename"]), None) if drivers[-1] in _FILES else None
    parts = [one for one in chain if _driver(one) == "raw" and (one.get("offset") or one.get("size") is not None)]
    sizes = [int(one["size"]) for one in parts if one.get("size") is not None]
    fleeting = None if bottom is None else bottom.fleeting
    if not set(drivers) <= _DESCRIBED:
        fleeting = "QEMU does not keep its data in one image"
    export = nbd.of_node(end) if bottom is None else None
    address = bottom.text if bottom is not None else (export if set(end) <= _NBD else None)
    whole = address is not None and not parts and all(_says_header(one) for one in chain[:-1])
    return Description(
        str(address) if whole else _text(node),
        None if bottom is None else bottom.path,
        sum(int(one.get("offset") or 0) for one in parts),
        min(sizes, default=None),
        fleeting,
        export,
        is_elsewhere=drivers[-1] in PROTOCOLS - _FILES - {"nbd"},
    )


def _driver(node: Node) -> str:
    """Return the driver of a node; a name alone is a file or a device, as QEMU finds out."""
    return str(node["driver"]) if "driver" in node else "file"


_NBD = frozenset({"driver", "export", "server", "server.type", "server.path", "server.host", "server.port"})
"""What an address says; certificates are not among it."""


def _says_header(node: Node) -> bool:
    """Return whether the image of this node says by itself how it is opened; a passphrase has to be given anyway."""
    return all(key in _OF_HEADER or key.startswith(("encrypt.", "key-secret", "data-file.")) for key in node)


def _as_node(name: str, image_format: str) -> Node:
    """Return the node of an image by its complete name."""
    described = options(name)
    if described is not None:
        return described
    if nbd.is_uri(name):
        return {"driver": image_format, "file": nbd.parse(name).options}
    # Without a driver, QEMU itself finds out whether a path is a device.
    return {"driver": image_format, "file": {"filename": name}}


def _text(node: Node) -> str:
    return "json:" + json.dumps(node, sort_keys=True, separators=(",", ":"))


def storable(name: str) -> str:
    """Return a name as text that the journal and etcd can keep: what is not UTF-8 in it is escaped."""
    return name.encode(errors="backslashreplace").decode()
