"""A copy takes no more room than its source, and QEMU wipes an image exactly where that may hold something else."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from pivotd.core.actions import Step
from pivotd.core.creation import ImageOptions
from pivotd.core.pivot import Outcome, Pivot
from pivotd.core.request import CopyMode, CopyOptions, Discard, Kind, PivotRequest, Requester, Sync, Target
from pivotd.errors import BadRequestError, QmpRefusedError
from pivotd.planning.plan import plan
from pivotd.qmp.mirror_start import reads_as_zeroes
from pivotd.qmp.session import Session
from tests.conftest import QemuFactory
from tests.support.qemu import Disk, create_image
from tests.support.qemus import number, qemus

from .conftest import ULID, Engine
from .storage import allocated_bytes
from .test_destinations import overlay, shut_down

pytestmark = pytest.mark.qemu

MIB = 1 << 20
TOLD_FROM = (10, 1)
"""QEMU can be told that a destination reads as zeroes."""
HUGE = "1T"
"""QEMU before 10.1 takes 11 s to wipe a qcow2 image of this size, and 128 MiB."""


def qemu_io(image: Path, *steps: str, image_format: str = "qcow2") -> Path:
    words = [word for step in steps for word in ("-c", step)]
    subprocess.run(["qemu-io", "-f", image_format, *words, str(image)], check=True, stdout=subprocess.DEVNULL)
    return image


def same(old: Path, old_format: str, new: Path, new_format: str) -> bool:
    """Return whether a guest reads the same from both."""
    command = ["qemu-img", "compare", "-f", old_format, "-F", new_format, str(old), str(new)]
    return subprocess.run(command, check=False, stdout=subprocess.DEVNULL).returncode == 0


def thin_sources(directory: Path) -> dict[str, tuple[Path, str]]:
    """Return the images of disks with little data far apart: alone, raw, and one with a backing image."""
    data = ("write -q -P 5 0 64k", "write -q -P 6 11G 1M", "write -q -P 7 20G 64k", "write -q -z 11G 128k")
    alone = qemu_io(create_image(directory / "alone.qcow2", size=HUGE), *data)
    raw = create_image(directory / "raw.raw", image_format="raw", size=HUGE)
    base = qemu_io(create_image(directory / "base.qcow2", size=HUGE), *data)
    tops = [
        qemu_io(overlay(directory / name, str(base), size=HUGE), "write -q -P 9 64k 64k", "write -q -z 0 4k")
        for name in ("layered.qcow2", "flat.qcow2")
    ]
    return {
        "alone": (alone, "qcow2"),
        "raw": (qemu_io(raw, *data, image_format="raw"), "raw"),
        "layered": (tops[0], "qcow2"),
        "flat": (tops[1], "qcow2"),
    }


async def moved(engine: Engine, disk: str, new: Path, image_format: str, **options: object) -> Pivot:
    driver = await engine.start(Kind.COPY, "web1", Target(disk, str(new), image_format), **options)
    pivot = await engine.closed(driver)
    assert pivot.outcome == Outcome.SWITCHED, pivot.error
    return pivot


@pytest.mark.parametrize("version", qemus())
async def test_a_copy_is_as_thin_as_its_source(engine: Engine, qemu_factory: QemuFactory, tmp_path: Path, version: str):
    """In every copy mode; some moves have QEMU before 10.1 write tables for the zeroes, and are left out there."""
    sources = thin_sources(tmp_path)
    disks = [Disk(image, image_format, name=name) for name, (image, image_format) in sources.items()]
    qemu = qemu_factory(disks, binary=qemus()[version], paused=True)
    await engine.connect(qemu)
    at_once: dict[str, object] = {"copy_mode": CopyMode.WRITE_BLOCKING}
    moves: list[tuple[str, str, dict[str, object]]] = [
        ("alone", "qcow2", {}),
        ("alone", "qcow2", at_once),
        ("alone", "qcow2", {"discard": Discard.IGNORE}),
        ("alone", "raw", {}),
        ("raw", "raw", {}),
        ("raw", "raw", at_once),
        ("layered", "raw", {}),
    ]
    if number(version) >= TOLD_FROM:
        moves += [("raw", "qcow2", {}), ("flat", "qcow2", at_once)]
    made = [(disk, tmp_path / f"new{index}.{kind}", kind) for index, (disk, kind, _) in enumerate(moves)]
    for (disk, new, image_format), (_, _, options) in zip(made, moves, strict=True):
        pivot = await moved(engine, disk, new, image_format, **options)
        assert pivot.options.sync is Sync.FULL, "the record says what was asked for"
    shut_down(qemu)
    for disk, new, image_format in made:
        assert same(*sources[disk], new, image_format), (disk, new)
        assert allocated_bytes(new) < 3 * MIB, (disk, new)


@pytest.mark.parametrize("version", qemus())
async def test_an_image_that_is_there_holds_nothing_of_its_own_afterwards(
    engine: Engine, qemu_factory: QemuFactory, tmp_path: Path, version: str
):
    """Where a source has no data, the image that is overwritten must not keep its own."""
    size = "8M"
    base = qemu_io(create_image(tmp_path / "base.qcow2", size=size), "write -q -P 5 1M 1M", "write -q -P 5 4M 1M")
    raw = create_image(tmp_path / "raw.raw", image_format="raw", size=size)
    sources = {
        "alone": (qemu_io(create_image(tmp_path / "alone.qcow2", size=size), "write -q -P 5 1M 1M"), "qcow2"),
        "raw": (qemu_io(raw, "write -q -P 5 1M 1M", image_format="raw"), "raw"),
        "layered": (qemu_io(overlay(tmp_path / "top.qcow2", str(base), size=size), "write -q -z 1M 64k"), "qcow2"),
    }
    disks = [Disk(image, image_format, name=name) for name, (image, image_format) in sources.items()]
    qemu = qemu_factory(disks, binary=qemus()[version], paused=True)
    await engine.connect(qemu)
    made: list[tuple[str, Path, str]] = []
    for disk in sources:
        for image_format in ("raw", "qcow2"):
            for discard in Discard:
                new = tmp_path / f"{disk}-{discard}.{image_format}"
                full = create_image(new, image_format=image_format, size=size)
                qemu_io(full, f"write -q -P 8 0 {size}", image_format=image_format)
                await moved(engine, disk, new, image_format, reuse=True, discard=discard)
                made.append((disk, new, image_format))
    shut_down(qemu)
    for disk, new, image_format in made:
        assert same(*sources[disk], new, image_format), (disk, new)


@pytest.mark.parametrize("version", qemus())
async def test_a_write_blocking_copy_of_a_chain_needs_a_qemu_that_need_not_wipe(
    engine: Engine, qemu_factory: QemuFactory, tmp_path: Path, version: str
):
    """QEMU loses writes while it wipes: before 10.1, and with detect-zeroes=unmap in any version."""
    top = overlay(tmp_path / "top.qcow2", str(create_image(tmp_path / "base.qcow2")))
    other = overlay(tmp_path / "other.qcow2", str(tmp_path / "base.qcow2"))
    disks = [Disk(top), Disk(other, node={"detect-zeroes": "unmap", "discard": "unmap"})]
    await engine.connect(qemu_factory(disks, binary=qemus()[version], paused=True))
    for disk in ("disk0", "disk1"):
        if disk == "disk0" and number(version) >= TOLD_FROM:
            await moved(engine, disk, tmp_path / "new.qcow2", "qcow2", copy_mode=CopyMode.WRITE_BLOCKING)
            continue
        with pytest.raises(BadRequestError, match="lose writes while it wipes"):
            await moved(engine, disk, tmp_path / "no.qcow2", "qcow2", copy_mode=CopyMode.WRITE_BLOCKING)


@pytest.mark.parametrize(
    ("secret", "preallocation", "zeroes"),
    [(None, "full", True), ("/secret", None, True), ("/secret", "off", True), ("/secret", "metadata", False)],
)
def test_clusters_that_are_there_before_they_were_encrypted_are_no_zeroes(
    secret: str | None, preallocation: str | None, zeroes: bool
):
    """What is decrypted there is noise."""
    options = CopyOptions(secret_file=secret, image_options=ImageOptions(preallocation=preallocation))
    assert reads_as_zeroes(options) is zeroes
    assert not reads_as_zeroes(replace(options, reuse=True))


async def test_a_mirror_never_begins_again_on_what_another_has_written(qemu_factory: QemuFactory, tmp_path: Path):
    """Another client has cancelled and dismissed the first one; QEMU would take older data in the image for zeroes."""
    old = qemu_io(create_image(tmp_path / "old.qcow2"), "write -q -P 5 1M 1M")
    qemu = qemu_factory([Disk(old)], paused=True)
    session = await Session.connect(str(qemu.qmp))
    try:
        request = PivotRequest("web1", Kind.COPY, (Target("disk0", str(tmp_path / "new.qcow2")),))
        pivot = await plan(request, session, [], pivot=ULID.format(1), who=Requester(0, 0, 1))
        (disk,) = pivot.disks
        for step in (Step.CREATE_FILE, Step.OPEN_FILE, Step.CREATE_FORMAT, Step.OPEN_FORMAT, Step.START_JOB):
            await session.prepare(pivot, disk, step)
            if step in {Step.CREATE_FILE, Step.CREATE_FORMAT}:
                qemu.await_event("JOB_STATUS_CHANGE", status="concluded")
        qemu.await_event("BLOCK_JOB_READY")
        qemu.spy("job-cancel", id=disk.job)
        qemu.await_event("JOB_STATUS_CHANGE", status="concluded")
        qemu.spy("job-dismiss", id=disk.job)
        with pytest.raises(QmpRefusedError, match="has written to it already"):
            await session.prepare(pivot, disk, Step.START_JOB)
    finally:
        await session.close()
