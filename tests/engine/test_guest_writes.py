"""The count of a guest's writes waits behind the call that pauses it, and counts for that pause alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

import pytest

from pivotd.core.pivot import Pivot
from pivotd.core.request import Manager
from pivotd.engine import guest_writes
from pivotd.engine.driver_state import DriverState
from pivotd.errors import QmpUnknownError
from tests.journal.samples import make_pivot

NONE = cast("Any", None)


class Guest:
    """A session that counts how often it was asked."""

    def __init__(self) -> None:
        self.asked = 0
        self.silent = False

    async def writes(self, pivot: Pivot) -> Mapping[str, tuple[int, int]]:
        self.asked += 1
        if self.silent:
            raise QmpUnknownError("no answer")
        return {pivot.disks[0].qdev: (0, self.asked)}


@pytest.fixture
def state() -> DriverState:
    """The state of the driver of a guest of libvirt's."""
    return DriverState(replace(make_pivot(1), manager=Manager.LIBVIRT), NONE, NONE, NONE, NONE)


async def test_it_is_asked_for_once_in_a_pause_and_anew_after_that(state: DriverState):
    """A count of an earlier pause would be lower than need be, and no disk would be taken back."""
    guest: Any = Guest()
    disk = state.pivot.disks[0].disk
    guest_writes.begin(state, guest)
    assert await guest_writes.counted(state, guest) == ((disk, 1),)
    assert await guest_writes.counted(state, guest) == ((disk, 2),)
    guest_writes.begin(state, guest)
    guest_writes.begin(state, guest)
    assert await guest_writes.counted(state, guest) == ((disk, 4),)


async def test_no_answer_is_told_where_the_count_is_needed(state: DriverState):
    """Not while the guest is being paused; the next one is asked for then."""
    guest: Any = Guest()
    guest.silent = True
    guest_writes.begin(state, guest)
    with pytest.raises(QmpUnknownError):
        await guest_writes.counted(state, guest)
    guest.silent = False
    assert (await guest_writes.counted(state, guest))[0][1] == 2


async def test_nothing_is_counted_where_nothing_is_switched(state: DriverState):
    """Of an abort, and of a guest that pivotd stops by itself: the pause would be longer."""
    guest: Any = Guest()
    options = replace(state.pivot.options, abort=True)
    for pivot in (replace(state.pivot, options=options), replace(state.pivot, manager=Manager.PIVOTD)):
        state.pivot = pivot
        guest_writes.begin(state, guest)
        assert state.counting is None
    assert guest.asked == 0
