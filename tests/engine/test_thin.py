"""A copy takes no more room than its source, and QEMU wipes an image exactly where that may hold something else."""

from __future__ import annotations

import json
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
from pivotd.qmp.blocks import DiskSeen, Layer
from pivotd.qmp.mirror_start import buffer_bytes, has_all_allocated, reads_as_zeroes
from pivotd.qmp.session import Session
from tests.conftest import QemuFactory
from tests.support.proxy import Recorder
from tests.support.qemu import Disk, Qemu, create_image
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
    """In every copy mode, and in an empty image that is there.

    Some moves have QEMU before 10.1 write tables for the zeroes, and are left out there.
    """
    sources = thin_sources(tmp_path)
    disks = [Disk(image, image_format, name=name) for name, (image, image_format) in sources.items()]
    qemu = qemu_factory(disks, binary=qemus()[version], paused=True)
    await engine.connect(qemu)
    at_once: dict[str, object] = {"copy_mode": CopyMode.WRITE_BLOCKING}
    moves: list[tuple[str, str, dict[str, object]]] = [
        ("alone", "qcow2", {}),
        ("alone", "qcow2", at_once),
        ("alone", "qcow2", {"discard": Discard.IGNORE}),
        ("alone", "qcow2", {"reuse": True}),
        ("alone", "qcow2", {"reuse": True, **at_once}),
        ("alone", "raw", {}),
        ("raw", "raw", {}),
        ("raw", "raw", at_once),
        ("layered", "raw", {}),
    ]
    if number(version) >= TOLD_FROM:
        moves += [("raw", "qcow2", {}), ("flat", "qcow2", at_once)]
    made = [(disk, tmp_path / f"new{index}.{kind}", kind) for index, (disk, kind, _) in enumerate(moves)]
    for (disk, new, image_format), (_, _, options) in zip(made, moves, strict=True):
        if "reuse" in options:
            create_image(new, size=HUGE)
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
    """Where a source has no data, the image that is overwritten must not keep its own.

    A raw source is copied write-blocking from the start too: QEMU overwrites all of the image without wiping it first.
    """
    size = "8M"
    base = qemu_io(create_image(tmp_path / "base.qcow2", size=size), "write -q -P 5 1M 1M", "write -q -P 5 4M 1M")

    def source(kind: str, path: Path) -> tuple[Path, str]:
        if kind == "layered":
            return qemu_io(overlay(path, str(base), size=size), "write -q -z 1M 64k"), "qcow2"
        return qemu_io(create_image(path, image_format=kind, size=size), "write -q -P 5 1M 1M", image_format=kind), kind

    moves = [(kind, discard, CopyMode.AUTO) for kind in ("qcow2", "raw", "layered") for discard in Discard]
    moves += [("raw", Discard.UNMAP, CopyMode.WRITE_BLOCKING)]
    targets = [(*move, image_format) for move in moves for image_format in ("raw", "qcow2")]
    sources = [source(kind, tmp_path / f"old{index}") for index, (kind, *_) in enumerate(targets)]
    qemu = qemu_factory([Disk(*found) for found in sources], binary=qemus()[version], paused=True)
    await engine.connect(qemu)
    for index, (_, discard, mode, image_format) in enumerate(targets):
        new = create_image(tmp_path / f"new{index}", image_format=image_format, size=size)
        qemu_io(new, f"write -q -P 8 0 {size}", image_format=image_format)
        await moved(engine, f"disk{index}", new, image_format, reuse=True, discard=discard, copy_mode=mode)
    shut_down(qemu)
    for index, target in enumerate(targets):
        assert same(*sources[index], tmp_path / f"new{index}", target[-1]), target


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


@pytest.mark.parametrize("version", qemus())
async def test_qemu_is_told_what_it_need_not_look_for(
    engine: Engine, qemu_factory: QemuFactory, tmp_path: Path, version: str
):
    """That a new image reads as zeroes, where QEMU can be told; how far to step through the holes of a raw disk."""
    raw = qemu_io(
        create_image(tmp_path / "raw.raw", image_format="raw", size="4T"), "write -q 1T 1M", image_format="raw"
    )
    alone = create_image(tmp_path / "alone.qcow2")
    layered = overlay(tmp_path / "top.qcow2", str(create_image(tmp_path / "base.qcow2")))
    proxy = Qemu.proxy_for(tmp_path, on_message=(sent := Recorder([])))
    disks = [Disk(raw, "raw"), Disk(alone), Disk(layered)]
    qemu = qemu_factory(disks, binary=qemus()[version], paused=True, proxy=proxy)
    await engine.connect(qemu)
    for disk in ("disk0", "disk1", "disk2"):
        await moved(engine, disk, tmp_path / f"{disk}.raw", "raw")
    label = "command:blockdev-mirror"
    told = [json.loads(message.raw)["arguments"] for message in sent.messages if message.label == label]
    if number(version) < TOLD_FROM:
        assert all(arguments["target-is-zero"] for arguments in told[::2]), "QEMU has refused these"
        told = told[1::2]
    shown = [(one["sync"], one.get("target-is-zero", False), one.get("buf-size")) for one in told]
    zero = number(version) >= TOLD_FROM
    assert shown == [("top", zero, 64 * MIB), ("top", zero, None), ("full", zero, None)]


def a_disk(allocated: int | None, *, size: int = 8 << 40, image_format: str = "raw", filename: str = "/x") -> DiskSeen:
    layer = Layer(filename, image_format, size, allocated_bytes=allocated)
    return DiskSeen(
        "disk0", "", "", "src0", filename, image_format, size, False, True, False, "off", (), (layer,)
    )  # fmt: skip


@pytest.mark.parametrize(
    ("seen", "mib"),
    [
        (a_disk(1 << 30), 128),
        (a_disk(1 << 20, size=2 << 40), 32),
        (a_disk(1 << 30, size=64 << 40), 128),
        (a_disk(1 << 20, size=1 << 40), None),
        (a_disk(4 << 30), None),
        (a_disk(8 << 40), None),
        (a_disk(None), None),
        (a_disk(0), None),
        (a_disk(1 << 30, image_format="qcow2"), None),
        (a_disk(1 << 30, filename="nbd://host/x"), None),
    ],
    ids=["holes", "smaller", "most", "small", "data", "full", "unknown", "device", "qcow2", "export"],
)
def test_a_mirror_has_a_larger_buffer_only_for_a_disk_of_holes(seen: DiskSeen, mib: int | None):
    """It is memory of QEMU's, and a sixteenth of it is one request, which the guest's own wait for."""
    assert buffer_bytes(seen) == (None if mib is None else mib * MIB)


@pytest.mark.parametrize(
    ("image_format", "filename", "all_allocated"),
    [
        ("raw", "/x", True),
        ("raw", "relative.raw", True),
        ("host_device", "/dev/vg/x", True),
        ("raw", 'json:{"driver":"raw","offset":512,"file":{"driver":"file","filename":"/x"}}', True),
        ("raw", "nbd+unix:///x?socket=/s", False),
        ("raw", "null-co://", False),
        ("raw", 'json:{"driver":"raw","file":{"driver":"nbd","server.type":"unix","server.path":"/s"}}', False),
        ("qcow2", "/x", False),
        ("throttle", "/x", False),
    ],
)
def test_only_files_and_devices_are_known_to_have_all_of_a_disk(image_format: str, filename: str, all_allocated: bool):
    """An export may have holes of which it does not say that they read as zeroes."""
    assert has_all_allocated(a_disk(None, image_format=image_format, filename=filename)) is all_allocated


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
