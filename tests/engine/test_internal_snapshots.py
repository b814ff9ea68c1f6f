"""Snapshots inside qcow2 images stay behind, or lose their data, only if the request says so."""

from __future__ import annotations

import asyncio
import subprocess
from pathlib import Path
from typing import Any

import pytest

from pivotd.core.pivot import Outcome, Phase
from pivotd.core.request import Kind, Requester, Sync, Target
from pivotd.engine.driver import Driver
from pivotd.errors import BadRequestError
from pivotd.qmp.session import Session
from tests.conftest import QemuFactory
from tests.support.moves import Move
from tests.support.qemu import Disk, Qemu, create_image
from tests.support.waiting import until

from .conftest import TIMEOUT_S, Engine
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


def save(qemu: Qemu, node: str, command: str = "snapshot-save") -> str | None:
    """Have another client save or load the snapshot ``mine`` of a node; return QEMU's refusal."""
    job = command
    qemu.spy(command, {"job-id": job, "tag": "mine", "vmstate": node, "devices": [node]})
    return ended(qemu, job)


def ended(qemu: Qemu, job: str) -> str | None:
    assert until(lambda: qemu.jobs()[job]["status"] == "concluded")
    error = qemu.jobs()[job].get("error")
    qemu.spy("job-dismiss", id=job)
    return error


def delete(qemu: Qemu, node: str) -> None:
    qemu.spy("snapshot-delete", {"job-id": "delete", "tag": "mine", "devices": [node]})
    assert ended(qemu, "delete") is None


def bitmaps(qemu: Qemu) -> list[str]:
    """Return the dirty bitmaps that are left."""
    return [bitmap["name"] for node in qemu.nodes().values() for bitmap in node.get("dirty-bitmaps", [])]


async def a_chain_at_ready(
    engine: Engine, qemu_factory: QemuFactory, directory: Path, move: Move, **options: Any
) -> tuple[Qemu, Driver]:
    """Start a move of a disk with three layers, each a node with a name, and let it wait for a person."""
    top = chain(directory, "x")
    layers = [directory / f"x-{name}" for name in ("base", "middle", "top")]
    qemu = qemu_factory([Disk.of_named_nodes(layers)])
    await engine.connect(qemu)
    inner = {"top": str(layers[1]), "base": str(layers[0])} if move is Move.INNER_COMMIT else {}
    new = str(directory / "new") if move is Move.COPY else ""
    driver = await engine.start(move.kind, "web1", Target("disk0", new, **inner), pivot=False, **options)
    pivot = await engine.resting(driver)
    assert (pivot.phase, pivot.disks[0].source.filename) == (Phase.READY, str(top))
    return qemu, driver


async def waits_for(driver: Driver, what: str) -> bool:
    async with asyncio.timeout(TIMEOUT_S):
        while what not in driver.waits_for:
            await asyncio.sleep(0.01)
    return True


@pytest.mark.parametrize("move", [Move.COPY, Move.COMMIT, Move.PULL])
async def test_one_that_is_taken_meanwhile_is_waited_for(
    engine: Engine, qemu_factory: QemuFactory, tmp_path: Path, move: Move
):
    """No pause begins while the disk would lose it; the reason names it, and the move goes on once it is deleted."""
    qemu, driver = await a_chain_at_ready(engine, qemu_factory, tmp_path, move)
    assert save(qemu, "src0") is None
    await driver.complete(Requester(0, 0, 1))
    assert await waits_for(driver, f"{tmp_path / 'x-top'} has got internal snapshots, which the disk would lose: mine;")
    assert (driver.pivot.phase, driver.pivot.attempt) == (Phase.READY, 0)
    delete(qemu, "src0")
    pivot = await engine.closed(driver)
    assert pivot.outcome == (Outcome.SWITCHED if move.switches else Outcome.MERGED), pivot.error


async def test_one_that_is_taken_in_the_last_moment_is_waited_for(
    engine: Engine, qemu_factory: QemuFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """It comes after everything else was looked at: the look right before the intent sees it."""
    qemu, driver = await a_chain_at_ready(engine, qemu_factory, tmp_path, Move.COPY)

    async def facts(session: Session) -> dict[str, Any]:
        if "mine" not in subprocess.check_output(["qemu-img", "snapshot", "-U", "-l", tmp_path / "x-top"], text=True):
            assert await asyncio.to_thread(save, qemu, "src0") is None
        return {"chardevs": await session.chardevs()}

    monkeypatch.setattr(Session, "intent_facts", facts)
    await driver.complete(Requester(0, 0, 1))
    assert await waits_for(driver, "would lose: mine;")
    assert driver.pivot.attempt == 0
    assert (await driver.cancel(Requester(0, 0, 1))).outcome in {None, Outcome.KEPT}
    await engine.closed(driver)
    assert qemu.root().filename == str(tmp_path / "x-top")


async def test_one_that_stays_whole_holds_nothing_up(engine: Engine, qemu_factory: QemuFactory, tmp_path: Path):
    """A commit of inner layers leaves the active image as it is."""
    qemu, driver = await a_chain_at_ready(engine, qemu_factory, tmp_path, Move.INNER_COMMIT)
    assert save(qemu, "src0") is None
    await driver.complete(Requester(0, 0, 1))
    assert (await engine.closed(driver)).outcome == Outcome.MERGED


async def test_one_that_may_be_lost_is_recorded_also_where_it_came_late(
    engine: Engine, qemu_factory: QemuFactory, tmp_path: Path
):
    """The record of the intent names it before the image that has it becomes stale."""
    qemu, driver = await a_chain_at_ready(engine, qemu_factory, tmp_path, Move.COPY, drop_internal_snapshots=True)
    assert save(qemu, "src0") is None
    await driver.complete(Requester(0, 0, 1))
    pivot = await engine.closed(driver)
    assert pivot.outcome == Outcome.SWITCHED, pivot.error
    assert engine.facts(pivot, "pausing")["internal_snapshots"] == {str(tmp_path / "x-top"): ["mine"]}
    assert (await engine.journal.read(pivot.id)).options.snapshots_left == ((str(tmp_path / "x-top"), ("mine",)),)


async def test_none_is_loaded_into_an_image_that_a_pull_fills(
    engine: Engine, qemu_factory: QemuFactory, tmp_path: Path
):
    """QEMU would take what was pulled out of the image again, and the pull would never bring it back."""
    base = create_image(tmp_path / "base", size="4M")
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", "write -P 0x5a 0 4M", str(base)], check=True, capture_output=True)
    qemu = qemu_factory([Disk(overlay(tmp_path / "top", str(base), size="4M"))])
    await engine.connect(qemu)
    driver = await engine.start(Kind.PULL, "web1", Target("disk0"), bandwidth_bytes_per_s=1 << 20)
    await engine.until(driver, lambda pivot: pivot.phase is Phase.COPYING)
    assert save(qemu, "src0") is None
    assert "active dirty bitmaps" in (save(qemu, "src0", "snapshot-load") or "")
    qemu.spy("cont")  # a refused load leaves the guest stopped
    delete(qemu, "src0")
    await driver.set_bandwidth(0, Requester(0, 0, 1))
    assert (await engine.closed(driver)).outcome == Outcome.MERGED
    assert bitmaps(qemu) == []
    qemu.stop()
    compared = ["qemu-img", "compare", str(base), str(tmp_path / "top")]
    assert subprocess.run(compared, capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize("move", [Move.COPY, Move.COMMIT, Move.INNER_COMMIT])
async def test_none_is_loaded_into_an_image_that_another_job_fills(
    engine: Engine, qemu_factory: QemuFactory, tmp_path: Path, move: Move
):
    """The same for the base of a commit, and the new image of a copy."""
    qemu, driver = await a_chain_at_ready(engine, qemu_factory, tmp_path, move)
    disk = driver.pivot.disks[0]
    node = disk.destination.node if disk.switches else disk.base.node if disk.base is not None else ""
    assert save(qemu, node) is None
    assert "active dirty bitmaps" in (save(qemu, node, "snapshot-load") or "")
    qemu.spy("cont")
    await driver.complete(Requester(0, 0, 1))
    await engine.closed(driver)
    assert bitmaps(qemu) == []
    if move.switches:
        assert save(qemu, node, "snapshot-load") is None, "once it has ended, nothing is in the way"


async def test_none_is_loaded_into_an_old_image_that_is_kept_in_sync(
    engine: Engine, qemu_factory: QemuFactory, tmp_path: Path
):
    """An undo would return to it."""
    old = create_image(tmp_path / "old", size="4M")
    qemu = qemu_factory([Disk(old)])
    await engine.connect(qemu)
    driver = await engine.copy("web1", {"disk0": tmp_path / "new"}, keep_synced=True)
    await engine.until(driver, lambda pivot: pivot.window_open and not pivot.owes_resume)
    assert save(qemu, "src0") is None
    assert "active dirty bitmaps" in (save(qemu, "src0", "snapshot-load") or "")
    qemu.spy("cont")
    await driver.release(Requester(0, 0, 1))
    await engine.closed(driver)
    assert bitmaps(qemu) == []
