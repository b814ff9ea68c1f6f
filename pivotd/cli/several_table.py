"""Several pivots on a terminal: a line with a bar for each that runs, and the sum below."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Column
from rich.table import Table as Grid
from rich.text import Text

from pivotd.cli import progress, render
from pivotd.cli.context import App
from pivotd.cli.progress import BAR_INTERVAL_S
from pivotd.cli.several_display import Shown, summary
from pivotd.cli.several_running import Running, Totals

NAMES_WIDTH = 24
BELOW_LINES = 3
"""The sum, the line on what is not shown, and the cursor."""


class Table(Shown):
    """A live table. It makes room for what is printed, and is gone at the end."""

    interval_s = BAR_INTERVAL_S * 3

    def __init__(self, app: App, console: Console | None = None) -> None:
        super().__init__(app)
        self._console = console or Console(stderr=True, highlight=False)
        self._shown: RenderableType = Text("")
        self._live = self._new()

    def _new(self) -> Live:
        return Live(
            self._shown,
            console=self._console,
            transient=True,
            auto_refresh=False,
            redirect_stdout=False,
            redirect_stderr=False,
        )

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Take the table away, so that lines above it are whole: a path stays in one piece for who copies it."""
        self._live.stop()
        try:
            yield
        finally:
            self._live = self._new()
            self._live.start()

    def show(self, running: Sequence[Running], totals: Totals) -> None:
        """Draw the table again."""
        self._shown = self.table(running, totals)
        self._live.update(self._shown, refresh=True)

    def table(self, running: Sequence[Running], totals: Totals) -> RenderableType:
        """Return what the terminal gets; what does not fit its height is counted."""
        room = max(1, self._console.size.height - BELOW_LINES)
        grid = Grid.grid(
            Column(no_wrap=True, overflow="ellipsis", max_width=NAMES_WIDTH),
            Column(ratio=1, min_width=8),
            Column(no_wrap=True, min_width=5, justify="right"),
            Column(no_wrap=True, overflow="ellipsis", max_width=max(16, self._console.size.width // 2)),
            padding=(0, 1, 0, 0),
            expand=True,
        )
        for one in running[:room]:
            share = progress.percent(one.progress)
            grid.add_row(
                Text(render.text(one.domain)),
                ProgressBar(total=100, completed=share or 0, pulse=share is None and one.copies),
                "" if share is None else f"{share} %",
                Text(_state(one)),
            )
        lines: list[RenderableType] = [grid]
        if len(running) > room:
            lines.append(Text(f"and {len(running) - room} more"))
        lines.append(Text(summary(totals), no_wrap=True, overflow="ellipsis", style="bold"))
        return Group(*lines)


def _state(one: Running) -> str:
    """Return the rate and the time left while it copies, what it waits for if anything, else the phase."""
    known = one.progress
    if (reason := progress.reason(known)) is not None:
        return render.one_line(reason)
    rate = None if known is None or known.copy_bytes_per_s is None else f"{render.mib(known.copy_bytes_per_s)}/s"
    parts = [rate, progress.time_left(known)] if one.pivot.phase == "copying" else []
    return ", ".join(part for part in parts if part) or one.pivot.phase
