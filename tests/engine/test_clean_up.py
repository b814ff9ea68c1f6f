"""Clean-up that was cut short is finished by the next one."""

from __future__ import annotations

from pathlib import Path

import pytest

from pivotd.core import names
from pivotd.core.pivot import Outcome
from tests.conftest import QemuFactory
from tests.support.qemu import Disk, create_image

from .conftest import Engine
from .test_copy import assert_clean

pytestmark = pytest.mark.qemu


async def test_the_file_of_an_image_that_pivotd_opened_goes_also_without_its_node(
    engine: Engine, qemu_factory: QemuFactory, tmp_path: Path
):
    """A disk that moves on: its image has two nodes, and a kill can come between their ends."""
    qemu = qemu_factory([Disk(create_image(tmp_path / "old.qcow2"))])
    await engine.connect(qemu)
    first = await engine.closed(await engine.copy("web1", {"disk0": tmp_path / "one.qcow2"}))
    second = await engine.closed(await engine.copy("web1", {"disk0": tmp_path / "two.qcow2"}))
    assert second.outcome == Outcome.SWITCHED
    file = {"driver": "file", "filename": str(tmp_path / "one.qcow2"), "node-name": names.file_node(first.id, 0)}
    qemu.spy("blockdev-add", file)
    session = engine.host.get("web1").session
    assert session is not None
    assert await session.clean_up(second) == []
    assert_clean(qemu)
