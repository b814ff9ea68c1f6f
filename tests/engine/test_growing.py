"""A disk can be grown after a move as before it, whatever it has moved to."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from pivotd.core.pivot import Outcome, Pivot
from pivotd.core.request import Kind, Target
from pivotd.errors import QmpUnknownError
from pivotd.qmp.session import Session
from tests.conftest import QemuFactory
from tests.support.loop_devices import LoopDevice
from tests.support.qemu import Disk, Qemu, create_image

from .conftest import Engine
from .test_bitmaps_layers import overlays

pytestmark = pytest.mark.qemu
MIB = 1 << 20


def size(qemu: Qemu, disk: str) -> int:
    """Return how large QEMU shows a disk."""
    inserted = next(e for e in qemu.spy("query-block") if disk in e["qdev"])["inserted"]
    return int(inserted["image"]["virtual-size"])


def grow(qemu: Qemu, disk: str, size_bytes: int) -> int:
    qemu.spy("block_resize", node_name=qemu.root(disk).node, size=size_bytes)
    return size(qemu, disk)


async def copied(engine: Engine, *targets: Target, **options: Any) -> Pivot:
    pivot = await engine.closed(await engine.start(Kind.COPY, "web1", *targets, **options))
    assert pivot.outcome == Outcome.SWITCHED, pivot.error
    return pivot


async def test_an_image_that_was_larger_than_the_disk(
    engine: Engine, qemu_factory: QemuFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A file is cut to the disk's size. A device has the disk's size during the pivot, and its own after it.

    pivotd is interrupted once in the clean-up in which the size is lifted.
    """
    with ExitStack() as stack:
        disks = [Disk(create_image(tmp_path / f"old{i}.qcow2", size="8M")) for i in range(2)]
        qemu = qemu_factory(disks)
        await engine.connect(qemu)
        file, backing = tmp_path / "large.raw", tmp_path / "device.raw"
        for path in (file, backing):
            path.write_bytes(b"x" * 12 * MIB)
        device = stack.enter_context(LoopDevice(backing))
        driver = await engine.start(
            Kind.COPY, "web1", *(Target(f"disk{i}", str(path), "raw") for i, path in enumerate((file, device))),
            reuse=True, pivot=False,
        )  # fmt: skip
        await engine.resting(driver)
        assert file.stat().st_size == 8 * MIB
        clean_up, tries = Session.clean_up, []

        async def interrupted(session: Session, pivot: Pivot) -> list[str]:
            tries.append(pivot.id)
            if len(tries) == 1:
                raise QmpUnknownError("the connection was lost")
            return await clean_up(session, pivot)

        monkeypatch.setattr(Session, "clean_up", interrupted)
        await driver.complete(driver.pivot.requested_by)
        assert (await engine.closed(driver)).outcome == Outcome.SWITCHED
        assert [qemu.root(f"disk{i}").filename for i in range(2)] == [str(file), str(device)]
        assert size(qemu, "disk0") == 8 * MIB
        assert grow(qemu, "disk0", 10 * MIB) == 10 * MIB
        assert grow(qemu, "disk1", 10 * MIB) == 12 * MIB
        qemu.stop()


async def test_a_new_image_and_a_base(engine: Engine, qemu_factory: QemuFactory, tmp_path: Path):
    """Copied to qcow2 and to raw, and committed into a base, of -blockdev and of -drive."""
    (tmp_path / "a").mkdir()
    chains = [overlays(tmp_path, "base", "top"), overlays(tmp_path / "a", "base", "top")]
    disks = [Disk(create_image(tmp_path / f"old{i}.qcow2")) for i in range(2)]
    disks += [Disk(chains[0][-1]), Disk(chains[1][-1], legacy=True)]
    qemu = qemu_factory(disks)
    await engine.connect(qemu)
    await copied(engine, Target("disk0", str(tmp_path / "new.qcow2")), Target("disk1", str(tmp_path / "n.raw"), "raw"))
    pivot = await engine.closed(await engine.start(Kind.COMMIT, "web1", Target("disk2"), Target("disk3")))
    assert pivot.outcome == Outcome.SWITCHED, pivot.error
    assert [grow(qemu, f"disk{i}", 80 * MIB) for i in range(4)] == [80 * MIB] * 4
