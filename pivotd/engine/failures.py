"""Repeated failures of a driver: how long it waits, and what is reported."""

from __future__ import annotations

from pivotd import limits
from pivotd.core.pivot import Pivot
from pivotd.errors import PivotdError
from pivotd.log import get_logger

log = get_logger()


class Failures:
    """Counts consecutive failures. ``text`` is one sentence on the last one, None after a success."""

    def __init__(self) -> None:
        self.text: str | None = None
        self.in_a_row = 0

    def failed(self, error: Exception, pivot: Pivot, *, paused: bool) -> float:
        """Note a failure; return the seconds to wait before the next try. A paused guest does not wait long.

        The log gets the first failure of a series, and then each one that doubles their number.
        """
        self.in_a_row += 1
        facts = {"pivot": pivot.id, "domain": pivot.domain, "in_a_row": self.in_a_row}
        is_news = self.in_a_row & (self.in_a_row - 1) == 0
        if isinstance(error, PivotdError):
            self.text = error.message
            if is_news:
                log.error("pivot.held-up", error=self.text, **facts)
        else:
            self.text = f"an unexpected error: {error!r}"
            if is_news:
                log.exception("pivot.failed", error=self.text, **facts)
        longest_s = limits.FAILED_PAUSED_MAX_S if paused else limits.FAILED_MAX_S
        return min(limits.FAILED_FIRST_S * 2.0 ** min(self.in_a_row - 1, 16), longest_s)

    def ended(self) -> None:
        """Note a step that succeeded."""
        self.text, self.in_a_row = None, 0
