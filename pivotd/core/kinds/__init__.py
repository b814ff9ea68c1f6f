"""What differs between the kinds of pivot, one file for each kind. Pure.

docs/adding-a-kind.md lists every file that a new kind touches.
"""

from __future__ import annotations

from pivotd.core.kinds.commit import COMMIT
from pivotd.core.kinds.copy import COPY
from pivotd.core.kinds.kind_rules import KindRules
from pivotd.core.kinds.pull import PULL
from pivotd.core.kinds.snapshot import SNAPSHOT
from pivotd.core.pivot import Pivot
from pivotd.core.request import Kind

KINDS: dict[Kind, KindRules] = {Kind.COPY: COPY, Kind.COMMIT: COMMIT, Kind.PULL: PULL, Kind.SNAPSHOT: SNAPSHOT}


def of(pivot: Pivot) -> KindRules:
    """Return the rules of the pivot's kind."""
    return KINDS[pivot.kind]
