"""Disks of every make under libvirt: each moves, or is refused in one line before anything is recorded."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.libvirt.domain import PIVOT_POINTS, Domain
from tests.libvirt.guarding import Guarded, guard, until
from tests.libvirt.libvirtd import QEMU_CONF, Libvirtd
from tests.support.encrypted import encrypted_image

pytestmark = [pytest.mark.qemu, pytest.mark.timeout(300)]
SECRET = "11111111-2222-3333-4444-555555555555"
ENCRYPTION = f"<encryption format='luks'><secret type='passphrase' uuid='{SECRET}'/></encryption>"


def disk(image: Path, target: str, *, kind: str = "qcow2", source: str = "", more: str = "") -> str:
    """Return the XML of a disk. ``source``: what stands within its source, ``more``: within the disk."""
    return (
        f"<disk type='file' device='disk'><driver name='qemu' type='{kind}' cache='none'/>"
        f"<source file='{image}'>{source}</source><target dev='{target}' bus='virtio'/>{more}</disk>"
    )


def make(path: Path, *options: str, kind: str = "qcow2") -> Path:
    subprocess.run(["qemu-img", "create", "-q", "-f", kind, *options, path, "8M"], check=True)
    return path


def make_encrypted(path: Path) -> Path:
    return encrypted_image(path, "data=hello", "8M")


def define_secret(libvirtd: Libvirtd) -> None:
    xml, value = libvirtd.directory / "secret.xml", libvirtd.directory / "secret.value"
    xml.write_text(f"<secret><uuid>{SECRET}</uuid><usage type='volume'><volume>x</volume></usage></secret>")
    value.write_text("aGVsbG8=")
    libvirtd.ask("secret-define", str(xml))
    libvirtd.ask("secret-set-value", SECRET, "--file", str(value))


@contextmanager
def guarding(libvirtd: Libvirtd, directory: Path, domain: Domain) -> Iterator[Guarded]:
    """A pivotd beside a domain that runs."""
    with guard(directory, libvirtd) as daemon, Guarded(domain, daemon) as found:
        found.await_domain()
        yield found


def moved(guarded: Guarded, *arguments: str) -> Any:
    answer = guarded.daemon.ctl(*arguments)
    assert (answer.status, answer.json.get("outcome")) == (0, "switched"), answer
    return answer.json


def test_disks_that_libvirt_does_not_move_are_refused(libvirtd: Libvirtd, tmp_path: Path):
    """A transient one, one that other guests may write to, an encrypted one without a word on the new image."""
    libvirtd.start()
    define_secret(libvirtd)
    images = libvirtd.directory / "images"
    refused = {
        "vdb": ("as a transient disk", disk(make(images / "b"), "vdb", more="<transient/>")),
        "vdc": ("as a shareable disk", disk(make(images / "c", kind="raw"), "vdc", kind="raw", more="<shareable/>")),
        "vdd": ("virsh blockcopy --xml", disk(make_encrypted(images / "d"), "vdd", source=ENCRYPTION)),
        "vde": ("read-only", disk(make(images / "e"), "vde", more="<readonly/>")),
    }
    domain = Domain(libvirtd, guest=False, devices="".join(xml for _, xml in refused.values())).define().boot()
    with guarding(libvirtd, tmp_path, domain) as guarded:
        for target, (why, _) in refused.items():
            for kind in ("copy", "snapshot"):
                answer = guarded.daemon.ctl(kind, "web1", f"{target}={images}/new")
                assert (answer.status, why in answer.json["error"]["message"]) == (4, True), answer
        assert guarded.daemon.ctl("pivot", "ls").json == []


@pytest.mark.long
def test_an_encrypted_image_of_another_tools_copy_is_there_at_the_next_boot(libvirtd: Libvirtd, tmp_path: Path):
    """Libvirtd dies before its last save: pivotd defines the next boot with the secret, and the guest starts from it."""
    libvirtd.start()
    define_secret(libvirtd)
    images, copied = libvirtd.directory / "images", libvirtd.directory / "copy.xml"
    old, new = make_encrypted(images / "old"), make_encrypted(images / "new")
    domain = Domain(libvirtd, guest=False, devices=disk(old, "vdb", source=ENCRYPTION)).define().boot()
    copied.write_text(f"<disk type='file'><driver type='qcow2'/><source file='{new}'>{ENCRYPTION}</source></disk>")
    with guarding(libvirtd, tmp_path, domain) as guarded:
        libvirtd.ask(
            "blockcopy", "web1", "vdb", "--xml", str(copied), "--reuse-external", "--transient-job", "--wait"
        )  # fmt: skip
        libvirtd.kill_at(PIVOT_POINTS["K6"])
        guarded.begin("libvirt", "pivot", "web1", "vdb")
        libvirtd.await_death()
        libvirtd.start()
        guarded.await_end()
        assert guarded.pivot()["outcome"] == "switched"
        assert domain.believe("vdb").next_boot == "new"
        libvirtd.ask("destroy", "web1")
        domain.boot()
        # A plain image has none: its own goes, and with it the secret.
        moved(guarded, "copy", "web1", f"vdb={images}/plain", "--plain")
        libvirtd.ask("destroy", "web1")
        domain.boot()


@pytest.mark.long
def test_disks_of_many_makes_move(libvirtd: Libvirtd, tmp_path: Path):
    """A floppy, labels of its own, an image that may be missing, a chain that is given: copy, overlay, and back."""
    libvirtd.start()
    images = libvirtd.directory / "images"
    with (images / "fda").open("wb") as floppy:
        floppy.truncate(1_474_560)
    base = make(images / "base")
    chain = f"<backingStore type='file'><format type='qcow2'/><source file='{base}'/><backingStore/></backingStore>"
    over = make(images / "over", "-b", str(base), "-F", "qcow2")
    optional = disk(make(images / "d"), "vdd").replace("<source ", "<source startupPolicy='optional' ")
    devices = [
        disk(images / "fda", "fda", kind="raw").replace("device='disk'", "device='floppy'").replace("virtio", "fdc"),
        disk(over, "vdb", more=chain),
        disk(make(images / "c"), "vdc", source="<seclabel model='dac' relabel='no'/>"),
        optional,
    ]
    domain = Domain(libvirtd, guest=False, devices="".join(devices)).define().boot()
    with guarding(libvirtd, tmp_path, domain) as guarded:
        for target in ("fda", "vdb", "vdc", "vdd"):
            moved(guarded, "copy", "web1", f"{target}={images}/{target}-1", "--format", "qcow2")
            moved(guarded, "snapshot", "web1", f"{target}={images}/{target}-2")
            moved(guarded, "commit", "web1", target)
            believed = domain.believe(target)
            assert (believed.live, believed.next_boot) == (f"{target}-1", f"{target}-1")
        kept = libvirtd.ask("dumpxml", "web1", "--inactive")
        assert kept.count("relabel='no'") == kept.count("startupPolicy='optional'") == 1
    libvirtd.ask("destroy", "web1")
    domain.boot()


@pytest.mark.long
def test_a_transient_domain_and_a_disk_in_another_process(libvirtd: Libvirtd, tmp_path: Path):
    """The first has no next boot: the verdict alone knows its image. The second QEMU does not have: refused."""
    libvirtd.start()
    served, xml = libvirtd.directory / "vu.sock", libvirtd.directory / "web1.xml"
    image = make(libvirtd.directory / "images/served", kind="raw")
    libvirtd.spawn(
        "qemu-storage-daemon", "--blockdev", f"file,node-name=f,filename={image}",
        "--export", f"vhost-user-blk,id=e,addr.type=unix,addr.path={served},node-name=f,writable=on",
    )  # fmt: skip
    until(served.exists, "the served disk")
    vhost = (
        "<disk type='vhostuser' device='disk'><driver name='qemu' type='raw'/>"
        f"<source type='unix' path='{served}'/><target dev='vdz' bus='virtio'/></disk>"
    )
    domain = Domain(libvirtd, guest=False, devices=vhost)
    shared = "<memoryBacking><source type='memfd'/><access mode='shared'/></memoryBacking><os>"
    xml.write_text(domain._xml().replace("<os>", shared))
    libvirtd.ask("create", str(xml))
    with guarding(libvirtd, tmp_path, domain) as guarded:
        answer = guarded.daemon.ctl("copy", "web1", f"vdz={image}-1")
        assert (answer.status, "or in another process" in answer.json["error"]["message"]) == (4, True), answer
        moved(guarded, "copy", "web1", f"vda={domain.image('vda', 1)}")
        moved(guarded, "snapshot", "web1", f"vda={domain.image('vda', 2)}")
        moved(guarded, "commit", "web1", "vda")
        libvirtd.ask("destroy", "web1")
        verdict = guarded.daemon.ctl("verdict", "web1", "vda").json
        assert (Path(verdict["image"]).name, verdict["certain"]) == ("web1-vda-1.qcow2", True), verdict


@pytest.mark.long
def test_backups_go_on_from_their_checkpoints(libvirtd: Libvirtd, tmp_path: Path):
    """Libvirt carries the bitmap at a copy, a snapshot and a commit; an image that cannot hold it is refused."""
    libvirtd.start()
    domain = Domain(libvirtd, guest=False).define().boot()
    point, backup = libvirtd.directory / "checkpoint.xml", libvirtd.directory / "backup.xml"
    point.write_text("<domaincheckpoint><name>c1</name></domaincheckpoint>")
    backup.write_text(
        "<domainbackup><incremental>c1</incremental><disks><disk name='vda' backup='yes' type='file'>"
        f"<target file='{domain.image('vda', 8)}'/></disk></disks></domainbackup>"
    )
    libvirtd.ask("checkpoint-create", "web1", str(point))

    def bitmaps() -> list[str]:
        spy = domain.spy()
        try:
            (found,) = (block["inserted"] for block in spy.execute("query-block") if "inserted" in block)
        finally:
            spy.close()
        return [bitmap["name"] for bitmap in found.get("dirty-bitmaps", [])]

    with guarding(libvirtd, tmp_path, domain) as guarded:
        for words in (("copy", 1), ("snapshot", 2)):
            moved(guarded, words[0], "web1", f"vda={domain.image('vda', words[1])}")
            assert bitmaps() == ["c1"]
        moved(guarded, "commit", "web1", "vda")
        assert bitmaps() == ["c1"]
        libvirtd.ask("backup-begin", "web1", str(backup))
        answer = guarded.daemon.ctl("copy", "web1", f"vda={domain.image('vda', 3)}", "--format", "raw")
        assert (answer.status, "raw cannot hold the dirty bitmaps" in answer.json["error"]["message"]) == (4, True)


@contextmanager
def own_libvirtd(**settings: Any) -> Iterator[Libvirtd]:
    """A libvirtd with other settings of its driver of QEMU."""
    lines = [line for line in QEMU_CONF.splitlines() if line.partition(" ")[0] not in settings]
    lines += [f"{name} = {json.dumps(value)}" for name, value in settings.items()]
    with Libvirtd(qemu_conf="\n".join([*lines, ""])) as found:
        yield found


@contextmanager
def device(file: Path) -> Iterator[Path]:
    """A block device of 64 MiB."""
    with file.open("wb") as opened:
        opened.truncate(64 << 20)
    made = subprocess.run(["losetup", "-f", "--show", file], capture_output=True, text=True, check=False)
    if made.returncode:
        pytest.skip(f"no loop device here: {made.stderr.strip()}")
    try:
        yield Path(made.stdout.strip())
    finally:
        subprocess.run(["losetup", "-d", made.stdout.strip()], check=True)


def test_a_device_where_qemu_has_a_dev_of_its_own(libvirt_place: Libvirtd, tmp_path: Path):
    """Libvirt's default: QEMU's /dev is in a mount namespace, where libvirt makes the device; pivotd looks at the host's."""
    if libvirt_place.tree is not None:
        pytest.skip("once is enough")
    with own_libvirtd(namespaces=["mount"]) as libvirtd, device(libvirtd.directory / "device") as new:
        libvirtd.start()
        domain = Domain(libvirtd, guest=False).define().boot()
        with guarding(libvirtd, tmp_path, domain) as guarded:
            own = Path(f"/proc/{domain.qemu_pid()}/root/dev").stat()
            assert own.st_dev != Path("/dev").stat().st_dev, "QEMU has the host's /dev"
            answer = guarded.daemon.ctl("copy", "web1", f"vda={new}", "--format", "raw")
            assert (answer.status, "is a block device" in answer.json["error"]["message"]) == (4, True), answer
            moved(guarded, "copy", "web1", f"vda={new}", "--format", "raw", "--reuse")
            assert libvirtd.ask("domblklist", "web1", "--inactive").split() == ["vda", str(new)]
            moved(guarded, "snapshot", "web1", f"vda={domain.image('vda', 1)}")
            moved(guarded, "commit", "web1", "vda")
            verdict = guarded.daemon.ctl("verdict", "web1", "vda").json
            assert (verdict["image"], verdict["certain"]) == (str(new), True)
        libvirtd.clear_processes()


VIRTLOCKD_PID = Path("/run/virtlockd.pid")


@contextmanager
def virtlockd(libvirtd: Libvirtd) -> Iterator[Path]:
    """Run virtlockd beside a libvirtd; its pid file, which this gives, is in that one's mount namespace alone."""
    was_there, own = VIRTLOCKD_PID.exists(), libvirtd.directory / "virtlockd.pid"
    own.touch()
    if not was_there:
        VIRTLOCKD_PID.touch()
    try:
        subprocess.run(libvirtd.inside("mount", "--bind", str(own), str(VIRTLOCKD_PID)), check=True)
        libvirtd.spawn("virtlockd", "-f", "/dev/null")
        until((libvirtd.directory / "run/virtlockd-sock").exists, "virtlockd")
        yield own
    finally:
        if not was_there:
            VIRTLOCKD_PID.unlink()


@pytest.mark.long
def test_where_virtlockd_locks_images_no_copy_is_switched_in_a_pause(libvirt_place: Libvirtd, tmp_path: Path):
    """Libvirt locks the new image twice then, and never resumes the guest; an abort and a snapshot are guarded."""
    if libvirt_place.tree is not None:
        pytest.skip("the trees have no virtlockd")
    with own_libvirtd(lock_manager="lockd") as libvirtd, virtlockd(libvirtd) as pid_file:
        libvirtd.start()
        domain = Domain(libvirtd, guest=False).define().boot()
        with guarding(libvirtd, tmp_path, domain) as guarded:
            refused = [("copy", "web1", f"vda={domain.image('vda', 1)}"), ("libvirt", "pivot", "web1", "vda")]
            domain.copy("vda", 2)
            for words in refused:
                answer = guarded.daemon.ctl(*words)
                assert (answer.status, "and virtlockd locks images here" in answer.json["error"]["message"]) == (
                    4,
                    True,
                )
            answer = guarded.daemon.ctl("libvirt", "abort", "web1", "vda")
            assert (answer.status, answer.json["outcome"]) == (0, "kept"), answer
            moved(guarded, "snapshot", "web1", f"vda={domain.image('vda', 3)}")
            answer = guarded.daemon.ctl("commit", "web1", "vda")
            assert (answer.status, "and virtlockd locks images here" in answer.json["error"]["message"]) == (4, True)
            # What is refused, where nothing tells of virtlockd: the guest waits, and that is said.
            pid_file.write_text("")
            guarded.begin("copy", "web1", f"vda={domain.image('vda', 5)}")
            until(lambda: guarded.pivot()["phase"] == "decided", "the record")
            until(lambda: "is locked" in str(guarded.daemon.ctl("domain", "ls").json), "the reason")
            until(lambda: "pivot.held-up" in guarded.daemon.log_path.read_text(), "the line in the log")
            assert "is locked" in libvirtd.virsh("resume", "web1").stderr, "libvirt can do what pivotd refuses"
            libvirtd.ask("destroy", "web1")
            guarded.await_end()
            verdict = guarded.daemon.ctl("verdict", "web1", "vda").json
            assert (Path(verdict["image"]).name, verdict["certain"]) == ("web1-vda-5.qcow2", True)
