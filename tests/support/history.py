"""Verdicts from all of history: what the last pivot of each disk, as the journal keeps it at hand, has to agree with."""

from __future__ import annotations

from collections.abc import Iterable

from pivotd.core.pivot import Pivot
from pivotd.core.verdict import Verdict, of_pivot


def verdicts(pivots: Iterable[Pivot]) -> list[Verdict]:
    """Return one verdict for each (domain, disk), sorted, from pivots given newest first. Needs nothing but these."""
    last: dict[tuple[str, str], Verdict] = {}
    for pivot in pivots:
        for disk in pivot.disks:
            last.setdefault((pivot.domain, disk.disk), of_pivot(pivot, disk))
    return [last[key] for key in sorted(last)]
