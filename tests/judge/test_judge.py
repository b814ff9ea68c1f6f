"""The judge is judged: every deliberate defect turns at least one test red.

``make judge`` prints the table of what caught which.
"""

from __future__ import annotations

import pytest

from tests.judge.defects import DEFECTS, Defect
from tests.judge.run import judge

pytestmark = [pytest.mark.qemu, pytest.mark.chaos, pytest.mark.timeout(600)]


@pytest.mark.parametrize("defect", DEFECTS, ids=lambda defect: defect.name)
def test_every_defect_is_caught(defect: Defect):
    """A suite that stays green with this built in would prove nothing."""
    caught = judge(defect)
    assert caught.red, f"{defect.name} survived: {caught.by}"
