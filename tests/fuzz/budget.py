"""How much is tried, and from which seed: PIVOTD_FUZZ multiplies the examples, PIVOTD_SEED repeats a run."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import seed as with_seed

from tests.support.seeds import seed

FACTOR = float(os.environ.get("PIVOTD_FUZZ", "1"))
SEED = seed()


def examples(number: int) -> int:
    """Return how many of a number planned for CI are wanted."""
    return max(1, round(number * FACTOR))


def fuzz(number: int) -> Callable[[Any], Any]:
    """Make a hypothesis test of so many examples; it shows its seed when it fails."""

    def decorate(test: Any) -> Any:
        configured = settings(
            max_examples=examples(number),
            deadline=None,
            database=None,
            print_blob=True,
            suppress_health_check=list(HealthCheck),
        )(test)
        return with_seed(SEED)(configured)

    return decorate
