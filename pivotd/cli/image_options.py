"""Options for creating and opening new images: qcow2 options by name, the passphrase, discard, cache."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, TypeVar

import click

from pivotd.cli.values import SUFFIXES, AbsolutePath
from pivotd.client import NewImage

F = TypeVar("F", bound=Callable[..., Any])

_SIZE = re.compile(r"([0-9]{1,12})([KMG]?)i?B?", re.ASCII)
_SWITCH = {"on": True, "off": False, "true": True, "false": False}
_COMPAT = {"0.10": "v2", "1.1": "v3"}


def _size(text: str) -> int:
    found = _SIZE.fullmatch(text)
    if found is None:
        raise ValueError("a size, like 64K or 2M")
    return int(found[1]) * SUFFIXES[found[2]]


def _switch(text: str) -> bool:
    if text not in _SWITCH:
        raise ValueError("on or off")
    return _SWITCH[text]


def _number(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 10):
        raise ValueError("a number")
    return int(text)


READERS: dict[str, Callable[[str], Any]] = {
    "cluster-size": _size,
    "extended-l2": _switch,
    "preallocation": str,
    "lazy-refcounts": _switch,
    "version": lambda text: _COMPAT.get(text, text),
    "refcount-bits": _number,
    "compression-type": str,
    "luks-iter-ms": _number,
}
"""Name of an option -> parser of its value. The daemon checks which values go together."""


class ImageOption(click.ParamType[tuple[str, Any]]):
    """KEY=VALUE of a new image, with QEMU's names; ``compat`` is accepted, and ``_`` for ``-``."""

    name = "option"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, Any]:
        """Return the name as the API spells it, and the value."""
        if isinstance(value, tuple):
            return value
        key, separator, text = str(value).partition("=")
        key = key.replace("_", "-").replace("compat", "version")
        if not separator or key not in READERS:
            self.fail(f"{value!r}: expected KEY=VALUE with KEY one of {', '.join(READERS)}", param, ctx)
        try:
            return key.replace("-", "_"), READERS[key](text)
        except ValueError as error:
            self.fail(f"{value!r}: expected {error}", param, ctx)


def creating(function: F, words: tuple[str, ...] = ("--option", "-o")) -> F:
    """Add the options of new images. ``words``: of the one that takes KEY=VALUE."""
    function = click.option(
        "--discard",
        type=click.Choice(("unmap", "ignore")),
        default="unmap",
        show_default=True,
        help="What QEMU does with space that the guest frees.",
    )(function)
    function = click.option(
        "--aio",
        type=click.Choice(("threads", "native", "io_uring")),
        help="How QEMU reads and writes the new images.  [default: QEMU's]",
    )(function)
    function = click.option(
        "--cache",
        type=click.Choice(("none", "writeback")),
        help="Whether QEMU passes by the page cache of the host.  [default: as the source]",
    )(function)
    function = click.option(
        "--secret-file",
        type=AbsolutePath(),
        metavar="PATH",
        help="Encrypt with LUKS; QEMU reads the passphrase from PATH.",
    )(function)
    return click.option(
        *words,
        "image_options",
        type=ImageOption(),
        multiple=True,
        metavar="KEY=VALUE",
        help="Of new images: cluster-size=2M, extended-l2=on, preallocation=full, lazy-refcounts=on, version=v3, "
        "refcount-bits=16, compression-type=zstd, luks-iter-ms=500.",
    )(function)


def fold(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options of a request with those of images as one object, None where there are none."""
    given = dict(options.pop("image_options"))
    return options | {"image_options": NewImage(**given) if given else None}
