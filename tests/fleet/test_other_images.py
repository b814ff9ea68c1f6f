"""A guest of a fleet has run on another image than its last pivot names: whoever takes it must know of both."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from pivotd.client import Client
from pivotd.core.fleet import FleetView
from pivotd.core.rules.fleet_words import fleet_verdict
from tests.cli.ctl import Answer, ctl
from tests.conftest import QemuFactory
from tests.fleet.conftest import Settings
from tests.fleet.etcd import Cluster
from tests.fleet.test_owners import LONG_PAUSE, made, recorded
from tests.fleet.test_words import LONG_S, Site, offline, refused
from tests.fleet.wires import Wires
from tests.support.daemon import Daemon
from tests.support.qemu import Disk, Qemu, create_image

pytestmark = [pytest.mark.qemu, pytest.mark.parametrize("etcd_release", [None], indirect=True, ids=["etcd"])]


class Stray:
    """A guest on host h1 whose disk was moved from a to b, and which somebody can start on either."""

    def __init__(self, site: Site, qemu_factory: QemuFactory, wires: Wires) -> None:
        self.site, self.wires, self._qemu = site, wires, qemu_factory
        self.old, self.new = create_image(site.tmp_path / "a.qcow2"), site.tmp_path / "b.qcow2"
        self.qemu = self.start(self.old)
        settings = {"endpoints": wires.urls, "host": "h1", "prefix": f"/{site.tmp_path.name}/", "timeout_ms": 1500}
        lines = "\n".join([LONG_PAUSE, "[fleet]", *(f"{key} = {json.dumps(value)}" for key, value in settings.items())])
        self.daemon = Daemon(made(site.tmp_path / "h1"), {"web1": self.qemu.qmp}, configuration=lines)

    def start(self, image: Path) -> Qemu:
        self.qemu = self._qemu([Disk(image)], directory=self.site.tmp_path / "q1")
        return self.qemu

    async def moved(self) -> None:
        await self.site.moved(self.daemon, self.new)
        await asyncio.to_thread(self.qemu.kill)

    async def moved_and_lost(self) -> None:
        """Have another host take the guest after its disk was moved."""
        await asyncio.to_thread(self.daemon.start)
        await self.moved()
        await asyncio.to_thread(self.daemon.kill)
        await self.site.taken_by("h2")

    async def moved_on(self) -> Path:
        """Have another host move the disk on, and end the guest there; return the image."""
        later = self.site.tmp_path / "c.qcow2"
        await self.moved_and_lost()
        self.start(self.new)
        with self.site.daemon(self.qemu.qmp, host="h2") as other:
            await self.site.moved(other, later)
        await asyncio.to_thread(self.qemu.kill)
        return later

    async def restarted(self, image: Path) -> None:
        await asyncio.to_thread(self.qemu.kill)
        await asyncio.to_thread(self.start, image)

    async def fleet(self, *arguments: str, host: str = "h2") -> Answer:
        options = ("--endpoints", ",".join(self.site.cluster.urls), "--prefix", f"/{self.site.tmp_path.name}/")
        return await asyncio.to_thread(ctl, "fleet", *options, "--host", host, *arguments)

    async def both_named(self) -> FleetView:
        """Wait until the fleet knows of the doubt, and check what it says."""
        found = await self.site.until(lambda view: not fleet_verdict(view, "disk0").certain)
        word = fleet_verdict(found, "disk0")
        assert {image.filename for image in word.candidates} == {str(self.old), str(self.new)}
        return found

    async def certain(self) -> str:
        """Wait until the fleet is certain, and return the image."""
        image = fleet_verdict(await self.site.until(lambda view: fleet_verdict(view, "disk0").certain), "disk0").image
        assert image is not None
        return image.filename


@pytest.fixture
def stray(cluster: Cluster, fleet_of: Settings, qemu_factory: QemuFactory, tmp_path: Path) -> Iterator[Stray]:
    made(tmp_path / "q1")
    with Wires(tuple(cluster.urls)) as wires:
        yield Stray(Site(cluster, fleet_of, tmp_path), qemu_factory, wires)


async def test_a_guest_that_has_run_on_a_stale_image_is_taken_by_a_persons_word(stray: Stray) -> None:
    """The fleet names both until QEMU is seen on the right one again, or a person has chosen."""
    with stray.daemon as daemon:
        await stray.moved()
        await stray.restarted(stray.old)
        await stray.both_named()
        await stray.restarted(stray.new)
        assert await stray.certain() == str(stray.new)
        await recorded(daemon, "image-seen")
        assert (await asyncio.to_thread(daemon.ctl, "image", "web1", "disk0")).json["image"] == str(stray.new)
        await stray.restarted(stray.old)
        await stray.both_named()
    await asyncio.to_thread(stray.qemu.kill)
    said = await stray.fleet("verdict", "web1", "disk0")
    assert said.status == 6, said
    assert all(str(image) in said.stdout for image in (stray.old, stray.new))
    refusal = await stray.fleet("take", "web1", "--fenced")
    assert refusal.status == 6, refusal
    taken = await stray.fleet("take", "web1", "--fenced", "--image", f"disk0={stray.old}")
    assert taken.status == 0, taken
    assert await stray.certain() == str(stray.old)
    refused(await asyncio.to_thread(offline, stray.daemon, "image", "web1", "disk0"), "belongs to host h2")


@pytest.mark.parametrize("pivotd", ["lives", "is killed"])
@pytest.mark.long
async def test_a_doubt_that_etcd_could_not_hear_of_is_told_when_it_can(stray: Stray, pivotd: str) -> None:
    """The journal has it at once, and QEMU has ended since: nobody sees the guest again."""
    with stray.daemon as daemon:
        await stray.moved()
        stray.wires.cut = True
        await stray.restarted(stray.old)
        await recorded(daemon, "ran-on-other-image")
        await asyncio.to_thread(stray.qemu.kill)
        async with asyncio.timeout(LONG_S):
            while "fleet.doubt-not-told" not in daemon.log_path.read_text():
                await asyncio.sleep(0.05)
        assert await stray.certain() == str(stray.new), "nobody can have told it"
        if pivotd == "is killed":
            daemon.kill()
            refused(await asyncio.to_thread(offline, daemon, "image", "web1", "disk0"), str(stray.new))
        stray.wires.cut = False
        if pivotd == "is killed":
            daemon.start()
        await stray.both_named()
        word = ("verdict", "accept", "web1", "disk0", str(stray.old), "--reason", "compared")
        accepted = await asyncio.to_thread(daemon.ctl, *word)
        assert (accepted.status, accepted.json["certain"]) == (0, True), accepted
        assert await stray.certain() == str(stray.old)
        said = await stray.fleet("verdict", "web1", "disk0")
        assert (said.status, str(stray.old) in said.stdout) == (0, True), said


@pytest.mark.long
async def test_a_guest_that_runs_on_a_stale_image_on_a_host_that_has_never_moved_its_disk(stray: Stray) -> None:
    """No row of the journal there can keep it: the fleet is told at once, no pivot begins, and a person chooses."""
    await stray.moved_and_lost()
    stray.start(stray.old)
    with stray.site.daemon(stray.qemu.qmp, host="h2") as daemon:
        await stray.both_named()
        async with asyncio.timeout(LONG_S):
            while not (alarms := (await asyncio.to_thread(daemon.ctl, "domain", "ls")).json[0]["alarms"]):
                await asyncio.sleep(0.05)
        assert str(stray.old) in alarms[0]
        refusal = await asyncio.to_thread(daemon.ctl, "copy", "web1", f"disk0={stray.old}.copy")
        assert refusal.status == 4, refusal
        await asyncio.to_thread(stray.qemu.kill)
        refused(await asyncio.to_thread(daemon.ctl, "image", "web1", "disk0"), "fleet is not certain")
        assert "domain.not-checked" not in daemon.log_path.read_text()
    refused(await asyncio.to_thread(offline, daemon, "image", "web1", "disk0"), "fleet is not certain")
    taken = await stray.fleet("take", "web1", "--fenced", "--image", f"disk0={stray.new}")
    assert taken.status == 0, taken
    assert await stray.certain() == str(stray.new)


async def test_a_guest_that_runs_where_only_an_older_journal_says(stray: Stray) -> None:
    """Another host has moved the disk on, and this one has the guest back: the fleet's word is the later one."""
    later = await stray.moved_on()
    await stray.site.taken_by("h1")
    with stray.daemon as daemon:
        assert (await asyncio.to_thread(daemon.ctl, "image", "web1", "disk0")).json["image"] == str(later)
        await stray.restarted(stray.new)
        view = await stray.site.until(lambda view: not fleet_verdict(view, "disk0").certain)
        assert {image.filename for image in fleet_verdict(view, "disk0").candidates} == {str(stray.new), str(later)}
        assert (await asyncio.to_thread(daemon.ctl, "verdict", "web1", "disk0")).json["outcome"] == "unknown"
        await asyncio.to_thread(stray.qemu.kill)
        refused(await asyncio.to_thread(daemon.ctl, "image", "web1", "disk0"), f"he guest ran on {stray.new}")
    refused(await asyncio.to_thread(offline, stray.daemon, "image", "web1", "disk0"), f"he guest ran on {stray.new}")
    refusal = await stray.fleet("take", "web1", "--fenced")
    assert refusal.status == 6, refusal
    with stray.daemon as daemon:
        stray.start(stray.new)
        async with asyncio.timeout(LONG_S):
            while not (alarms := (await asyncio.to_thread(daemon.ctl, "domain", "ls")).json[0]["alarms"]):
                await asyncio.sleep(0.05)
        assert str(later) in alarms[0], "it is told again: nobody has decided"
        word = ("verdict", "accept", "web1", "disk0", str(later), "--format", "qcow2", "--reason", "compared")
        await asyncio.to_thread(stray.qemu.kill)
        accepted = await asyncio.to_thread(daemon.ctl, *word)
        assert accepted.status == 0, accepted
        assert (await asyncio.to_thread(daemon.ctl, "image", "web1", "disk0")).json["image"] == str(later)
    assert await stray.certain() == str(later)


@pytest.mark.long
async def test_a_guest_on_an_older_journals_image_is_in_doubt_while_etcd_is_silent(stray: Stray) -> None:
    """It is started before this host takes it. That QEMU is where this journal says ends nothing while etcd is away."""
    await stray.moved_on()
    with stray.daemon as daemon:
        ctl = lambda *arguments: asyncio.to_thread(daemon.ctl, *arguments)  # noqa: E731
        await stray.restarted(stray.new)
        async with asyncio.timeout(LONG_S):
            while "belongs to host h2" not in daemon.log_path.read_text():
                await asyncio.sleep(0.05)
        await stray.site.taken_by("h1")
        await stray.site.until(lambda view: not fleet_verdict(view, "disk0").certain)
        stray.wires.cut = True
        assert "does not answer" in (await ctl("verdict", "web1", "disk0")).json["reason"]
        for command in ("stop", "cont"):
            await asyncio.to_thread(stray.qemu.spy, command)
        refusal = await ctl("copy", "web1", f"disk0={stray.site.tmp_path / 'd.qcow2'}")
        assert refusal.status == 4, refusal
        assert "web1 disk0 is in doubt" in refusal.json["error"]["message"]
        stray.wires.cut = False
        assert (await ctl("domain", "ls")).json[0]["alarms"]
        refused(await ctl("image", "web1", "disk0"), str(stray.new))


async def test_a_pivot_that_was_asked_for_while_etcd_was_silent_waits_where_the_fleet_says_otherwise(
    stray: Stray,
) -> None:
    """Nobody has compared its source with the fleet's word before."""
    later = await stray.moved_on()
    await stray.site.taken_by("h1")
    stray.wires.cut = True
    stray.start(stray.new)
    with stray.daemon as daemon:
        ctl = lambda *arguments: asyncio.to_thread(daemon.ctl, *arguments)  # noqa: E731
        pivot = (await ctl("copy", "web1", f"disk0={stray.site.tmp_path / 'd.qcow2'}", "--detach")).json["id"]
        stray.wires.cut, client = False, Client(str(daemon.socket))
        async with asyncio.timeout(LONG_S):
            while f"the fleet has disk0 on {later}" not in str(await asyncio.to_thread(client.progress, pivot)):
                await asyncio.sleep(0.2)
        assert (await ctl("cancel", pivot)).status == 0
    assert await stray.certain() == str(later)


async def test_a_host_that_has_never_moved_a_disk_compares_it_with_the_fleets_word(
    stray: Stray, tmp_path: Path
) -> None:
    """The right one may have another name here: no alarm, and pivots begin."""
    await stray.moved_and_lost()
    (tmp_path / "link").symlink_to(tmp_path)
    stray.start(tmp_path / "link" / "b.qcow2")
    with stray.site.daemon(stray.qemu.qmp, host="h2") as daemon:
        moved = await asyncio.to_thread(daemon.ctl, "copy", "web1", f"disk0={tmp_path / 'c.qcow2'}")
        assert moved.status == 0, moved
        assert (await asyncio.to_thread(daemon.ctl, "domain", "ls")).json[0]["alarms"] == []
    assert await stray.certain() == str(tmp_path / "c.qcow2")


@pytest.mark.long
async def test_a_guest_that_has_left_and_runs_again_where_the_old_journal_says(
    stray: Stray, qemu_factory: QemuFactory, tmp_path: Path
) -> None:
    """It left by a migration, and its new host moved it on: the fleet learns of the writes here."""
    later = tmp_path / "c.qcow2"
    with stray.daemon as daemon:
        await stray.site.moved(daemon, stray.new)
        incoming = ["-incoming", f"unix:{tmp_path / 'm'}"]
        new = qemu_factory([Disk(stray.new)], directory=made(tmp_path / "q2"), extra=incoming)
        with stray.site.daemon(new.qmp, host="h2") as other:
            await asyncio.to_thread(stray.qemu.spy, "migrate", {"uri": f"unix:{tmp_path / 'm'}"})
            await stray.site.until(lambda view: view.owner is not None and view.owner.host == "h2")
            await stray.site.moved(other, later)
        await asyncio.to_thread(new.kill)
        await stray.site.taken_by("h1")
        await stray.restarted(stray.new)
        view = await stray.site.until(lambda view: not fleet_verdict(view, "disk0").certain)
        assert {image.filename for image in fleet_verdict(view, "disk0").candidates} == {str(stray.new), str(later)}
        await asyncio.to_thread(stray.qemu.kill)
        refused(await asyncio.to_thread(daemon.ctl, "image", "web1", "disk0"), f"he guest ran on {stray.new}")
