"""Fixtures for what other people and guests do while a disk is being moved."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pivotd.qmp.session import Session
from tests.conftest import QemuFactory
from tests.engine.conftest import Engine, engine
from tests.ported_cases.fixture import Bed

__all__ = ["bed", "engine"]


@pytest.fixture
def bed(engine: Engine, qemu_factory: QemuFactory, tmp_path: Path) -> Bed:
    return Bed(engine, qemu_factory, tmp_path)


class Moment:
    """Does one thing, once: between ``intent`` and stop, when ``stopped``, ``pending`` the switch, or ``switched``."""

    def __init__(self, point: str) -> None:
        self.point = point
        self.what: Callable[[], object] | None = None
        self.done = False

    async def come(self, point: str) -> None:
        """Called by every pause as it comes to a point."""
        if point == self.point and self.what is not None and not self.done:
            self.done = True
            await asyncio.to_thread(self.what)


@pytest.fixture
def moment(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Moment]:
    """Return how to make a Moment; the session's own commands are the points, and reach a real QEMU as ever."""

    def make(point: str) -> Moment:
        moment = Moment(point)
        for name, before, after in (
            ("stop", "intent", "stopped"), ("finalize", "pending", "switched"), ("snapshot", "pending", "switched")
        ):  # fmt: skip
            monkeypatch.setattr(Session, name, _around(getattr(Session, name), moment, before, after))
        return moment

    return make


def _around(method: Any, moment: Moment, before: str, after: str) -> Any:
    async def wrapped(self: Session, *arguments: Any, **options: Any) -> Any:
        await moment.come(before)
        result = await method(self, *arguments, **options)
        await moment.come(after)
        return result

    return wrapped
