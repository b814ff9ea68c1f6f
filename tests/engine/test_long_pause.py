"""A guest that stays paused, until a person helps, keeps nothing else from going on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest

from pivotd.core.pivot import Identity
from pivotd.daemon import SystemClock
from pivotd.engine.converge import Converger
from pivotd.engine.driver_state import DriverState
from pivotd.engine.ports import Domain
from pivotd.host.flush import Flusher
from pivotd.journal.journal import Journal
from tests.journal.samples import make_pivot


class Window:
    """Of a domain, a state needs only the queue of its pauses here."""

    def __init__(self) -> None:
        self.window = asyncio.Lock()
        self.pause = asyncio.Lock()

    def pause_of(self, _identity: Identity) -> asyncio.Lock:
        return self.pause


@pytest.fixture
async def journal(tmp_path: Path) -> AsyncIterator[Journal]:
    opened = Journal.open(tmp_path)
    yield opened
    await opened.close()


@pytest.mark.parametrize("waiting", ["wait", "ask_again", "back_off"])
async def test_checkpoints_are_held_in_the_first_max_pause_only(journal: Journal, waiting: str):
    """Else the WAL would grow, and readers wait, as long as nobody comes."""
    pivot = make_pivot(1)
    pivot = replace(pivot, options=replace(pivot.options, max_pause_ms=20))
    clock = SystemClock()
    state = DriverState(pivot, cast("Domain", Window()), journal, clock, Converger(Flusher(), clock))
    await state.enter_window()
    assert journal.guest_paused
    for _ in range(3):
        await getattr(state, waiting)(*((0.03,) if waiting == "back_off" else ("libvirtd is away",)))
        state.inbox.woken.set()
    assert not journal.guest_paused
    state.leave_window()
    await state.enter_window()
    assert journal.guest_paused
    state.leave_window()
    assert not journal.guest_paused
