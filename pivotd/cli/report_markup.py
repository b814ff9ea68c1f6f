"""HTML as a tree of elements: text and attributes are data, so nothing that a file was called can become markup.

The standard library's ElementTree escapes them when it writes the page. There is no template language: no place where
something could be put in unescaped, nothing to install, and mypy sees every name.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable
from typing import TypeAlias
from xml.etree.ElementTree import Element, tostring

Child: TypeAlias = "Element | str | Iterable[Child] | None"


def el(tag: str, *children: Child, **attributes: str | float | None) -> Element:
    """Return an element. In names of attributes ``_`` stands for ``-``, one at the end for nothing (``class_``)."""
    made = Element(tag)
    for name, value in attributes.items():
        if value is not None:
            made.set(name.rstrip("_").replace("_", "-"), printable(str(value)))
    add(made, children)
    return made


def add(parent: Element, children: Iterable[Child]) -> None:
    """Append children: elements, text, lists of both; None is nothing."""
    for child in children:
        if child is None:
            continue
        if isinstance(child, str):
            _add_text(parent, printable(child))
        elif isinstance(child, Element):
            parent.append(child)
        else:
            add(parent, child)


def printable(text: str) -> str:
    """Return text in which every character can be seen: what moves, hides or reorders others is written as its number.

    Names of files may hold line breaks, marks that turn the direction of writing, and bytes that are not UTF-8.
    """
    return "".join(char if char.isprintable() else f"\\x{ord(char):02x}" for char in text)


def page(title: str, css: str, body: Iterable[Child]) -> bytes:
    """Return a whole document that loads nothing: its policy forbids all but this one style sheet."""
    digest = base64.b64encode(hashlib.sha256(css.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    style = Element("style")
    style.text = css  # of ours, and written as it is: the policy has its digest
    head = el(
        "head",
        el("meta", charset="utf-8"),
        el("meta", http_equiv="Content-Security-Policy", content=policy),
        el("meta", name="viewport", content="width=device-width, initial-scale=1"),
        el("meta", name="color-scheme", content="light dark"),
        el("meta", name="referrer", content="no-referrer"),
        el("meta", name="robots", content="noindex"),
        el("title", title),
        style,
    )
    document = el("html", head, el("body", *body), lang="en")
    written: bytes = tostring(document, encoding="utf-8", method="html")
    return b"<!DOCTYPE html>\n" + written + b"\n"


def _add_text(parent: Element, text: str) -> None:
    if len(parent):
        last = parent[-1]
        last.tail = (last.tail or "") + text
    else:
        parent.text = (parent.text or "") + text
