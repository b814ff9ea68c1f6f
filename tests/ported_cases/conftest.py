"""Fixtures for the cases that other projects test."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import QemuFactory
from tests.engine.conftest import Engine, engine
from tests.ported_cases.fixture import Bed

__all__ = ["bed", "engine"]


@pytest.fixture
def bed(engine: Engine, qemu_factory: QemuFactory, tmp_path: Path) -> Bed:
    return Bed(engine, qemu_factory, tmp_path)
