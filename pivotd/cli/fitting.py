"""Tables on a terminal: as wide as it is, and no word cut: an id stays whole, so that it can be copied."""

from __future__ import annotations

import shutil
from collections.abc import Sequence

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pivotd.cli.context import tell

GAP = 2
WIDE, LEAST = range(2)
PATH_WIDTH_MIN = 20
"""A path goes over several lines of no less than this."""
PATHS_WIDTH_MIN = 40
"""The same for two paths, from where to where, which have a line each if they are no longer."""
SENTENCE_WIDTH_MIN = 24
"""A cell that is longer than this goes over several lines, between its words."""
STYLES = {
    "switched": "green",
    "merged": "green",
    "kept": "yellow",
    "unknown": "bold red",
    "not certain": "bold red",
    "split": "bold red",
    "unreachable": "red",
    "refused": "red",
    "connected": "green",
    "running": "green",
    "running, wrong image": "bold red",
    "paused, wrong image": "bold red",
}
"""Words that stand alone in a cell and are worth a colour."""


def show(columns: Sequence[str], rows: Sequence[Sequence[str]], spare: Sequence[str], *, headed: bool) -> None:
    """Print the table in the width of the terminal; leave out columns that have no room, and say which."""
    width = shutil.get_terminal_size().columns
    shown, missing = fit(columns, rows, spare, width, headed=headed)
    made = Table(box=None, pad_edge=False, header_style="bold", padding=(0, GAP, 0, 0), show_header=headed)
    sizes = [_widths(columns[index], [row[index] for row in rows], headed=headed) for index in shown]
    shared = _shared(sizes, width)
    has_room = sum(shared) + GAP * (len(shared) - 1) <= width
    for index, (wide, least), given in zip(shown, sizes, shared, strict=True):
        given_width, at_least = (given, None) if has_room else (None, least)
        made.add_column(columns[index], overflow="fold", no_wrap=wide == least, width=given_width, min_width=at_least)
    for row in rows:
        made.add_row(*(Text(row[index], style=STYLES.get(row[index], "")) for index in shown))
    # It counts a gap after the last column too, which it does not print, and would cut characters for that.
    Console(highlight=False, width=width + GAP if has_room else width).print(made)
    if missing:
        tell(f"no room for {', '.join(missing)}: a wider terminal, a pipe or -o json has them")


def fit(
    columns: Sequence[str], rows: Sequence[Sequence[str]], spare: Sequence[str], width: int, *, headed: bool
) -> tuple[list[int], list[str]]:
    """Return the indices of the columns that have room, and the names of those that have something to say and none."""
    widths = {name: _widths(name, [row[index] for row in rows], headed=headed) for index, name in enumerate(columns)}
    empty = {name for index, name in enumerate(columns) if all(row[index] == "-" for row in rows)}
    order = [name for name in spare if name in columns] or list(columns[:0:-1])
    left, missing = list(columns), list[str]()

    def fits(which: int) -> bool:
        return sum(widths[name][which] for name in left) + GAP * (len(left) - 1) <= width

    for name in (name for name in order if name in empty):
        if not fits(WIDE):
            left.remove(name)
    for name in (name for name in order if name not in empty):
        if not fits(LEAST):
            left.remove(name)
            missing.append(name)
    return [index for index, name in enumerate(columns) if name in left], missing


def _shared(sizes: Sequence[tuple[int, int]], width: int) -> list[int]:
    """Return the width of each column: its least one, and as much of the rest of the terminal as it can use."""
    found = [least for _, least in sizes]
    left = width - sum(found) - GAP * (len(found) - 1)
    while left > 0 and (wanting := [index for index, (wide, _) in enumerate(sizes) if found[index] < wide]):
        for index in wanting[:left]:
            found[index] += 1
        left -= len(wanting)
    return found


def _widths(name: str, cells: Sequence[str], *, headed: bool) -> tuple[int, int]:
    """Return how wide a column would be, and how narrow it can become."""
    head = len(name) if headed else 1
    wide = max((head, *map(cell_len, cells)))
    longest_word = max((head, *(cell_len(word) for cell in cells for word in cell.split())))
    if any("/" in cell for cell in cells):
        path = PATHS_WIDTH_MIN if any(" -> " in cell for cell in cells) else PATH_WIDTH_MIN
        return wide, max(head, min(longest_word, path))
    return wide, wide if wide <= SENTENCE_WIDTH_MIN else longest_word
