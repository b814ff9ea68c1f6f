"""Small parts of a report's page: the place of a pivot, a link to it, a label."""

from __future__ import annotations

from collections.abc import Collection
from xml.etree.ElementTree import Element

from pivotd.cli.report_markup import el

COLOURED = ("switched", "kept", "merged", "split", "unknown", "accepted")


def anchor(pivot: str) -> str:
    """Return the name of the place of a pivot on the page."""
    return f"pivot-{pivot}"


def link(pivot: str, here: Collection[str], text: str | None = None) -> Element:
    """Return the id of a pivot, or a text, as a link if the pivot is on the page."""
    shown = text or pivot
    return el("a", shown, href=f"#{anchor(pivot)}") if pivot in here else el("span", shown)


def chip(word: str) -> Element:
    """Return an outcome or a phase as a label; its word says what its colour does."""
    return el("span", word, class_=f"chip {word if word in COLOURED else 'open'}")
