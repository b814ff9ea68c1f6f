"""A name in a header, a record or a verdict describes the image completely: opened by it, it shows the guest's data."""

from __future__ import annotations

import hashlib
import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest

from pivotd.core.names import reopened_source
from pivotd.core.pivot import Outcome
from pivotd.core.request import Kind, Sync, Target
from pivotd.errors import BadRequestError, RequestError
from pivotd.host import files, places
from tests.conftest import QemuFactory
from tests.support.loop_devices import LoopDevice
from tests.support.qemu import Disk, Qemu, create_image, default_binary

from .conftest import Engine
from .test_lasting_names import planned

pytestmark = pytest.mark.qemu
MIB = 1 << 20


def content(name: str, image_format: str) -> str:
    """Return a digest of what a guest reads that is started with this name."""
    how = [] if name.startswith("json:") else ["-f", image_format]
    with tempfile.NamedTemporaryFile() as raw:
        subprocess.run(["qemu-img", "convert", "-U", *how, "-O", "raw", name, raw.name], check=True)
        return hashlib.sha256(raw.read()).hexdigest()


def thirds(path: Path) -> Path:
    """Create a file of three parts that differ."""
    path.write_bytes(b"A" * MIB + b"B" * 8 * MIB + b"C" * MIB)
    return path


def file(path: Path) -> dict[str, Any]:
    return {"driver": "file", "filename": str(path), "locking": "off"}


def image(path: Path, pattern: int, backing: str = "") -> Path:
    """Create an image with a MiB of data at a place of its own."""
    options = f"backing_file={backing},backing_fmt=qcow2" if backing else ""
    create_image(path, size="16M", options=options)
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", f"write -q -P {pattern} {pattern}M 1M", path], check=True)
    return path


def odd_disks(directory: Path) -> list[Disk]:
    """Return disks whose plain names would not say everything, or say it although QEMU describes them at length."""
    whole = thirds(directory / "whole.img")
    names = ("base", "other", "none", "debugged", "inside")
    base, other, none, debugged, inside = (
        image(directory / f"{name}.qcow2", number) for number, name in enumerate(names, 1)
    )
    disk, part = directory / "container.img", {"driver": "raw", "offset": MIB, "size": 16 * MIB}
    disk.write_bytes(b"x" * MIB + inside.read_bytes().ljust(16 * MIB, b"\0") + b"x" * MIB)
    lower = {"driver": "qcow2", "read-only": True, "file": file(base)}
    top, null = image(directory / "top.qcow2", 7, str(other)), image(directory / "null.qcow2", 7, str(other))
    same = image(directory / "same.qcow2", 8, "base.qcow2")
    return [
        Disk(whole, "raw", node={"offset": MIB, "size": 8 * MIB, "file": file(whole)}),
        Disk(whole, "raw", node={"offset": 9 * MIB, "file": file(whole)}),
        Disk(disk, node={"file": {**part, "file": file(disk)}}),
        Disk(top, node={"backing": "low3"}, before=({"node-name": "low3", **lower},)),
        Disk(null, node={"backing": None}),
        Disk(none, node={"backing": "low5"}, before=({"node-name": "low5", **lower},)),
        Disk(same, node={"backing": "low6"}, before=({"node-name": "low6", **lower},)),
        Disk(debugged, node={"file": {"driver": "blkdebug", "align": 4096, "image": file(debugged)}}),
    ]


PLAIN = {"disk6": "same.qcow2", "disk7": "debugged.qcow2"}
"""Disks of which QEMU shows a long description where a path says all."""


async def test_every_name_shows_the_data_of_the_guest(engine: Engine, qemu_factory: QemuFactory, tmp_path: Path):
    """The name of the source of a copy, and the header of a snapshot over it; a path wherever a path says all."""
    disks = odd_disks(tmp_path)
    qemu = qemu_factory(disks, paused=True)
    await engine.connect(Qemu(tmp_path))
    wanted = {}
    for row in qemu.spy("query-block"):
        shown, name = row["inserted"]["image"], row["qdev"].split("/")[3]
        wanted[name] = content(shown["filename"], shown["format"])
    assert len(set(wanted.values())) == len(disks), "no two of them have the same data"
    for name, digest in wanted.items():
        target = Target(name, str(tmp_path / f"{name}-copy.qcow2"), "qcow2")
        source = (await planned(engine, Kind.COPY, target)).disks[0].source
        assert content(source.filename, source.format) == digest, source
        assert source.filename.startswith("json:") is (name not in PLAIN), source
    overlays = [Target(name, str(tmp_path / f"{name}-overlay.qcow2")) for name in wanted]
    pivot = await engine.closed(await engine.start(Kind.SNAPSHOT, "web1", *overlays))
    assert pivot.outcome == Outcome.SWITCHED, pivot.error
    for target in overlays:
        assert content(target.image, "qcow2") == wanted[target.disk], target
    for target in overlays:  # and QEMU shows the overlays, whose headers say all, by their paths
        planned_again = await planned(engine, Kind.COPY, Target(target.disk, str(tmp_path / "again.qcow2")))
        assert planned_again.disks[0].source.filename == target.image


async def test_a_chain_on_a_part_of_a_file(engine: Engine, qemu_factory: QemuFactory, tmp_path: Path):
    """Copied in part, pulled, committed: every header names the part, and at last the disk is on it again."""
    whole = thirds(tmp_path / "whole.img")
    qemu = qemu_factory([Disk(whole, "raw", node={"offset": MIB, "size": 8 * MIB})], paused=True)
    await engine.connect(Qemu(tmp_path))
    one, two, three, four = (str(tmp_path / f"{name}.qcow2") for name in ("one", "two", "three", "four"))
    part = (await planned(engine, Kind.COPY, Target("disk0", one, "qcow2"))).disks[0].source
    wanted = content(part.filename, "raw")
    active = ""
    for kind, target, options in (
        (Kind.SNAPSHOT, Target("disk0", one), {}),
        (Kind.COPY, Target("disk0", two), {"sync": Sync.TOP}),
        (Kind.SNAPSHOT, Target("disk0", three), {}),
        (Kind.PULL, Target("disk0", base=str(whole)), {}),
        (Kind.SNAPSHOT, Target("disk0", four), {}),
        (Kind.COMMIT, Target("disk0", top=three), {}),
    ):
        pivot = await engine.closed(await engine.start(kind, "web1", target, **options))
        assert pivot.outcome in {Outcome.SWITCHED, Outcome.MERGED}, (kind, pivot.error)
        active = target.image or active
        assert content(active, "qcow2") == wanted, (kind, active)
    pivot = await engine.closed(await engine.start(Kind.COMMIT, "web1", Target("disk0")))
    right = pivot.disks[0].destination
    assert (right.filename, right.format, right.file_id) == (part.filename, "raw", part.file_id)
    assert qemu.root().node == "src0"


async def test_a_part_that_qemu_has_closed_is_opened_again(engine: Engine, qemu_factory: QemuFactory, tmp_path: Path):
    """QEMU deletes the node of a -drive at the switch: the mirror back writes to the part, not to the whole file."""
    whole = thirds(tmp_path / "whole.img")
    drive = f"if=none,id=part,file={whole},format=raw,offset=1M,size={8 * MIB}"
    qemu = qemu_factory([], paused=True, extra=["-drive", drive, "-device", "virtio-blk-pci,drive=part,id=disk0"])
    await engine.connect(Qemu(tmp_path))
    driver = await engine.start(Kind.COPY, "web1", Target("disk0", str(tmp_path / "n.raw")), keep_synced=True)
    pivot = await engine.resting(driver)
    assert pivot.window_open, pivot.error
    again = qemu.nodes()[reopened_source(pivot.id, 0)]["image"]
    assert files.resolve(again["filename"], None).path == pivot.disks[0].source.filename
    assert again["virtual-size"] == 8 * MIB


async def test_what_no_name_leads_to(engine: Engine, qemu_factory: QemuFactory, tmp_path: Path):
    """File descriptors and temporary files stand in no header, also with --force; a copy vouches for neither."""
    temporary, handed = image(tmp_path / "a.qcow2", 1), image(tmp_path / "b.qcow2", 2)
    binary = ["sh", "-c", 'exec 9<>"$0" 8<"$0"; exec "$@"', str(handed), *default_binary()]
    drives = {"tmp": f"{temporary},format=qcow2,snapshot=on", "fd": "/dev/fdset/7,format=qcow2"}
    guest = ["-add-fd", "fd=9,set=7", "-add-fd", "fd=8,set=7"]
    for name, drive in drives.items():
        guest += ["-drive", f"if=none,id={name},file={drive}", "-device", f"virtio-blk-pci,drive={name},id={name}d"]
    empty = {"driver": "raw", "node-name": "empty", "file": {"driver": "null-co", "size": MIB, "read-zeroes": True}}
    guest += ["-blockdev", json.dumps(empty), "-device", "virtio-blk-pci,drive=empty,id=emptyd"]
    qemu_factory([], binary=binary, paused=True, extra=guest)
    await engine.connect(Qemu(tmp_path))
    new = str(tmp_path / "new.qcow2")
    for name in ("tmpd", "fdd", "emptyd"):
        with pytest.raises(BadRequestError, match=r"ends with QEMU|one image"):
            await planned(engine, Kind.SNAPSHOT, Target(name, new), force=True)
    with pytest.raises(BadRequestError, match="one image"):
        await planned(engine, Kind.COPY, Target("emptyd", new), force=True)
    for name in ("tmpd", "fdd"):
        source = (await planned(engine, Kind.COPY, Target(name, new), force=True)).disks[0].source
        assert source.file_id == files.LOST


async def test_parts_of_one_device(engine: Engine, qemu_factory: QemuFactory, tmp_path: Path):
    """Two parts are two images, and neither is the device, which no copy may overwrite while they are in use."""
    with LoopDevice(thirds(tmp_path / "whole.img")) as path:
        node = {"driver": "host_device", "filename": str(path), "locking": "off"}
        parts = [{"offset": 0, "size": MIB, "file": node}, {"offset": MIB, "size": MIB, "file": node}]
        qemu_factory([Disk(path, "raw", node=part) for part in parts], paused=True)
        await engine.connect(Qemu(tmp_path))
        sources = [
            (await planned(engine, Kind.COPY, Target(f"disk{number}", str(tmp_path / "n.raw")))).disks[0].source
            for number in range(2)
        ]
        first, second = (files.resolve(source.filename, None) for source in sources)
        assert files.same(sources[0], first)
        assert not files.same(sources[0], second)
        assert not places.of(sources[0].filename).overlaps(places.of(second.path))
        assert not files.same(sources[0], files.resolve(str(path), None))
        assert places.of(sources[0].filename).overlaps(places.of(str(path)))
        with pytest.raises(RequestError, match=r"in use by|its present image"):
            await planned(engine, Kind.COPY, Target("disk0", str(path), "raw"), reuse=True)
