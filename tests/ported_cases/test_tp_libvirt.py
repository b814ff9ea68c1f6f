"""tp-libvirt's tests of block jobs (autotest), against the real daemon and the real pivotctl."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from pivotd.host import files
from tests.ported_cases.fixture import assert_sound, fill_image, path_format
from tests.support.daemon import READY_TIMEOUT_S, Answer, Daemon, _program
from tests.support.qemu import Disk, Qemu, create_image
from tests.support.tiny_guest import TinyGuest, TinyJudge

pytestmark = pytest.mark.qemu

REFUSED, KEPT = 4, 5
INTEGER_MAX = 2**63 - 1


class Bench:
    """A daemon, a domain ``web1`` whose guest writes to disk0, and pivotctl."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.source = create_image(directory / "old.qcow2")
        fill_image(self.source, "8M")
        self.daemon = Daemon(directory, {"web1": directory / "web1.qmp"}, configuration="[pause]\nmax_ms = 10_000")
        self.guest = TinyGuest()
        self.qemu: Qemu
        self.judge: TinyJudge

    def start(self, stack: ExitStack, image: Path | None = None) -> None:
        """Start QEMU on an image, and wait for the guest's first writes."""
        image = image or self.source
        disks = [Disk(image, format=path_format(image.name), bus="ide")]
        self.qemu = stack.enter_context(self.guest.qemu(self.directory, disks))
        self.judge = self.guest.judge(self.qemu)
        self.judge.await_acks(more_than=self.judge.last_ack() + 20)

    def copy(self, image: Path | str, *options: str, disk: str = "disk0") -> Answer:
        """Run `pivotctl copy`."""
        return self.daemon.ctl("copy", "web1", f"{disk}={image}", *options)

    def new(self, name: str = "new.qcow2") -> Path:
        return self.directory / name

    def at_ready(self, name: str = "new.qcow2") -> str:
        """Return the id of a pivot that waits at ready."""
        answer = self.copy(self.new(name), "--no-pivot")
        assert answer.status == 0, answer
        return str(answer.json["id"])

    def slow(self, name: str = "new.qcow2", *, request: str = "slow", bandwidth: str = "1") -> str:
        """Return the id of a pivot that copies until it is hurried, or with a larger bandwidth for a long time."""
        answer = self.copy(self.new(name), "--bandwidth", bandwidth, "--detach", "--id", request)
        assert answer.status == 0, answer
        return str(answer.json["id"])

    def hurry(self) -> None:
        """Lift the limit of every mirror."""
        for job in self.qemu.spy("query-block-jobs"):
            self.qemu.spy("block-job-set-speed", device=job["device"], speed=0)

    def wait(self, pivot: str) -> Answer:
        """Wait until a pivot rests, once its mirror can be hurried."""
        while not self.qemu.spy("query-block-jobs") and self.show(pivot)["closed"] is None:
            pass
        self.hurry()
        return self.daemon.ctl("pivot", "wait", pivot)

    def show(self, pivot: str) -> Any:
        return self.daemon.ctl("pivot", "show", pivot).json

    def assert_right(self, image: Path) -> None:
        """QEMU uses the image, the verdict names it, the guest writes on, and with all dead it holds every write."""
        assert files.resolve(self.qemu.root().filename, None).path == str(image)
        self.judge.await_acks(more_than=self.judge.last_ack() + 20)
        verdict = self.daemon.ctl("verdict", "web1", "disk0").json
        assert (verdict["image"], verdict["certain"]) == (str(image), True)
        self.daemon.kill()
        self.qemu.kill()
        said = self.daemon.ctl("verdict", "web1", "disk0", offline=True).json
        # Without a pivot the journal has no image to name, nor the domain.
        assert said.get("image") == (str(image) if "pivot" in said else None)
        assert self.judge.missing(image, path_format(image.name)) == []
        assert_sound(image)


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def bench(tmp_path: Path, stack: ExitStack) -> Bench:
    bench = Bench(tmp_path)
    bench.start(stack)
    stack.enter_context(bench.daemon)
    return bench


@pytest.fixture
def still(tmp_path: Path, stack: ExitStack) -> Bench:
    """The same without a guest that computes, for what is refused before anything is written."""
    bench = Bench(tmp_path)
    bench.qemu = stack.enter_context(Qemu(tmp_path, [Disk(bench.source)]))
    stack.enter_context(bench.daemon)
    return bench


# -- blockjob_pivot_after_irregular_operations --------------------------------------------------------------------


def test_pivot_before_the_copy_is_ready(bench: Bench):
    """Refused with status 4; the copy goes on and can be switched later."""
    pivot = bench.slow()
    answer = bench.daemon.ctl("pivot", "complete", pivot)
    assert answer.status == REFUSED, answer
    assert bench.wait(pivot).status == 0
    bench.assert_right(bench.new())


def test_pivot_after_the_copy_was_deleted(bench: Bench):
    """An image without a name is never switched to: it would be gone with QEMU. The guest stays on the source."""
    pivot = bench.at_ready()
    bench.new().unlink()
    answer = bench.daemon.ctl("pivot", "complete", pivot)
    assert answer.status == KEPT, answer
    assert "new.qcow2" in bench.show(pivot)["error"]
    bench.assert_right(bench.source)


@pytest.mark.long
def test_pivot_after_the_copy_was_replaced(bench: Bench):
    """Neither is one whose name leads to another file by now."""
    pivot = bench.at_ready()
    bench.new().rename(bench.directory / "moved.qcow2")
    create_image(bench.new())
    answer = bench.daemon.ctl("pivot", "complete", pivot)
    assert answer.status == KEPT, answer
    bench.assert_right(bench.source)


def test_two_copies_to_one_image(bench: Bench):
    """The image that one pivot writes is refused to another one, of this disk and of any other."""
    pivot = bench.at_ready()
    for options in ((), ("--reuse",)):
        assert bench.copy(bench.new(), *options).status == REFUSED
    assert bench.daemon.ctl("pivot", "complete", pivot).status == 0
    bench.assert_right(bench.new())


# -- interrupt_blockcopy ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "number", [*(pytest.param(one, marks=pytest.mark.long) for one in (signal.SIGINT, signal.SIGTERM)), signal.SIGKILL]
)
def test_the_client_dies(bench: Bench, number: signal.Signals):
    """Nothing happens to a pivot whose client is gone, whichever way it went."""
    command = ["env", "--default-signal=INT", str(_program("pivotctl")), "--socket", str(bench.daemon.socket)]
    command += ["copy", "web1"]
    command += [f"disk0={bench.new()}", "--bandwidth", "1", "--id", "waited-for"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as client:
        bench.qemu.await_event("JOB_STATUS_CHANGE", status="running")
        client.send_signal(number)
        client.wait(READY_TIMEOUT_S)
    assert bench.show("waited-for")["closed"] is None
    assert bench.wait("waited-for").status == 0
    bench.assert_right(bench.new())


# -- blockcopy_with_invalid_destination ---------------------------------------------------------------------------


def test_an_image_to_reuse_that_does_not_exist(still: Bench):
    """--reuse of nothing: refused, nothing created."""
    assert still.copy(still.new(), "--reuse").status == REFUSED
    assert not still.new().exists()
    assert still.daemon.ctl("pivot", "ls").json == []


@pytest.mark.long
def test_a_smaller_image(bench: Bench):
    """--reuse of a smaller image: refused, and the next copy works."""
    create_image(bench.new("small.qcow2"), size="32M")
    answer = bench.copy(bench.new("small.qcow2"), "--reuse")
    assert answer.status == REFUSED, answer
    assert bench.copy(bench.new()).status == 0
    bench.assert_right(bench.new())


def test_a_relative_path(bench: Bench, monkeypatch: pytest.MonkeyPatch):
    """The client means its own directory, not that of the daemon or of QEMU; the API itself takes only whole paths."""
    place = bench.directory / "elsewhere"
    place.mkdir()
    monkeypatch.chdir(place)
    assert bench.copy("new.qcow2").status == 0
    bench.assert_right(place / "new.qcow2")


def test_what_is_no_place_for_an_image(bench: Bench):
    """Devices and directories that are not there are refused with and without --reuse, and nothing is recorded."""
    for image in ("/nowhere/", "/dev/null", "/nowhere/new.qcow2"):
        for options in ((), ("--reuse",)):
            answer = bench.copy(image, *options)
            assert answer.status == REFUSED, answer
    assert bench.daemon.ctl("pivot", "ls").json == []
    bench.assert_right(bench.source)


# -- blockjob_with_invalid_operation ------------------------------------------------------------------------------


def test_unknown_names(still: Bench):
    """An unknown disk, domain or pivot is named in the refusal."""
    for arguments in (
        ("copy", "web1", f"nothing={still.new()}"),
        ("copy", "nobody", f"disk0={still.new()}"),
        ("pivot", "cancel", "no-such-pivot"),
        ("pivot", "complete", "no-such-pivot"),
        ("pivot", "wait", "no-such-pivot"),
        ("verdict", "nobody"),
    ):
        answer = still.daemon.ctl(*arguments)
        assert answer.status == REFUSED, (arguments, answer)
        name = next(word for word in arguments if word.startswith("no"))
        assert name.partition("=")[0] in answer.stdout + answer.stderr, answer


def test_a_failed_job_releases_the_disk(bench: Bench):
    """After a copy that failed, and one that was cancelled, the disk can be moved."""
    os.truncate(create_image(bench.new("cut.qcow2")), 64)
    assert bench.copy(bench.new("cut.qcow2"), "--reuse").status == KEPT
    pivot = bench.at_ready("second.qcow2")
    assert bench.copy(bench.new("third.qcow2")).status == REFUSED, "one at a time"
    assert bench.daemon.ctl("pivot", "cancel", pivot).status == 0
    assert bench.copy(bench.new()).status == 0
    bench.assert_right(bench.new())


# -- block_operation_after_lifecycle ------------------------------------------------------------------------------


def test_copy_after_destroy_and_start(bench: Bench, stack: ExitStack):
    """QEMU killed with a pivot open, started again on the verdict's image: the next copy works."""
    pivot = bench.at_ready()
    bench.qemu.kill()
    answer = bench.daemon.ctl("pivot", "wait", pivot)
    assert answer.status in {0, KEPT}, answer
    while bench.show(pivot)["closed"] is None:
        pass
    verdict = bench.daemon.ctl("verdict", "web1", "disk0").json
    assert verdict["image"] == str(bench.source)
    before = bench.judge.last_ack()
    assert bench.judge.missing(bench.source, "qcow2", before) == []
    (bench.directory / "web1.serial").unlink()
    bench.start(stack)
    while bench.daemon.ctl("domain", "show", "web1").json["connection"] != "connected":
        pass
    assert bench.copy(bench.new("again.qcow2")).status == 0
    bench.assert_right(bench.new("again.qcow2"))


def test_copy_after_a_restart_of_the_service(bench: Bench):
    """The daemon killed with a pivot at ready: the new one knows it, and completes it."""
    pivot = bench.at_ready()
    bench.daemon.kill()
    bench.daemon.start()
    assert bench.daemon.ctl("pivot", "complete", pivot).status == 0
    bench.assert_right(bench.new())


@pytest.mark.long
def test_copy_after_a_reboot(bench: Bench):
    """A reset of the guest between two copies."""
    assert bench.copy(bench.new("first.qcow2")).status == 0
    bench.qemu.spy("system_reset")
    bench.judge.await_acks(more_than=bench.judge.last_ack() + 20)
    assert bench.copy(bench.new()).status == 0
    bench.assert_right(bench.new())


# -- commit_pull_copy_event, blockcopy_with_async_option ----------------------------------------------------------


def test_events_come_once_and_in_order(bench: Bench):
    """Ready, then switched, then closed: each once."""
    assert bench.copy(bench.new()).status == 0
    rows = [json.loads(line) for line in bench.daemon.ctl("events").stdout.splitlines()]
    events = [row["event"] for row in rows if row["pivot"]]
    once = ["accepted", "copying", "ready", "pausing", "switched", "resumed", "closed"]
    # A loaded machine may need more than one try: those are records of their own.
    tries = [event for event in events if event in once]
    assert list(dict.fromkeys(tries)) == once
    assert events.count("ready") == events.count("switched") == events.count("closed") == 1
    assert [row["seq"] for row in rows] == sorted({row["seq"] for row in rows})
    bench.assert_right(bench.new())


@pytest.mark.long
def test_a_copy_that_nobody_waits_for(bench: Bench):
    """--detach answers at once with the id, and `pivot wait` gives the outcome later."""
    pivot = bench.slow()
    assert bench.show(pivot)["outcome"] is None
    answer = bench.wait(pivot)
    assert (answer.status, answer.json["outcome"]) == (0, "switched")
    bench.assert_right(bench.new())


# -- limits -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bandwidth", [pytest.param("0", marks=pytest.mark.long), str(INTEGER_MAX)])
def test_bandwidths_that_can_be(bench: Bench, bandwidth: str):
    """No limit, and the largest that QEMU can count."""
    assert bench.copy(bench.new(), "--bandwidth", bandwidth).status == 0
    bench.assert_right(bench.new())


def test_bandwidths_that_cannot_be(still: Bench):
    """Refused as a mistake of the command line, nothing recorded."""
    for bandwidth in ("-1", str(INTEGER_MAX + 1), "1P", "fast", ""):
        assert still.copy(still.new(), "--bandwidth", bandwidth).status == 2, bandwidth
    assert still.daemon.ctl("pivot", "ls").json == []


def test_a_disk_of_no_length(tmp_path: Path):
    """A zero-length disk is switched like any other."""
    source = create_image(tmp_path / "old.raw", image_format="raw", size="0")
    daemon = Daemon(tmp_path, {"web1": tmp_path / "web1.qmp"})
    with Qemu(tmp_path, [Disk(source, format="raw")]) as qemu, daemon:
        answer = daemon.ctl("copy", "web1", f"disk0={tmp_path / 'new.raw'}")
        assert answer.status == 0, answer
        assert qemu.root().filename == str(tmp_path / "new.raw")
