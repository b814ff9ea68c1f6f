"""The progress bar on a terminal: bytes, rate, time left, then the phases of the switch, then the pause."""

from __future__ import annotations

from types import TracebackType
from typing import Self

import rich.progress
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.text import Text

from pivotd.cli import render
from pivotd.cli.progress import BAR_INTERVAL_S, Silent
from pivotd.client import Pivot, Progress


class Bar(Silent):
    """A bar of rich."""

    interval_s = BAR_INTERVAL_S

    def __init__(self) -> None:
        self._progress = rich.progress.Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=None),
            DownloadColumn(binary_units=True),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[detail]}", markup=False),
            console=Console(stderr=True, highlight=False),
        )
        self._task: TaskID = self._progress.add_task("", total=None, detail="")

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def show(self, pivot: Pivot, progress: Progress | None) -> None:
        """Move the bar."""
        self._progress.update(
            self._task,
            description=_title(pivot, pivot.phase),
            completed=(progress and progress.copied_bytes) or 0,
            total=progress.total_bytes if progress else None,
            detail=render.one_line((progress and progress.detail) or ""),
        )

    def tell(self, message: str) -> None:
        """Print above the bar."""
        self._progress.console.print(Text(f"pivotctl: {render.one_line(message)}", style="yellow"))

    def end(self, pivot: Pivot) -> None:
        """Fill the bar after a switch, and show how long the guest was paused."""
        word = pivot.outcome or pivot.phase
        paused = "" if pivot.pause_ms is None else f"paused {render.pause(pivot.pause_ms)}"
        self._progress.update(self._task, description=_title(pivot, word), detail=paused)
        if pivot.outcome == "switched" or pivot.phase == "ready":
            total = self._progress.tasks[0].total or sum(disk.size_bytes for disk in pivot.disks)
            self._progress.update(self._task, total=total, completed=total)


def _title(pivot: Pivot, word: str) -> str:
    disks = " ".join(disk.disk for disk in pivot.disks)
    return render.text(f"{pivot.domain} {disks} {word}")
