"""The progress of a pivot, on stderr: a bar on a terminal, plain lines elsewhere, nothing with --json."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Self

from pivotd.cli import context, render
from pivotd.cli.context import App
from pivotd.client import Pivot, Progress

BAR_INTERVAL_S = 0.1
LINES_INTERVAL_S = 2.0
LINE_EVERY_S = 10.0
"""A copy that takes hours must not fill a log; a change of phase is printed at once."""


def display_for(app: App) -> Silent:
    """Return the display that suits stderr."""
    if sys.stderr is None:
        return Silent()
    if app.json:
        return Silent()
    if sys.stderr.isatty():
        from pivotd.cli.bar import Bar  # noqa: PLC0415 - rich costs 30 ms

        return Bar()
    return Lines()


class Silent:
    """Shows one pivot while pivotctl waits for it, as a context manager; this class prints only problems."""

    interval_s = 60.0
    """How often to show."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing to end."""

    def show(self, pivot: Pivot, progress: Progress | None) -> None:
        """Show nothing."""

    def tell(self, message: str) -> None:
        """Say it."""
        context.tell(message)

    def end(self, pivot: Pivot) -> None:
        """Show nothing."""


class Lines(Silent):
    """One line for each phase, and periodically one for the bytes."""

    interval_s = LINES_INTERVAL_S

    def __init__(self) -> None:
        self._said = ""
        self._phase = ""
        self._at = 0.0

    def show(self, pivot: Pivot, progress: Progress | None) -> None:
        """Print a line if the phase is new, or the last line is old and another one would differ."""
        line = describe(pivot, progress)
        now = time.monotonic()
        if line == self._said or (pivot.phase == self._phase and now < self._at + LINE_EVERY_S):
            return
        self._said, self._phase, self._at = line, pivot.phase, now
        print(f"pivot {pivot.id}: {line}", file=sys.stderr, flush=True)


def describe(pivot: Pivot, progress: Progress | None) -> str:
    """Return the phase, the bytes and the reason for waiting, in one line."""
    parts = [pivot.phase, copied(progress), *rates(progress), progress and progress.detail]
    return render.one_line(", ".join(str(part) for part in parts if part))


def copied(progress: Progress | None) -> str | None:
    """Return how much is copied, None if that is not known."""
    if progress is None or progress.copied_bytes is None or not progress.total_bytes:
        return None
    done, total = progress.copied_bytes, progress.total_bytes
    return f"{render.size(done)} of {render.size(total)} ({100 * done // total} %)"


def rates(progress: Progress | None) -> list[str]:
    """Return the measured rates: the guest's writes, the destination's, and the expected pause."""
    if progress is None:
        return []
    written, taken, pause_ms = progress.dirty_bytes_per_s, progress.copy_bytes_per_s, progress.expected_pause_ms
    return [
        *([] if written is None else [f"the guest writes {render.size(written)}/s"]),
        *([] if taken is None else [f"the destination takes {render.size(taken)}/s"]),
        *([] if pause_ms is None else [f"expected pause {render.pause(pause_ms)}"]),
    ]
