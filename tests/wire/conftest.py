"""A misbehaving QMP server, and the ones who watch for what is left behind."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.wire.server import FakeQemu


@pytest.fixture
async def fake(tmp_path: Path) -> AsyncIterator[FakeQemu]:
    async with FakeQemu(tmp_path / "q") as server:
        yield server
