"""Chains of images as drawings: one SVG of a fixed width for each, so that its text is as large on a telephone."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from xml.etree.ElementTree import Element

from pivotd.cli.report_chains import Chain, Layer, Mark
from pivotd.cli.report_markup import el, printable

WIDTH = 300
BOX, GUEST, GAP, ARROW = 62, 26, 22, 18
"""Heights of an image, of the guest's disk, of a gap and of what leads from one to the next, in pixels."""
NAME_COLUMNS, PLACE_COLUMNS = 36, 40
"""Characters that fit into a box, in the sizes of the style sheet (12 and 11 pixels)."""


def drawing(chain: Chain, disk: str) -> Element:
    """Return the drawing of a chain. ``disk`` names the guest's disk."""
    parts: list[Element] = [_guest(disk)]
    y = GUEST
    for layer in chain.layers:
        parts.append(_arrow(y))
        y += ARROW
        parts.append(_gap(y) if layer.mark is Mark.GAP else _box(layer, y))
        y += GAP if layer.mark is Mark.GAP else BOX
    if chain.beside:
        y += 14
        parts.append(el("text", _beside(chain), x=2, y=y + 10, class_="note"))
        y += 18
        for layer in chain.beside:
            parts.append(_box(layer, y))
            y += BOX + 6
    spoken = in_words(chain, disk)
    return el(
        "svg",
        el("title", f"{disk} {chain.caption}"),
        el("desc", spoken),
        *parts,
        class_="chain",
        role="img",
        aria_label=f"{disk} {chain.caption}: {spoken}",
        width=WIDTH,
        height=y + 2,
        viewBox=f"0 0 {WIDTH} {y + 2}",
    )


def in_words(chain: Chain, disk: str) -> str:
    """Return the drawing for those who do not see it."""
    stack = " on ".join(_spoken(layer) for layer in chain.layers)
    beside = "; ".join(_spoken(layer) for layer in chain.beside)
    return f"{disk} on {stack}" + (f". {_beside(chain)}: {beside}" if beside else "")


def elided(text: str, columns: int) -> str:
    """Return text that is no wider than this, without its middle if need be: the end of a file name tells most."""
    text = printable(text)
    if _columns(text) <= columns:
        return text
    tail = _fitting(text[::-1], (columns - 1) * 2 // 3)[::-1]
    return f"{_fitting(text, columns - 1 - _columns(tail))}…{tail}"


def _spoken(layer: Layer) -> str:
    return layer.note if layer.mark is Mark.GAP else f"{layer.name} ({layer.note})"


def _beside(chain: Chain) -> str:
    return "or" if any(layer.mark is Mark.UNSURE for layer in chain.beside) else "beside the chain"


def _guest(disk: str) -> Element:
    shape = el("rect", x=1, y=1, width=WIDTH - 2, height=GUEST - 2, rx=12, class_="guest")
    return el("g", shape, el("text", elided(disk, NAME_COLUMNS), x=14, y=17, class_="guest-name"))


def _arrow(y: int) -> Element:
    line, head = f"M28 {y}v{ARROW - 5}", f"M24 {y + ARROW - 7}l4 6l4 -6z"
    return el("g", el("path", d=line, class_="arrow"), el("path", d=head, class_="head"))


def _gap(y: int) -> Element:
    dots = [el("circle", cx=28, cy=y + 4 + 6 * index, r=1.5, class_="head") for index in range(3)]
    return el("g", *dots, el("text", "more layers, if any", x=42, y=y + 14, class_="note"))


def _box(layer: Layer, y: int) -> Element:
    place, name = _split(layer.name)
    note = f"{layer.note}, {layer.format}" if layer.format else layer.note
    texts: Sequence[tuple[str, str, int]] = (
        (elided(name, NAME_COLUMNS), "name", 20),
        (elided(place, PLACE_COLUMNS), "place", 36),
        (note, "note", 52),
    )
    return el(
        "g",
        el("title", layer.name),
        el("rect", x=1.5, y=y + 1.5, width=WIDTH - 3, height=BOX - 3, rx=6),
        el("rect", x=1.5, y=y + 1.5, width=5, height=BOX - 3, rx=2, class_="edge"),
        [el("text", said, x=16, y=y + down, class_=kind) for said, kind, down in texts if said],
        class_=f"image {layer.mark.value}",
    )


def _split(name: str) -> tuple[str, str]:
    """Return where an image is, and its name there."""
    place, slash, last = name.rpartition("/")
    return (place or "/", last) if slash and last and not name.startswith("json:") else ("", name)


def _columns(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text)


def _fitting(text: str, columns: int) -> str:
    taken = 0
    for index, char in enumerate(text):
        taken += _columns(char)
        if taken > columns:
            return text[:index]
    return text
