"""The judge is judged: every deliberate defect turns at least one test red.

``make mutation`` prints the table of what caught which.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.mutation.defects import DEFECTS, Defect
from tests.mutation.run import try_defect

DOCUMENT = Path(__file__).parents[2] / "docs/reliability.md"


def test_the_document_lists_every_defect():
    """With the promise it breaks and what catches it, in the same order."""
    _, part = DOCUMENT.read_text().split("| defect | promise | caught by |\n|---|---|---|\n")
    rows = [f"| {defect.name} | {defect.promise} | {defect.rung} |" for defect in DEFECTS]
    assert part.splitlines()[: part.splitlines().index("")] == rows


@pytest.mark.qemu
@pytest.mark.chaos
@pytest.mark.timeout(600)
@pytest.mark.parametrize("defect", DEFECTS, ids=lambda defect: defect.name)
def test_every_defect_is_caught(defect: Defect):
    """A suite that stays green with this built in would prove nothing."""
    caught = try_defect(defect)
    assert caught.red, f"{defect.name} survived: {caught.by}"
