"""Snapshots inside qcow2 images stay behind, or lose their data, only if the request says so."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from pivotd.core.pivot import Outcome
from pivotd.core.request import Kind, Sync, Target
from pivotd.errors import BadRequestError
from tests.conftest import QemuFactory
from tests.support.qemu import Disk, create_image

from .conftest import Engine
from .test_destinations import overlay

pytestmark = pytest.mark.qemu


def keep_inside(image: Path, *names: str) -> Path:
    """Take internal snapshots of an image."""
    for name in names:
        subprocess.run(["qemu-img", "snapshot", "-c", name, str(image)], check=True)
    return image


def chain(directory: Path, name: str, *kept: str) -> Path:
    """Create base, middle and top; each has an internal snapshot if ``kept`` names it."""
    images = [create_image(directory / f"{name}-base", size="4M")]
    for layer in ("middle", "top"):
        images.append(overlay(directory / f"{name}-{layer}", str(images[-1]), size="4M"))
    for image, layer in zip(images, ("base", "middle", "top"), strict=True):
        keep_inside(image, *([f"of-{layer}"] if layer in kept else []))
    return images[-1]


async def test_what_would_be_lost(engine: Engine, qemu_factory: QemuFactory, tmp_path: Path):
    """Each verb names the image and its snapshots; it does not name those that stay whole."""
    disks = {name: chain(tmp_path, name, name) for name in ("top", "middle", "base")}
    qemu = qemu_factory([Disk(image, name=name) for name, image in disks.items()], paused=True)
    await engine.connect(qemu)

    async def refused(kind: Kind, disk: str, *, image: str = "", **more: Any) -> bool:
        layers = {name: str(tmp_path / f"{disk}-{more.pop(name)}") for name in ("top", "base") if name in more}
        target = Target(disk, image and str(tmp_path / image), **layers)
        with pytest.raises(BadRequestError) as refusal:
            await engine.start(kind, "web1", target, pivot=False, **more)
        said = refusal.value.message
        return f"{tmp_path / f'{disk}-{disk}'} has internal snapshots, which the disk would lose: of-{disk};" in said

    assert await refused(Kind.COPY, "top", image="new")
    assert await refused(Kind.COPY, "middle", image="new")
    assert await refused(Kind.COPY, "base", image="new")
    assert await refused(Kind.COPY, "top", image="new", sync=Sync.TOP)
    assert await refused(Kind.COMMIT, "top")
    assert await refused(Kind.COMMIT, "middle")
    assert await refused(Kind.COMMIT, "middle", top="middle")
    assert await refused(Kind.PULL, "top"), "its snapshot would read zeroes where it read the layers below"
    assert await refused(Kind.PULL, "middle")
    assert await refused(Kind.PULL, "middle", base="base")


async def test_what_stays_whole(engine: Engine, qemu_factory: QemuFactory, tmp_path: Path):
    """An overlay above them, a commit into their image, a copy of the active layer alone above them."""
    images = [chain(tmp_path, name, "base") for name in ("snapshot", "commit", "shallow")]
    qemu = qemu_factory([Disk(image) for image in images])
    await engine.connect(qemu)
    for kind, target, more in (
        (Kind.SNAPSHOT, Target("disk0", str(tmp_path / "over")), {}),
        (Kind.COMMIT, Target("disk1"), {}),
        (Kind.COPY, Target("disk2", str(tmp_path / "new")), {"sync": Sync.TOP}),
    ):
        pivot = await engine.closed(await engine.start(kind, "web1", target, **more))
        assert pivot.outcome == Outcome.SWITCHED, pivot.error
    for name in ("snapshot", "commit", "shallow"):
        listed = ["qemu-img", "snapshot", "-U", "-l", str(tmp_path / f"{name}-base")]
        assert "of-base" in subprocess.run(listed, capture_output=True, text=True, check=True).stdout


async def test_what_is_left_behind_is_recorded(engine: Engine, qemu_factory: QemuFactory, tmp_path: Path):
    """The pivot knows the names; the journal gives them back."""
    old = keep_inside(create_image(tmp_path / "old.qcow2"), "before", "after")
    qemu = qemu_factory([Disk(old)])
    await engine.connect(qemu)
    driver = await engine.copy("web1", {"disk0": tmp_path / "new.qcow2"}, drop_internal_snapshots=True)
    pivot = await engine.closed(driver)
    assert pivot.outcome == Outcome.SWITCHED, pivot.error
    assert pivot.options.snapshots_left == ((str(old), ("before", "after")),)
    assert (await engine.journal.read(pivot.id)).options == pivot.options
