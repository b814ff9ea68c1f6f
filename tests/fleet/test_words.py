"""`image`, `guard` and `verdict` on a host of a fleet: no word counts before the fleet has agreed to it."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from pivotd.client import Client
from pivotd.core.fleet import ACCEPTED, FleetDisk, FleetImage, FleetView, OnSilence, Owner
from pivotd.core.pivot import FleetStage, Outcome, Phase
from pivotd.core.rules.fleet_changes import forgotten
from pivotd.core.rules.fleet_owners import take_over
from pivotd.core.rules.fleet_pivots import Here
from pivotd.core.rules.fleet_words import fleet_verdict
from tests.conftest import QemuFactory
from tests.fleet.conftest import Settings
from tests.fleet.etcd import Cluster
from tests.fleet.offline import offline as ask_offline
from tests.fleet.test_owners import daemon_of, lines_of, made
from tests.fleet.test_pivots import Make, begun, member, view, when_told  # noqa: F401 - a fixture
from tests.fleet.views import AWAY
from tests.support.daemon import Answer, Daemon
from tests.support.qemu import Disk, Qemu, create_image

pytestmark = pytest.mark.qemu
LONG_S = 60.0
NOW = "2026-11-23T09:00:00.000000Z"


def offline(daemon: Daemon, *arguments: str, configuration: str | None = None) -> Answer:
    """Run pivotctl beside the journal of a daemon that is dead."""
    file = daemon.directory / "pivotd.toml"
    if configuration is not None:
        file = daemon.directory / "other.toml"
        file.write_text(configuration)
    return ask_offline(file, daemon.state_dir, *arguments)


class Site:
    """A fleet of one test, and one guest on a host of it."""

    def __init__(self, cluster: Cluster, fleet_of: Settings, tmp_path: Path) -> None:
        self.cluster = cluster
        self.fleet = fleet_of(*cluster.urls, prefix=f"/{tmp_path.name}/")
        self.tmp_path = tmp_path

    def daemon(self, qmp: Path, host: str = "h1") -> Daemon:
        return daemon_of(self.tmp_path / host, host, qmp, self.cluster)

    async def view(self) -> FleetView:
        return await self.fleet.read("web1", LONG_S)

    async def until(self, done: Callable[[FleetView], bool]) -> FleetView:
        async with asyncio.timeout(LONG_S):
            while not done(found := await self.view()):
                await asyncio.sleep(0.05)
        return found

    async def taken_by(self, host: str) -> None:
        before = await self.view()
        after = take_over(before, Here(host, "boot2", NOW), {})
        assert isinstance(after, FleetView)
        await self.fleet.write(before, after, LONG_S)

    async def moved(self, daemon: Daemon, image: Path) -> FleetView:
        """Move the disk, and wait until the fleet knows."""
        answer = await asyncio.to_thread(daemon.ctl, "copy", "web1", f"disk0={image}")
        assert answer.status == 0, answer
        return await self.until(lambda one: bool(one.disks) and one.intent is None)


@pytest.fixture
def site(cluster: Cluster, fleet_of: Settings, tmp_path: Path) -> Site:
    return Site(cluster, fleet_of, tmp_path)


def refused(answer: Answer, *words: str) -> None:
    """The status is that of something not certain, and the one line says why."""
    assert answer.status == 6, answer
    text = json.dumps(answer.json)
    assert all(word in text for word in words), text


async def test_the_word_of_a_host_counts_until_another_host_takes_its_guest(
    site: Site, qemu: Qemu, tmp_path: Path
) -> None:
    """By the daemon, and by the journal once both are dead; whoever asks is told where the guest is."""
    new = tmp_path / "b.qcow2"
    with site.daemon(qemu.qmp) as daemon:
        ctl = lambda *arguments: asyncio.to_thread(daemon.ctl, *arguments)  # noqa: E731
        await site.moved(daemon, new)
        assert (await ctl("image", "web1", "disk0")).json["image"] == str(new)
        assert (await ctl("guard", "web1", f"disk0={new}")).status == 0
        assert (await ctl("guard", "web1", f"disk0={tmp_path / 'a.qcow2'}")).status == 4
        assert "the fleet agrees" in (await ctl("verdict", "web1", "disk0")).json["evidence"]
        await site.taken_by("h2")
        wait = ("--wait", "10m")  # longer than this client waits for an answer: nothing is to be waited for
        asked = (
            ("image", "web1", "disk0", *wait),
            ("guard", "web1", f"disk0={new}", *wait),
            ("verdict", "web1", "disk0"),
        )
        for arguments in asked:
            refused(await ctl(*arguments), "belongs to host h2")
            refused(await ctl(*arguments, "--local"), "belongs to host h2")
    await asyncio.to_thread(qemu.kill)
    refused(await asyncio.to_thread(offline, daemon, "image", "web1", "disk0"), "belongs to host h2")
    refused(await asyncio.to_thread(offline, daemon, "guard", "web1", f"disk0={new}"), "belongs to host h2")
    await site.taken_by("h1")
    assert (await asyncio.to_thread(offline, daemon, "image", "web1", "disk0")).json["image"] == str(new)


async def test_without_an_answer_of_the_fleet_nothing_is_certain(site: Site, qemu: Qemu, tmp_path: Path) -> None:
    """A person who knows that no other host has the guest can say so; a file that cannot be read is no answer."""
    new = tmp_path / "b.qcow2"
    with site.daemon(qemu.qmp) as daemon:
        await site.moved(daemon, new)
    await asyncio.to_thread(qemu.kill)
    silent = f'[fleet]\nendpoints = ["{AWAY}"]\nhost = "h1"\n'
    for configuration, why in ((silent, "fleet does not answer"), ("[fleet]\nendpoints = 3\n", "cannot be read")):
        ask = lambda *arguments, known=configuration: asyncio.to_thread(  # noqa: E731
            offline, daemon, *arguments, configuration=known
        )
        refused(await ask("image", "web1", "disk0", "--wait", "0"), why)
        refused(await ask("guard", "web1", f"disk0={new}", "--wait", "0"), why)
        refused(await ask("verdict", "web1"), why)
        said = await ask("image", "web1", "disk0", "--local")
        assert (said.status, said.json["image"]) == (0, str(new))
    assert (await asyncio.to_thread(offline, daemon, "image", "web1", "disk0", configuration="")).status == 0


async def test_the_host_that_took_a_guest_names_its_images_though_it_never_saw_it(
    site: Site, qemu: Qemu, tmp_path: Path
) -> None:
    """By a daemon that does not know the domain; `--all` has the disk, too."""
    new = tmp_path / "b.qcow2"
    with site.daemon(qemu.qmp) as daemon:
        await site.moved(daemon, new)
    await asyncio.to_thread(qemu.kill)
    with site.daemon(tmp_path / "none.qmp", "h2") as second:
        ctl = lambda *arguments: asyncio.to_thread(second.ctl, *arguments)  # noqa: E731
        refused(await ctl("image", "web1", "disk0"), "belongs to host h1")
        refused(await ctl("image", "web1", "disk0", "--default", str(tmp_path / "a.qcow2")), "belongs to host h1")
        await site.taken_by("h2")
        assert (await ctl("image", "web1", "disk0")).json["image"] == str(new)
        assert [one["image"] for one in (await ctl("image", "web1", "--all")).json] == [str(new)]
        new.unlink()
        refused(await ctl("image", "web1", "disk0"), "is not there")


async def test_no_image_is_named_as_unused_while_another_host_has_the_guest(
    site: Site, qemu: Qemu, tmp_path: Path
) -> None:
    """It may have moved the guest back, or onto an image that is based on one of these."""
    with site.daemon(qemu.qmp) as daemon:
        await site.moved(daemon, tmp_path / "b.qcow2")
        assert (await asyncio.to_thread(daemon.ctl, "stale")).json[0]["all_asked"] is True
    await asyncio.to_thread(qemu.kill)
    with Daemon(tmp_path / "h1", {}, configuration=lines_of(tmp_path / "h1", "h1", site.cluster)) as daemon:
        (row,) = (await asyncio.to_thread(daemon.ctl, "stale")).json
        assert (row["image"], row["all_asked"]) == (str(tmp_path / "a.qcow2"), True)
        await site.taken_by("h2")
        (row,) = (await asyncio.to_thread(daemon.ctl, "stale")).json
        assert row["all_asked"] is False


@pytest.mark.parametrize(
    "given_up", [pytest.param(False, id="moved last", marks=pytest.mark.long), pytest.param(True, id="given up last")]
)
async def test_a_guest_that_was_moved_elsewhere_and_is_back_has_the_fleets_image(
    site: Site, qemu_factory: QemuFactory, tmp_path: Path, given_up: bool
) -> None:
    """The journal of this host names an older one, by a pivot that was told or one that the fleet never heard of."""
    first = qemu_factory([Disk(create_image(tmp_path / "a.qcow2"))], directory=made(tmp_path / "q1"))
    with site.daemon(first.qmp) as daemon:
        before = await site.moved(daemon, tmp_path / "b.qcow2")
        assert before.owner is not None
        if given_up:
            ctl = lambda *arguments: asyncio.to_thread(daemon.ctl, *arguments)  # noqa: E731
            begun_ = await ctl("copy", "web1", f"disk0={tmp_path / 'never.qcow2'}", "--no-pivot")
            await ctl("pivot", "cancel", begun_.json["id"])
        await asyncio.to_thread(first.kill)
        last = FleetImage(str(create_image(tmp_path / "c.qcow2")), "qcow2")
        epoch = before.owner.epoch + 2
        back = FleetView(
            "web1", Owner("h1", epoch, before.owner.boot_id, NOW), None,
            (FleetDisk("disk0", last, before.disks[0].image, Outcome.SWITCHED, "01X", epoch - 1, NOW),),
        )  # fmt: skip
        await site.fleet.write(before, FleetView("web1", back.owner, None, back.disks, before.revision), LONG_S)
        answer = await asyncio.to_thread(daemon.ctl, "image", "web1", "disk0")
        assert (answer.status, answer.json["image"]) == (0, last.filename)
    again = qemu_factory([Disk(Path(last.filename))], directory=made(tmp_path / "q2"))
    with site.daemon(again.qmp) as daemon:
        async with asyncio.timeout(LONG_S):
            while (await asyncio.to_thread(daemon.ctl, "domain", "show", "web1")).json["connection"] != "connected":
                await asyncio.sleep(0.1)
        found = (await asyncio.to_thread(daemon.ctl, "verdict", "web1", "disk0")).json
        assert (found["certain"], found["image"], found["pivot"]) == (True, last.filename, "01X")
        assert (await asyncio.to_thread(daemon.ctl, "domain", "show", "web1")).json["alarms"] == []
        answer = await asyncio.to_thread(daemon.ctl, "copy", "web1", f"disk0={tmp_path / 'd.qcow2'}")
        assert answer.status == 0, answer
        assert (await asyncio.to_thread(daemon.ctl, "image", "web1", "disk0")).json["image"] == str(
            tmp_path / "d.qcow2"
        )


async def test_an_untold_switch_is_told_before_a_guest_starts_by_it(
    member: Make,  # noqa: F811
    qemu_factory: QemuFactory,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The guest ran on while etcd was away, then its host lost pivotd and QEMU; an unreachable fleet learns nothing."""
    engine = await member(OnSilence.RESUME)

    async def cut() -> None:
        engine.fleet.silent = True

    engine.fleet.before = when_told(cut)
    qemu = qemu_factory([Disk(create_image(tmp_path / "old.qcow2"))])
    driver = await begun(engine, qemu, tmp_path, max_pause_ms=1000)
    pivot = await engine.until(driver, lambda one: bool(one.pauses) and one.phase is Phase.DECIDED)
    assert pivot.fleet is FleetStage.ANNOUNCED
    engine.fleet.before = None
    await asyncio.to_thread(qemu.kill)
    new = FleetImage(pivot.disks[0].destination.filename, "qcow2")
    word = fleet_verdict(await view(engine), "disk0")
    assert (word.certain, new in word.candidates) == (False, True)
    engine.host.end()
    await engine.journal.close()
    settings = engine.fleet.fleet.gateway.settings
    lines = f"[fleet]\nendpoints = {json.dumps(list(settings.endpoints))}\nprefix = {json.dumps(settings.prefix)}\n"

    def asked(host: str) -> Answer:
        file = tmp_path / "pivotd.toml"
        file.write_text(f'{lines}host = "{host}"\n')
        return ask_offline(file, engine.state_dir, "image", "web1", "disk0", "--wait", "0")

    refused(await asyncio.to_thread(asked, "h2"), "belongs to host h1")
    assert not fleet_verdict(await view(engine), "disk0").certain
    said = await asyncio.to_thread(asked, "h1")
    assert (said.status, said.json["image"]) == (0, new.filename)
    word = fleet_verdict(await view(engine), "disk0")
    assert (word.certain, word.image) == (True, new)


async def test_a_persons_word_is_told_to_the_fleet(site: Site, qemu: Qemu, tmp_path: Path) -> None:
    """Another host then starts the guest from that image; a host that does not own the guest has no say."""
    image = create_image(tmp_path / "c.qcow2")
    word = ("verdict", "accept", "web1", "disk0", str(image), "--format", "qcow2", "--reason", "compared")
    with site.daemon(qemu.qmp) as daemon:
        before = await site.moved(daemon, tmp_path / "b.qcow2")
        await asyncio.to_thread(qemu.kill)
    away = daemon_of(tmp_path / "h1", "h1", qemu.qmp, SimpleNamespace(urls=[AWAY]), 2000)  # type: ignore[arg-type]
    with away as daemon:
        answer = await asyncio.to_thread(daemon.ctl, *word)
        assert answer.status == 3, answer
        assert "not recorded here" in answer.json["error"]["message"]
    with site.daemon(qemu.qmp) as daemon:
        ctl = lambda *arguments: asyncio.to_thread(daemon.ctl, *arguments)  # noqa: E731
        assert (await ctl("image", "web1", "disk0")).json["image"] == str(tmp_path / "b.qcow2")
        answer = await ctl(*word)
        assert (answer.status, answer.json["outcome"], answer.json["certain"]) == (0, "accepted", True)
        (disk,) = (await site.view()).disks
        assert (disk.image.filename, disk.outcome, disk.pivot) == (str(image), ACCEPTED, before.disks[0].pivot)
        assert disk.other == before.disks[0].image
        assert (await ctl("image", "web1", "disk0")).json["image"] == str(image)
        await site.taken_by("h2")
        told = await site.view()
        answer = await ctl(*word)
        assert answer.status == 4, answer
        assert "belongs to host h2" in answer.json["error"]["message"]
        assert await site.view() == told
        assert told.owner is not None
        last = FleetImage(str(create_image(tmp_path / "d.qcow2")), "qcow2")
        moved = FleetDisk("disk0", last, disk.image, Outcome.SWITCHED, "01X", told.owner.epoch, NOW)
        await site.fleet.write(told, replace(told, disks=(moved,)), LONG_S)
        await site.taken_by("h1")
        assert (await ctl("image", "web1", "disk0")).json["image"] == last.filename, "it was moved after that word"


async def test_a_pivot_of_another_hosts_guest_is_refused_at_once(site: Site, qemu: Qemu, tmp_path: Path) -> None:
    """Nothing is copied, and nothing is recorded; a request that was taken before keeps its answer."""
    with site.daemon(qemu.qmp) as daemon:
        ctl = lambda *arguments: asyncio.to_thread(daemon.ctl, *arguments)  # noqa: E731
        done = ("copy", "web1", f"disk0={tmp_path / 'b.qcow2'}", "--id", "once")
        first = await ctl(*done)
        await site.until(lambda one: bool(one.disks))
        await site.taken_by("h2")
        answer = await ctl("copy", "web1", f"disk0={tmp_path / 'c.qcow2'}")
        assert answer.status == 4, answer
        assert (answer.json["error"]["kind"], answer.json["error"]["host"]) == ("conflict", "h2")
        assert "belongs to host h2" in answer.json["error"]["message"]
        assert not (tmp_path / "c.qcow2").exists()
        assert len((await ctl("pivot", "ls")).json) == 1
        assert (await ctl(*done)).json["id"] == first.json["id"]


async def test_a_pivot_without_an_answer_of_the_fleet_waits_at_ready(
    qemu: Qemu, cluster: Cluster, tmp_path: Path
) -> None:
    """It is accepted, copies, says why it waits, and goes on once etcd is there."""
    away = daemon_of(tmp_path / "h1", "h1", qemu.qmp, SimpleNamespace(urls=[AWAY]), 2000)  # type: ignore[arg-type]
    with away as daemon:
        begun = (await asyncio.to_thread(daemon.ctl, "copy", "web1", f"disk0={tmp_path / 'b.qcow2'}", "-d")).json
        assert await asyncio.to_thread(until_ready, daemon, begun["id"])
    with daemon_of(tmp_path / "h1", "h1", qemu.qmp, cluster) as daemon:
        answer = await asyncio.to_thread(daemon.ctl, "pivot", "wait", begun["id"])
        assert (answer.status, answer.json["outcome"]) == (0, "switched")


def until_ready(daemon: Daemon, pivot: str) -> bool:
    deadline = time.monotonic() + LONG_S
    client = Client(str(daemon.socket))
    while time.monotonic() < deadline:
        found = client.progress(pivot)
        if found is not None and "fleet has to know before" in (found.detail or ""):
            return found.phase == "ready"
        time.sleep(0.1)
    return False


async def test_a_fleet_that_was_made_to_forget_a_guest_makes_no_older_journal_certain(
    site: Site, qemu: Qemu, tmp_path: Path
) -> None:
    """Another host had moved it since; a person's word, or QEMU on the image, enters it again."""
    new, last = tmp_path / "b.qcow2", create_image(tmp_path / "c.qcow2")
    with site.daemon(qemu.qmp) as daemon:
        ctl = lambda *arguments: asyncio.to_thread(daemon.ctl, *arguments)  # noqa: E731
        await site.moved(daemon, new)
        await asyncio.to_thread(Client(str(daemon.socket)).forget, "web1")
        assert (await ctl("image", "web1", "disk0")).json["image"] == str(new)
        found = await site.until(lambda one: one.known)
        assert [one.image.filename for one in found.disks] == [str(new)], (
            "the guest runs here: its fleet knows it again"
        )

        await site.taken_by("h2")
        await asyncio.to_thread(Client(str(daemon.socket)).forget, "web1")
        await asyncio.to_thread(qemu.kill)
        for arguments in (("image", "web1", "disk0"), ("guard", "web1", f"disk0={new}"), ("verdict", "web1", "disk0")):
            refused(await ctl(*arguments), "has forgotten")
    refused(await asyncio.to_thread(offline, daemon, "image", "web1", "disk0"), "has forgotten")
    with site.daemon(qemu.qmp) as daemon:
        ctl = lambda *arguments: asyncio.to_thread(daemon.ctl, *arguments)  # noqa: E731
        accepted = await ctl(
            "verdict", "accept", "web1", "disk0", str(last), "--format", "qcow2", "--reason", "compared"
        )
        assert accepted.status == 0, accepted.stderr
        assert (await ctl("image", "web1", "disk0")).json["image"] == str(last)
        assert [one.image.filename for one in (await site.view()).disks] == [str(last)]


async def test_a_guest_that_was_forgotten_is_entered_with_its_images_by_the_next_pivotd(
    site: Site, qemu: Qemu, tmp_path: Path
) -> None:
    """Nobody asks for a verdict: another host that asks the fleet must not hear that the guest was never moved."""
    new = tmp_path / "b.qcow2"
    with site.daemon(qemu.qmp) as daemon:
        await site.moved(daemon, new)
    before = await site.view()
    await site.fleet.write(before, forgotten(before), LONG_S)
    with site.daemon(qemu.qmp):
        found = await site.until(lambda one: one.known)
        assert [one.image.filename for one in found.disks] == [str(new)], "with the claim itself"


async def test_every_disk_of_a_pivot_that_has_kept_them_is_entered_again(
    site: Site, qemu_factory: QemuFactory, tmp_path: Path
) -> None:
    """With the claim itself: once QEMU has ended, its host is certain of all of them."""
    images = [create_image(tmp_path / f"old{number}.qcow2") for number in range(2)]
    qemu = qemu_factory([Disk(image) for image in images])
    with site.daemon(qemu.qmp) as daemon:
        ctl = lambda *arguments: asyncio.to_thread(daemon.ctl, *arguments)  # noqa: E731
        held = await ctl("copy", "web1", *(f"disk{n}={tmp_path}/new{n}" for n in range(2)), "--no-pivot")
        await ctl("cancel", held.json["id"])
        assert (await ctl("wait", held.json["id"])).json["outcome"] == "kept"
        before = await site.until(lambda one: one.known and one.intent is None)
    await site.fleet.write(before, forgotten(before), LONG_S)
    with site.daemon(qemu.qmp) as daemon:
        found = await site.until(lambda one: one.known)
        assert [one.image.filename for one in found.disks] == [str(image) for image in images]
        await asyncio.to_thread(qemu.kill)
        for number, image in enumerate(images):
            answer = await asyncio.to_thread(daemon.ctl, "image", "web1", f"disk{number}")
            assert (answer.status, answer.json.get("image")) == (0, str(image)), answer
