"""Copies whose destination fails and comes back: on real QEMU, on a disk whose faults the test sets."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from pivotd.core.words import Outcome, Phase
from pivotd.engine.driver import Driver
from pivotd.journal.reader import Reader
from tests.conftest import QemuFactory
from tests.disk.disk import Disk as Storage
from tests.disk.server import Fault
from tests.support.qemu import Disk, Qemu, create_image

from .conftest import Engine
from .test_copy import assert_clean, content, write

pytestmark = pytest.mark.qemu

FULL_BYTES = 24 << 20
TIMEOUT_S = 20.0


@pytest.fixture
def storage(tmp_path: Path) -> Iterator[Storage]:
    with Storage(tmp_path / "new") as storage:
        yield storage


def filled(tmp_path: Path, name: str = "old.qcow2") -> Path:
    """Return an image that holds FULL_BYTES."""
    image = create_image(tmp_path / name)
    with image.with_suffix(".fill").open("wb") as file:
        file.write(b"\x11" * FULL_BYTES)
    import subprocess

    subprocess.run(["qemu-io", "-c", f"write -q -P 17 0 {FULL_BYTES}", str(image)], check=True)
    return image


async def until(driver: Driver, words: str) -> None:
    """Wait until the pivot waits for what these words say."""
    async with asyncio.timeout(TIMEOUT_S):
        while words not in driver.waits_for:
            await asyncio.sleep(0.01)


def facts(engine: Engine, driver: Driver, event: str) -> list[dict[str, object]]:
    """Return the facts of every record of this event."""
    reader = Reader.attach(engine.state_dir)
    try:
        return [record.facts for record in reader.records(driver.pivot.id) if record.event == event]
    finally:
        reader.close()


@pytest.mark.parametrize("image_format", ["qcow2", "raw"])
@pytest.mark.parametrize(("how", "words"), [("enospc", "is full"), ("eio", "fails")])
async def test_copy_goes_on_where_it_was(
    engine: Engine, qemu_factory: QemuFactory, storage: Storage, tmp_path: Path, image_format: str, how: str, words: str
):
    """The destination fails in the middle, the guest writes on undisturbed, nothing is copied twice, all data arrives."""
    source, destination = filled(tmp_path), storage.where / "new"
    qemu = qemu_factory([Disk(source)])
    await engine.connect(qemu)
    storage.fail(Fault("write", 20, how, lasting=True))
    driver = await engine.copy("web1", {"disk0": destination}, image_format, resumable=True)
    await until(driver, words)
    write(qemu, "disk0", 7)
    assert qemu.run_state() == "running"
    storage.fail()
    pivot = await engine.closed(driver)
    assert pivot.outcome == Outcome.SWITCHED, pivot.error
    (interrupted,), (went_on,) = facts(engine, driver, "interrupted"), facts(engine, driver, "went-on")
    print(interrupted, went_on, pivot.pauses)
    assert 0 < went_on["saved_bytes"] == interrupted["copied_bytes"]
    before = content(source, "qcow2")
    assert_clean(qemu)
    assert content(destination, image_format) == before
