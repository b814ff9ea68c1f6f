"""Clean-up that was cut short is finished by the next one."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from pivotd import limits
from pivotd.core import names
from pivotd.core.pivot import Outcome, Phase
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


async def test_guests_in_their_pauses_come_before_what_others_have_left(
    engine: Engine, qemu_factory: QemuFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The guest runs, and its jobs and nodes stay until no other one is paused."""
    monkeypatch.setattr(limits, "CLEAN_UP_HELD_BACK_S", 60.0)
    qemu = qemu_factory([Disk(create_image(tmp_path / "old.qcow2"))])
    await engine.connect(qemu)
    engine.journal.hold_checkpoints()  # as in the pause of another guest
    driver = await engine.copy("web1", {"disk0": tmp_path / "new.qcow2"})
    await engine.until(driver, lambda pivot: pivot.phase is Phase.DECIDED and not pivot.owes_resume)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(engine.closed(driver), 0.3)
    assert qemu.run_state() == "running"
    assert driver.pivot.disks[0].job in qemu.jobs()
    engine.journal.release_checkpoints()
    assert (await engine.closed(driver)).outcome == Outcome.SWITCHED
    assert_clean(qemu)


async def test_a_guest_that_stays_paused_keeps_no_job_and_node_for_ever(
    engine: Engine, qemu_factory: QemuFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Its storage may hang."""
    monkeypatch.setattr(limits, "CLEAN_UP_HELD_BACK_S", 0.2)
    qemu = qemu_factory([Disk(create_image(tmp_path / "old.qcow2"))])
    await engine.connect(qemu)
    engine.journal.hold_checkpoints()
    await engine.closed(await engine.copy("web1", {"disk0": tmp_path / "new.qcow2"}))
    engine.journal.release_checkpoints()
    assert_clean(qemu)
