"""The progress on a terminal: the bar with its percentage, then the figures; a third says what the pivot waits for."""

from __future__ import annotations

from collections.abc import Iterable
from types import TracebackType
from typing import Self

import rich.progress
from rich.console import Console, RenderableType
from rich.progress import BarColumn, TaskID, TextColumn
from rich.table import Column
from rich.text import Text

from pivotd.cli import progress as figures
from pivotd.cli import render
from pivotd.cli.progress import BAR_INTERVAL_S, Silent
from pivotd.client import Pivot, Progress

NAMES_WIDTH = 24
"""Leaves a bar of 20 columns on a terminal of 60."""


class Lines(rich.progress.Progress):
    """A bar; below it the figures, cut where the terminal ends, and a sentence."""

    figures = ""
    sentence = ""

    def get_renderables(self) -> Iterable[RenderableType]:
        """Return the lines that are not empty."""
        yield from super().get_renderables()
        if self.figures:
            yield Text(self.figures, no_wrap=True, overflow="ellipsis")
        if self.sentence:
            yield Text(self.sentence)


class Bar(Silent):
    """A bar of rich. It moves to and fro while nobody knows yet how much there is to copy."""

    interval_s = BAR_INTERVAL_S

    def __init__(self) -> None:
        names = Column(no_wrap=True, overflow="ellipsis", max_width=NAMES_WIDTH)
        self._progress = Lines(
            TextColumn("{task.description}", markup=False, table_column=names),
            TextColumn("{task.fields[word]}", markup=False, table_column=Column(no_wrap=True)),
            BarColumn(bar_width=None, table_column=Column(ratio=1)),
            TextColumn("{task.fields[share]}", markup=False, table_column=Column(no_wrap=True, min_width=5)),
            console=Console(stderr=True, highlight=False),
            expand=True,
        )
        self._task: TaskID = self._progress.add_task("", total=None, word="", share="")

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    @property
    def renderable(self) -> RenderableType:
        """What the terminal gets now."""
        return self._progress.get_renderable()

    def show(self, pivot: Pivot, progress: Progress | None) -> None:
        """Move the bar."""
        share = figures.percent(progress)
        self._move(pivot, pivot.phase, share, "" if share is None else f"{share} %")
        self._progress.figures = figures.figures(progress)
        reason = figures.reason(progress)
        self._progress.sentence = "" if reason is None else render.one_line(reason)

    def tell(self, message: str) -> None:
        """Print above the bar."""
        self._progress.console.print(Text(f"pivotctl: {render.one_line(message)}", style="yellow"))

    def end(self, pivot: Pivot) -> None:
        """Fill the bar after a switch, and show how long the guest was paused."""
        full = pivot.outcome == "switched" or pivot.phase == "ready"
        self._move(pivot, pivot.outcome or pivot.phase, 100 if full else None, "100 %" if full else "")
        self._progress.figures = "" if pivot.pause_ms is None else f"paused {render.pause(pivot.pause_ms)}"
        self._progress.sentence = ""

    def _move(self, pivot: Pivot, word: str, share: int | None, text: str) -> None:
        names = render.text(f"{pivot.domain} {' '.join(disk.disk for disk in pivot.disks)}")
        total = None if share is None else 100
        self._progress.update(self._task, description=names, word=word, share=text, completed=share or 0, total=total)
