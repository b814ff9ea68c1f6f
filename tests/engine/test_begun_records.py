"""A record that a driver begins beside a call is on disk before its next one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import pytest

from pivotd.engine.driver_state import DriverState
from pivotd.errors import PhaseConflictError
from pivotd.journal.journal import Journal
from pivotd.journal.reader import Reader
from tests.journal.samples import make_pivot

NONE = cast("Any", None)


@pytest.fixture
async def state(tmp_path: Path) -> AsyncIterator[DriverState]:
    """The state of a driver, with a journal and nothing else."""
    journal = Journal.open(tmp_path)
    pivot, _ = await journal.accept(make_pivot(1), {})
    yield DriverState(pivot, NONE, journal, NONE, NONE)
    await journal.close()


async def test_the_next_record_waits_for_it(state: DriverState, tmp_path: Path):
    """In their order, and with the changes of both."""
    state.begin_record("asking", {}, asking=True)
    assert not state.pivot.asking
    await state.record("wrong", {}, error="why")
    assert (state.pivot.asking, state.pivot.error) == (True, "why")
    assert state.pivot == await state.journal.read(state.pivot.id)
    reader = Reader.attach(tmp_path / "journal.db")
    assert [record.event for record in reader.events(0)] == ["accepted", "asking", "wrong"]
    reader.close()


async def test_it_is_on_disk_once_it_was_waited_for(state: DriverState):
    state.begin_record("asking", {}, asking=True)
    await state.finish_record()
    assert (await state.journal.read(state.pivot.id)).asking
    await state.finish_record()


async def test_whoever_waits_for_it_learns_that_it_failed(state: DriverState):
    """The record after it is not written either; then the driver reads the journal again."""
    other = DriverState(state.pivot, NONE, state.journal, NONE, NONE)
    await other.record("first", {}, error="theirs")
    state.begin_record("asking", {}, asking=True)
    with pytest.raises(PhaseConflictError):
        await state.record("second", {}, error="ours")
    state.read_again(await state.journal.read(state.pivot.id))
    await state.record("third", {}, error="ours")
    assert (state.pivot.asking, state.pivot.error) == (False, "ours")
