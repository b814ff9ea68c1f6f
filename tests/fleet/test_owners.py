"""Who owns a guest: two pivotd, each with a QEMU of its own, and a guest that migrates from one to the other."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from pivotd.core.fleet import FleetView, Owner
from pivotd.core.rules.fleet_words import fleet_verdict
from tests.conftest import QemuFactory
from tests.fleet.conftest import Settings
from tests.fleet.etcd import Cluster
from tests.support.daemon import Daemon
from tests.support.qemu import Disk, create_image

pytestmark = pytest.mark.qemu
LONG_S = 60.0


def daemon_of(directory: Path, host: str, qmp: Path, cluster: Cluster) -> Daemon:
    """Return a pivotd that is a host of a fleet of its own for this test."""
    directory.mkdir(exist_ok=True)
    fleet = {"endpoints": list(cluster.urls), "host": host, "prefix": f"/{directory.parent.name}/"}
    lines = ["[fleet]", *(f"{key} = {json.dumps(value)}" for key, value in fleet.items())]
    return Daemon(directory, {"web1": qmp}, configuration="\n".join(lines))


async def test_a_guest_is_claimed_moved_released_and_claimed_by_its_new_host(
    cluster: Cluster, fleet_of: Settings, qemu_factory: QemuFactory, tmp_path: Path
) -> None:
    """By a live migration over a socket; each host moves its disk, and the fleet names the last image."""
    fleet = fleet_of(*cluster.urls, prefix=f"/{tmp_path.name}/")
    images = [create_image(tmp_path / "a.qcow2"), tmp_path / "b.qcow2", tmp_path / "c.qcow2"]

    async def until(done: Callable[[FleetView], bool]) -> FleetView:
        async with asyncio.timeout(LONG_S):
            while not done(view := await fleet.read("web1", LONG_S)):
                await asyncio.sleep(0.05)
        return view

    def owned_by(host: str | None) -> Callable[[FleetView], bool]:
        return lambda view: view.owner is not None and view.owner.host == host

    old = qemu_factory([Disk(images[0])], directory=made(tmp_path / "q1"))
    with daemon_of(tmp_path / "h1", "h1", old.qmp, cluster) as first:
        assert (await until(owned_by("h1"))).intent is None
        answer = await asyncio.to_thread(first.ctl, "copy", "web1", f"disk0={images[1]}")
        assert answer.status == 0, answer
        told = await until(lambda view: bool(view.disks))
        assert fleet_verdict(told, "disk0").image is not None
        assert fleet_verdict(told, "disk0").image.filename == str(images[1])

        socket = tmp_path / "m"
        new = qemu_factory([Disk(images[1])], directory=made(tmp_path / "q2"), extra=["-incoming", f"unix:{socket}"])
        with daemon_of(tmp_path / "h2", "h2", new.qmp, cluster) as second:
            assert owned_by("h1")(await fleet.read("web1", LONG_S))
            await asyncio.to_thread(old.spy, "migrate", {"uri": f"unix:{socket}"})
            moved = await until(owned_by("h2"))
            assert moved.owner is not None
            assert moved.owner.epoch == 3
            assert moved.disks == told.disks
            answer = await asyncio.to_thread(second.ctl, "copy", "web1", f"disk0={images[2]}")
            assert answer.status == 0, answer
            last = await until(lambda view: view.disks != told.disks)
            assert fleet_verdict(last, "disk0").image.filename == str(images[2])
            assert last.disks[0].epoch == 3


async def test_the_guest_of_another_host_is_left_alone(
    cluster: Cluster, fleet_of: Settings, qemu_factory: QemuFactory, tmp_path: Path
) -> None:
    """The log says whose it is; nothing of it changes in the fleet, and nothing of the guest."""
    fleet = fleet_of(*cluster.urls, prefix=f"/{tmp_path.name}/")
    empty = await fleet.read("web1", LONG_S)
    theirs = await fleet.write(empty, FleetView("web1", Owner("h9", 4, "boot", "2026-11-23T09:00:00Z")), LONG_S)
    qemu = qemu_factory([Disk(create_image(tmp_path / "a.qcow2"))])
    with daemon_of(tmp_path / "h1", "h1", qemu.qmp, cluster) as daemon:
        async with asyncio.timeout(LONG_S):
            while "belongs to host h9" not in daemon.log_path.read_text():
                await asyncio.sleep(0.05)
    assert await fleet.read("web1", LONG_S) == theirs
    assert await asyncio.to_thread(qemu.run_state) == "running"


def made(directory: Path) -> Path:
    directory.mkdir()
    return directory
