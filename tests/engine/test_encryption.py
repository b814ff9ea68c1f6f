"""Data of an encrypted disk lands in an image that is not encrypted only if the request says so."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
from pathlib import Path
from typing import Any

import pytest

from pivotd.core.creation import ImageOptions
from pivotd.core.pivot import Outcome
from pivotd.core.request import CopyOptions, Kind, PivotRequest, Requester, Sync, Target
from pivotd.errors import BadRequestError
from pivotd.planning.plan import plan
from pivotd.qmp import descriptions
from tests.conftest import QemuFactory
from tests.support.encrypted import BUSY, TRIES_MAX
from tests.support.qemu import Disk, Qemu, create_image

from .conftest import Engine
from .storage import info
from .test_copy import write
from .test_destinations import overlay, secrets, shut_down

pytestmark = pytest.mark.qemu

WHO = Requester(0, 0, 1)
KEY = {"key-secret": "s"}
LUKS = {"encrypt": {"format": "luks", **KEY}}
FULL, TOP = {"sync": Sync.FULL}, {"sync": Sync.TOP}


def qemu_img(directory: Path, command: str, *arguments: str) -> None:
    """Run qemu-img with the passphrase."""
    secret = f"secret,id=s,file={directory / 'key'}"
    subprocess.run(["qemu-img", command, "--object", secret, *arguments], cwd=directory, check=True)


def container(image: Path, size: int) -> bytes:
    """Return a LUKS container of zeroes with the header that an encrypted qcow2 image has."""
    data = image.read_bytes()
    offset, length = struct.unpack_from(">QQ", data, data.index(b"\x05\x37\xbe\x77\x00\x00\x00\x10") + 8)
    return data[offset : offset + length] + bytes(size)


def start(factory: QemuFactory, directory: Path, encrypted: Path) -> Qemu:
    """Start a QEMU with every way in which a disk can be encrypted, and disks with an encrypted layer in their chain."""
    for name in ("key", "qcow2"):
        shutil.copy(encrypted / name, directory)
    for name in ("below", "active", "middle", "target"):
        shutil.copy(encrypted / "qcow2", directory / name)
    for name in ("luks", "raw-on-luks", "qcow2-on-luks"):
        (directory / name).write_bytes(container(encrypted / "qcow2", 64 << 20))
    create_image(directory / "inner", size="32M")
    inside = "driver=luks,key-secret=s,file.filename=qcow2-on-luks"
    qemu_img(directory, "convert", "-n", "-f", "raw", "--target-image-opts", "inner", inside)
    bases = [create_image(directory / f"base{number}") for number in range(2)]
    overlay(directory / "plain-over", str(directory / "below"))
    create_image(directory / "hidden", options=f"data_file={directory / 'hidden-data'}")
    (directory / "hidden-data").write_bytes(container(encrypted / "qcow2", 64 << 20))
    overlay(directory / "hidden-over", str(directory / "hidden"))
    overlay(directory / "top", str(directory / "middle"))

    def on(name: str, **above: Any) -> dict[str, Any]:
        return {**above, "file": {"driver": "file", "filename": str(directory / name)}}

    luks = {"driver": "luks", **KEY}
    hidden = {**on("hidden", driver="qcow2"), "data-file": on("hidden-data", **luks)}
    middle = on("middle", driver="qcow2", **LUKS, backing=on("base1", driver="qcow2"))
    disks = [
        Disk(directory / "qcow2", name="qcow2", node=LUKS),
        Disk(directory / "luks", "luks", "luks", node=KEY),
        Disk(directory / "raw-on-luks", "raw", "raw-on-luks", node={"file": on("raw-on-luks", **luks)}),
        Disk(directory / "qcow2-on-luks", name="qcow2-on-luks", node={"file": on("qcow2-on-luks", **luks)}),
        Disk(directory / "plain-over", name="over", node={"backing": on("below", driver="qcow2", **LUKS)}),
        Disk(directory / "active", name="active", node={**LUKS, "backing": on(bases[0].name, driver="qcow2")}),
        Disk(directory / "top", name="middle", node={"backing": middle}),
        Disk(directory / "hidden-over", name="hidden", node={"backing": hidden}),
    ]
    secret = json.dumps({"qom-type": "secret", "id": "s", "file": str(directory / "key")})
    return factory(disks, paused=True, guest=None, extra=["-object", secret])


async def test_every_way_into_plain_text(engine: Engine, qemu_factory: QemuFactory, tmp_path: Path, encrypted: Path):
    """Each way of encryption, each verb: refused where data would become plain, and with --plain planned."""
    qemu = start(qemu_factory, tmp_path, encrypted)
    supervisor = await engine.connect(qemu)
    assert supervisor.session is not None
    session = supervisor.session
    new, middle = str(tmp_path / "new"), str(tmp_path / "middle")

    async def refused(kind: Kind, disk: str, layers: dict[str, str] | None = None, **options: Any) -> str | None:
        made = {"image": new, "format": "qcow2"} if kind in {Kind.COPY, Kind.SNAPSHOT} and not layers else {}
        request = PivotRequest("web1", kind, (Target(disk, **made | (layers or {})),), CopyOptions(**options))
        try:
            await plan(request, session, [], pivot="01K9ABCDEFGHJKMNPQRSTV0000", who=WHO)
        except BadRequestError as error:
            return error.message
        return None

    whole = ("qcow2", "luks", "raw-on-luks", "qcow2-on-luks")
    asked: list[tuple[Kind, str, dict[str, Any]]] = [
        *((Kind.COPY, disk, FULL) for disk in (*whole, "over", "active", "middle")),
        *((Kind.COPY, disk, TOP) for disk in (*whole, "active")),
        *((Kind.SNAPSHOT, disk, {}) for disk in (*whole, "active")),
        (Kind.COMMIT, "active", {}),
        (Kind.COMMIT, "middle", {}),
        (Kind.COMMIT, "middle", {"layers": {"top": middle}}),
        (Kind.PULL, "over", {}),
        (Kind.PULL, "middle", {}),
        (Kind.PULL, "hidden", {}),
        (Kind.PULL, "middle", {"layers": {"base": str(tmp_path / "base1")}}),
    ]
    for kind, disk, more in asked:
        said = await refused(kind, disk, **more)
        assert said is not None, (kind, disk, more)
        assert ("may be encrypted" if disk == "hidden" else "is encrypted") in said, said
        assert "--plain" in said, said
        assert await refused(kind, disk, plain=True, **more) is None, (kind, disk, more)
        if kind in {Kind.COPY, Kind.SNAPSHOT}:
            assert "--secret-file" in said, said
            encrypts = {"secret_file": str(tmp_path / "key"), "force": True}
            assert await refused(kind, disk, **encrypts, **more) is None
    for kind, disk, more in (
        (Kind.COPY, "over", TOP), (Kind.COPY, "middle", TOP), (Kind.SNAPSHOT, "over", {}), (Kind.SNAPSHOT, "middle", {}),
        (Kind.COMMIT, "over", {}), (Kind.PULL, "active", {}),
    ):  # fmt: skip
        assert await refused(kind, disk, **more) is None, "the data stays as it was"
    await _adopts(qemu, tmp_path, refused)


async def _adopts(qemu: Qemu, directory: Path, refused: Any) -> None:
    """A mirror that another client has started: its destination says of itself whether it is encrypted."""
    create_image(directory / "other")
    for name, more in (("other", {}), ("target", LUKS)):
        file = {"driver": "file", "filename": str(directory / name)}
        qemu.spy("blockdev-add", {"driver": "qcow2", "node-name": name, "file": file, **more})
        flags = {"auto-finalize": False, "auto-dismiss": False, "sync": "full"}
        qemu.spy("blockdev-mirror", {"job-id": name, "device": "src0", "target": name, **flags})
        qemu.await_event("JOB_STATUS_CHANGE", id=name, status="ready")
        image = {"image": str(directory / name), "format": "qcow2"}
        said = await refused(Kind.COPY, "qcow2", image, adopted=True)
        assert (said is None) is (name == "target"), said
        assert await refused(Kind.COPY, "qcow2", image, adopted=True, plain=True) is None
        qemu.spy("job-cancel", id=name)
        qemu.await_event("JOB_STATUS_CHANGE", id=name, status="concluded")
        qemu.spy("job-dismiss", id=name)


@pytest.mark.long
async def test_an_encrypted_overlay(engine: Engine, qemu_factory: QemuFactory, tmp_path: Path, encrypted: Path):
    """What the guest writes after the snapshot is not in the overlay in plain text; both layers open with the passphrase."""
    key = Path(shutil.copy(encrypted / "key", tmp_path))
    old, new = Path(shutil.copy(encrypted / "qcow2", tmp_path)), tmp_path / "new.qcow2"
    secret = json.dumps({"qom-type": "secret", "id": "s", "file": str(key)})
    qemu = qemu_factory([Disk(old, node=LUKS)], extra=["-object", secret])
    await engine.connect(qemu)
    options = {"secret_file": str(key), "image_options": ImageOptions(luks_iter_ms=10)}
    with pytest.raises(BadRequestError, match="stand still for seconds") as refusal:
        await engine.start(Kind.SNAPSHOT, "web1", Target("disk0", str(new)), **options)
    assert "--reuse" not in refusal.value.message, "a snapshot has no such option"
    for _ in range(TRIES_MAX):
        new.unlink(missing_ok=True)
        driver = await engine.start(Kind.SNAPSHOT, "web1", Target("disk0", str(new)), force=True, **options)
        pivot = await engine.closed(driver)
        if BUSY not in (pivot.error or ""):
            break
    assert pivot.outcome == Outcome.SWITCHED, pivot.error
    write(qemu, "disk0", 0x42)
    assert (len(secrets(qemu)), info(new)["encrypted"]) == (2, True)
    shut_down(qemu)
    assert b"\x42" * 512 not in new.read_bytes()
    chain = f"driver=qcow2,file.filename={new},encrypt.key-secret=s,backing.encrypt.key-secret=s"
    qemu_img(tmp_path, "convert", "--image-opts", "-O", "raw", chain, "read.raw")
    assert b"\x42" * 512 in (tmp_path / "read.raw").read_bytes()


def test_a_name_that_is_cut_off_says_nothing():
    """QEMU cuts long descriptions: then pivotd does not take the image for one that is not encrypted."""
    whole = 'json:{"driver":"qcow2","backing":{"driver":"luks"},"file":{"driver":"file","filename":"/a"}}'
    assert (descriptions.encrypted(whole), descriptions.encrypted("/a"), descriptions.encrypted(whole[:-20])) == (
        False,
        False,
        None,
    )
