"""How several pivots are shown: lines, a live table on a terminal, nothing with --json; the ends on stdout."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from pivotd.cli import context, progress, render
from pivotd.cli.context import App
from pivotd.cli.progress import LINE_EVERY_S, LINES_INTERVAL_S
from pivotd.cli.several_running import Running, Totals
from pivotd.cli.waiting import print_rest
from pivotd.client import Pivot


def several_display(app: App) -> Shown:
    """Return the display that suits stderr."""
    if not app.for_people or sys.stderr is None:
        return Shown(app)
    if sys.stderr.isatty():
        from pivotd.cli.several_table import Table  # noqa: PLC0415 - rich costs 30 ms

        return Table(app)
    return Lines(app)


class Shown:
    """Prints ends and problems only, as a context manager; nothing that the document at the end will say."""

    interval_s = 5.0
    """How often to show what runs."""

    def __init__(self, app: App) -> None:
        self._app = app

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing to end."""

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Print something between what is shown."""
        yield

    def tell(self, message: str) -> None:
        """Say that the daemon is away, and that it is back."""
        with self.aside():
            context.tell(message)

    def show(self, running: Sequence[Running], totals: Totals) -> None:
        """Show nothing."""

    def rested(self, pivot: Pivot) -> None:
        """Print the end of one pivot."""
        with self.aside():
            print_rest(self._app, pivot)
            sys.stdout.flush()


class Lines(Shown):
    """A line for each phase of each pivot, and periodically one for the bytes and one for the sum."""

    interval_s = LINES_INTERVAL_S

    def __init__(self, app: App) -> None:
        super().__init__(app)
        self._displays: dict[str, progress.Lines] = {}
        self._at = time.monotonic()

    def show(self, running: Sequence[Running], totals: Totals) -> None:
        """Print what is new."""
        for one in running:
            self._displays.setdefault(one.pivot.id, progress.Lines(one.domain)).show(one.pivot, one.progress)
        now = time.monotonic()
        if totals.pivots > 1 and running and now >= self._at + LINE_EVERY_S:
            self._at = now
            print(f"all: {summary(totals)}", file=sys.stderr, flush=True)


def summary(totals: Totals) -> str:
    """Return all pivots together in one line."""
    left = totals.total_bytes - totals.copied_bytes
    rate = totals.bytes_per_s
    parts = [
        f"{totals.ended} of {totals.pivots} ended",
        f"{totals.failed} failed" if totals.failed else None,
        f"{render.size(totals.copied_bytes)} of {render.size(totals.total_bytes)}",
        f"{render.mib(rate)}/s" if rate else None,
        f"{render.duration(left / rate)} left" if rate and left > 0 else None,
    ]
    return ", ".join(part for part in parts if part)
