"""The storage of the destination fails under a real guest that writes all the time, and pivotd is killed meanwhile."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.rounds import call
from tests.conftest import QemuFactory
from tests.journal_disk.disk import Disk as Storage
from tests.journal_disk.server import Fault
from tests.support.daemon import Daemon
from tests.support.guest import Guest
from tests.support.guest_assets import GuestAssets
from tests.support.proxy import KillAt, When
from tests.support.qemu import Disk, Qemu, create_image

from .test_moves import ACKS, missing

pytestmark = pytest.mark.guest

FILLED = "32M"
FAILS_AT_WRITE = 100
TIMEOUT_S = 90.0
LOOK_S = 0.05


@pytest.fixture
def storage(tmp_path: Path) -> Iterator[Storage]:
    with Storage(tmp_path / "new") as storage:
        yield storage


def filled(directory: Path) -> Path:
    """Return an image with data where the guest does not write."""
    image = create_image(directory / "old.qcow2")
    subprocess.run(["qemu-io", "-c", f"write -q -P 17 16M {FILLED}", str(image)], check=True)
    return image


def start_copy(daemon: Daemon, image: Path) -> str:
    body = {"disks": [{"disk": "disk0", "image": str(image)}], "resumable": True, "max_pause_ms": 10_000}
    return str(call(daemon, "POST", "/v1/domains/web1/copy", body)["id"])


def records(daemon: Daemon, pivot: str) -> list[dict[str, Any]]:
    return list(daemon.ctl("pivot", "show", pivot).json["records"])


def until(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline_s, "in vain"
        time.sleep(LOOK_S)


def interrupted(daemon: Daemon, pivot: str) -> bool:
    return any(record["event"] == "interrupted" for record in records(daemon, pivot))


@pytest.mark.parametrize("how", [pytest.param("eio", marks=pytest.mark.long), "enospc"])
def test_copy_goes_on_after_pivotd_was_killed(
    qemu_factory: QemuFactory, guest_assets: GuestAssets, storage: Storage, tmp_path: Path, how: str
):
    """The guest never notices, the next pivotd goes on where the copy was, no write is lost, and show says what it saved."""
    source, destination = filled(tmp_path), storage.where / "new.qcow2"
    guest = Guest(guest_assets)
    qemu = qemu_factory([Disk(source)], guest=guest)
    judge = guest.judge(qemu)
    judge.await_ready()
    with Daemon(tmp_path, {"web1": qemu.qmp}) as daemon:
        judge.await_acks("disk0", more_than=ACKS)
        storage.fail(Fault("write", FAILS_AT_WRITE, how, lasting=True))
        pivot = start_copy(daemon, destination)
        until(lambda: interrupted(daemon, pivot))
        daemon.kill()
        judge.await_acks("disk0", more_than=judge.last_ack("disk0") + ACKS)
        storage.fail()
        daemon.start()
        found = dict(call(daemon, "GET", f"/v1/pivots/{pivot}/wait?timeout_s=90", timeout_s=120))
        assert found["outcome"] == "switched", found["error"]
        judge.await_acks("disk0", more_than=judge.last_ack("disk0") + ACKS)
        shown = subprocess.run(
            [Path(sys.executable).parent / "pivotctl", "--socket", daemon.socket,
             "pivot", "show", pivot],
            capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
        assert "not copied again after 1 interruption" in shown, shown
    acks = {"disk0": judge.last_ack("disk0")}
    qemu.kill()
    assert missing(judge, {"disk0": destination}, acks) == {}


@pytest.mark.chaos
@pytest.mark.parametrize("with_qemu", [False, pytest.param(True, marks=pytest.mark.long)], ids=["pivotd", "both"])
@pytest.mark.parametrize(
    "label",
    [
        "command:job-resume",
        pytest.param("return:job-resume", marks=pytest.mark.long),
        pytest.param("event:JOB_STATUS_CHANGE", marks=pytest.mark.long),
    ],
)
def test_killed_where_a_copy_goes_on(
    qemu_factory: QemuFactory, guest_assets: GuestAssets, storage: Storage, tmp_path: Path, label: str, with_qemu: bool
):
    """Before and after the command that lets it go on: the copy ends as if nothing had been, or the source is named."""
    source, destination = filled(tmp_path), storage.where / "new.qcow2"
    guest = Guest(guest_assets)
    proxy = Qemu.proxy_for(tmp_path)
    qemu = qemu_factory([Disk(source)], guest=guest, proxy=proxy)
    judge = guest.judge(qemu)
    judge.await_ready()
    with Daemon(tmp_path, {"web1": qemu.qmp}) as daemon:
        judge.await_acks("disk0", more_than=ACKS)
        storage.fail(Fault("write", FAILS_AT_WRITE, "eio", lasting=True))
        pivot = start_copy(daemon, destination)
        until(lambda: interrupted(daemon, pivot))
        strike = KillAt(lambda: [daemon.pid, qemu.pid] if with_qemu else [daemon.pid], When.BEFORE, label=label)
        proxy.on_message = strike  # the storage still fails: pivotd tries again and again
        assert strike.struck.wait(TIMEOUT_S), f"{label} was not reached"
        storage.fail()
        daemon.kill()
        daemon.start()
        found = dict(call(daemon, "GET", f"/v1/pivots/{pivot}/wait?timeout_s=90", timeout_s=120))
        assert found["outcome"] == ("kept" if with_qemu else "switched"), found["error"]
    acks = {"disk0": judge.last_ack("disk0")}
    qemu.kill()
    assert missing(judge, {"disk0": source if with_qemu else destination}, acks) == {}
