"""Where every random choice of the tests begins: a fixed seed in `make test`, a drawn one in the campaigns.

PIVOTD_SEED takes back what a campaign has printed. Nothing else in the tests may draw: test_determinism.py looks.
"""

from __future__ import annotations

import os
import random

FIXED = 20261125


def seed() -> int:
    """Return PIVOTD_SEED or the fixed seed, and print it: pytest shows it when the test fails."""
    chosen = _asked() or FIXED
    print(f"PIVOTD_SEED={chosen}", flush=True)  # noqa: T201
    return chosen


def rng(*parts: object) -> random.Random:
    """Return a source of random choices of its own for what ``parts`` name, whichever tests ran before."""
    return random.Random("/".join(map(str, (seed(), *parts))))


def drawn(asked: int = 0, *, bits: int = 32) -> int:
    """Return the seed of a campaign: ``asked``, else PIVOTD_SEED, else one drawn now; and print it."""
    chosen = asked or _asked() or random.SystemRandom().randrange(1, 1 << bits)
    print(f"seed {chosen}", flush=True)  # noqa: T201
    return chosen


def _asked() -> int:
    return int(os.environ.get("PIVOTD_SEED") or 0)
