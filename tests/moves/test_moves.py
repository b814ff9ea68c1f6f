"""A real Linux guest that writes all the time is moved; the judge reads the images block by block."""
# ruff: noqa: T201 - seeds and times are shown

from __future__ import annotations

import hashlib
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.rounds import call
from tests.conftest import QemuFactory
from tests.support.daemon import Daemon
from tests.support.guest import Guest, GuestJudge
from tests.support.guest_assets import GuestAssets
from tests.support.proxy import Direction, KillAt, Message, When
from tests.support.qemu import Disk, Qemu, create_image
from tests.support.seeds import rng

pytestmark = pytest.mark.guest

ACKS = 20


class CompareAtSwitch:
    """Compares source and destination right before ``cont``: the guest is still, both must hold the same."""

    def __init__(self, pairs: list[tuple[Path, Path]]) -> None:
        self.pairs = pairs
        self.results: list[str] = []

    def __call__(self, direction: Direction, index: int, message: Message, when: When) -> None:
        if message.label == "command:cont" and when is When.BEFORE and not self.results:
            for source, destination in self.pairs:
                done = subprocess.run(
                    ["qemu-img", "compare", "-U", "-f", "qcow2", "-F", "qcow2", str(source), str(destination)],
                    capture_output=True, text=True, check=False,
                )  # fmt: skip
                self.results.append(done.stdout.strip())


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def copy(daemon: Daemon, targets: dict[str, Path], **options: Any) -> dict[str, Any]:
    answer = begin(daemon, targets, **options)
    return dict(call(daemon, "GET", f"/v1/pivots/{answer['id']}/wait?timeout_s=90", timeout_s=120))


def begin(daemon: Daemon, targets: dict[str, Path], **options: Any) -> Any:
    """Begin a copy whose pause does not end because the machine is busy."""
    disks = [{"disk": disk, "image": str(path)} for disk, path in targets.items()]
    return call(daemon, "POST", "/v1/domains/web1/copy", {"disks": disks, "max_pause_ms": 60_000, **options})


def missing(judge: GuestJudge, paths: dict[str, Path], acks: dict[str, int]) -> dict[str, list[int]]:
    """Return acknowledged blocks that an image lacks, by disk; empty if none."""
    found = {disk: judge.check_image(path, "qcow2", disk, acks[disk]) for disk, path in paths.items()}
    return {disk: lost for disk, lost in found.items() if lost}


@pytest.mark.parametrize("disks", [pytest.param(1, marks=pytest.mark.long), 2, pytest.param(4, marks=pytest.mark.long)])
def test_disks_of_a_writing_guest_are_moved(
    qemu_factory: QemuFactory, guest_assets: GuestAssets, tmp_path: Path, disks: int
):
    """Equal at the switch, the guest writes on to the new images, no write is lost, the old ones stay as they were."""
    old = {f"disk{i}": create_image(tmp_path / f"old{i}.qcow2") for i in range(disks)}
    new = {disk: tmp_path / f"new{disk}.qcow2" for disk in old}
    compare = CompareAtSwitch([(old[disk], new[disk]) for disk in old])
    guest = Guest(guest_assets)
    proxy = Qemu.proxy_for(tmp_path, on_message=compare)
    qemu = qemu_factory([Disk(path) for path in old.values()], guest=guest, proxy=proxy)
    judge = guest.judge(qemu)
    judge.await_ready()
    with Daemon(tmp_path, {"web1": qemu.qmp}) as daemon:
        for disk in old:
            judge.await_acks(disk, more_than=ACKS)
        pivot = copy(daemon, new)
        assert pivot["outcome"] == "switched", pivot["error"]
        before = {disk: digest(path) for disk, path in old.items()}
        assert len(pivot["pauses"]) == 1
        assert pivot["pause_ms"] > 0
        assert compare.results == ["Images are identical."] * disks
        for disk in old:
            judge.await_acks(disk, more_than=judge.last_ack(disk) + ACKS)
        assert qemu.run_state() == "running"
        assert {disk: qemu.root(disk).filename for disk in new} == {disk: str(path) for disk, path in new.items()}
        assert qemu.jobs() == {}
        assert len(qemu.nodes()) == 2 * disks
    acks = {disk: judge.last_ack(disk) for disk in new}
    qemu.kill()
    assert missing(judge, new, acks) == {}
    assert {disk: digest(path) for disk, path in old.items()} == before


@pytest.mark.parametrize("image_format", ["qcow2", pytest.param("raw", marks=pytest.mark.long)])
def test_a_guest_that_dirties_as_fast_as_it_can_is_moved(
    qemu_factory: QemuFactory, guest_assets: GuestAssets, tmp_path: Path, image_format: str
):
    """The backlog is brought down before the pause; write-blocking from the start where it has to be.

    A raw image moves onto one that is full: QEMU wipes neither.
    """
    guest = Guest(guest_assets, write="both")
    old, new = tmp_path / "old", tmp_path / "new"
    qemu = qemu_factory([Disk(create_image(old, image_format=image_format), image_format)], guest=guest)
    if image_format == "raw":
        new.write_bytes(b"\xa5" * old.stat().st_size)
    judge = guest.judge(qemu)
    judge.await_ready()
    with Daemon(tmp_path, {"web1": qemu.qmp}) as daemon:
        judge.await_acks("disk0", more_than=ACKS)
        pivot = copy(daemon, {"disk0": new}, copy_mode="write-blocking", reuse=new.exists())
        assert pivot["outcome"] == "switched", pivot["error"]
        judge.await_acks("disk0", more_than=judge.last_ack("disk0") + ACKS)
    last = judge.last_ack("disk0")
    qemu.kill()
    assert judge.check_image(new, image_format, "disk0", last) == []


@pytest.mark.chaos
@pytest.mark.parametrize("number", [1, *(pytest.param(number, marks=pytest.mark.long) for number in (0, 2, 3, 4, 5))])
def test_killed_at_random_with_qemu_the_journal_names_the_right_image(
    qemu_factory: QemuFactory, guest_assets: GuestAssets, tmp_path: Path, number: int
):
    """Both killed at a random message of a pivot under a writing guest; 2 disks every other time."""
    chance = rng("moves", number)
    disks = 1 + number % 2
    old = {f"disk{i}": create_image(tmp_path / f"old{i}.qcow2") for i in range(disks)}
    new = {disk: tmp_path / f"new{disk}.qcow2" for disk in old}
    guest = Guest(guest_assets)
    proxy = Qemu.proxy_for(tmp_path)
    qemu = qemu_factory([Disk(path) for path in old.values()], guest=guest, proxy=proxy)
    judge = guest.judge(qemu)
    judge.await_ready()
    with Daemon(tmp_path, {"web1": qemu.qmp}) as daemon:
        judge.await_acks("disk0", more_than=ACKS)
        label = chance.choice(
            [
                "return:stop",
                "command:job-complete",
                "return:job-finalize",
                "command:cont",
                "return:cont",
                "return:job-dismiss",
                "return:blockdev-del",
            ]
        )
        strike = KillAt(lambda: [daemon.pid, qemu.pid], chance.choice(list(When)), label=label)
        proxy.on_message = strike
        begin(daemon, new)
        assert strike.struck.wait(60), f"{label} was not reached"
        qemu.wait()
        verdicts = daemon.ctl("verdict", "web1", offline=True).json
    acks = {disk: judge.last_ack(disk) for disk in new}
    named = {verdict["disk"]: Path(verdict["image"]) for verdict in verdicts}
    assert set(named) == set(old)
    assert missing(judge, named, acks) == {}, label


@pytest.mark.chaos
def test_killed_alone_in_the_pause_the_guest_runs_on(
    qemu_factory: QemuFactory, guest_assets: GuestAssets, tmp_path: Path
):
    """Restarted at once, pivotd lets the guest run; it never lost a write."""
    guest = Guest(guest_assets)
    proxy = Qemu.proxy_for(tmp_path)
    qemu = qemu_factory([Disk(create_image(tmp_path / "old.qcow2"))], guest=guest, proxy=proxy)
    judge = guest.judge(qemu)
    judge.await_ready()
    with Daemon(tmp_path, {"web1": qemu.qmp}) as daemon:
        judge.await_acks("disk0", more_than=ACKS)
        proxy.on_message = strike = KillAt(lambda: [daemon.pid], When.BEFORE, label="return:job-finalize")
        begin(daemon, {"disk0": tmp_path / "new.qcow2"})
        assert strike.struck.wait(60)
        last = judge.last_ack("disk0")
        daemon.kill()
        daemon.start()
        judge.await_acks("disk0", more_than=last + ACKS)
        print(f"{(time.monotonic() - strike.at_s) * 1000:.0f} ms from the kill to {ACKS} more acknowledged writes")
        (verdict,) = daemon.ctl("verdict", "web1").json
        assert verdict["image"] == qemu.root("disk0").filename == str(tmp_path / "new.qcow2")
    acks = {"disk0": judge.last_ack("disk0")}
    qemu.kill()
    assert missing(judge, {"disk0": tmp_path / "new.qcow2"}, acks) == {}
