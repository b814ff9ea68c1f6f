"""One image under two devices of a guest: by one node both move and are recorded, by two nodes none moves."""

from __future__ import annotations

import asyncio
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from pivotd.app.start import _same_request
from pivotd.core.request import CopyOptions, Kind, PivotRequest, Target
from pivotd.core.verdict import of_pivot
from pivotd.errors import BadRequestError, ConflictError
from pivotd.journal.reader import Reader
from tests.conftest import QemuFactory
from tests.support.qemu import CACHES, Disk, Qemu, create_image

from .conftest import TIMEOUT_S, Engine
from .test_copy import assert_clean

pytestmark = pytest.mark.qemu
SIZE = "1M"


def guest(
    qemu_factory: QemuFactory, *disks: Disk, nodes: tuple[dict[str, Any], ...] = (), second: str = "src0"
) -> Qemu:
    """Return a QEMU in which ``second`` has one more device, disk9."""
    extra = [argument for node in nodes for argument in ("-blockdev", json.dumps(node))]
    device = f"virtio-blk-pci,drive={second},id=disk9,serial=disk9,share-rw=on"
    return qemu_factory(disks, paused=True, extra=[*extra, "-device", device])


def shared(image: Path, **more: Any) -> Disk:
    file = {"driver": "file", "locking": "off", "filename": str(image), "cache": CACHES["none"]}
    return Disk(image, format=more.pop("format", "qcow2"), node={"file": file, **more}, device="share-rw=on")


async def test_every_move_of_one_takes_the_other_along(engine: Engine, qemu_factory: QemuFactory, tmp_path: Path):
    """Copy, snapshot, commit, pull: QEMU moves both devices, and the journal has both, whichever was named."""
    old = create_image(tmp_path / "old.qcow2", size=SIZE)
    qemu = guest(qemu_factory, shared(old))
    qemu.spy("block-dirty-bitmap-add", {"node": "src0", "name": "monday", "persistent": True})
    await engine.connect(qemu)

    async def move(kind: Kind, *targets: Target, **options: Any) -> Any:
        pivot = await engine.closed(await engine.start(kind, "web1", *targets, **options))
        assert [disk.outcome for disk in pivot.disks] == [pivot.outcome] * 2, pivot
        assert {disk.disk for disk in pivot.disks} == {"disk0", "disk9"}
        right = str(pivot.disks[0].destination.filename)
        assert [qemu.root(name).filename for name in ("disk0", "disk9")] == [right] * 2
        reader = Reader.attach(engine.state_dir)
        assert {of_pivot(*one).image for one in reader.latest("web1")} == {right}
        reader.close()
        return pivot

    copied = await move(Kind.COPY, Target("disk9", str(tmp_path / "new.qcow2")))
    assert copied.disks[0].disk == "disk9"
    both = (Target("disk0", str(tmp_path / "top.qcow2")), Target("disk9", str(tmp_path / "top.qcow2")))
    await move(Kind.SNAPSHOT, *both)
    await move(Kind.SNAPSHOT, Target("disk0", str(tmp_path / "more.qcow2")))
    await move(Kind.COMMIT, Target("disk0", top=str(tmp_path / "top.qcow2")))
    await move(Kind.COMMIT, Target("disk0"))
    await move(Kind.SNAPSHOT, Target("disk0", str(tmp_path / "last.qcow2")))
    await move(Kind.PULL, Target("disk9"))
    (bitmap,) = next(one for one in qemu.spy("query-block") if "disk0" in one["qdev"])["inserted"]["dirty-bitmaps"]
    assert bitmap["name"] == "monday"
    assert_clean(qemu)


async def test_two_devices_on_one_node_cannot_go_different_ways(
    engine: Engine, qemu_factory: QemuFactory, tmp_path: Path
):
    """Nor can the old image follow both; a retry that names one or both is the same request."""
    old = create_image(tmp_path / "old.qcow2", size=SIZE)
    await engine.connect(guest(qemu_factory, shared(old)))
    one, other = Target("disk0", str(tmp_path / "a")), Target("disk9", str(tmp_path / "b"))
    with pytest.raises(BadRequestError, match="disk0 and disk9 are devices on one image"):
        await engine.start(Kind.COPY, "web1", one, other)
    with pytest.raises(BadRequestError, match="--keep-synced"):
        await engine.start(Kind.COPY, "web1", one, keep_synced=True)
    driver = await engine.start(Kind.COPY, "web1", one)
    known = await engine.closed(driver)
    twin = Target("disk9", one.image)
    for targets in ((one,), (twin,), (one, twin)):
        assert _same_request(known, PivotRequest("web1", Kind.COPY, targets, CopyOptions())) is known
    with pytest.raises(ConflictError, match="use a new id"):
        _same_request(known, PivotRequest("web1", Kind.COPY, (other,), CopyOptions()))


async def test_two_devices_on_one_image_do_not_stand_for_another_disk(
    engine: Engine, qemu_factory: QemuFactory, tmp_path: Path
):
    """A request that leaves a disk out is another request, also if it names as many."""
    old, loner = (create_image(tmp_path / f"{name}.qcow2", size=SIZE) for name in ("old", "loner"))
    await engine.connect(guest(qemu_factory, shared(old), Disk(loner)))
    one, alone = Target("disk0", str(tmp_path / "a")), Target("disk1", str(tmp_path / "b"))
    known = await engine.closed(await engine.start(Kind.COPY, "web1", one, alone))
    twin = Target("disk9", one.image)
    for targets in ((one, alone), (twin, alone), (alone, one, twin)):
        assert _same_request(known, PivotRequest("web1", Kind.COPY, targets, CopyOptions())) is known
    for targets in ((one, twin), (one,), (one, one), (alone, alone, one)):
        with pytest.raises(ConflictError, match="use a new id"):
            _same_request(known, PivotRequest("web1", Kind.COPY, targets, CopyOptions()))


@pytest.mark.parametrize("kind", [Kind.COPY, Kind.SNAPSHOT])
async def test_two_nodes_on_one_image_are_refused(
    engine: Engine, qemu_factory: QemuFactory, tmp_path: Path, kind: Kind
):
    """By a hard link too, whichever is named, and named together: QEMU cannot switch two nodes to one image."""
    old = create_image(tmp_path / "old.qcow2", size=SIZE)
    link = tmp_path / "link.qcow2"
    link.hardlink_to(old)
    file = {"driver": "file", "locking": "off", "filename": str(link), "cache": CACHES["none"]}
    node = {"driver": "qcow2", "node-name": "twin", "cache": CACHES["none"], "file": file}
    await engine.connect(guest(qemu_factory, shared(old), nodes=(node,), second="twin"))
    one, other = Target("disk0", str(tmp_path / "a")), Target("disk9", str(tmp_path / "b"))
    for targets in ((one,), (other,), (one, other)):
        with pytest.raises(BadRequestError, match=r"an image of disk[09] and of disk[09], by two nodes"):
            await engine.start(kind, "web1", *targets, force=True)


async def test_the_image_of_one_disk_below_another(engine: Engine, qemu_factory: QemuFactory, tmp_path: Path):
    """Neither moves; a base that both have only below them is no obstacle."""
    base = create_image(tmp_path / "base.qcow2", size=SIZE)
    images = [tmp_path / "upper.qcow2", tmp_path / "side.qcow2"]
    for image in images:
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", base, image], check=True)
    below = {"driver": "qcow2", "read-only": True, "file": {"driver": "file", "locking": "off", "filename": str(base)}}
    disks = [shared(images[0], backing=below), shared(images[1], backing=below)]
    file = {"driver": "file", "locking": "off", "filename": str(base), "cache": CACHES["none"]}
    node = {"driver": "qcow2", "node-name": "twin", "cache": CACHES["none"], "file": file}
    await engine.connect(guest(qemu_factory, *disks, nodes=(node,), second="twin"))
    for disk in ("disk0", "disk9"):
        with pytest.raises(BadRequestError, match=r"base.qcow2 is an image of disk. and of disk."):
            await engine.start(Kind.COPY, "web1", Target(disk, str(tmp_path / "new.qcow2")))
    await engine.connect(qemu_factory(disks, paused=True, name="web2"), "web2")
    driver = await engine.start(Kind.COPY, "web2", Target("disk0", str(tmp_path / "new.qcow2")))
    assert (await engine.closed(driver)).outcome == "switched"


async def test_a_switch_of_both_is_taken_back_for_both(engine: Engine, qemu_factory: QemuFactory, tmp_path: Path):
    """One reverse move brings both devices back."""
    old = create_image(tmp_path / "old.qcow2", size=SIZE)
    qemu = guest(qemu_factory, shared(old))
    supervisor = await engine.connect(qemu)
    driver = await engine.start(Kind.COPY, "web1", Target("disk0", str(tmp_path / "new.qcow2")), pivot=False)
    pivot = await engine.resting(driver)
    driver.end()  # it would cancel a job that is completed beside it
    async with asyncio.timeout(TIMEOUT_S):
        while supervisor.drivers:
            await asyncio.sleep(0)
    session = supervisor.session
    assert session is not None
    await session.complete([pivot.disks[0].job] * 2)
    while (await session.look(pivot)).job(pivot.disks[0].job).status != "pending":
        pass
    await session.finalize(pivot, [pivot.disks[0].job] * 2)
    for disk in pivot.disks:
        assert await session.reverse(pivot, disk, session.resumes)
    assert [qemu.root(name).node for name in ("disk0", "disk9")] == ["src0", "src0"]
