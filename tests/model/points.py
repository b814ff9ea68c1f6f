"""The points at which a model world may take another turn, and the words that its parts share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

from pivotd.core.pivot import JsonObject, Pivot

PIVOTD, OTHER, GUEST = "pivotd", "other", "guest"
QUIET = frozenset({"query-block-jobs", "x-debug-query-block-graph", "qom-list", "query-migrate", "query-chardev"})
"""Queries before which nothing is tried: it would be the same as before the next one."""
SOMEBODY = "somebody else:"
START_S = 1000.0
FOREIGN_PID = 200
CHANGING = frozenset({
    "stop", "cont", "system_reset", "device_del", "job-complete", "job-finalize", "job-cancel", "block-job-cancel",
    "job-dismiss", "blockdev-mirror", "blockdev-add", "blockdev-del", "blockdev-create", "object-add", "object-del",
    "block-commit", "block-stream", "blockdev-snapshot", "transaction",
})  # fmt: skip
"""Commands that change something; around each of them anything may happen."""


class Died(BaseException):
    """pivotd's process ends here; no code of its own may catch this."""


class Alternative(NamedTuple):
    """One thing that may happen: act(*arguments). ``crashes`` and ``faults`` are what it costs."""

    label: str
    act: Callable[..., object]
    arguments: tuple[Any, ...] = ()
    crashes: int = 0
    faults: int = 1

    def __str__(self) -> str:
        return " ".join([self.label, *(str(argument) for argument in self.arguments if isinstance(argument, str))])


def nothing() -> None:
    """The alternative is that something does not happen."""


def canonical(pivot: Pivot) -> Pivot:
    """Return the pivot without what no decision looks at."""
    return replace(pivot, revision=0, pauses=(), pausing_since=None, error=None, decided_at=None, closed_at=None)


def short(arguments: JsonObject) -> str:
    return " ".join(str(value)[-4:] if len(str(value)) > 12 else str(value) for value in arguments.values())
