"""What QEMU's names of images say of the nodes below them: the drivers of ``json:{…}``. Pure.

query-block shows driver and ``encrypted`` of an image's uppermost node alone. If a node below it has options that
decide on the data, such as the passphrase of ``luks``, QEMU describes all nodes of the image in its name.
Source: bdrv_refresh_filename() of QEMU.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pivotd.core.image_names import options

Node = Mapping[str, Any]
"""The options of a node, with those of the nodes below it."""

BACKING = "backing"
DEPTH_MAX = 64


def nodes(filename: str) -> list[Node] | None:
    """Return the description of each node of one image, the uppermost first, without those of its backing chain.

    Empty for a plain name. None: QEMU has cut the description off at 4095 characters, or nobody can read it.
    """
    if not filename.startswith("json:"):
        return []
    found = options(filename)
    return None if found is None else list(_walk(found, 0))


def inner(filename: str) -> list[Node]:
    """Return those of the described nodes, below the uppermost one, that have a node below them."""
    return [node for node in (nodes(filename) or ())[1:] if any(map(_describes, _children(node)))]


def encrypted(filename: str) -> bool | None:
    """Return whether a node of the image encrypts by its own name; None if the name was cut off."""
    found = nodes(filename)
    if found is None:
        return None
    return any(node["driver"] == "luks" or any(_encrypts(name) for name in node) for node in found)


def _walk(node: Any, depth: int) -> Iterator[Node]:
    if not isinstance(node, dict) or depth > DEPTH_MAX:
        return
    if _describes(node):
        yield node
    for child in _children(node):
        yield from _walk(child, depth + 1)


def _describes(node: Any) -> bool:
    return isinstance(node, dict) and "driver" in node


def _children(node: Node) -> Iterator[Any]:
    """Yield the values that may be nodes; those of a quorum are in a list."""
    for name, value in node.items():
        if name != BACKING:
            yield from value if isinstance(value, list) else [value]


def _encrypts(option: str) -> bool:
    return option == "encrypt" or option.startswith("encrypt.")
