"""A second writer of a disk, which no pause of the guest stops: an export, wherever it is put."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from pivotd.core.request import Kind, Requester, Target
from pivotd.errors import ConflictError
from tests.conftest import QemuFactory
from tests.support.qemu import CACHES, Disk, Qemu, create_image
from tests.support.qemus import qemus

from .conftest import TIMEOUT_S, Engine

WHO = Requester(0, 0, 1)
pytestmark = pytest.mark.qemu
SIZE = "1M"


def export(qemu: Qemu, name: str, node: str = "src0", *, kind: str = "nbd", writable: bool = True, **more: Any) -> None:
    more = {"name": name} if kind == "nbd" else more
    qemu.spy("block-export-add", {"type": kind, "id": name, "node-name": node, "writable": writable, **more})


def guest(qemu_factory: QemuFactory, directory: Path, **options: Any) -> Qemu:
    """Return a QEMU with four kinds of disks, of which the first has a node of its own for its file, and an NBD server."""
    images = [create_image(directory / f"{number}.qcow2", size=SIZE) for number in range(4)]
    before = {"driver": "file", "node-name": "file0", "filename": str(images[0]), "cache": CACHES["none"]}
    disks = [
        Disk(images[0], node={"file": "file0"}, before=(before,), device="share-rw=on"),
        Disk(images[1], legacy=True),
        Disk(images[2], bus="virtio-scsi"),
        Disk(images[3], bus="ide", iothread=False),
    ]
    qemu = qemu_factory(disks, paused=True, **options)
    address = {"type": "unix", "data": {"path": str(directory / "nbd")}}
    qemu.spy("nbd-server-start", {"addr": address})
    return qemu


@pytest.mark.parametrize("version", qemus())
async def test_every_writer_is_found_and_no_reader(
    engine: Engine, qemu_factory: QemuFactory, tmp_path: Path, version: str
):
    """On the image, above it, by the old command; devices of the guest and read-only exports are none."""
    qemu = guest(qemu_factory, tmp_path, binary=qemus()[version])
    session = (await engine.connect(qemu)).session
    assert session is not None

    async def writers() -> dict[str, tuple[str, ...]]:
        return dict(await session.writers(await session.blocks()))

    export(qemu, "reader", writable=False)
    assert await writers() == {}
    export(qemu, "writer")
    found = await writers()
    assert list(found) == ["disk0"]
    assert "nbd export writer" in found["disk0"]
    qemu.spy("block-export-del", {"id": "writer"})
    qemu.spy("block-export-del", {"id": "reader"})
    assert await writers() == {}
    qemu.spy("nbd-server-add", {"device": "src0", "name": "old", "writable": True})
    assert await writers() == {"disk0": ("nbd export old",)}
    qemu.spy("nbd-server-remove", {"name": "old"})
    qemu.spy("blockdev-add", {"driver": "copy-on-read", "node-name": "above", "file": "src0"})
    assert await writers() == {}
    export(qemu, "upper", "above")
    assert await writers() == {"disk0": ("nbd export upper",)}
    qemu.spy("block-export-del", {"id": "upper"})
    address = {"type": "unix", "path": str(tmp_path / "vhost")}
    export(qemu, "vhost", kind="vhost-user-blk", addr=address)
    assert await writers() == {"disk0": ("vhost-user-blk export vhost",)}


async def test_a_switch_with_a_second_writer_is_refused(engine: Engine, qemu_factory: QemuFactory, tmp_path: Path):
    """With the export's id, for every kind that switches; not for a merge, and not with --force."""
    qemu = guest(qemu_factory, tmp_path)
    await engine.connect(qemu)
    snapshot = await engine.start(Kind.SNAPSHOT, "web1", Target("disk0", str(tmp_path / "top.qcow2")))
    assert (await engine.closed(snapshot)).outcome == "switched"
    export(qemu, "writer", snapshot.pivot.disks[0].destination.node)
    new = Target("disk0", str(tmp_path / "new.qcow2"))
    for kind, target in ((Kind.COPY, new), (Kind.SNAPSHOT, new), (Kind.COMMIT, Target("disk0"))):
        with pytest.raises(ConflictError, match=r"nbd export writer may write to disk0.*--force"):
            await engine.start(kind, "web1", target)
    forced = await engine.start(Kind.COPY, "web1", new, force=True)
    assert (await engine.closed(forced)).outcome == "switched"
    assert qemu.root("disk0").filename == new.image


async def test_an_export_that_comes_during_the_copy_holds_up_the_switch(
    engine: Engine, qemu_factory: QemuFactory, tmp_path: Path
):
    """The guest is not paused while it is there; the pivot says why it waits, and goes on once it has gone."""
    qemu = guest(qemu_factory, tmp_path)
    await engine.connect(qemu)
    driver = await engine.start(Kind.COPY, "web1", Target("disk0", str(tmp_path / "new.qcow2")), pivot=False)
    await engine.resting(driver)
    export(qemu, "late")
    await driver.complete(WHO)
    async with asyncio.timeout(TIMEOUT_S):
        while "nbd export late may write to disk0" not in (driver.waits_for or ""):
            await asyncio.sleep(0)
    assert driver.pivot.attempt == 0
    qemu.spy("block-export-del", {"id": "late"})
    assert (await engine.closed(driver)).outcome == "switched"
