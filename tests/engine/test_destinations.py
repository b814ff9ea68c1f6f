"""Every kind of place that a disk can move to, and every way in which one is refused."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from pivotd.core.creation import ImageOptions
from pivotd.core.pivot import Outcome
from pivotd.core.request import CopyMode, Discard, Kind, Requester, Sync, Target
from pivotd.engine.inbox import Cancel
from pivotd.errors import BadRequestError
from tests.conftest import QemuFactory
from tests.support.encrypted import BUSY, TRIES_MAX, encrypted_image
from tests.support.loop_devices import LoopDevice
from tests.support.proxy import Recorder
from tests.support.qemu import Disk, Qemu, create_image

from .conftest import Engine
from .storage import (
    NbdServer,
    allocated_bytes,
    header_chain,
    info,
    shown_chain,
)
from .test_copy import assert_clean, content, write

WHO = Requester(0, 0, 1)
pytestmark = pytest.mark.qemu

MIB = 1 << 20


async def switched(engine: Engine, target: str | Path, image_format: str | None = None, **options: object) -> None:
    """Copy disk0 of web1 there."""
    driver = await engine.start(Kind.COPY, "web1", Target("disk0", str(target), image_format), **options)
    pivot = await engine.closed(driver)
    assert pivot.outcome == Outcome.SWITCHED, pivot.error


def overlay(path: Path, backing: str, *, size: str = "64M") -> Path:
    """Create an overlay; ``backing`` as it is to be written in it."""
    subprocess.run(
        ["qemu-img", "create", "-q", "-f", "qcow2", "-u", "-b", backing, "-F", "qcow2", str(path), size], check=True
    )
    return path


def shut_down(qemu: Qemu) -> None:
    qemu.kill(15)
    qemu.wait()


def secrets(qemu: Qemu) -> list[str]:
    return [row["name"] for row in qemu.spy("qom-list", path="/objects") if row["type"] == "child<secret>"]


# -- the active layer alone ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("relative", [False, True], ids=["absolute", "relative"])
@pytest.mark.parametrize("legacy", [False, True], ids=["blockdev", "drive"])
async def test_the_active_layer_moves_alone(
    engine: Engine, qemu_factory: QemuFactory, tmp_path: Path, relative: bool, legacy: bool
):
    """The chain that QEMU shows is the chain that the headers name, all the way down; relative names stay relative."""
    create_image(tmp_path / "base.qcow2")
    overlay(tmp_path / "mid.qcow2", "base.qcow2" if relative else str(tmp_path / "base.qcow2"))
    top = overlay(tmp_path / "top.qcow2", "mid.qcow2" if relative else str(tmp_path / "mid.qcow2"))
    (tmp_path / "new").mkdir()
    new = tmp_path / "new" / "top.qcow2"
    qemu = qemu_factory([Disk(top, legacy=legacy)])
    await engine.connect(qemu)
    write(qemu, "disk0", 7)
    await switched(engine, new, sync=Sync.TOP)
    shown = shown_chain(qemu.spy("query-block"), qemu.root().node)
    assert shown == [(str(tmp_path / name), "qcow2") for name in ("new/top.qcow2", "mid.qcow2", "base.qcow2")]
    assert header_chain(new) == shown
    assert info(new)["backing-filename"] == ("../mid.qcow2" if relative else str(tmp_path / "mid.qcow2"))
    assert len(qemu.nodes()) == 6
    write(qemu, "disk0", 8, count=2)
    shut_down(qemu)
    assert allocated_bytes(new) < 2 * MIB
    reference = tmp_path / "reference.qcow2"
    subprocess.run(["qemu-img", "convert", "-f", "qcow2", "-O", "qcow2", str(new), str(reference)], check=True)
    assert content(top, "qcow2") != content(new, "qcow2") == content(reference, "qcow2")


async def test_a_shallow_copy_that_is_taken_back_has_the_old_chain(
    engine: Engine, qemu_factory: QemuFactory, tmp_path: Path
):
    """Cancelled at ready: the source with its chain, nothing of the new image left in QEMU."""
    create_image(tmp_path / "base.qcow2")
    top = overlay(tmp_path / "top.qcow2", str(tmp_path / "base.qcow2"))
    qemu = qemu_factory([Disk(top)])
    await engine.connect(qemu)
    driver = await engine.copy("web1", {"disk0": tmp_path / "new.qcow2"}, sync=Sync.TOP, pivot=False)
    await engine.resting(driver)
    driver.state.inbox.post(Cancel(WHO))
    assert (await engine.closed(driver)).outcome == Outcome.KEPT
    assert [name for name, _ in shown_chain(qemu.spy("query-block"), "src0")] == [
        str(top),
        str(tmp_path / "base.qcow2"),
    ]
    assert len(qemu.nodes()) == 4


# -- options of new images ----------------------------------------------------------------------------------------


async def test_options_of_new_images(engine: Engine, qemu_factory: QemuFactory, tmp_path: Path):
    """Each option is what the header says."""
    qemu = qemu_factory([Disk(create_image(tmp_path / "old.qcow2"))])
    await engine.connect(qemu)
    options = ImageOptions(2 * MIB, True, "metadata", True, "v3", 32)
    await switched(engine, tmp_path / "new.qcow2", image_options=options)
    found = info(tmp_path / "new.qcow2")
    data = found["format-specific"]["data"]
    shown = (found["cluster-size"], data["extended-l2"], data["lazy-refcounts"], data["compat"], data["refcount-bits"])
    assert shown == (2 * MIB, True, True, "1.1", 32)


async def test_an_old_qcow2(engine: Engine, qemu_factory: QemuFactory, tmp_path: Path):
    """version=v2 is compat 0.10."""
    qemu = qemu_factory([Disk(create_image(tmp_path / "old.qcow2"))])
    await engine.connect(qemu)
    await switched(engine, tmp_path / "new.qcow2", image_options=ImageOptions(version="v2"))
    assert info(tmp_path / "new.qcow2")["format-specific"]["data"]["compat"] == "0.10"


async def test_a_raw_image_is_preallocated(engine: Engine, qemu_factory: QemuFactory, tmp_path: Path):
    """preallocation=falloc reserves every block, and with discard=ignore they stay reserved."""
    qemu = qemu_factory([Disk(create_image(tmp_path / "old.qcow2", size="8M"))])
    await engine.connect(qemu)
    options = {"image_options": ImageOptions(preallocation="falloc"), "discard": Discard.IGNORE}
    await switched(engine, tmp_path / "new.raw", "raw", **options)
    assert allocated_bytes(tmp_path / "new.raw") >= 8 * MIB


# -- sparse, discard, detect-zeroes -------------------------------------------------------------------------------


@pytest.mark.parametrize("image_format", ["raw", "qcow2"])
async def test_a_sparse_disk_stays_sparse(engine: Engine, qemu_factory: QemuFactory, tmp_path: Path, image_format: str):
    """64 MiB with 8 blocks written take up little room at the destination."""
    qemu = qemu_factory([Disk(create_image(tmp_path / "old.qcow2"))])
    await engine.connect(qemu)
    write(qemu, "disk0", 7)
    new = tmp_path / f"new.{image_format}"
    await switched(engine, new, image_format)
    shut_down(qemu)
    assert allocated_bytes(new) < 3 * MIB
    assert content(tmp_path / "old.qcow2", "qcow2") == content(new, image_format)


@pytest.mark.parametrize(("discard", "freed"), [(Discard.UNMAP, True), (Discard.IGNORE, False)])
async def test_space_that_the_guest_frees(
    engine: Engine, qemu_factory: QemuFactory, tmp_path: Path, discard: Discard, freed: bool
):
    """Given back to the host after the switch with unmap, kept with ignore."""
    qemu = qemu_factory([Disk(create_image(tmp_path / "old.qcow2"))])
    await engine.connect(qemu)
    new = tmp_path / "new.raw"
    await switched(engine, new, "raw", discard=discard)
    node = qemu.root().node
    qemu.spy(
        "human-monitor-command",
        {"command-line": 'qemu-io -d /machine/peripheral/disk0/virtio-backend "write -q -P 7 0 8M"'},
    )
    before = allocated_bytes(new)
    qemu.spy(
        "human-monitor-command", {"command-line": 'qemu-io -d /machine/peripheral/disk0/virtio-backend "discard 0 8M"'}
    )
    assert (allocated_bytes(new) <= before - 8 * MIB) is freed, (node, before, allocated_bytes(new))


@pytest.mark.parametrize(
    ("source", "discard", "expected"),
    [("on", Discard.UNMAP, "on"), ("unmap", Discard.UNMAP, "unmap"), ("unmap", Discard.IGNORE, "on")],
)
async def test_detect_zeroes_is_carried_over(
    engine: Engine, qemu_factory: QemuFactory, tmp_path: Path, source: str, discard: Discard, expected: str
):
    """The destination treats zeroes as the source did; without discard, zeroes cannot be unmapped."""
    node = {"detect-zeroes": source, "discard": "unmap"}
    qemu = qemu_factory([Disk(create_image(tmp_path / "old.qcow2"), node=node)])
    await engine.connect(qemu)
    await switched(engine, tmp_path / "new.qcow2", discard=discard)
    assert qemu.nodes()[qemu.root().node]["detect_zeroes"] == expected


# -- block devices ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("larger", [0, 3 * MIB])
async def test_a_block_device_takes_a_raw_disk(engine: Engine, qemu_factory: QemuFactory, tmp_path: Path, larger: int):
    """Also one that is larger than the disk: it is not told of the size, which the disk has once it asks."""
    qemu = qemu_factory([Disk(create_image(tmp_path / "old.qcow2", size="8M"))])
    await engine.connect(qemu)
    write(qemu, "disk0", 7)
    backing = tmp_path / "device.raw"
    backing.write_bytes(b"x" * (8 * MIB + larger))
    with LoopDevice(backing) as device:
        driver = await engine.start(Kind.COPY, "web1", Target("disk0", str(device), "raw"), reuse=True)
        pivot = await engine.closed(driver)
        assert pivot.outcome == Outcome.SWITCHED, pivot.error
        assert pivot.disks[0].destination.file_id == f"block:7:{device.name.removeprefix('loop')}"
        inserted = next(row["inserted"] for row in qemu.spy("query-block") if row.get("inserted"))
        assert inserted["image"]["virtual-size"] == 8 * MIB + larger
        await switched(engine, tmp_path / "back.qcow2", "qcow2")
        shut_down(qemu)
    assert backing.read_bytes()[8 * MIB :] == b"x" * larger
    subprocess.run(["qemu-img", "resize", "-q", "--shrink", tmp_path / "back.qcow2", "8M"], check=True)
    assert content(tmp_path / "old.qcow2", "qcow2") == content(tmp_path / "back.qcow2", "qcow2")


async def test_a_qcow2_image_on_a_block_device(engine: Engine, qemu_factory: QemuFactory, tmp_path: Path):
    """One that was made there before."""
    qemu = qemu_factory([Disk(create_image(tmp_path / "old.qcow2", size="8M"))])
    await engine.connect(qemu)
    write(qemu, "disk0", 7)
    backing = tmp_path / "device.raw"
    backing.write_bytes(bytes(16 * MIB))
    with LoopDevice(backing) as device:
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(device), "8M"], check=True)
        await switched(engine, device, "qcow2", reuse=True)
        assert qemu.root().filename == str(device)
        shut_down(qemu)
        subprocess.run(
            ["qemu-img", "compare", "-f", "qcow2", "-F", "qcow2", str(tmp_path / "old.qcow2"), str(device)], check=True
        )


# -- NBD ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tcp", [False, True], ids=["unix", "tcp"])
@pytest.mark.parametrize("image_format", ["raw", "qcow2"])
async def test_an_export_takes_a_disk(
    engine: Engine, qemu_factory: QemuFactory, tmp_path: Path, tcp: bool, image_format: str
):
    """Over TCP and a Unix socket, raw and qcow2; and away from there again."""
    qemu = qemu_factory([Disk(create_image(tmp_path / "old.qcow2"))])
    await engine.connect(qemu)
    write(qemu, "disk0", 7)
    image = create_image(tmp_path / "export.img", image_format=image_format, size="64M")
    if image_format == "qcow2":
        with image.open("r+b") as file:
            file.truncate(80 * MIB)
    with NbdServer(image, tcp=tcp) as server:
        driver = await engine.start(Kind.COPY, "web1", Target("disk0", server.uri, image_format), reuse=True)
        pivot = await engine.closed(driver)
        assert pivot.outcome == Outcome.SWITCHED, pivot.error
        assert pivot.disks[0].destination.filename == server.uri
        write(qemu, "disk0", 8)
        again = await engine.start(Kind.COPY, "web1", Target("disk0", str(tmp_path / "back.qcow2"), "qcow2"))
        pivot = await engine.closed(again)
        assert pivot.outcome == Outcome.SWITCHED, pivot.error
        assert pivot.disks[0].source.filename == server.uri
        server.end()
    shut_down(qemu)
    assert content(image, image_format) == content(tmp_path / "back.qcow2", "qcow2")


# -- LUKS ---------------------------------------------------------------------------------------------------------


async def test_an_encrypted_image_and_away_from_it(engine: Engine, qemu_factory: QemuFactory, tmp_path: Path):
    """The passphrase is in QEMU as long as the image is; the image opens with it and holds what the guest wrote."""
    secret = tmp_path / "passphrase"
    secret.write_text("correct horse")
    qemu = qemu_factory([Disk(create_image(tmp_path / "old.qcow2"))])
    await engine.connect(qemu)
    write(qemu, "disk0", 7)
    new = tmp_path / "new.qcow2"
    options = ImageOptions(luks_iter_ms=10)
    for _ in range(TRIES_MAX):
        new.unlink(missing_ok=True)
        driver = await engine.start(
            Kind.COPY, "web1", Target("disk0", str(new)), secret_file=str(secret), image_options=options, force=True
        )
        pivot = await engine.closed(driver)
        if BUSY not in (pivot.error or ""):
            break
    assert pivot.outcome == Outcome.SWITCHED, pivot.error
    assert info(new)["encrypted"]
    assert len(secrets(qemu)) == 1
    await switched(engine, tmp_path / "plain.qcow2", plain=True)
    assert secrets(qemu) == []
    assert b"\x07" * 512 not in new.read_bytes()
    shut_down(qemu)
    subprocess.run(
        ["qemu-img", "compare", "--object", f"secret,id=s,file={secret}", "--image-opts",
         f"driver=qcow2,file.filename={new},encrypt.key-secret=s", f"driver=qcow2,file.filename={tmp_path / 'plain.qcow2'}"],
        check=True,
    )  # fmt: skip


async def test_an_encrypted_copy_that_is_cancelled_leaves_no_passphrase(
    engine: Engine, qemu_factory: QemuFactory, tmp_path: Path
):
    """Kept: neither image nor passphrase is left in QEMU."""
    secret = tmp_path / "passphrase"
    secret.write_text("correct horse")
    qemu = qemu_factory([Disk(create_image(tmp_path / "old.qcow2"))])
    await engine.connect(qemu)
    options = {"secret_file": str(secret), "image_options": ImageOptions(luks_iter_ms=10), "force": True}
    for number in range(TRIES_MAX):
        driver = await engine.copy("web1", {"disk0": tmp_path / f"new{number}.qcow2"}, pivot=False, **options)
        if BUSY not in ((await engine.resting(driver)).error or ""):
            break
    driver.state.inbox.post(Cancel(WHO))
    pivot = await engine.closed(driver)
    assert (pivot.outcome, pivot.error) == (Outcome.KEPT, "cancelled")
    assert (secrets(qemu), len(qemu.nodes())) == ([], 2)


async def test_a_wrong_passphrase_is_told(engine: Engine, qemu_factory: QemuFactory, tmp_path: Path):
    """--reuse of an encrypted image with another passphrase: kept, QEMU's words, nothing left."""
    for name in ("right", "wrong"):
        (tmp_path / name).write_text(name)
    new = tmp_path / "new.qcow2"
    encrypted_image(new, f"file={tmp_path / 'right'}")
    qemu = qemu_factory([Disk(create_image(tmp_path / "old.qcow2"))])
    await engine.connect(qemu)
    driver = await engine.copy("web1", {"disk0": new}, reuse=True, secret_file=str(tmp_path / "wrong"))
    pivot = await engine.closed(driver)
    assert pivot.outcome == Outcome.KEPT
    assert "Invalid password" in (pivot.error or "")
    assert (secrets(qemu), len(qemu.nodes())) == ([], 2)


async def test_an_encrypted_source(engine: Engine, qemu_factory: QemuFactory, tmp_path: Path):
    """Somebody else's passphrase is used by nobody but QEMU, and stays."""
    secret = tmp_path / "passphrase"
    secret.write_text("correct horse")
    old = tmp_path / "old.qcow2"
    encrypted_image(old, f"file={secret}")
    disk = Disk(old, node={"encrypt": {"format": "luks", "key-secret": "theirs"}})
    qemu = qemu_factory([disk], extra=["-object", f"secret,id=theirs,file={secret}"])
    await engine.connect(qemu)
    write(qemu, "disk0", 7)
    await switched(engine, tmp_path / "new.qcow2", plain=True)
    assert secrets(qemu) == ["theirs"]


# -- write-blocking from the start --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("backed", "options", "sync"),
    [
        (False, {}, "top"),
        (False, {"discard": Discard.IGNORE}, "top"),
        (True, {"discard": Discard.IGNORE}, "full"),
        (True, {"sync": Sync.TOP}, "top"),
    ],
    ids=["new", "kept", "flat", "top"],
)
async def test_qemu_does_not_wipe_an_image_that_it_already_writes_to(
    engine: Engine, qemu_factory: QemuFactory, tmp_path: Path, backed: bool, options: dict[str, object], sync: str
):
    """QEMU wipes first where sync is full and the image may be unmapped, and loses writes that come meanwhile."""
    old = create_image(tmp_path / "old.qcow2")
    if backed:
        old = overlay(tmp_path / "top.qcow2", str(old))
    proxy = Qemu.proxy_for(tmp_path, on_message=(walk := Recorder([])))
    qemu = qemu_factory([Disk(old)], proxy=proxy)
    write(qemu, "disk0", 7)
    await engine.connect(qemu)
    await switched(engine, tmp_path / "new.qcow2", copy_mode=CopyMode.WRITE_BLOCKING, **options)
    mirror = [message for message in walk.messages if message.label == "command:blockdev-mirror"][-1]
    sent = json.loads(mirror.raw)["arguments"]
    assert (sent["copy-mode"], sent["sync"]) == ("write-blocking", sync)
    shut_down(qemu)
    assert content(tmp_path / "new.qcow2", "qcow2") == content(old, "qcow2")


async def test_a_chain_is_not_copied_flat_and_write_blocking_at_once(
    engine: Engine, qemu_factory: QemuFactory, tmp_path: Path
):
    """There QEMU would wipe the image, and lose writes."""
    top = overlay(tmp_path / "top.qcow2", str(create_image(tmp_path / "base.qcow2")))
    await engine.connect(qemu_factory([Disk(top)]))
    wanted = Target("disk0", str(tmp_path / "new.qcow2"))
    with pytest.raises(BadRequestError, match="lose writes while it wipes"):
        await engine.start(Kind.COPY, "web1", wanted, copy_mode=CopyMode.WRITE_BLOCKING)


# -- refusals -----------------------------------------------------------------------------------------------------


def _prepare_refusals(tmp_path: Path) -> None:
    create_image(tmp_path / "small.qcow2", size="32M")
    create_image(tmp_path / "large.qcow2", size="80M")
    create_image(tmp_path / "small.raw", image_format="raw", size="32M")
    (tmp_path / "no.qcow2").write_bytes(bytes(1 << 20))
    used = create_image(tmp_path / "used.qcow2")
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", "write 0 512", str(used)], check=True, stdout=subprocess.DEVNULL)
    overlay(tmp_path / "backed.qcow2", str(tmp_path / "small.qcow2"))


REFUSALS = [
    ("new.raw", {"format": "raw", "sync": Sync.TOP}, "needs qcow2"),
    ("small.qcow2", {"reuse": True, "sync": Sync.TOP}, "cannot prove"),
    ("small.qcow2", {"reuse": True}, "is smaller than disk0"),
    ("large.qcow2", {"reuse": True}, "is larger than disk0"),
    ("small.raw", {"reuse": True, "format": "raw"}, "is smaller than disk0"),
    ("no.qcow2", {"reuse": True}, "holds no qcow2 image"),
    ("backed.qcow2", {"reuse": True}, "has a backing file"),
    ("/dev/null", {"reuse": True}, "neither a regular file nor a block device"),
    ("", {"reuse": True}, "it is its present image"),
    ("small.qcow2", {"reuse": True, "image_options": ImageOptions(version="v3")}, "leave out --option or --reuse"),
    ("new.raw", {"format": "raw", "image_options": ImageOptions(cluster_size=65536)}, "option of qcow2 images"),
    ("new.raw", {"format": "raw", "image_options": ImageOptions(preallocation="metadata")}, "expected one of off"),
    ("new.qcow2", {"image_options": ImageOptions(cluster_size=65537)}, "power of two"),
    ("new.qcow2", {"image_options": ImageOptions(extended_l2=True, cluster_size=4096)}, "16K or more"),
    ("new.qcow2", {"image_options": ImageOptions(version="v2", lazy_refcounts=True)}, "needs version=v3"),
    ("new.qcow2", {"image_options": ImageOptions(luks_iter_ms=10)}, "give --secret-file too"),
    ("new.qcow2", {"secret_file": "/nonexistent"}, "does not exist"),
    ("new.raw", {"format": "raw", "secret_file": "/etc/hostname"}, "encrypts qcow2 images"),
    ("new.qcow2", {"secret_file": "/etc/hostname"}, "can stand still for seconds"),
    ("used.qcow2", {"reuse": True, "copy_mode": CopyMode.WRITE_BLOCKING}, "lose writes while it wipes"),
    ("nbd://127.0.0.1:1/x", {"format": "raw"}, "use --reuse"),
    ("nbd://127.0.0.1:99999/x", {"format": "raw", "reuse": True}, "is no NBD address"),
    ("nbd+unix:///x?socket=relative", {"format": "raw", "reuse": True}, "expected nbd+unix:///EXPORT"),
    ("nbd+unix:///x?socket=/nonexistent", {"format": "raw", "reuse": True}, "there is no socket"),
    ("nbd+unix:///x?socket=/x", {"format": "raw", "reuse": True, "granularity_bytes": 1 << 18}, "may be 128K at most"),
    ("nbd://u@h/x", {"format": "raw", "reuse": True}, "is no NBD address"),
]


@pytest.mark.parametrize(("image", "options", "words"), REFUSALS, ids=[f"{i}-{r[2]}" for i, r in enumerate(REFUSALS)])
async def test_a_request_that_cannot_be_met_is_refused_in_one_line(
    engine: Engine, qemu_factory: QemuFactory, tmp_path: Path, image: str, options: dict[str, object], words: str
):
    """Before anything is recorded or changed."""
    _prepare_refusals(tmp_path)
    qemu = qemu_factory([Disk(create_image(tmp_path / "old.qcow2"))])
    await engine.connect(qemu)
    target = image if image.startswith("nbd") else str(tmp_path / image)
    wanted = Target("disk0", target, str(options.get("format", "qcow2")))
    with pytest.raises(BadRequestError) as refused:
        await engine.start(Kind.COPY, "web1", wanted, **{k: v for k, v in options.items() if k != "format"})
    assert words in refused.value.message
    assert "\n" not in refused.value.message
    assert len(qemu.nodes()) == 2


async def test_a_place_that_is_of_one_process_is_refused(engine: Engine, qemu_factory: QemuFactory, tmp_path: Path):
    """Below /proc, by a descriptor, through a link to either: it is another one for QEMU, and none later."""
    qemu = qemu_factory([Disk(create_image(tmp_path / "old.qcow2"))], paused=True)
    await engine.connect(qemu)
    target = create_image(tmp_path / "target.qcow2")
    (tmp_path / "link").symlink_to("cwd")
    (tmp_path / "cwd").symlink_to("/proc/self/cwd")
    names = [
        f"/proc/{qemu.pid}/cwd/new.qcow2",
        "/proc/self/fd/9",
        "/dev/fdset/3",
        "/dev/fd/9",
        f"{tmp_path}/link/new.qcow2",
    ]
    with target.open("rb") as file:
        for name in (*names, f"/proc/{qemu.pid}/root{target}", f"/dev/fd/{file.fileno()}"):
            for options in ({}, {"reuse": True}, {"reuse": True, "force": True}):
                with pytest.raises(BadRequestError, match="leads to a file of one process alone"):
                    await engine.start(Kind.COPY, "web1", Target("disk0", name, "qcow2"), **options)
            with pytest.raises(BadRequestError, match="leads to a file of one process alone"):
                await engine.start(Kind.SNAPSHOT, "web1", Target("disk0", name))
    (tmp_path / "real").mkdir()
    (tmp_path / "ok").symlink_to("../" + tmp_path.name + "/real")
    await switched(engine, tmp_path / "ok" / "new.qcow2")


async def test_a_device_that_the_host_uses_is_refused(engine: Engine, qemu_factory: QemuFactory, tmp_path: Path):
    """A mounted file system is not overwritten, whatever --reuse says."""
    image = create_image(tmp_path / "fs.raw", image_format="raw", size="64M")
    subprocess.run(["mkfs.ext4", "-q", str(image)], check=True)
    qemu = qemu_factory([Disk(create_image(tmp_path / "old.qcow2"))])
    await engine.connect(qemu)
    with LoopDevice(image) as device:
        where = tmp_path / "mnt"
        where.mkdir()
        if subprocess.run(["mount", str(device), str(where)], check=False).returncode:
            pytest.skip("a file system cannot be mounted here")
        try:
            with pytest.raises(BadRequestError, match="in use by this host"):
                await engine.start(Kind.COPY, "web1", Target("disk0", str(device), "raw"), reuse=True)
        finally:
            subprocess.run(["umount", str(where)], check=True)


async def test_an_export_that_is_not_there_keeps_the_source(engine: Engine, qemu_factory: QemuFactory, tmp_path: Path):
    """QEMU's words, nothing left behind."""
    qemu = qemu_factory([Disk(create_image(tmp_path / "old.qcow2"))])
    await engine.connect(qemu)
    target = Target("disk0", "nbd://127.0.0.1:1/x", "raw")
    pivot = await engine.closed(await engine.start(Kind.COPY, "web1", target, reuse=True))
    assert pivot.outcome == Outcome.KEPT
    assert "Failed to connect" in (pivot.error or "")
    assert len(qemu.nodes()) == 2


@pytest.mark.parametrize(("image_format", "words"), [("raw", "is smaller than disk0"), ("qcow2", "size")])
async def test_an_export_that_is_too_small_keeps_the_source(
    engine: Engine, qemu_factory: QemuFactory, tmp_path: Path, image_format: str, words: str
):
    """Its size is seen by QEMU alone: it refuses to open it, or the mirror; the guest never noticed."""
    qemu = qemu_factory([Disk(create_image(tmp_path / "old.qcow2", size="64M"))])
    await engine.connect(qemu)
    image = create_image(tmp_path / "export.img", image_format=image_format, size="32M")
    with NbdServer(image) as server:
        driver = await engine.start(Kind.COPY, "web1", Target("disk0", server.uri, image_format), reuse=True)
        pivot = await engine.closed(driver)
    assert pivot.outcome == Outcome.KEPT
    assert words in (pivot.error or "")
    assert_clean(qemu)
