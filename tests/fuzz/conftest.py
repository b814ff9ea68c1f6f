"""Every test of this directory shows the seed that repeats it."""

from __future__ import annotations

import pytest

from tests.fuzz.budget import FACTOR, SEED


@pytest.fixture(autouse=True)
def shown_seed() -> None:
    print(f"PIVOTD_SEED={SEED} PIVOTD_FUZZ={FACTOR:g}")  # noqa: T201 - shown by pytest when the test fails
