"""pivotd killed at the entry of its system calls by strace, which strikes between messages and inside of bursts.

``python -m tests.chaos.campaign --only 'killed at every send'`` walks through all of them.
"""

from __future__ import annotations

import pytest

from tests.chaos import campaign
from tests.chaos.plan import Setup
from tests.chaos.test_kill import STEP, assert_kept, first
from tests.conftest import LONG

pytestmark = [pytest.mark.qemu, pytest.mark.chaos, pytest.mark.timeout(600)]


@pytest.mark.long
def test_at_the_flushes_that_make_the_journal():
    """Killed while it makes its first journal, pivotd makes it at the next start and moves the disk."""
    assert_kept(campaign.syscall_plans(Setup(), "first flush", stride=4), struck_min=2, until_unstruck=True)


@pytest.mark.parametrize("kind", ["send", pytest.param("receive", marks=pytest.mark.long)])
def test_at_system_calls_of_the_monitor(kind: str):
    """Killed at the entry of a send or a receive: part of a burst has left, or an answer stays unread."""
    stride = {"send": 4, "receive": 11}[kind] * STEP * (2 - LONG)
    plans = first(campaign.syscall_plans(Setup(), kind, stride=stride))
    assert_kept(plans, struck_min=7 // STEP // 2, until_unstruck=True)
