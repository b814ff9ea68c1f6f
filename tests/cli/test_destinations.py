"""pivotctl with every kind of destination: what is typed reaches QEMU, and the verdict names the image as given."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.cli.conftest import Bench
from tests.cli.ctl import complaint
from tests.engine.storage import NbdServer, info
from tests.support.daemon import Daemon
from tests.support.encrypted import BUSY, TRIES_MAX
from tests.support.qemu import Disk, Qemu, create_image, default_binary

pytestmark = pytest.mark.qemu


def test_options_of_new_images(bench: Bench):
    """-o takes QEMU's names, sizes with a unit, and qemu-img's compat."""
    image = bench.image()
    answer = bench.ctl(
        "copy", "web1", f"disk0={image}", "-o", "cluster-size=128K", "-o", "extended_l2=on", "-o", "compat=1.1"
    )
    assert answer.status == 0, answer
    assert info(image)["cluster-size"] == 128 << 10
    assert info(image)["format-specific"]["data"]["extended-l2"]


@pytest.mark.parametrize("option", ["cluster-size", "cluster-size=big", "lazy-refcounts=maybe", "encrypt=on", "="])
def test_an_option_that_is_none(bench: Bench, option: str):
    """A mistake of the command line: exit status 2, the request is not sent."""
    assert bench.ctl("copy", "web1", f"disk0={bench.image()}", "-o", option).status == 2


def test_options_that_do_not_go_together(bench: Bench):
    """The daemon says why in one line."""
    answer = bench.json("copy", "web1", f"disk0={bench.image()}", "-o", "version=v2", "-o", "lazy-refcounts=on")
    assert answer.status != 0
    assert "lazy-refcounts needs version=v3" in answer.stderr + answer.stdout


def test_an_encrypted_overlay(bench: Bench):
    """Snapshot takes the options of new images too."""
    secret = bench.directory / "passphrase"
    secret.write_text("correct horse")
    for _ in range(TRIES_MAX):
        image = bench.image()
        answer = bench.ctl(
            "snapshot", "web1", f"disk1={image}", "--secret-file", secret, "-o", "luks-iter-ms=10", "--force"
        )
        if BUSY not in answer.stderr + answer.stdout:
            break
    assert answer.status == 0, answer
    assert info(image)["encrypted"]
    plain = bench.image()
    answer = bench.ctl("copy", "web1", f"disk1={plain}")
    assert answer.status == 4, answer
    assert f"disk1: {image} is encrypted, and {plain} would hold data without encryption" in complaint(answer)
    assert bench.ctl("copy", "web1", f"disk1={plain}", "--plain").status == 0
    assert not info(plain).get("encrypted")


def test_internal_snapshots(bench: Bench):
    """Disk ls shows them, a copy leaves them only if told to, and the record names them."""
    node = bench.qemu.root("disk1").node
    for name in ("before", "after"):
        bench.qemu.spy("blockdev-snapshot-internal-sync", device=node, name=name)
    row = next(row for row in bench.json("disk", "ls", "web1").json if row["disk"] == "disk1")
    assert row["internal_snapshots"] == [{"image": row["image"], "names": ["before", "after"]}]
    assert f"internal snapshots of {row['image']}: before, after" in bench.ctl("disk", "ls", "web1").stdout
    refused = bench.ctl("copy", "web1", f"disk1={bench.image()}")
    assert "has internal snapshots, which the disk would lose: before, after" in complaint(refused)
    made = bench.json("copy", "web1", f"disk1={bench.image()}", "--drop-internal-snapshots")
    assert made.status == 0, made
    facts = bench.json("pivot", "show", made.json["id"]).json["records"][0]["facts"]
    assert facts["internal_snapshots"] == {row["image"]: ["before", "after"]}


def test_the_active_layer_moves_alone(bench: Bench):
    """--sync top: the new image is backed by what backs the source."""
    overlay, image = bench.image(), bench.image()
    assert bench.ctl("snapshot", "web1", f"disk0={overlay}").status == 0
    below = info(overlay)["full-backing-filename"]
    assert bench.ctl("copy", "web1", f"disk0={image}", "--sync", "top").status == 0
    assert info(image)["full-backing-filename"] == below


def test_an_export_is_named_by_its_address(bench: Bench):
    """Disk ls, verdict by any spelling, with the daemon and offline; and a request that is sent again."""
    export = create_image(bench.directory / "export.img", image_format="raw")
    with NbdServer(export, tcp=True) as server:
        request = ("copy", "web1", f"disk0={server.uri}", "--format", "raw", "--reuse", "--id", "to-nbd")
        assert bench.ctl(*request).status == 0
        assert bench.ctl(*request).status == 0
        shown = next(row for row in bench.json("disk", "ls", "web1").json if row["disk"] == "disk0")
        assert shown["image"] == server.uri
        other = server.uri.replace("/exp", "/%65xp")
        found = bench.json("verdict", "--image", other).json
        assert [row["image"] for row in found] == [server.uri]
        offline = bench.json("--offline", Path(bench.daemon.state_dir), "verdict", "--image", other).json
        assert [row["image"] for row in offline] == [server.uri]
        assert bench.ctl("copy", "web1", f"disk0={bench.image()}", "--format", "qcow2").status == 0


def test_an_export_needs_reuse(bench: Bench):
    """It exists, and would be overwritten."""
    answer = bench.json("copy", "web1", "disk0=nbd://127.0.0.1:1/exp", "--format", "raw")
    assert answer.status != 0
    assert "use --reuse" in answer.stderr + answer.stdout


@pytest.mark.parametrize("slash", [True, False], ids=["slash", "no slash"])
@pytest.mark.parametrize("verb", ["copy", "snapshot"])
def test_a_directory_takes_the_name_of_the_source(bench: Bench, verb: str, slash: bool):
    """Of each disk; the same request again is the same pivot, also when the guest is on the new images."""
    new = bench.directory / f"{verb}-{slash}"
    new.mkdir()
    where = f"{new}/" if slash else str(new)
    before = {row["disk"]: Path(row["image"]).name for row in bench.json("disk", "ls", "web1").json}
    request = (verb, "web1", f"disk0={where}", f"disk1={where}", "--id", f"to-{new.name}")
    first = bench.json(*request)
    assert first.status == 0, first
    disks = {disk["disk"]: disk["destination"] for disk in first.json["disks"]}
    assert disks == {disk: str(new / name) for disk, name in before.items()}
    assert all(Path(image).exists() for image in disks.values())
    again = bench.json(*request)
    assert (again.status, again.json["id"]) == (0, first.json["id"])
    elsewhere = bench.json(verb, "web1", "disk0=/", "disk1=/", "--id", f"to-{new.name}")
    assert "use a new id" in elsewhere.json["error"]["message"]


def test_two_disks_cannot_get_one_name(bench: Bench):
    """Both are named, and nothing is made."""
    left, right, new = (bench.directory / name for name in ("left", "right", "one"))
    for directory in (left, right, new):
        directory.mkdir()
    assert bench.ctl("copy", "web1", f"disk0={left}/a.qcow2", f"disk1={right}/a.qcow2").status == 0
    answer = bench.ctl("copy", "web1", f"disk0={new}/", f"disk1={new}")
    assert answer.status == 4
    assert f"disk0 and disk1 would both get {new}/a.qcow2: name the file" in complaint(answer)
    assert list(new.iterdir()) == []
    assert bench.ctl("copy", "web1", f"disk0={new}", f"disk1={new}/b.qcow2").status == 0


def test_a_directory_that_is_none(bench: Bench):
    """It must be there, and be one; the directory of the source would be the source."""
    image = Path(bench.json("disk", "ls", "web1").json[0]["image"])
    for where, said in (
        ("/nowhere/", "directory /nowhere does not exist"),
        (f"{image}/", "is not a directory"),
        (str(image.parent), "it is its present image"),
    ):
        answer = bench.ctl("copy", "web1", f"disk0={where}")
        assert answer.status == 4
        assert said in complaint(answer)


@pytest.mark.parametrize("verb", ["copy", "snapshot"])
def test_a_name_that_no_file_can_have(bench: Bench, verb: str):
    """Too long, or a circle of symbolic links: refused before anything is recorded, not by QEMU."""
    one, two = (bench.directory / f"{verb}-{side}" for side in ("one", "two"))
    one.symlink_to(two)
    two.symlink_to(one)
    before = bench.json("pivot", "ls").json
    for image, said in (
        (bench.directory / ("a" * 256), "takes no name of that length"),
        (bench.directory / ("é" * 128), "takes no name of that length"),
        (one, "lead in a circle"),
        (one / "new.qcow2", "lead in a circle"),
    ):
        answer = bench.ctl(verb, "web1", f"disk0={image}")
        assert (answer.status, said in complaint(answer)) == (4, True), answer
    assert bench.json("pivot", "ls").json == before


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to make a mount namespace")
def test_a_directory_that_qemu_has_another_of(tmp_path: Path):
    """QEMU in a mount namespace of its own: refused before a byte is copied, or forced; never called deleted."""
    its, both = tmp_path / "its", tmp_path / "both"
    its.mkdir()
    both.mkdir()
    apart = ["unshare", "--mount", "sh", "-c", f'mount -t tmpfs none {its} && exec "$0" "$@"', *default_binary()]
    disk = Disk(create_image(tmp_path / "old.qcow2"))
    with Qemu(tmp_path, [disk], binary=apart) as qemu, Daemon(tmp_path, {"web1": qemu.qmp}) as daemon:
        refused = daemon.ctl("copy", "web1", f"disk0={its}/new.qcow2")
        assert refused.status == 4
        said = refused.json["error"]["message"]
        assert "runs in another mount namespace: its" in said
        assert f"BindPaths={its}" in said
        assert not list(its.iterdir())
        gone = daemon.ctl("copy", "web1", f"disk0={tmp_path}/none/new.qcow2")
        assert "does not exist" in gone.json["error"]["message"]
        for image in (f"{its}/new.qcow2", f"{both}/new.qcow2"):
            forced = daemon.ctl("copy", "web1", f"disk0={image}", "--force")
            assert (forced.status, forced.json["outcome"]) == (0, "switched"), forced
            verdict = daemon.ctl("verdict", "web1", "disk0")
            assert (verdict.json["image"], verdict.json["certain"]) == (image, True), verdict
            assert "deleted" not in forced.stdout + verdict.stdout
