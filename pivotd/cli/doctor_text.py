"""The findings of `pivotctl doctor` for people: what was looked at, a line for each area, then what is wrong."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Sequence
from itertools import groupby

from pivotd.cli import render
from pivotd.client import DoctorArea, DoctorFinding, checks

INDENT = "    "
NOT_SEEN = "not seen"
STYLES = {"ok": "32", "error": "1;31", "errors": "1;31", "warning": "33", "warnings": "33", NOT_SEEN: "33"}
"""Colours of ECMA-48, for a terminal."""


def show(areas: Sequence[DoctorArea], findings: Sequence[DoctorFinding], ignored: Sequence[str]) -> None:
    """Print a line for each area, and each finding with what to do; findings of one kind share a heading."""
    states = checks.states(areas, ignored)
    width = max((len(area.area) for area in areas), default=0)
    for name, same in groupby(areas, key=lambda area: area.area):
        counts = _counts([one for one in findings if checks.CHECKS[one.check].area == name])
        blind = any(states[check] == "unseen" for check in checks.of_area(name))
        _of_area(list(same), counts + [NOT_SEEN] * blind, width)
    for (check, severity, seen, remedy), of_kind in groupby(findings, key=_kind):
        group = list(of_kind)
        more = f" and {len(group[0].also)} more checks" if group[0].also and not seen else ""
        print(f"\n{_coloured(severity if seen else NOT_SEEN)}  {check}{more}")
        for one in group:
            print(_folded(render.one_line(_said(one))))
        print(_folded(render.one_line(f"-> {remedy}")))
    print()
    for by in dict.fromkeys(area.by for area in areas if area.checks):
        names = dict.fromkeys(area.area for area in areas if area.checks and area.by == by)
        print(_folded(f"looked at by {by}: {', '.join(names)}", first=""))
    print(_folded(_sum(findings, ignored), first=""))


def _kind(finding: DoctorFinding) -> tuple[str, str, bool, str]:
    return finding.check, finding.severity, finding.seen, finding.remedy


def _said(finding: DoctorFinding) -> str:
    """Return what is wrong, after the name of what it is about; an error of a file has that name already."""
    named = not finding.subject or finding.what.startswith(f"{finding.subject}: ")
    return finding.what if named else f"{finding.subject}: {finding.what}"


def _of_area(of_area: Sequence[DoctorArea], words: Sequence[str], width: int) -> None:
    state = ", ".join(words) or ("ok" if any(one.checks for one in of_area) else "-")
    looked = "; ".join(dict.fromkeys(one.looked_at for one in of_area if one.looked_at))
    about = f"  {render.one_line(looked)}" if looked else ""
    print(_folded(f"{of_area[0].area:{width}}  {_coloured(state)}{about}", first=""))
    for note in dict.fromkeys(note for one in of_area for note in one.notes):
        print(_folded(render.one_line(f"note: {note}"), first=" " * (width + 2)))


def _sum(findings: Sequence[DoctorFinding], ignored: Sequence[str]) -> str:
    left_out = f"; not counted: {', '.join(sorted(set(ignored)))}" if ignored else ""
    if not findings:
        return f"Nothing is wrong{left_out}."
    blind = sum(not one.seen for one in findings)
    words = [*_counts(findings), *([f"{blind} {NOT_SEEN}"] if blind else [])]
    return f"{', '.join(words)}{left_out}. docs/doctor.md has a line for each check."


def _counts(findings: Sequence[DoctorFinding]) -> list[str]:
    """Return how many errors and how many warnings there are, in words."""
    words = []
    for severity in (checks.ERROR, checks.WARNING):
        number = sum(one.severity == severity and one.seen for one in findings)
        words += [f"{number} {severity}{'s'[: number != 1]}"] if number else []
    return words


def _is_terminal() -> bool:
    return sys.stdout.isatty()


def _coloured(state: str) -> str:
    first = state.partition(",")[0]
    style = STYLES.get(first.partition(" ")[2] if first[:1].isdigit() else first)
    return f"\x1b[{style}m{state}\x1b[0m" if style and _is_terminal() else state


def _folded(line: str, first: str = INDENT) -> str:
    """Return a line that fits the terminal; a pipe gets it whole."""
    if not _is_terminal():
        return first + line
    return textwrap.fill(
        line, max(40, shutil.get_terminal_size().columns), initial_indent=first, subsequent_indent=first or INDENT,
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip
