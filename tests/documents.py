"""The pages of the project, taken apart: their links, headings and commands."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).parents[1]
_FENCED = re.compile(r"^ *```\w*\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
_ARGUMENTS = r"""(?:"[^"]*"|'[^']*'|[^;|&>#)"'])*"""
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


@dataclass(frozen=True)
class Page:
    """One page in Markdown. ``name`` is its path from the root of the tree."""

    path: Path

    @property
    def name(self) -> str:
        return str(self.path.relative_to(ROOT))

    @cached_property
    def text(self) -> str:
        return self.path.read_text()

    @cached_property
    def prose(self) -> str:
        """The page without its blocks of code."""
        return _FENCED.sub("", self.text)

    @cached_property
    def code(self) -> tuple[str, ...]:
        """What is printed as code: each line of a block, continued lines as one, and each piece of a sentence."""
        lines = "\n".join(_FENCED.findall(self.text)).replace("\\\n", " ").splitlines()
        inline = re.findall(r"(?<!`)`([^`]+)`(?!`)", self.prose)
        return *(line.strip() for line in lines), *(" ".join(piece.split()) for piece in inline)

    def links(self) -> list[str]:
        """Return the target of each link."""
        return _LINK.findall(self.prose)

    def anchors(self) -> set[str]:
        """Return the names of its headings in links, as GitHub makes them."""
        heads = re.findall(r"^#+ (.*)$", self.prose, re.MULTILINE)
        return {re.sub(r"[^\w\- ]", "", _LINK.sub("", head).lower()).replace(" ", "-") for head in heads}

    def commands(self, program: str) -> Iterator[str]:
        """Yield each call of a program, with its arguments; ``program`` is a regular expression.

        It stands at the beginning, of a line of a shell or of a command in it; variables may be set before it.
        """
        for code in self.code:
            for found in re.finditer(rf"(?:^|[$#(|;&] ?)(?:[A-Z_]+=\S+ )*({program}(?: {_ARGUMENTS})?)", code):
                yield found[1].strip()


def pages() -> list[Page]:
    """Return every page that a reader may come to."""
    found = [ROOT / "README.md", ROOT / "tests" / "README.md", *(ROOT / "docs").glob("*.md")]
    return [Page(path) for path in sorted([*found, *(ROOT / "contrib").rglob("*.md")])]
