"""Who owns a guest: two pivotd, each with a QEMU of its own, and a guest that migrates from one to the other."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from pivotd.core.fleet import FleetView, Owner
from pivotd.core.rules.fleet_owners import take_over
from pivotd.core.rules.fleet_pivots import Here
from pivotd.core.rules.fleet_words import fleet_verdict
from pivotd.fleet.store import EtcdFleet
from tests.cli.ctl import ctl
from tests.conftest import QemuFactory
from tests.fleet.conftest import Settings
from tests.fleet.etcd import Cluster
from tests.support.daemon import Daemon
from tests.support.qemu import Disk, Qemu, create_image

pytestmark = pytest.mark.qemu
LONG_S = 60.0
TIMEOUT_MS = 20_000
"""How long a pivotd waits for etcd, which answers late on a busy machine."""
LONG_PAUSE = "[pause]\nmax_ms = 20000"
"""Busy cores may not let a switch be made in half a second, five times in a row."""


def lines_of(directory: Path, host: str, cluster: Cluster, timeout_ms: int = TIMEOUT_MS) -> str:
    """Return the configuration of a host of a fleet of its own for this test."""
    fleet = {"endpoints": list(cluster.urls), "host": host, "prefix": f"/{directory.parent.name}/"}
    fleet["timeout_ms"] = timeout_ms
    return "\n".join([LONG_PAUSE, "[fleet]", *(f"{key} = {json.dumps(value)}" for key, value in fleet.items())])


def daemon_of(directory: Path, host: str, qmp: Path, cluster: Cluster, timeout_ms: int = TIMEOUT_MS) -> Daemon:
    """Return a pivotd that is such a host."""
    directory.mkdir(exist_ok=True)
    return Daemon(directory, {"web1": qmp}, configuration=lines_of(directory, host, cluster, timeout_ms))


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
    cluster: Cluster, fleet_of: Settings, qemu: Qemu, tmp_path: Path
) -> None:
    """The log says whose it is; nothing of it changes in the fleet, and nothing of the guest."""
    fleet = fleet_of(*cluster.urls, prefix=f"/{tmp_path.name}/")
    empty = await fleet.read("web1", LONG_S)
    theirs = await fleet.write(empty, FleetView("web1", Owner("h9", 4, "boot", "2026-11-23T09:00:00Z")), LONG_S)
    with daemon_of(tmp_path / "h1", "h1", qemu.qmp, cluster) as daemon:
        async with asyncio.timeout(LONG_S):
            while "belongs to host h9" not in daemon.log_path.read_text():
                await asyncio.sleep(0.05)
        await asyncio.sleep(1)  # a look takes milliseconds
        assert (await asyncio.to_thread(daemon.ctl, "domain", "ls")).json[0]["alarms"] == []
    assert await fleet.read("web1", LONG_S) == theirs
    assert await asyncio.to_thread(qemu.run_state) == "running"


async def test_an_etcd_that_refuses_this_host_puts_no_guest_in_doubt(
    cluster: Cluster, qemu: Qemu, tmp_path: Path
) -> None:
    """A pivot waits for it as for one that is silent; nothing is known to be wrong."""
    lines = lines_of(tmp_path / "h1", "h1", cluster) + '\ncluster = "deadbeef"'
    with Daemon(made(tmp_path / "h1"), {"web1": qemu.qmp}, configuration=lines) as daemon:
        answer = await asyncio.to_thread(daemon.ctl, "copy", "web1", f"disk0={tmp_path / 'b.qcow2'}", "--detach")
        assert answer.status == 0, answer
        assert (await asyncio.to_thread(daemon.ctl, "domain", "ls")).json[0]["alarms"] == []


class Leaving:
    """A guest that has left h1 by a migration while etcd was away; then its host lost QEMU and pivotd."""

    def __init__(self, cluster: Cluster, fleet: EtcdFleet, qemu_factory: QemuFactory, tmp_path: Path) -> None:
        self.cluster, self.fleet, self.tmp_path = cluster, fleet, tmp_path
        image = create_image(tmp_path / "a.qcow2")
        self.old = qemu_factory([Disk(image)], directory=made(tmp_path / "q1"))
        self.socket = tmp_path / "m"
        extra = ["-incoming", f"unix:{self.socket}"]
        self.new = qemu_factory([Disk(image)], directory=made(tmp_path / "q2"), extra=extra)

    def daemon(self, host: str) -> Daemon:
        qmp = (self.old if host == "h1" else self.new).qmp
        return daemon_of(self.tmp_path / host, host, qmp, self.cluster)

    async def owner(self, epoch: int) -> FleetView:
        async with asyncio.timeout(LONG_S):
            while (view := await self.fleet.read("web1", LONG_S)).owner is None or view.owner.epoch != epoch:
                await asyncio.sleep(0.05)
        return view

    async def leave(self) -> None:
        with self.daemon("h1") as daemon:
            await self.owner(1)
            for node in self.cluster.nodes:
                node.freeze()
            await asyncio.to_thread(self.old.spy, "migrate", {"uri": f"unix:{self.socket}"})
            await recorded(daemon, "release-owed")
            await asyncio.to_thread(self.old.kill)
        for node in self.cluster.nodes:
            node.thaw()


async def recorded(daemon: Daemon, event: str) -> None:
    async with asyncio.timeout(LONG_S):
        while event not in (await asyncio.to_thread(daemon.ctl, "events")).stdout:
            await asyncio.sleep(0.1)


async def test_a_release_is_owed_although_pivotd_and_qemu_are_gone(
    fragile: Cluster, fleet_of: Settings, qemu_factory: QemuFactory, tmp_path: Path
) -> None:
    """No pivot of this guest is in the journal, and the next pivotd never sees its QEMU."""
    fleet = fleet_of(*fragile.urls, prefix=f"/{tmp_path.name}/")
    guest = Leaving(fragile, fleet, qemu_factory, tmp_path)
    await guest.leave()
    assert (await guest.owner(1)).owner.host == "h1"  # type: ignore[union-attr]
    with guest.daemon("h1") as first:
        assert (await guest.owner(2)).owner.host is None  # type: ignore[union-attr]
        await recorded(first, "release-settled")
        with guest.daemon("h2"):
            assert (await guest.owner(3)).owner.host == "h2"  # type: ignore[union-attr]


async def test_a_guest_that_leaves_is_seen_while_etcd_is_asked_about_it(
    fragile: Cluster, fleet_of: Settings, qemu_factory: QemuFactory, tmp_path: Path
) -> None:
    """Its QEMU may end long before etcd answers: what is owed is known before that."""
    fleet = fleet_of(*fragile.urls, prefix=f"/{tmp_path.name}/")
    guest = Leaving(fragile, fleet, qemu_factory, tmp_path)
    lines = lines_of(tmp_path / "h1", "h1", fragile, 60_000)
    made(tmp_path / "h1")
    with Daemon(tmp_path / "h1", {"web1": guest.old.qmp}, configuration=lines) as daemon:
        await guest.owner(1)
        for node in fragile.nodes:
            node.freeze()
        await asyncio.to_thread(guest.old.spy, "stop")
        await asyncio.to_thread(guest.old.spy, "cont")
        await asyncio.to_thread(guest.old.spy, "migrate", {"uri": f"unix:{guest.socket}"})
        await recorded(daemon, "release-owed")
        await asyncio.to_thread(guest.old.kill)
        for node in fragile.nodes:
            node.thaw()
        assert (await guest.owner(2)).owner.host is None  # type: ignore[union-attr]


async def test_a_guest_that_was_taken_since_is_not_released(
    fragile: Cluster, fleet_of: Settings, qemu_factory: QemuFactory, tmp_path: Path
) -> None:
    """Also if it was this host that took it: what was owed was owed by another epoch."""
    fleet = fleet_of(*fragile.urls, prefix=f"/{tmp_path.name}/")
    guest = Leaving(fragile, fleet, qemu_factory, tmp_path)
    await guest.leave()
    view = await guest.owner(1)
    for host in ("h2", "h1"):
        after = take_over(view, Here(host, "boot", "2026-11-23T09:00:00Z"), {})
        assert isinstance(after, FleetView)
        view = await fleet.write(view, after, LONG_S)
    with guest.daemon("h1") as first:
        await recorded(first, "release-settled")
    assert await fleet.read("web1", LONG_S) == view


async def test_a_guest_that_left_unseen_is_taken_where_it_runs(
    cluster: Cluster, fleet_of: Settings, qemu_factory: QemuFactory, tmp_path: Path
) -> None:
    """Its old host had lost pivotd and QEMU by then: nothing is released by guess, and the runbook helps."""
    fleet = fleet_of(*cluster.urls, prefix=f"/{tmp_path.name}/")
    guest = Leaving(cluster, fleet, qemu_factory, tmp_path)
    with guest.daemon("h1"):
        await guest.owner(1)
    await asyncio.to_thread(guest.old.spy, "migrate", {"uri": f"unix:{guest.socket}"})
    async with asyncio.timeout(LONG_S):
        while await asyncio.to_thread(guest.new.run_state) != "running":
            await asyncio.sleep(0.05)
    await asyncio.to_thread(guest.old.kill)
    copy = ("copy", "web1", f"disk0={tmp_path / 'b.qcow2'}")
    with guest.daemon("h1"), guest.daemon("h2") as second:
        refused = await asyncio.to_thread(second.ctl, *copy)
        assert (refused.status, "belongs to host h1" in refused.json["error"]["message"]) == (4, True), refused
        options = ("--endpoints", ",".join(cluster.urls), "--prefix", f"/{tmp_path.name}/", "--host", "h2")
        taken = await asyncio.to_thread(ctl, "fleet", *options, "take", "web1", "--fenced")
        assert taken.status == 0, taken
        assert (await asyncio.to_thread(second.ctl, *copy)).status == 0
    assert (await guest.owner(2)).owner.host == "h2"  # type: ignore[union-attr]


def made(directory: Path) -> Path:
    directory.mkdir()
    return directory


async def test_a_host_is_seen_while_its_pivotd_runs(cluster: Cluster, fleet_of: Settings, tmp_path: Path) -> None:
    """An orderly end removes it at once; a host that is lost goes with its lease."""
    fleet = fleet_of(*cluster.urls, prefix=f"/{tmp_path.name}/")

    async def seen(hosts: set[str]) -> None:
        async with asyncio.timeout(LONG_S):
            while set(await fleet.hosts(LONG_S)) != hosts:
                await asyncio.sleep(0.05)

    with daemon_of(tmp_path / "h1", "h1", tmp_path / "none.qmp", cluster) as daemon:
        await seen({"h1"})
        assert await asyncio.to_thread(daemon.terminate) == 0
    await seen(set())


async def test_an_etcd_that_hangs_does_not_delay_the_end(fragile: Cluster, fleet_of: Settings, tmp_path: Path) -> None:
    """The key stays there until its lease ends, or goes with a message that arrives late."""
    fleet = fleet_of(*fragile.urls, prefix=f"/{tmp_path.name}/")
    with daemon_of(tmp_path / "h1", "h1", tmp_path / "none.qmp", fragile) as daemon:
        async with asyncio.timeout(LONG_S):
            while not await fleet.hosts(LONG_S):
                await asyncio.sleep(0.05)
        for node in fragile.nodes:
            node.freeze()
        assert await asyncio.to_thread(daemon.terminate) == 0
    for node in fragile.nodes:
        node.thaw()
    assert set(await fleet.hosts(LONG_S)) <= {"h1"}
