"""A guest of libvirt's on a host of a fleet: a real libvirtd, a real etcd, and what another host is told of its images."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from pivotd.config import Fleet
from pivotd.core.fleet import FleetView
from pivotd.core.pivot import FleetStage, Phase, Pivot
from pivotd.core.rules.fleet_words import FleetVerdict, fleet_verdict
from pivotd.fleet.store import EtcdFleet
from tests.chaos.process import journal
from tests.cli.ctl import Answer, ctl
from tests.fleet.etcd import Cluster, stand_still
from tests.fleet.wires import Message, Place, Wires
from tests.libvirt.conftest import libvirt_place, libvirtd  # noqa: F401 - fixtures
from tests.libvirt.domain import PIVOT_POINTS
from tests.libvirt.guarding import WAIT_S, Guarded, guard, until
from tests.libvirt.libvirtd import Libvirtd
from tests.libvirt.tiny_domain import TinyDomain
from tests.support.waiting import until as comes

pytestmark = [
    pytest.mark.qemu,
    pytest.mark.timeout(600),
    pytest.mark.parametrize("libvirt_place", [None], indirect=True, ids=["libvirt"]),
    pytest.mark.parametrize("etcd_release", [None], indirect=True, ids=["etcd"]),
]
HERE, THERE = "host-a", "host-b"
TIMEOUT_MS, SHORT_TIMEOUT_MS = 30_000, 1500
"""How long etcd may take to answer: what a test holds is held, also on a busy machine."""
VICTIMS = ("pivotd", "libvirtd", "QEMU")
Make = Callable[..., "Host"]


class Host:
    """A host whose libvirtd has one guest, which writes for ever; its way to etcd is held, lost and cut by ``wires``."""

    def __init__(
        self,
        libvirtd: Libvirtd,  # noqa: F811
        cluster: Cluster,
        directory: Path,
        wires: Wires,
        **settings: object,
    ) -> None:
        self.libvirtd, self.cluster, self.wires = libvirtd, cluster, wires
        self.prefix = f"/{directory.name}/"
        fleet = {"endpoints": wires.urls, "host": HERE, "prefix": self.prefix, "timeout_ms": TIMEOUT_MS, **settings}
        lines = [f"{name} = {json.dumps(value)}" for name, value in fleet.items()]
        libvirtd.install_hook()
        libvirtd.start()
        self.domain = TinyDomain(libvirtd).define().boot()
        self.daemon = guard(directory, libvirtd, "\n".join(["[fleet]", *lines]))
        self.guarded = Guarded(self.domain, self.daemon)
        self._lives = True

    # -- what happens

    def begin(self, number: int = 1, *options: str) -> Path:
        """Ask for a guarded copy of the disk, and return the image to which it moves."""
        target = self.domain.image("vda", number)
        self.guarded.begin("copy", "web1", f"vda={target}", *options)
        return target

    def kill(self, *victims: str) -> None:
        """Let these die, the one that would look after the others first."""
        if "pivotd" in victims:
            self.daemon.kill()
        if "libvirtd" in victims:
            self.libvirtd.kill()
        if "QEMU" in victims:
            self.domain.kill_qemu()
            self._lives = False

    def come_back(self, *victims: str) -> None:
        """Start again what was killed; QEMU is libvirt's to start."""
        if "libvirtd" in victims:
            self.libvirtd.start()
        if "pivotd" in victims:
            self.daemon.start()

    # -- what is so

    def view(self) -> FleetView:
        """Return what a majority of etcd holds."""

        async def read() -> FleetView:
            fleet = EtcdFleet(Fleet(self.cluster.urls, prefix=self.prefix, host="observer"))
            try:
                return await fleet.read("web1", WAIT_S)
            finally:
                fleet.close()

        return asyncio.run(read())

    def word(self) -> FleetVerdict:
        """Return what the fleet says of the disk."""
        return fleet_verdict(self.view(), "vda")

    def journalled(self) -> Pivot:
        """Return the newest pivot, as the journal alone tells."""
        until(lambda: journal(self.daemon.state_dir), "the pivot")
        return journal(self.daemon.state_dir)[0]

    def run_state(self) -> str:
        spy = self.domain.spy()
        try:
            return str(spy.execute("query-status")["status"])
        finally:
            spy.close()

    @contextmanager
    def still(self) -> Iterator[None]:
        """Let QEMU stand still, if it lives: its images can be read."""
        if not self._lives:
            yield
            return
        pid = self.domain.qemu_pid()
        stand_still(pid)
        try:
            yield
        finally:
            os.kill(pid, signal.SIGCONT)

    def judge(self, *, certain: bool = False) -> FleetVerdict:
        """Check that the fleet's word holds every acknowledged write, and return it; QEMU is dead or stands still."""
        word = self.word()
        if word.certain:
            image = self.domain.image() if word.image is None else Path(word.image.filename)
            assert not self.domain.missing(image), word
        else:
            assert not certain, word
            assert len(word.candidates) == 2, word
            assert any(self.complete(Path(image.filename)) for image in word.candidates), word
        return word

    def complete(self, image: Path) -> bool:
        try:
            return not self.domain.missing(image)
        except subprocess.CalledProcessError:  # QEMU was killed in the middle of a change to a destination
            return False

    def fleet(self, *words: str, host: str = THERE) -> Answer:
        """Type a command of the fleet on the other host."""
        return ctl("--json", "fleet", "--endpoints", ",".join(self.cluster.urls), "--prefix", self.prefix, "--host", host, *words)  # fmt: skip

    def assert_agreed(self) -> Path:
        """QEMU, both definitions of libvirt, the host's verdict and the fleet's are one image; the guest goes on there."""
        self.guarded.await_end()
        until(lambda: self.view().intent is None, "the end of the intent")
        verdict = self.daemon.ctl("verdict", "web1", "vda").json
        image = Path(verdict["image"])
        if self.domain.believe().state == "shut off":
            assert self.domain.believe().next_boot == image.name, verdict
            assert not self.domain.missing(image), verdict
            self.domain.boot()
            self._lives = True
        until(lambda: self.run_state() == "running", "the guest")
        assert self.domain.writes_go_on()
        believed = self.domain.believe()
        assert {self.domain.root(), believed.live, believed.next_boot} == {image.name}, (verdict, believed)
        assert verdict["certain"], verdict
        with self.still():
            word = self.judge(certain=True)
        assert word.image is None or word.image.filename == str(image), (word, verdict)
        return image


@pytest.fixture
def host_of(libvirtd: Libvirtd, cluster: Cluster, tmp_path: Path) -> Iterator[Make]:  # noqa: F811
    """Return what makes the host; its guest is the fleet's once this returns."""
    with ExitStack() as stack:

        def make(mode: str = "resume", timeout_ms: int = TIMEOUT_MS) -> Host:
            wires = stack.enter_context(Wires(cluster.urls))
            host = Host(libvirtd, cluster, tmp_path, wires, on_silence=mode, timeout_ms=timeout_ms)
            stack.enter_context(host.daemon)
            stack.enter_context(host.guarded)
            host.guarded.await_domain()
            until(lambda: host.view().owner is not None, "the owner")
            return host

        yield make


def test_the_fleet_hears_of_a_guarded_copy_before_and_after_its_pause(host_of: Make) -> None:
    """Intent while the guest runs and libvirt was asked for nothing; outcome on disk, next boot durable, then etcd, then `cont`."""
    host = host_of("wait")
    intent = host.wires.arm(Message.INTEND, Place.BEFORE)
    target = host.begin()
    assert intent.reached.wait(WAIT_S)
    assert (host.run_state(), host.domain.root()) == ("running", "web1-vda-0.qcow2")
    assert (host.journalled().phase, host.journalled().fleet) == (Phase.READY, FleetStage.ANNOUNCED)
    assert host.view().intent is None
    host.wires.go_on()
    told = host.wires.arm(Message.PUBLISH, Place.BEFORE)
    assert told.reached.wait(WAIT_S)
    assert (host.run_state(), host.domain.root()) == ("paused", target.name)
    assert (host.domain.believe().next_boot, host.domain.believe().live) == (target.name, target.name)
    assert (host.journalled().phase, host.journalled().outcome) == (Phase.DECIDED, "switched")
    found = host.view().intent
    assert found is not None
    assert (found.manager, [move.disk for move in found.moves]) == ("libvirt", ["vda"])
    host.wires.go_on()
    assert host.assert_agreed() == target
    assert (host.journalled().pauses[-1].fleet_ms or 0) > 0


@pytest.mark.long
def test_a_host_is_lost_in_a_guarded_pause_and_another_one_takes_its_guest(host_of: Make) -> None:
    """Before etcd has heard, two images are named and both are complete, in either mode; the lost host changes nothing later."""
    host = host_of("wait")
    struck = host.wires.arm(Message.PUBLISH, Place.LATE)
    target = host.begin()
    assert struck.reached.wait(WAIT_S)
    host.kill(*VICTIMS)
    host.wires.go_on()
    said = host.fleet("verdict", "web1", "vda")
    assert (said.status, said.json["host"]) == (6, HERE), said
    word = host.judge()
    assert [Path(one.filename).name for one in word.candidates] == ["web1-vda-0.qcow2", target.name]
    assert all(host.complete(Path(one.filename)) for one in word.candidates)
    assert host.fleet("take", "web1", "--fenced").status == 6
    said = host.fleet("take", "web1", "--fenced", "--image", f"vda={host.domain.image()}")
    assert said.status == 0, said
    assert [(one["disk"], one["image"]) for one in said.json] == [("vda", str(host.domain.image()))]
    taken = host.view()
    host.wires.deliver()
    host.come_back(*VICTIMS)
    host.guarded.await_end()
    shown = host.guarded.pivot()
    assert "belongs to host host-b" in shown["error"], shown
    for words in (("image", "web1", "vda"), ("verdict", "web1", "vda"), ("guard", "web1", f"vda={target}")):
        answer = host.daemon.ctl(*words)
        assert (answer.status, "belongs to host host-b" in answer.stdout) == (6, True), answer
    assert host.view() == taken


def test_the_fleet_hears_of_a_disk_that_another_program_has_moved(host_of: Make) -> None:
    """The host of the guest has followed it: whoever takes the guest must not start it from where its pivot has left it."""
    host = host_of()
    host.begin()
    until(lambda: host.journalled().phase is Phase.CLOSED, "the end")
    theirs = host.domain.copy(number=2)
    host.libvirtd.ask("blockjob", "web1", "vda", "--pivot")
    until(lambda: host.journalled().disks[0].accepted is not None, "the record that pivotd has followed")
    host.kill(*VICTIMS)
    said = host.fleet("verdict", "web1", "vda")
    assert (said.status, said.json["image"]) == (0, str(theirs)), said
    assert host.judge(certain=True).image is not None


@pytest.mark.long
def test_a_host_is_lost_after_a_guarded_pause(host_of: Make) -> None:
    """The fleet is certain; `fleet take` names the new image, and the verdict holds every write of the time after the pause."""
    host = host_of()
    target = host.begin()
    until(lambda: host.journalled().phase is Phase.CLOSED, "the end")
    assert host.domain.writes_go_on()
    host.kill(*VICTIMS)
    assert host.judge(certain=True).image is not None
    said = host.fleet("take", "web1", "--fenced")
    assert [(one["disk"], one["image"]) for one in said.json] == [("vda", str(target))], said
    refused = host.fleet("take", "web1", "--fenced", "--image", f"vda={host.domain.image()}", host="host-c")
    assert refused.status == 4, refused


@pytest.mark.long
@pytest.mark.parametrize("mode", ["resume", "wait"])
def test_etcd_is_away_in_a_guarded_pause(host_of: Make, mode: str) -> None:
    """The guest runs after max_pause, or stays paused; the fleet names both images, and all agree once etcd is back."""
    host = host_of(mode, SHORT_TIMEOUT_MS)
    struck = host.wires.arm(Message.PUBLISH, Place.BEFORE)
    target = host.begin(1, "--max-pause", "1s")
    assert struck.reached.wait(WAIT_S)
    host.wires.cut = True
    host.wires.go_on()
    if mode == "resume":
        until(lambda: host.run_state() == "running", "the resume")
        assert host.domain.writes_go_on()
        assert host.journalled().fleet is FleetStage.ANNOUNCED
    else:
        until(lambda: "guest-waits" in host.daemon.ctl("events").stdout, "the word on the pause")
        (row,) = host.daemon.ctl("domain", "ls").json
        assert "stays paused until the fleet knows" in row["detail"], row
        assert host.run_state() == "paused"
    with host.still():
        word = host.judge()
    assert {Path(one.filename).name for one in word.candidates} == {"web1-vda-0.qcow2", target.name}
    host.wires.cut = False
    assert host.assert_agreed() == target
    waits = [line for line in host.daemon.log_path.read_text().splitlines() if '"pivot.guest-waits"' in line]
    assert any("until the fleet knows" in line for line in waits) == (mode == "wait"), waits
    assert len(waits) == 1 or mode == "resume", waits  # on a busy host libvirt's resume may take its time, and is told


def chosen() -> list[Any]:
    """Return every message x place x victims."""
    groups = [*((one,) for one in VICTIMS), VICTIMS]
    return [
        pytest.param(message, place, victims, id=f"{place} {message}, {' and '.join(victims)}")
        for message in (Message.INTEND, Message.PUBLISH)
        for place in Place
        for victims in groups
    ]


@pytest.mark.long
@pytest.mark.chaos
@pytest.mark.parametrize(("message", "place", "victims"), chosen())
def test_kills_at_each_message_of_a_guarded_copy(
    host_of: Make, message: Message, place: Place, victims: tuple[str, ...]
) -> None:
    """The fleet's word is right at once, and with it the end: QEMU, libvirt, the host and the fleet name one image."""
    host = host_of()
    struck = host.wires.arm(message, place)
    host.begin()
    assert struck.reached.wait(WAIT_S)
    host.kill(*victims)
    host.wires.go_on()
    with host.still():
        host.judge()
    host.come_back(*victims)
    host.wires.deliver()
    host.assert_agreed()


@pytest.mark.long
@pytest.mark.chaos
@pytest.mark.parametrize("others", [(), ("pivotd",), ("pivotd", "QEMU")], ids=lambda one: " and ".join(one) or "alone")
@pytest.mark.parametrize("point", ["K0", "K2", "K4", "K5b", "K6", "K7"])
def test_libvirtd_dies_in_its_pivot_on_a_host_of_a_fleet(host_of: Make, point: str, others: tuple[str, ...]) -> None:
    """While libvirt may have moved the disk or not, the fleet names both images; in the end one, which libvirt starts too."""
    host = host_of()
    host.domain.copy()
    host.libvirtd.kill_at(PIVOT_POINTS[point])
    host.guarded.begin("libvirt", "pivot", "web1", "vda")
    host.libvirtd.await_death()
    host.kill(*others)
    host.libvirtd.never_kill()
    with host.still():
        assert not host.judge().certain
    host.come_back("libvirtd", *others)
    host.assert_agreed()


@pytest.mark.long
@pytest.mark.chaos
@pytest.mark.parametrize("point", ["K0", "K2", "K4", "K6", "K7"])
def test_the_host_is_lost_with_its_libvirtd(host_of: Make, point: str) -> None:
    """Whichever image an operator takes of the two, the guest has lost nothing; the host comes back and says whose it is."""
    host = host_of()
    host.domain.copy()
    host.libvirtd.kill_at(PIVOT_POINTS[point])
    host.guarded.begin("libvirt", "pivot", "web1", "vda")
    host.libvirtd.await_death()
    host.kill("pivotd", "QEMU")
    host.libvirtd.never_kill()
    word = host.judge()
    assert all(host.complete(Path(one.filename)) for one in word.candidates), word
    image = word.candidates[-1].filename
    said = host.fleet("take", "web1", "--fenced", "--image", f"vda={image}")
    assert [one["image"] for one in said.json] == [image], said
    taken = host.view()
    host.come_back(*VICTIMS)
    host.guarded.await_end()
    assert host.daemon.ctl("image", "web1", "vda").status == 6
    assert host.view() == taken
    assert comes(lambda: host.domain.believe().state == "shut off")
