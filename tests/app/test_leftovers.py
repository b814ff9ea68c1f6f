"""What pivotd has opened does not stay open, and locked, when its disk is gone; and nothing else is touched."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from pivotd import limits
from pivotd.app.leftovers import Leftovers
from pivotd.app.reads import Reads
from pivotd.core.pivot import Outcome, Pivot
from pivotd.core.request import Kind, Target
from tests.app.test_alarms import reads, until
from tests.conftest import QemuFactory
from tests.engine.conftest import Engine
from tests.support.qemu import Disk, Qemu, create_image

__all__ = ["reads"]
pytestmark = pytest.mark.qemu


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "LEFTOVERS_DELAY_S", 0.05)


@pytest.fixture
async def leftovers(engine: Engine, reads: Reads) -> AsyncIterator[asyncio.Event]:
    """Set it to begin to look."""
    begin = asyncio.Event()

    async def run() -> None:
        await begin.wait()
        await Leftovers(engine.host, reads).run()

    task = asyncio.ensure_future(run())
    yield begin
    task.cancel()


def nodes(qemu: Qemu) -> set[str]:
    """Return the nodes with a name that a client gave."""
    graph = qemu.spy("x-debug-query-block-graph")["nodes"]
    return {node["name"] for node in graph if node["type"] == "block-driver" and not node["name"].startswith("#")}


def own(pivot: Pivot, index: int) -> set[str]:
    name = pivot.disks[index].destination.node
    return {name, f"{name}f"}


def is_free(image: Path) -> bool:
    """Return whether another process can write to the image."""
    tried = ["qemu-io", "-f", "qcow2", "-c", "write -q 0 64k", image]
    return subprocess.run(tried, check=False, capture_output=True).returncode == 0


async def moved(engine: Engine, qemu: Qemu, directory: Path) -> Pivot:
    await engine.connect(qemu)
    new = {f"disk{index}": directory / f"new{index}.qcow2" for index in range(len(qemu.disks))}
    pivot = await engine.closed(await engine.copy("web1", new))
    assert pivot.outcome == Outcome.SWITCHED, pivot.error
    return pivot


async def test_each_way_in_which_a_disk_goes(
    engine: Engine, leftovers: asyncio.Event, qemu_factory: QemuFactory, tmp_path: Path
):
    """Unplugged, of -blockdev and of -drive, below an overlay; its medium taken out; moved on by another client."""
    disks = [Disk(create_image(tmp_path / f"old{i}.qcow2", size="1M"), bus="virtio-scsi") for i in range(3)]
    disks += [
        Disk(create_image(tmp_path / "old3.qcow2", size="1M"), legacy=True, bus="virtio-scsi"),
        Disk(create_image(tmp_path / "old4.qcow2", size="1M"), bus="virtio-scsi", device="removable=on"),
    ]
    qemu = qemu_factory(disks)
    pivot = await moved(engine, qemu, tmp_path)
    over = await engine.closed(await engine.start(Kind.SNAPSHOT, "web1", Target("disk1", str(tmp_path / "o.qcow2"))))
    leftovers.set()
    qemu.spy("device_del", id="disk0")
    qemu.spy("device_del", id="disk1")
    qemu.spy("device_del", id="disk3")
    qemu.spy("blockdev-open-tray", id="disk4", force=True)
    qemu.spy("blockdev-remove-medium", id="disk4")
    other = create_image(tmp_path / "other.qcow2", size="1M")
    qemu.spy("blockdev-add", driver="qcow2", node_name="other", file={"driver": "file", "filename": str(other)})
    source = pivot.disks[2].destination.node
    qemu.spy("blockdev-mirror", job_id="theirs", device=source, target="other", sync="full")
    qemu.await_event("BLOCK_JOB_READY", device="theirs")
    qemu.spy("job-complete", id="theirs")
    await until(lambda: nodes(qemu) == {"other"})
    assert over.outcome == Outcome.SWITCHED
    assert [is_free(tmp_path / name) for name in ("new0.qcow2", "o.qcow2", "new3.qcow2", "new4.qcow2")] == [True] * 4


async def test_a_disk_that_was_unplugged_while_pivotd_was_dead(
    engine: Engine, leftovers: asyncio.Event, qemu_factory: QemuFactory, tmp_path: Path
):
    """Nobody has seen the event: the look at the next start finds it, and a passphrase that no node needs goes too."""
    qemu = qemu_factory([Disk(create_image(tmp_path / "old.qcow2", size="1M"), bus="virtio-scsi")])
    pivot = await moved(engine, qemu, tmp_path)
    qemu.spy("object-add", qom_type="secret", id=f"pivotd-key-{pivot.id}", data="of an encrypted image")
    qemu.spy("device_del", id="disk0")
    qemu.await_event("DEVICE_DELETED", device="disk0")
    assert own(pivot, 0) <= nodes(qemu)
    leftovers.set()
    await until(lambda: not nodes(qemu))
    await until(lambda: not [o for o in qemu.spy("qom-list", path="/objects") if o["name"].startswith("pivotd")])


async def test_what_somebody_uses_and_what_is_not_ours_stays(
    engine: Engine, leftovers: asyncio.Event, qemu_factory: QemuFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """An export or an overlay of another client keeps the node until it goes; a node of an unknown pivot always stays."""
    monkeypatch.setattr(limits, "LEFTOVERS_AGAIN_S", 0.1)
    disks = [Disk(create_image(tmp_path / f"old{i}.qcow2", size="1M"), bus="virtio-scsi") for i in range(3)]
    qemu = qemu_factory(disks)
    pivot = await moved(engine, qemu, tmp_path)
    exported, backing, gone = (own(pivot, index) for index in range(3))
    unknown = "p01K9ZZZZZZZZZZZZZZZZZZZZZZ-0"
    qemu.spy("blockdev-add", driver="null-co", node_name=unknown)
    overlay = create_image(tmp_path / "overlay.qcow2", size="1M")
    below = pivot.disks[1].destination.node
    file = {"driver": "file", "filename": str(overlay)}
    qemu.spy("blockdev-add", {"driver": "qcow2", "node-name": "theirs", "file": file, "backing": below})
    qemu.spy("nbd-server-start", {"addr": {"type": "unix", "data": {"path": str(tmp_path / "nbd")}}})
    qemu.spy("block-export-add", {"type": "nbd", "id": "e", "node-name": pivot.disks[0].destination.node, "name": "e"})
    leftovers.set()
    for index in range(3):
        qemu.spy("device_del", id=f"disk{index}")
    await until(lambda: not nodes(qemu) & gone)
    assert nodes(qemu) == {unknown, "theirs"} | exported | backing
    qemu.spy("nbd-server-stop")
    qemu.spy("blockdev-del", node_name="theirs")
    await until(lambda: nodes(qemu) == {unknown})


async def test_the_nodes_of_an_open_pivot_stay(
    engine: Engine, leftovers: asyncio.Event, qemu_factory: QemuFactory, tmp_path: Path
):
    """Also those of the pivot before it, which the disk is about to leave; those of another disk go meanwhile."""
    disks = [Disk(create_image(tmp_path / f"old{i}.qcow2", size="1M"), bus="virtio-scsi") for i in range(2)]
    qemu = qemu_factory(disks)
    first = await moved(engine, qemu, tmp_path)
    driver = await engine.copy("web1", {"disk0": tmp_path / "second.qcow2"}, pivot=False)
    held = await engine.resting(driver)
    leftovers.set()
    qemu.spy("device_del", id="disk1")
    await until(lambda: not nodes(qemu) & own(first, 1))
    assert own(held, 0) | own(first, 0) <= nodes(qemu)
    await driver.complete(held.requested_by)
    pivot = await engine.closed(driver)
    assert pivot.outcome == Outcome.SWITCHED, pivot.error
