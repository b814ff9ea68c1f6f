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
    if not app.for_people:
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
    """One line for each phase, and periodically one for the bytes. ``domain`` stands before each of several."""

    interval_s = LINES_INTERVAL_S

    def __init__(self, domain: str | None = None) -> None:
        self._about = "" if domain is None else f"{render.text(domain)}: "
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
        print(f"{self._about}pivot {pivot.id}: {line}", file=sys.stderr, flush=True)


def describe(pivot: Pivot, progress: Progress | None) -> str:
    """Return the phase, the bytes and the reason for waiting, in one line."""
    parts = [pivot.phase, copied(progress), time_left(progress), *rates(progress), reason(progress)]
    return render.one_line(", ".join(part for part in parts if part))


def figures(progress: Progress | None) -> str:
    """Return the same in few words, the most wanted first: a terminal may be narrow."""
    if progress is None:
        return ""
    done, total, taken = progress.copied_bytes, progress.total_bytes, progress.copy_bytes_per_s
    written, pause_ms = progress.dirty_bytes_per_s, progress.expected_pause_ms
    parts = [
        None if done is None or not total else f"{render.mib(done).removesuffix(' MiB')} of {render.mib(total)}",
        None if taken is None else f"{render.mib(taken)}/s",
        time_left(progress),
        f"guest writes {render.mib(written)}/s" if written else None,
        None if pause_ms is None else f"expected pause {render.pause(pause_ms)}",
    ]
    return ", ".join(part for part in parts if part)


def reason(progress: Progress | None) -> str | None:
    """Return what the pivot waits for, None if that is the copy itself."""
    said = None if progress is None else progress.detail
    return None if said in {"copying", "merging"} else said


def time_left(progress: Progress | None) -> str | None:
    """Return the time left in words."""
    left_s = None if progress is None else time_left_s(progress)
    return None if left_s is None else f"{render.duration(left_s)} left"


def percent(progress: Progress | None) -> int | None:
    """Return how much of what there is to copy has been copied; 100 only if nothing is left, None if not known."""
    if progress is None or progress.copied_bytes is None or not progress.total_bytes:
        return None
    return min(100, 100 * progress.copied_bytes // progress.total_bytes)


def time_left_s(progress: Progress) -> float | None:
    """Return how long the copy will take at the present rates; None while that is not known, or nothing is left."""
    left, taken, written = progress.backlog_bytes, progress.copy_bytes_per_s, progress.dirty_bytes_per_s or 0
    if progress.phase != "copying" or not left or not taken or taken <= written:
        return None
    return left / (taken - written)


def copied(progress: Progress | None) -> str | None:
    """Return how much is copied, None if that is not known."""
    share = percent(progress)
    if progress is None or progress.copied_bytes is None or progress.total_bytes is None or share is None:
        return None
    return f"{render.mib(progress.copied_bytes)} of {render.mib(progress.total_bytes)} ({share} %)"


def rates(progress: Progress | None) -> list[str]:
    """Return the measured rates: the guest's writes, the destination's, and the expected pause."""
    if progress is None:
        return []
    written, taken, pause_ms = progress.dirty_bytes_per_s, progress.copy_bytes_per_s, progress.expected_pause_ms
    return [
        *([] if written is None else [f"the guest writes {render.mib(written)}/s"]),
        *([] if taken is None else [f"the destination takes {render.mib(taken)}/s"]),
        *([] if pause_ms is None else [f"expected pause {render.pause(pause_ms)}"]),
    ]
