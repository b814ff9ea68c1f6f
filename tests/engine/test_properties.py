"""The table of docs/tasks.md on what a new image has, row by row on a real QEMU."""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from pivotd.core.creation import ImageOptions
from pivotd.core.pivot import Outcome
from pivotd.core.request import Aio, Discard, Kind, Sync, Target
from pivotd.errors import BadRequestError
from tests.conftest import QemuFactory
from tests.support.qemu import CACHES, Disk, Qemu, create_image

from .conftest import Engine
from .storage import allocated_bytes, info
from .test_destinations import overlay
from .test_encryption import LUKS
from .test_internal_snapshots import keep_inside

pytestmark = pytest.mark.qemu

MIB = 1 << 20
TASKS = Path(__file__).resolve().parents[2] / "docs" / "tasks.md"
FATES = {"carried over", "refused", "chosen", "not shown"}
RICH = "cluster_size=128k,extended_l2=on,lazy_refcounts=on,refcount_bits=32,compression_type=zstd"
GIVEN = ImageOptions(128 << 10, True, "falloc", True, "v3", 32, "zstd")
LIMITS = {"bps": 0, "bps_rd": 0, "bps_wr": MIB, "iops": 0, "iops_rd": 0, "iops_wr": 0}
OF_QCOW2 = {
    "`cluster-size`": ("cluster-size", 65536, 128 << 10),
    "`extended-l2`": ("extended-l2", False, True),
    "`lazy-refcounts`": ("lazy-refcounts", False, True),
    "`refcount-bits`": ("refcount-bits", 16, 32),
    "`compression-type`": ("compression-type", "zlib", "zstd"),
}
"""Row -> the name that QEMU shows, its default, and the value of the source."""


def rows() -> dict[str, str]:
    """Return the table: property -> what becomes of it."""
    text = TASKS.read_text()
    table = text[text.index("| property | new image | how |") :].split("\n\n", 1)[0]
    return dict(re.findall(r"^\| (.+?) \| (.+?) \| .*\|$", table, re.MULTILINE)[1:])


@dataclass
class Walk:
    """One QEMU with a disk for each property, before any of them moves, and what is found on the way."""

    engine: Engine
    qemu: Qemu
    directory: Path
    default: dict[str, Any] = field(default_factory=dict)
    """What QEMU shows of each disk after a copy without options."""
    chosen: dict[str, Any] = field(default_factory=dict)
    """What it shows after a copy with every option."""

    def shown(self) -> dict[str, Any]:
        """Return what query-block shows of each disk."""
        entries = self.qemu.spy("query-block")
        return {re.sub(r"^/machine/peripheral/|/virtio-backend$", "", row["qdev"]): row["inserted"] for row in entries}

    def new(self, disk: str, by: str) -> Path:
        return self.directory / f"{disk}-{by}"

    async def copy(self, by: str, *disks: str, **options: Any) -> dict[str, Any]:
        """Copy disks as one pivot; return what QEMU shows then."""
        targets = [Target(disk, str(self.new(disk, by))) for disk in disks]
        pivot = await self.engine.closed(await self.engine.start(Kind.COPY, "web1", *targets, **options))
        assert pivot.outcome == Outcome.SWITCHED, pivot.error
        return self.shown()

    async def refused(self, disk: str, words: str, *, by: str = "", **let: Any) -> None:
        """Check that a copy is refused in these words, and possible with ``let``."""
        with pytest.raises(BadRequestError, match=words):
            await self.copy(by, disk)
        if let:
            await self.copy("let", disk, **let)

    def alike(self, disk: str, other: str) -> None:
        """Check that QEMU shows no difference between two disks that differ in one property."""
        names = {"node-name", "file", "filename", "actual-size"}
        one, two = (
            [{k: v for k, v in part.items() if k not in names | {"image", "children"}} for part in (row, row["image"])]
            for row in (self.shown()[disk], self.shown()[other])
        )
        assert one == two

    def aio(self) -> bool:
        """Return whether QEMU has set up the kernel's asynchronous I/O."""
        return "/[aio]" in Path(f"/proc/{self.qemu.pid}/maps").read_text()


CHECKS: dict[str, Callable[[Walk], Awaitable[None]]] = {}


def row(name: str) -> Callable[[Callable[[Walk], Awaitable[None]]], None]:
    """Register the check of one row."""

    def register(check: Callable[[Walk], Awaitable[None]]) -> None:
        assert name not in CHECKS
        CHECKS[name] = check

    return register


@row("size")
async def _(walk: Walk) -> None:
    assert walk.default["odd"]["image"]["virtual-size"] == MIB + 512
    assert walk.new("odd", "plain").stat().st_size == MIB + 512


@row("`detect-zeroes`")
async def _(walk: Walk) -> None:
    assert (walk.default["rich"]["detect_zeroes"], walk.chosen["rich"]["detect_zeroes"]) == ("unmap", "on")
    assert walk.default["odd"]["detect_zeroes"] == "off"


@row("`cache.direct`")
async def _(walk: Walk) -> None:
    assert (walk.default["rich"]["cache"]["direct"], walk.default["odd"]["cache"]["direct"]) == (True, False)


@row("dirty bitmaps")
async def _(walk: Walk) -> None:
    assert [bitmap["name"] for bitmap in walk.chosen["rich"]["dirty-bitmaps"]] == ["kept"]
    with pytest.raises(BadRequestError, match="cannot hold the dirty bitmaps"):
        await walk.engine.start(Kind.COPY, "web1", Target("rich", str(walk.new("rich", "raw")), "raw"))


@row("write threshold of the image's node")
async def _(walk: Walk) -> None:
    assert (walk.default["rich"]["write_threshold"], walk.default["odd"]["write_threshold"]) == (3 * MIB, 0)
    over = Target("rich", str(walk.new("rich", "over")))
    for kind, target in ((Kind.SNAPSHOT, over), (Kind.COMMIT, Target("rich"))):
        walk.qemu.spy("block-set-write-threshold", node_name=walk.shown()["rich"]["node-name"], write_threshold=MIB)
        await walk.engine.closed(await walk.engine.start(kind, "web1", target))
        assert walk.shown()["rich"]["write_threshold"] == MIB, kind
        if kind is Kind.SNAPSHOT:
            assert walk.shown()["rich"]["detect_zeroes"] == "on"


@row("I/O limits of the device")
async def _(walk: Walk) -> None:
    assert {name: walk.chosen["rich"][name] for name in LIMITS} == LIMITS


@row("`cache.no-flush`")
async def _(walk: Walk) -> None:
    await walk.refused("unsafe", "uses cache=unsafe", force=True)
    assert not walk.shown()["unsafe"]["cache"]["no-flush"]


@row("`read-only`")
async def _(walk: Walk) -> None:
    await walk.refused("read-only", "is read-only")


@row("encryption")
async def _(walk: Walk) -> None:
    await walk.refused("encrypted", "is encrypted, and .* --secret-file makes .* --plain", plain=True)
    assert not walk.shown()["encrypted"]["encrypted"]


@row("internal snapshots")
async def _(walk: Walk) -> None:
    await walk.refused("inside", "has internal snapshots, .*: kept", drop_internal_snapshots=True)


@row("filter nodes")
async def _(walk: Walk) -> None:
    await walk.refused("filtered", "a throttle node is above its image")


@row("`data-file-raw`")
async def _(walk: Walk) -> None:
    await walk.refused("raw-data", "keeps the data as a raw image in .*raw-data.raw")
    qcow2 = create_image(walk.new("raw-data", "reuse"), size="4M", options=_data_file(walk.directory, "new-data"))
    assert (await walk.copy("reuse", "raw-data", reuse=True))["raw-data"]["image"]["filename"] == str(qcow2)
    assert walk.shown()["raw-data"]["image"]["format-specific"]["data"]["data-file-raw"]


@row("`data-file`")
async def _(walk: Walk) -> None:
    assert "data-file" not in walk.default["data"]["image"]["format-specific"]["data"]


@row("backing chain")
async def _(walk: Walk) -> None:
    assert walk.default["layered"]["backing_file_depth"] == 0
    await walk.copy("top", "layered-too", sync=Sync.TOP)
    assert info(walk.new("layered-too", "top"))["full-backing-filename"] == str(walk.directory / "base")


def _of_qcow2(name: str) -> None:
    shown, default, of_source = OF_QCOW2[name]

    @row(name)
    async def _(walk: Walk) -> None:
        for found, expected in ((walk.default, default), (walk.chosen, of_source)):
            image = found["rich"]["image"]
            assert (image | image["format-specific"]["data"])[shown] == expected


for _name in OF_QCOW2:
    _of_qcow2(_name)


@row("`compat`")
async def _(walk: Walk) -> None:
    assert walk.default["old"]["image"]["format-specific"]["data"]["compat"] == "1.1"
    shown = await walk.copy("chosen", "old", image_options=ImageOptions(version="v2"))
    assert shown["old"]["image"]["format-specific"]["data"]["compat"] == "0.10"


@row("preallocation")
async def _(walk: Walk) -> None:
    assert allocated_bytes(walk.new("rich", "plain")) < 4 * MIB <= allocated_bytes(walk.new("rich", "chosen"))


@row("`discard`")
async def _(walk: Walk) -> None:
    walk.alike("bare", "discard")
    for disk in ("bare", "discard"):
        command = f'qemu-io -d /machine/peripheral/{disk}/virtio-backend "%s"'
        discard = Discard.UNMAP if disk == "bare" else Discard.IGNORE
        await walk.copy("chosen", disk, discard=discard)
        walk.qemu.spy("human-monitor-command", {"command-line": command % "write -q -P 7 0 1M"})
        before = allocated_bytes(walk.new(disk, "chosen"))
        walk.qemu.spy("human-monitor-command", {"command-line": command % "discard 0 1M"})
        freed = before - allocated_bytes(walk.new(disk, "chosen"))
        assert freed == (MIB if discard is Discard.UNMAP else 0)


@row("`aio`")
async def _(walk: Walk) -> None:
    assert not walk.aio()
    with pytest.raises(BadRequestError, match="add --cache none"):
        await walk.copy("native", "odd", aio=Aio.NATIVE)
    await walk.copy("native", "auto-read-only", aio=Aio.NATIVE)
    assert walk.aio()


@row("`auto-read-only`")
async def _(walk: Walk) -> None:
    walk.alike("bare", "auto-read-only")


@row("`copy-on-read` of a `-drive`")
async def _(walk: Walk) -> None:
    walk.alike("drive", "copy-on-read")


@row("write threshold of a node below the image")
async def _(walk: Walk) -> None:
    walk.qemu.spy("block-set-write-threshold", node_name="named-file", write_threshold=MIB)
    assert not walk.shown()["named"]["write_threshold"]


def _data_file(directory: Path, name: str) -> str:
    return f"data_file={directory / name}.raw,data_file_raw=on"


def _file(path: Path, **more: Any) -> dict[str, Any]:
    return {"driver": "file", "filename": str(path), "cache": CACHES["none"], **more}


def start(factory: QemuFactory, directory: Path, encrypted: Path) -> Qemu:
    """Start the QEMU of a Walk."""

    def qcow2(name: str, options: str = "") -> Path:
        return create_image(directory / name, size="4M", options=options)

    def raw(name: str, size_bytes: int = 2 * MIB) -> Path:
        (directory / name).write_bytes(bytes(size_bytes))
        return directory / name

    base = str(qcow2("base"))
    below = {"driver": "qcow2", "file": {"driver": "file", "filename": str(qcow2("filtered"))}}
    named = _file(raw("named"), **{"node-name": "named-file"})
    disks = [
        Disk(qcow2("rich", RICH), name="rich", node={"detect-zeroes": "unmap", "discard": "unmap"}),
        Disk(qcow2("old", "compat=0.10"), name="old"),
        Disk(raw("odd", MIB + 3), "raw", "odd", cache="writeback"),
        Disk(qcow2("unsafe"), name="unsafe", cache="unsafe"),
        Disk(qcow2("read-only"), name="read-only", node={"read-only": True}),
        Disk(encrypted / "qcow2", name="encrypted", node=LUKS),
        Disk(keep_inside(qcow2("inside"), "kept"), name="inside"),
        Disk(
            directory / "filtered", name="filtered", node={"driver": "throttle", "throttle-group": "tg", "file": below}
        ),
        Disk(qcow2("raw-data", _data_file(directory, "raw-data")), name="raw-data"),
        Disk(qcow2("data", f"data_file={directory / 'data.raw'}"), name="data"),
        Disk(overlay(directory / "layered", base, size="4M"), name="layered"),
        Disk(overlay(directory / "layered-too", base, size="4M"), name="layered-too"),
        Disk(raw("bare"), "raw", "bare"),
        Disk(raw("discard"), "raw", "discard", node={"discard": "unmap"}),
        Disk(raw("auto-read-only"), "raw", "auto-read-only", node={"auto-read-only": True}),
        Disk(raw("named"), "raw", "named", node={"file": "named-file"}, before=(named,)),
        Disk(raw("drive"), "raw", "drive", legacy=True),
        Disk(raw("copy-on-read"), "raw,copy-on-read=on", "copy-on-read", legacy=True),
    ]
    secret = json.dumps({"qom-type": "secret", "id": "s", "file": str(encrypted / "key")})
    group = json.dumps({"qom-type": "throttle-group", "id": "tg"})
    return factory(disks, extra=["-object", secret, "-object", group])


async def test_the_table(engine: Engine, qemu_factory: QemuFactory, tmp_path: Path, encrypted: Path):
    """Every row, and no other property, has a check; what the table promises is what QEMU shows."""
    table = rows()
    assert set(table) == set(CHECKS)
    assert set(table.values()) <= FATES
    qemu = start(qemu_factory, tmp_path, encrypted)
    walk = Walk(engine, qemu, tmp_path)
    await engine.connect(qemu)
    qemu.spy("block-dirty-bitmap-add", node="src0", name="kept", persistent=True)
    qemu.spy("block_set_io_throttle", {"id": "/machine/peripheral/rich/virtio-backend", **LIMITS})
    qemu.spy("block-set-write-threshold", node_name="src0", write_threshold=3 * MIB)
    walk.default = await walk.copy("plain", "rich", "old", "odd", "data", "layered")
    walk.chosen = await walk.copy("chosen", "rich", image_options=GIVEN, discard=Discard.IGNORE)
    for name, check in CHECKS.items():
        try:
            await check(walk)
        except Exception as error:
            error.add_note(f"row: {name} ({table[name]})")
            raise
