"""A filter above or inside the image of a disk would not survive a move: refused in one line that names it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pivotd.core.request import Kind, Target
from pivotd.errors import BadRequestError
from tests.conftest import QemuFactory
from tests.support.qemu import Disk, Qemu, create_image

from .conftest import Engine
from .test_destinations import overlay

pytestmark = pytest.mark.qemu

GROUP = json.dumps({"qom-type": "throttle-group", "id": "tg", "limits": {"bps-write": 1 << 20}})


def start(factory: QemuFactory, directory: Path) -> Qemu:
    """Start a QEMU whose disks have each filter in each place; all have a layer below the active one."""

    def image(name: str) -> Path:
        base = create_image(directory / f"{name}-base", size="4M")
        return overlay(directory / name, str(base), size="4M")

    def on_top(name: str, *drivers: dict[str, Any]) -> Disk:
        """Put filters above an image, the uppermost first."""
        file = {"driver": "file", "filename": str(image(name))}
        below: dict[str, Any] = {"driver": "qcow2", "file": file}
        for driver in reversed(drivers[1:]):
            below = {**driver, "file": below}
        return Disk(directory / name, name=name, node={**drivers[0], "file": below})

    def inside(name: str, driver: dict[str, Any], child: str = "file") -> Disk:
        """Put a filter below the qcow2 node."""
        path = image(name)
        return Disk(path, name=name, node={"file": {**driver, child: {"driver": "file", "filename": str(path)}}})

    def file(name: str) -> dict[str, Any]:
        return {"driver": "file", "filename": str(directory / name)}

    def layer(name: str) -> dict[str, Any]:
        return {"driver": "qcow2", "file": file(name)}

    throttle = {"driver": "throttle", "throttle-group": "tg"}
    log = {"driver": "file", "filename": str(create_image(directory / "log", image_format="raw", size="4M"))}
    raw = create_image(directory / "raw", image_format="raw", size="4M")
    allocating = {"driver": "preallocate", "file": {"driver": "file", "filename": str(raw)}}
    data = create_image(directory / "data", size="4M", options=f"data_file={directory / 'data.raw'}")
    between = create_image(directory / "between", size="4M")  # its header names nothing: QEMU takes no filter for that
    for name in ("target", "second", "between-base"):
        create_image(directory / name, size="4M")
    before_write = {"driver": "copy-before-write", "target": file("target")}
    both = {"children": [file("quorum"), file("second")]}
    disks = [
        on_top("throttle", throttle),
        on_top("copy-on-read", {"driver": "copy-on-read"}),
        on_top("two", {"driver": "copy-on-read"}, throttle),
        on_top("compress", {"driver": "compress"}),
        on_top("blklogwrites", {"driver": "blklogwrites", "log": log}),
        inside("throttle-inside", throttle),
        Disk(data, name="data", node={"data-file": {**throttle, "file": file("data.raw")}}),
        Disk(image("copied"), name="copied", node={"file": {**before_write, "file": file("copied")}}),
        Disk(image("quorum"), name="quorum", node={"file": {"driver": "quorum", "vote-threshold": 1, **both}}),
        inside("blkdebug-inside", {"driver": "blkdebug"}, "image"),
        Disk(raw, "raw", "preallocate-inside", node={"file": allocating}),
        Disk(between, name="between", node={"backing": {**throttle, "file": layer("between-base")}}),
        Disk(image("plain"), name="plain"),
        Disk(image("legacy"), format="qcow2,copy-on-read=on,throttling.bps-write=1048576", name="legacy", legacy=True),
    ]
    return factory(disks, paused=True, extra=["-object", GROUP])


async def test_filters(engine: Engine, qemu_factory: QemuFactory, tmp_path: Path):
    """Above the image: by each verb. Inside it: by each verb that gives the disk another image."""
    qemu = start(qemu_factory, tmp_path)
    await engine.connect(qemu)
    new = str(tmp_path / "new")

    async def said(kind: Kind, disk: str, image_format: str | None = None) -> str:
        target = Target(disk, new, image_format) if kind in {Kind.COPY, Kind.SNAPSHOT} else Target(disk)
        with pytest.raises(BadRequestError) as refusal:
            await engine.start(kind, "web1", target, pivot=False)
        return refusal.value.message

    for disk, driver in (
        ("throttle", "throttle"), ("copy-on-read", "copy-on-read"), ("two", "copy-on-read"), ("compress", "compress"),
        ("blklogwrites", "blklogwrites"),
    ):  # fmt: skip
        for kind in Kind:
            message = await said(kind, disk)
            assert f"{disk}: a {driver} node is above its image" in message, (kind, message)
            assert "--" not in message, "no option keeps it"
        assert f"{disk}: a {driver} node is above its image" in await said(Kind.COPY, disk, "qcow2")
    for kind in (Kind.COPY, Kind.SNAPSHOT, Kind.COMMIT):
        assert "throttle-inside: a throttle node is below its image, and" in await said(kind, "throttle-inside")
    for kind in (Kind.COPY, Kind.SNAPSHOT):
        assert "a preallocate node is below its image, and" in await said(kind, "preallocate-inside")
        assert "QEMU does not keep its data in one image" in await said(kind, "quorum")
        assert "a copy-before-write node is below its image, and" in await said(kind, "copied")
        assert "data: below its image is a node that QEMU does not describe" in await said(kind, "data")
    assert "between: a filter node is in its backing chain, and" in await said(Kind.COPY, "between")
    for disk in ("plain", "legacy", "blkdebug-inside"):
        driver = await engine.copy("web1", {disk: tmp_path / f"{disk}-new"}, pivot=False)
        assert not (await engine.resting(driver)).error
    merged = await engine.closed(await engine.start(Kind.PULL, "web1", Target("throttle-inside")))
    assert merged.outcome == "merged", "it stays on its image"
