"""A timeline in the terminal: the whole pivot to scale, and below it each pause on a scale of its own.

Nothing is too short to be seen: what is less than one cell gets a mark.
"""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Sequence
from datetime import UTC, datetime

import msgspec
from msgspec import Struct

from pivotd.cli import render
from pivotd.cli.context import App
from pivotd.cli.timeline import GuestPause, Timeline, of_pivot
from pivotd.client import PivotWithRecords

WIDTH_IN_A_PIPE = 72
"""Columns where nothing says how wide the reader is: a mail, a ticket."""
WIDTH_MIN, WIDTH_MAX = 44, 100
PAUSES_MAX = 6
"""Pauses with a scale of their own; a pivot that was completed again and again has more."""
STYLES = {"paused": "bold yellow", "switched": "green", "merged": "green", "kept": "yellow", "unknown": "bold red"}


class Row(Struct, frozen=True):
    """One line: what, how long or when, and where on the scale, as fractions of it."""

    label: str
    figure: str
    marks: tuple[tuple[float, float], ...]
    style: str = ""


def show_pivot(app: App, pivot: PivotWithRecords) -> None:
    """Print one pivot with its timeline; in a document the pivot as ever, and the timeline in it."""
    timeline = of_pivot(pivot, datetime.now(UTC) if app.offline is None else None)
    if render.answer(app, {**msgspec.to_builtins(pivot), "timeline": msgspec.to_builtins(timeline)}):
        return
    width = max(WIDTH_MIN, min(WIDTH_MAX, shutil.get_terminal_size((WIDTH_IN_A_PIPE, 24)).columns))
    disks = " ".join(disk.disk for disk in pivot.disks)
    print(render.text(f"pivot {pivot.id}"))
    print(textwrap.fill(render.text(f"{pivot.domain} {disks}: {pivot.kind}, {pivot.outcome or pivot.phase}"), width))
    print()
    show(timeline, width)


def show(timeline: Timeline, width: int) -> None:
    """Print a timeline, no line of it wider than this."""
    terminal = sys.stdout.isatty()
    block, mark = ("█", "▏") if terminal and _can_show("█▏") else ("#", "|")
    for title, rows in (_whole(timeline), *_each_pause(timeline)):
        print(title)
        for row, line in zip(rows, _lines(rows, width, block, mark), strict=True):
            _print(line, row.style if terminal else "")
    if (more := len(timeline.pauses) - PAUSES_MAX) > 0:
        print(f"{more} pauses more; `pivotctl --json pivot show ID --timeline` has all")
    for record in timeline.later:
        print(f"\nafter its end: {render.text(record.event)}, {render.when(record.at)}")
    if timeline.clock_went_back:
        print("\nthe clock of the host went back meanwhile: lengths\naround that are wrong, those of pauses are right")


def took(seconds: float) -> str:
    """Return a length of time, also one of less than a millisecond, in at most nine characters."""
    if seconds < 1:
        return f"{seconds * 1000:.1f} ms" if seconds < 0.1 else f"{seconds * 1000:.0f} ms"
    return f"{seconds:.1f} s" if seconds < 60 else render.duration(seconds)


def ended(pause: GuestPause) -> str:
    """Return how a pause ended."""
    return {"ready": "gave up, ready again", "cancelling": "gave up"}.get(pause.ended, pause.ended)


def clock(at: datetime) -> str:
    """Return a time of day to the millisecond."""
    return f"{at:%H:%M:%S}.{at.microsecond // 1000:03}Z"


def _whole(timeline: Timeline) -> tuple[str, list[Row]]:
    scale = timeline.scale
    rows = [
        Row(
            phase if len(spans) == 1 else f"{phase} x{len(spans)}",
            took(sum(span.length_s for span in spans)),
            tuple((scale.fraction(span.begin), scale.fraction(span.end)) for span in spans),
        )
        for phase, spans in timeline.phases()
    ]
    if timeline.pauses:
        marks = tuple((scale.fraction(pause.begin), scale.fraction(pause.end)) for pause in timeline.pauses)
        rows.append(Row("guest paused", took(timeline.paused_ms / 1000), marks, STYLES["paused"]))
    still = ", still open" if timeline.open else ""
    return f"timeline, {took(timeline.length_s)} from {timeline.begin:%Y-%m-%d %H:%M:%S}Z{still}", rows


def _each_pause(timeline: Timeline) -> list[tuple[str, list[Row]]]:
    """Return the longest pauses in the order of time."""
    longest = sorted(timeline.pauses, key=lambda pause: pause.pause_ms)[-PAUSES_MAX:]
    return [_pause(index, pause) for index, pause in enumerate(timeline.pauses, 1) if pause in longest]


def _pause(number: int, pause: GuestPause) -> tuple[str, list[Row]]:
    scale = pause.scale
    rows: list[tuple[datetime, Row]] = []
    for one in pause.moments:
        place = scale.fraction(one.at)
        after = f"+{took((one.at - scale.zero).total_seconds())}"
        rows.append((one.at, Row(one.event, after, ((place, place),), STYLES.get(one.event, ""))))
    still = scale.fraction(pause.begin), scale.fraction(pause.end)
    rows.append((pause.begin, Row("guest paused", took(pause.pause_ms / 1000), (still,), STYLES["paused"])))
    rows.sort(key=lambda row: row[0])
    fleet = "" if pause.fleet_ms is None else f", {took(pause.fleet_ms / 1000)} of it for the fleet"
    title = f"pause {number}, attempt {pause.attempt}: {took(pause.pause_ms / 1000)}, {ended(pause)}"
    return f"\n{title}\n+0 is {clock(scale.zero)}{fleet}", [row for _, row in rows]


def _lines(rows: Sequence[Row], width: int, block: str, mark: str) -> list[str]:
    label = max(len(row.label) for row in rows)
    figure = max(len(row.figure) for row in rows)
    cells = width - label - figure - 2
    return [
        f"{render.text(row.label):{label}} {row.figure:>{figure}} {_bar(row.marks, cells, block, mark)}".rstrip()
        for row in rows
    ]


def _bar(marks: Sequence[tuple[float, float]], cells: int, block: str, mark: str) -> str:
    """Return the scale: whole cells as blocks, and a mark for everything shorter than a cell."""
    bar = [" "] * cells
    for begin, end in marks:
        first = min(int(begin * cells), cells - 1)
        if (end - begin) * cells >= 1:
            last = max(first + 1, round(end * cells))
            bar[first:last] = block * (last - first)
        elif bar[first] == " ":
            bar[first] = mark
    return "".join(bar)


def _can_show(characters: str) -> bool:
    try:
        characters.encode(sys.stdout.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def _print(line: str, style: str) -> None:
    if not style:
        print(line)
        return
    from rich.console import Console  # noqa: PLC0415 - costs 25 ms, and a pipe does without
    from rich.text import Text  # noqa: PLC0415

    Console(highlight=False, soft_wrap=True).print(Text(line, style=style))
