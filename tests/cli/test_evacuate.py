"""`pivotctl evacuate` with real QEMUs: what moves, what stays and why, and the exit status."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from pivotd.client import AcceptRequest
from tests.cli.ctl import complaint, interrupt
from tests.cli.evacuating import Bed, image, moved, reasons, running_daemon
from tests.ported_cases.fixture import small_file_system
from tests.support.daemon import Daemon
from tests.support.loop_devices import LoopDevice, disk_of
from tests.support.mounts import bound
from tests.support.qemu import Disk, create_image
from tests.support.waiting import until

pytestmark = pytest.mark.qemu


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    with running_daemon() as running:
        yield running


@pytest.fixture
def bed(daemon: Daemon) -> Iterator[Bed]:
    with tempfile.TemporaryDirectory(prefix="pivotd-") as name, ExitStack() as stack:
        found = Bed(Path(name), daemon, stack)
        yield found
        for pivot in found.client.pivots(open_only=True):
            found.client.cancel(pivot.id)
            found.client.wait(pivot.id)
        for known in found.client.domains():
            found.client.remove_domain(known.name)


def test_every_disk_moves_and_the_same_command_finds_nothing(bed: Bed) -> None:
    """The disks of one domain as one pivot, each to its path below the new place; other places stay; 0 both times."""
    bed.guest("web1", image(bed.old / "a/disk.qcow2"), image(bed.old / "b/disk.qcow2"))
    bed.guest("web2", Disk(image(bed.old / "web2.raw", image_format="raw"), format="raw"))
    bed.guest("web3", image(bed.directory / "elsewhere/web3.qcow2"))
    answer = bed.json()
    assert (answer.status, answer.stderr) == (0, "")
    assert bed.images() == {
        "web1": ["new/a/disk.qcow2", "new/b/disk.qcow2"],
        "web2": ["new/web2.raw"],
        "web3": ["elsewhere/web3.qcow2"],
    }
    assert bed.outcomes() == [("web1", "switched"), ("web2", "switched")]
    assert [len(pivot.disks) for pivot in bed.pivots()] == [2, 1]
    again = bed.run()
    assert again.status == 0
    assert again.stdout == f"no disk that pivotd can move lies below {bed.old}; 3 are below {bed.new}\n"
    assert len(bed.pivots()) == 2


def test_lines(bed: Bed) -> None:
    """What there is to do, each phase, each end with its pause, and a sum."""
    bed.guest("web1", image(bed.old / "web1.qcow2"))
    answer = bed.run("--format", "raw")
    assert answer.status == 0
    assert answer.stderr.startswith("pivotctl: 1 disk of 1 domain, at most ")
    first, second, last = answer.stdout.splitlines()
    assert first == f"web1 disk0: switched, its data is in {bed.new}/web1.raw"
    assert "the guest was paused for" in second
    assert last == "1 of 1 moved"


def test_dry_run(bed: Bed) -> None:
    """What, how much, and whether there is room; nothing is made, also no directory."""
    bed.guest("web1", image(bed.old / "sub/web1.qcow2", 3))
    answer = bed.run("--dry-run")
    assert answer.status == 0
    row = answer.stdout.splitlines()[1].split()
    assert row[:4] == ["web1", "disk0", f"{bed.old}/sub/web1.qcow2", f"{bed.new}/sub/web1.qcow2"]
    assert answer.stdout.splitlines()[-1].startswith("1 disk of 1 domain, at most 3.3 MiB to copy; ")
    document = bed.json("--dry-run").json
    assert 3 << 20 <= document["needed_bytes"] < 4 << 20 < document["free_bytes"]
    assert (list(bed.new.iterdir()), bed.pivots()) == ([], [])


def test_a_place_without_room(bed: Bed) -> None:
    """Refused before anything begins, and the dry run says it; --overcommit begins, and pivotd refuses what cannot go."""
    bed.guest("web1", image(bed.old / "web1.qcow2", 8))
    with small_file_system(bed.new, "4m") as small:
        assert bed.json("--to", small, "--dry-run").status == 4
        answer = bed.json("--to", small)
        assert (answer.status, answer.json["error"]["kind"]) == (4, "no-room")
        answer = bed.json("--to", small, "--overcommit")
        assert (answer.status, moved(answer)) == (4, [])
        assert "has room for" in answer.json["moves"][0]["error"]
    assert bed.pivots() == []


def test_what_cannot_move_is_told_and_keeps_the_status_from_0(bed: Bed) -> None:
    """A read-only disk, a backing image below the old place, a guest that does not run; the rest moves."""
    base = image(bed.old / "base.qcow2")
    top = bed.directory / "top.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", base, "-F", "qcow2", top], check=True)
    cd = Disk(image(bed.old / "cd.qcow2"), bus="virtio-scsi", node={"read-only": True})
    bed.guest("web1", image(bed.old / "web1.qcow2"), cd)
    bed.guest("web2", top)
    bed.add("away")
    answer = bed.json()
    assert (answer.status, moved(answer)) == (4, ["web1"])
    said = reasons(answer)
    assert set(said) == {"web1 disk1", "web2 disk0", "away None"}
    assert "read-only" in said["web1 disk1"]
    assert "`pivotctl pull`" in said["web2 disk0"]
    assert "not looked at" in said["away None"]
    assert bed.images()["web1"] == ["new/web1.qcow2", "old/cd.qcow2"]
    quiet = bed.run("-q")
    assert (quiet.status, quiet.stdout, len(quiet.stderr.splitlines())) == (4, "", 3)


def test_a_guest_that_has_ended_keeps_its_image_there(bed: Bed) -> None:
    """The journal knows the image of a guest that was moved to the old place and does not run now."""
    bed.guest("web1", image(bed.directory / "first.qcow2"))
    assert bed.client.wait(bed.copy("web1", bed.old / "web1.qcow2")).outcome == "switched"
    bed.qemus.pop("web1").stop()
    assert until(lambda: bed.client.domain(bed.domain("web1")).connection == "unreachable")
    answer = bed.json()
    assert answer.status == 4
    assert "the guest does not run" in reasons(answer)["web1 disk0"]
    bed.client.remove_domain(bed.domain("web1"))
    assert "does not see this guest" in reasons(bed.json())["web1 disk0"]
    named = bed.json("--domain", bed.domain("web1"))
    assert "does not see this guest" in reasons(named)["web1 disk0"], "a name that only the journal knows is no typo"


@pytest.mark.long
def test_a_guest_that_hangs_keeps_its_image_there(bed: Bed) -> None:
    """Status 6: QEMU may use another one by now; of a guest that pivotd has never moved, nobody can tell the image."""
    bed.guest("web1", image(bed.directory / "first.qcow2"))
    bed.guest("web2", image(bed.old / "web2.qcow2"))
    assert bed.client.wait(bed.copy("web1", bed.old / "web1.qcow2")).outcome == "switched"
    for qemu in bed.qemus.values():
        os.kill(qemu.pid, signal.SIGSTOP)
    answer = bed.json()
    for qemu in bed.qemus.values():
        os.kill(qemu.pid, signal.SIGCONT)
    assert (answer.status, moved(answer)) == (6, [])
    said = reasons(answer)
    assert set(said) == {"web1 disk0", "web2 None"}
    assert "not certain" in said["web1 disk0"]
    assert "no answer" in said["web2 None"]


def test_a_disk_in_doubt(bed: Bed) -> None:
    """Status 6: whether its image in the old place is the right one, or the one that QEMU has, a person must say."""
    bed.guest("web1", image(bed.old / "web1.qcow2"))
    pivot = bed.client.wait(bed.copy("web1", bed.directory / "second.qcow2"))
    assert pivot.outcome == "switched"
    bed.qemus.pop("web1").stop()
    assert until(lambda: bed.client.domain(bed.domain("web1")).connection == "unreachable")
    bed.guest("web1", image(bed.directory / "third.qcow2"), add=False)
    assert until(lambda: bed.client.domain(bed.domain("web1")).connection == "connected")
    answer = bed.json()
    assert (answer.status, answer.json["moves"]) == (6, [])
    assert "is not certain" in reasons(answer)["web1 disk0"]
    assert bed.json("--from", bed.new, "--to", bed.old).status == 0


@pytest.mark.long
def test_sync_top(bed: Bed) -> None:
    """Only the active layer moves; where the layer below is in the old place too, that is no evacuation."""
    golden, base = image(bed.directory / "golden.qcow2"), image(bed.old / "base.qcow2")
    tops = [bed.old / "top1.qcow2", bed.old / "top2.qcow2"]
    for below, top in zip((golden, base), tops, strict=True):
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", below, "-F", "qcow2", top], check=True)
    bed.guest("web1", tops[0])
    bed.guest("web2", tops[1])
    answer = bed.json("--sync", "top")
    assert (answer.status, moved(answer)) == (4, ["web1"])
    assert "--sync top" in reasons(answer)["web2 disk0"]
    assert bed.disks("web1")[0].backing_chain == (str(golden),)
    assert bed.json().status == 0
    assert bed.disks("web2")[0].backing_chain == ()


def test_what_lies_below_an_image_elsewhere(bed: Bed) -> None:
    """An external data file in the old place, and a layer of a guest that pivotd does not see: no 0 before both went."""
    base, flat, top = image(bed.old / "base.qcow2"), bed.directory / "flat.qcow2", bed.directory / "top.qcow2"
    create_image(flat, options=f"data_file={bed.old / 'flat.data'}")
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", base, "-F", "qcow2", top], check=True)
    bed.guest("web1", flat)
    answer = bed.json()
    assert (answer.status, set(reasons(answer))) == (4, {"web1 disk0"})
    assert "the data of" in reasons(answer)["web1 disk0"]
    assert bed.disks("web1")[0].data_files[0].path == str(bed.old / "flat.data")
    bed.client.wait(bed.copy("web1", bed.directory / "flat-new.qcow2"))
    assert bed.json().status == 0
    bed.guest("web2", top)
    bed.client.wait(bed.copy("web2", bed.directory / "top-new.qcow2", sync="top"))
    bed.qemus["web2"].stop()
    bed.client.remove_domain(bed.domain("web2"))
    answer = bed.json()
    assert (answer.status, set(reasons(answer))) == (4, {"web2 disk0"})
    assert "top-new.qcow2 lies on it" in reasons(answer)["web2 disk0"]


@pytest.mark.parametrize("off", [False, True])
@pytest.mark.parametrize("how", ["directory", "part", "file", "device"])
@pytest.mark.thinned(2)
def test_an_image_by_another_name_of_the_place(bed: Bed, how: str, off: bool) -> None:
    """A bind mount of the place, of a part of it or of the file, and a loop device: the disk needs the place."""
    old = image(bed.old / "a/web1.qcow2")
    other, alias = bed.directory / "other", bed.directory / "alias.qcow2"
    other.mkdir()
    alias.touch()
    with ExitStack() as stack:
        if how == "device":
            disk = disk_of(stack.enter_context(LoopDevice(old)))
        else:
            seen = {"directory": (bed.old, other), "part": (old.parent, other), "file": (old, alias)}[how]
            stack.enter_context(bound(*seen))
            disk = Disk({"directory": other / "a/web1.qcow2", "part": other / "web1.qcow2", "file": alias}[how])
        if off:
            bed.guest("web1", image(bed.directory / "first.qcow2"))
            assert bed.client.wait(bed.copy("web1", disk.image, reuse=True)).outcome == "switched"
            bed.qemus["web1"].stop()
            assert until(lambda: bed.client.domain(bed.domain("web1")).connection == "unreachable")
            left = bed.json()
            assert (left.status, left.json["moves"]) == (4, [])
            assert [one["image"] for one in left.json["left"]] == [str(disk.image)]
            # The journal is that of all tests, and another one may get this device.
            word = AcceptRequest(image=str(bed.directory / "first.qcow2"), format="qcow2", reason="the test has ended")
            bed.client.accept(bed.domain("web1"), "disk0", word)
            return
        bed.guest("web1", disk)
        answer = bed.json()
        assert (answer.status, answer.stderr) == (0, "")
        assert bed.images() == {"web1": ["new/a/web1.qcow2"]}
        bed.qemus["web1"].stop()


def test_what_lies_on_a_device_on_an_image_of_the_place(bed: Bed) -> None:
    """A backing image, which stays, and is told."""
    base = image(bed.old / "base.qcow2")
    with LoopDevice(base) as device:
        overlay = create_image(bed.directory / "overlay.qcow2", options=f"backing_file={device},backing_fmt=qcow2")
        bed.guest("web1", overlay)
        answer = bed.json()
        assert (answer.status, answer.json["moves"]) == (4, [])
        assert [one["image"] for one in answer.json["left"]] == [str(device)]
        assert reasons(answer)["web1 disk0"].startswith(f"a backing image of {overlay}, which lies elsewhere")
        bed.qemus["web1"].stop()


def test_a_partition_of_a_device_on_a_file_of_the_place(bed: Bed) -> None:
    """The file cannot move for it; the disk needs the place."""
    whole = bed.old / "whole.img"
    create_image(whole, image_format="raw", size="8M")
    with LoopDevice(whole) as device:
        added = subprocess.run(["addpart", device, "1", "2048", "4096"], capture_output=True, text=True, check=False)
        if added.returncode:
            pytest.skip(f"no partition of a loop device: {added.stderr.strip()}")
        try:
            part = Path(f"{device}p1")
            bed.guest("web1", disk_of(part, "raw"))
            answer = bed.json()
            bed.qemus["web1"].stop()
            assert (answer.status, answer.json["moves"]) == (4, [])
            assert [(one["image"], one["disk"]) for one in answer.json["left"]] == [(str(part), "disk0")]
        finally:
            subprocess.run(["delpart", device, "1"], check=True)


def test_a_file_in_the_way_is_never_overwritten(bed: Bed) -> None:
    """Somebody's file at the target: refused with its name, as it was; --on-failure continue moves the others."""
    bed.guest("web1", image(bed.old / "web1.qcow2"))
    bed.guest("web2", image(bed.old / "web2.qcow2"))
    theirs = image(bed.new / "web1.qcow2")
    before = theirs.read_bytes()
    answer = bed.json()
    assert (answer.status, moved(answer)) == (4, [])
    first, second = answer.json["moves"]
    assert f"{theirs} exists already" in first["error"]
    assert (second["domain"], second["exit_status"], second["pivot"]) == ("web2", None, None)
    answer = bed.json("--on-failure", "continue")
    assert (answer.status, moved(answer)) == (4, ["web2"])
    assert theirs.read_bytes() == before
    theirs.unlink()
    assert (bed.json().status, bed.images()["web1"]) == (0, ["new/web1.qcow2"])


def test_one_name_for_two_images(bed: Bed) -> None:
    """From two old places: neither moves, both are told with both names."""
    other = bed.directory / "other"
    bed.guest("web1", image(bed.old / "disk.qcow2"), image(bed.old / "data.qcow2"))
    bed.guest("web2", image(other / "disk.qcow2"))
    answer = bed.json("--from", str(other), "--from", str(bed.old), "--from", f"{bed.old}/")
    assert (answer.status, moved(answer), set(reasons(answer))) == (4, [], {"web1 disk0", "web1 disk1", "web2 disk0"})
    assert "web1 disk0 and web2 disk0 would both get" in reasons(answer)["web2 disk0"]
    assert bed.pivots() == []


def test_the_bandwidth_is_shared(bed: Bed) -> None:
    """Two copies get half each, and the last one all of it; the sum is never more."""
    total = 8 << 20
    for name, mib in (("web1", 20), ("web2", 40)):
        bed.guest(name, image(bed.old / f"{name}.qcow2", mib))
    answer = bed.json("--parallel", "2", "--bandwidth-total", "8M")
    assert (answer.status, moved(answer)) == (0, ["web1", "web2"])
    records = [record for pivot in bed.pivots() for record in bed.client.pivot(pivot.id).records]
    limits: dict[str, int] = {}
    for record in sorted(records, key=lambda record: record.seq):
        name = str(record.domain).removesuffix(bed.mark)
        if record.event == "accepted":
            # The first has all of it until the second comes, which has half from its beginning.
            limits[name] = total if name == "web1" else total // 2
        elif record.event == "bandwidth-requested":
            limits[name] = record.facts["bandwidth_bytes_per_s"]
        elif record.event == "ready":
            del limits[name]
        assert sum(limits.values()) <= total, record
    assert [pivot.options.bandwidth_bytes_per_s for pivot in bed.pivots()] == [total // 2, total]


def test_a_guest_that_comes_meanwhile_moves_too(bed: Bed) -> None:
    """A domain that is added while the first one copies, and a disk that somebody else moves away in that time."""
    bed.guest("web1", image(bed.old / "web1.qcow2", 48))
    bed.guest("web2", image(bed.old / "web2.qcow2"))
    bed.guest("web0", image(bed.old / "web0.qcow2"), add=False)
    with bed.begin("--bandwidth-total", "1M") as process:
        assert until(lambda: bool(bed.pivots("web1")))
        assert bed.client.wait(bed.copy("web2", bed.directory / "away.qcow2")).outcome == "switched"
        bed.add("web0")
        bed.client.set_bandwidth(bed.pivots("web1")[0].id, 0)  # it has copied long enough
        said, told = process.communicate(timeout=60)
    assert (process.returncode, said.splitlines()[-1]) == (0, "2 of 2 moved"), told
    assert bed.images() == {"web0": ["new/web0.qcow2"], "web1": ["new/web1.qcow2"], "web2": ["away.qcow2"]}


def test_a_pivot_that_has_the_disk(bed: Bed) -> None:
    """Another copy is left alone; one to the same image that waits at ready is somebody's decision."""
    bed.guest("web1", image(bed.old / "web1.qcow2"))
    other = bed.copy("web1", bed.directory / "x.qcow2", pivot=False)
    answer = bed.json()
    assert (answer.status, answer.json["moves"]) == (4, [])
    assert f"pivot {other} has the disk" in reasons(answer)["web1 disk0"]
    bed.client.cancel(other)
    bed.client.wait(other)
    same = bed.copy("web1", bed.new / "web1.qcow2", pivot=False)
    assert bed.client.wait(same).phase == "ready"
    assert f"`pivotctl complete {same}`" in reasons(bed.json())["web1 disk0"]


def test_options_of_copy(bed: Bed) -> None:
    """They are handed on: the new images have them, and so has the pivot; what pivotd refuses is told."""
    bed.guest("web1", image(bed.old / "web1.qcow2"))
    options = ("--option", "cluster-size=128K", "--cache", "none", "--copy-mode", "background", "--granularity", "128K")
    secret = bed.directory / "secret"
    secret.write_text("passphrase")
    refused = bed.json(*options, "--secret-file", secret)
    assert "while it makes an encrypted image" in refused.json["moves"][0]["error"]
    assert bed.json(*options).status == 0
    (disk,) = bed.disks("web1")
    told = subprocess.run(
        ["qemu-img", "info", "-U", disk.image or ""], capture_output=True, text=True, check=True
    ).stdout
    assert "cluster_size: 131072" in told
    (pivot,) = bed.pivots()
    known = pivot.options
    assert (known.cache, known.copy_mode, known.granularity_bytes) == ("none", "background", 128 << 10)


def test_options_are_a_part_of_the_request_id(bed: Bed) -> None:
    """A try without them is another move; what runs without them is not taken for this one."""
    bed.guest("web1", image(bed.old / "web1.qcow2", 48))
    process = bed.begin("--bandwidth-total", "1M")
    assert until(bed.is_copying)
    process.kill()
    process.communicate()
    (running,) = bed.pivots()
    left = bed.json("--option", "cluster-size=128K", "--dry-run")
    assert (left.status, left.json["moves"]) == (4, [])
    assert reasons(left) == {
        "web1 disk0": f"pivot {running.id} moves the disk there without this --option: cancel it, then evacuate again"
    }
    assert "--keep-synced: cancel it" in str(reasons(bed.json("--keep-synced", "--dry-run")))
    bed.client.cancel(running.id)
    bed.client.wait(running.id)
    stays = bed.json("--option", "cluster-size=128K")
    assert (stays.status, "exists already" in stays.json["moves"][0]["error"]) == (4, True)
    (bed.new / "web1.qcow2").unlink()
    assert bed.json("--option", "cluster-size=128K").status == 0
    assert bed.pivots()[-1].request_id.rsplit("-", 2)[1] != running.request_id.rsplit("-", 2)[1]


def test_keep_synced(bed: Bed) -> None:
    """The disks move, and the old place is in use until the window ends: 4 with what to type, then 0."""
    bed.guest("web1", image(bed.old / "web1.qcow2"))
    answer = bed.json("--keep-synced", "--for", "1h")
    assert answer.status == 4
    assert [one["done"] for one in answer.json["moves"]] == [True]
    assert f"`pivotctl pivot release {bed.pivots()[0].id}` ends it" in reasons(answer)["web1 disk0"]
    assert bed.images() == {"web1": ["new/web1.qcow2"]}
    assert bed.json("--keep-synced", "--for", "1h").json["moves"] == []
    assert len(bed.pivots()) == 1
    bed.client.release(bed.pivots()[0].id)
    bed.client.wait(bed.pivots()[0].id)
    assert until(lambda: bed.json("--keep-synced").status == 0)


def test_what_a_pivot_still_needs_there(bed: Bed) -> None:
    """The old image of an undo window, and a copy that goes to the old place: not empty yet, though no disk is there."""
    bed.guest("web1", image(bed.old / "web1.qcow2"))
    window = bed.copy("web1", bed.new / "web1.qcow2", keep_synced=True)
    assert bed.client.wait(window).undo_until is not None
    answer = bed.json()
    assert (answer.status, answer.json["moves"]) == (4, [])
    assert f"`pivotctl pivot release {bed.pivots()[0].id}` ends it" in reasons(answer)["web1 disk0"]
    bed.client.release(window)
    assert until(lambda: bed.client.pivot(window).closed is not None)
    assert bed.json().status == 0
    back = bed.copy("web1", bed.old / "back.qcow2", pivot=False)
    assert f"pivot {back} moves the disk there" in reasons(bed.json())["web1 disk0"]


def test_an_own_pivot_that_waits_at_ready_tries_again(bed: Bed) -> None:
    """As after all its attempts have failed: the same command lets it switch."""
    bed.guest("web1", image(bed.old / "web1.qcow2"))
    own = bed.copy("web1", bed.new / "web1.qcow2", pivot=False, request_id=f"evacuate-x{bed.mark}-1")
    assert bed.client.wait(own).phase == "ready"
    assert bed.json().status == 0
    assert bed.outcomes() == [("web1", "switched")]


@pytest.mark.long
def test_two_at_once(bed: Bed) -> None:
    """The same command twice at the same time: both follow the same pivots, and no disk moves twice."""
    for name in ("web1", "web2"):
        bed.guest(name, image(bed.old / f"{name}.qcow2", 18))
    with bed.begin("--bandwidth-total", "4M") as one, bed.begin("--bandwidth-total", "4M") as other:
        ends = [process.communicate(timeout=100) for process in (one, other)]
    assert [one.returncode, other.returncode] == [0, 0], ends
    assert bed.outcomes() == [("web1", "switched"), ("web2", "switched")]


@pytest.mark.long
def test_ctrl_c_leaves_what_runs(bed: Bed) -> None:
    """Status 130; the message names the pivot and how to go on; the same command follows it to its end."""
    bed.guest("web1", image(bed.old / "web1.qcow2", 40))
    with bed.begin("--bandwidth-total", "4M") as process:
        assert process.stderr is not None
        assert until(bed.is_copying)
        process.stderr.readline()
        process.stderr.readline()
        told = interrupt(process)
    (pivot,) = bed.pivots()
    assert (process.returncode, pivot.outcome) == (130, None)
    assert f"`pivotctl cancel {pivot.id}` cancels" in told
    assert "the same command goes on" in told
    assert bed.json().status == 0
    assert bed.outcomes() == [("web1", "switched")]
    assert bed.pivots()[0].options.bandwidth_bytes_per_s == 4 << 20


@pytest.mark.long
def test_at(bed: Bed) -> None:
    """An evacuation waits for its time; Ctrl-C ends that. One that was killed after its time goes on at once."""
    bed.guest("web1", image(bed.old / "web1.qcow2", 40))
    then = f"{datetime.now().astimezone() - timedelta(minutes=1):%H:%M}"
    with bed.begin("--at", then) as process:
        assert process.stderr is not None
        said = [process.stderr.readline(), process.stderr.readline()]
        said += interrupt(process).splitlines()
    assert process.returncode == 130
    assert said[1].startswith("pivotctl: waiting until ")
    assert said[-1] == "pivotctl: interrupted; nothing has begun"
    assert bed.pivots() == []
    with bed.begin("--bandwidth-total", "4M") as process:
        assert until(bed.is_copying)
        process.kill()
    answer = bed.run("--at", then)
    assert answer.status == 0
    assert "going on: this evacuation has begun since " in answer.stderr
    assert bed.outcomes() == [("web1", "switched")]


def test_qemu_is_killed_in_the_middle(bed: Bed) -> None:
    """5, and the guest's next boot is from the old image; the same command copies over what was left of the first try."""
    bed.guest("web1", image(bed.old / "web1.qcow2", 40))
    with bed.begin("--bandwidth-total", "4M") as process:
        assert until(bed.is_copying)
        bed.qemus["web1"].kill()
        _, told = process.communicate(timeout=60)
    assert process.returncode == 5, told
    assert (bed.new / "web1.qcow2").exists()
    bed.qemus.pop("web1").stop()
    bed.guest("web1", bed.old / "web1.qcow2", add=False)
    assert until(lambda: bed.client.domain(bed.domain("web1")).connection == "connected")
    answer = bed.json()
    assert (answer.status, moved(answer)) == (0, ["web1"]), answer
    assert bed.outcomes() == [("web1", "kept"), ("web1", "switched")]
    assert [pivot.options.reuse for pivot in bed.pivots()] == [False, True]
    assert bed.images()["web1"] == ["new/web1.qcow2"]


@pytest.mark.parametrize("trick", ["written", "written under its old time", "replaced"])
def test_what_is_left_of_a_try_and_was_touched_since_stays(bed: Bed, trick: str) -> None:
    """Somebody has written to it, or put another file there: it is not certainly ours any more."""
    bed.guest("web1", image(bed.old / "web1.qcow2", 40))
    left = bed.new / "web1.qcow2"
    pivot = bed.copy("web1", left, bandwidth_bytes_per_s=1 << 20, request_id=f"evacuate-x{bed.mark}-1")
    assert until(bed.is_copying)
    bed.client.cancel(pivot)
    assert bed.client.wait(pivot).outcome == "kept"
    old, ended_s = left.stat(), time.time()

    def touch() -> bool:
        if trick == "replaced":
            left.unlink()
            image(left)
        elif trick == "written under its old time":  # as by `cp --preserve`
            left.write_bytes(b"somebody's data")
        later_s = 10 if trick == "written" else 0
        os.utime(left, (old.st_atime, old.st_mtime + later_s))
        return left.stat().st_ctime > ended_s  # the kernel's clock for files is some milliseconds late

    assert until(touch)
    before = left.read_bytes()
    answer = bed.json()
    assert (answer.status, moved(answer)) == (4, [])
    assert f"{left} exists already" in answer.json["moves"][0]["error"]
    assert left.read_bytes() == before


@pytest.mark.parametrize("older", [False, True])
def test_what_two_tries_have_left_is_told_from_an_older_file(bed: Bed, older: bool) -> None:
    """The second try copies over what the first one made; a file of somebody else that got its name since is older."""
    theirs = image(bed.directory / "theirs.qcow2")
    bed.guest("web1", image(bed.old / "web1.qcow2", 40))
    left = bed.new / "web1.qcow2"
    for number in (1, 2):
        name = f"evacuate-x{bed.mark}-{number}"
        pivot = bed.copy("web1", left, bandwidth_bytes_per_s=1 << 20, request_id=name, reuse=number > 1)
        assert until(bed.is_copying)
        bed.client.cancel(pivot)
        assert bed.client.wait(pivot).outcome == "kept"
    if older:
        theirs.rename(left)
    before = left.read_bytes()
    answer = bed.json()
    if not older:
        assert moved(answer) == ["web1"]
        assert bed.pivots()[-1].options.reuse
        return
    assert (answer.status, moved(answer)) == (4, [])
    assert f"{left} exists already" in answer.json["moves"][0]["error"]
    assert left.read_bytes() == before


def test_a_place_to_go_on_from_that_is_inside(bed: Bed) -> None:
    """--to inside --from: what has arrived there does not move again."""
    bed.guest("web1", image(bed.old / "web1.qcow2"))
    inside = bed.old / "inside"
    inside.mkdir()
    assert bed.json("--to", inside).status == 0
    assert bed.images() == {"web1": ["old/inside/web1.qcow2"]}
    answer = bed.json("--to", inside)
    assert (answer.status, answer.json["moves"], len(answer.json["arrived"])) == (0, [], 1)


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["--from", "/nowhere"], 4, "--from /nowhere: No such file or directory"),
        (["--to", "/nowhere"], 4, "--to /nowhere: No such file or directory"),
        (["--from", "/etc/passwd"], 2, "--from /etc/passwd is no directory"),
        (["--from", "/tmp", "--to", "/tmp/."], 2, "are one directory"),
        (["--domain", "web9"], 4, "there is no domain web9"),
        (["--name", "a b"], 2, "--name cannot be 'a b': give at most 64 of"),
        (["--for", "1h"], 2, "--for says how long --keep-synced lasts: give both"),
        (["--bandwidth", "1M"], 2, "evacuate takes no --bandwidth: give --bandwidth-total"),
        (["--bandwidth"], 2, "option '--bandwidth' requires an argument"),
        (["--parallel", "65"], 2, "'65': give a whole number, 1 to 64; see"),
        (["--no-pivot"], 2, "evacuate takes no --no-pivot: disks that do not switch stay where they are"),
        (["--option", "speed=9"], 2, "expected KEY=VALUE with KEY one of cluster-size"),
        (["--at", "2027-01-31"], 2, "has no time of day"),
        (["--at", "0001-01-01T00:00"], 2, "is no time"),
        (["--at", "9999-12-31T23:59-12:00"], 2, "is no time"),
    ],
)
def test_wrong_arguments(bed: Bed, arguments: list[str], status: int, said: str) -> None:
    """One line each, and nothing begins."""
    answer = bed.run(*arguments)
    assert answer.status == status
    assert said in complaint(answer)
