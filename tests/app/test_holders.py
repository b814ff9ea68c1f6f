"""What a pivot would write to, and other disks need: refused, or forced and never called certain again."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
from collections.abc import AsyncIterator
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from pivotd import limits
from pivotd.app.accepting import Accepting
from pivotd.app.alarms import Alarms
from pivotd.app.holders import Holders
from pivotd.app.reads import Reads
from pivotd.app.reservations import Reservations
from pivotd.app.start import Starter
from pivotd.cli.journal_answers import OfflineJournal
from pivotd.client.requests import AcceptRequest
from pivotd.core.pivot import Image, Pivot
from pivotd.core.request import CopyOptions, Kind, PivotRequest, Target
from pivotd.core.verdict import Verdict
from pivotd.errors import BadRequestError, ConflictError
from pivotd.host import backing, places
from pivotd.planning import needed_images
from pivotd.planning.plan import plan
from tests.app.conftest import WHO, engine
from tests.app.test_alarms import until
from tests.conftest import QemuFactory
from tests.engine.conftest import Engine
from tests.support.qemu import Disk, create_image

__all__ = ["engine"]
pytestmark = pytest.mark.qemu
SIZE = "1M"
PATIENCE_S = 60.0


class Desk:
    """Requests as the daemon takes them, without a daemon around them."""

    def __init__(self, engine: Engine, reads: Reads, start_qemu: QemuFactory, directory: Path) -> None:
        self.engine, self.reads, self.directory = engine, reads, directory
        self.starter = Starter(engine.host, engine.journal, reads)
        self._start_qemu = start_qemu

    def image(self, name: str, image_format: str = "qcow2", *, backing: Path | None = None) -> Path:
        path = self.directory / name
        if backing is None:
            return create_image(path, image_format=image_format, size=SIZE)
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", backing, path], check=True)
        return path

    async def guest(self, name: str, *disks: Disk):
        qemu = self._start_qemu(disks, name=name, paused=True)
        await self.engine.connect(qemu, name)
        return qemu

    async def copy(self, domain: str, image: Path | str, image_format: str = "qcow2", **options) -> Pivot:
        return await self.run(Kind.COPY, domain, Target("disk0", str(image), image_format), **options)

    async def run(self, kind: Kind, domain: str, target: Target, **options) -> Pivot:
        """Run one pivot to its end."""
        started = await self.starter.start(PivotRequest(domain, kind, (target,), CopyOptions(**options)), WHO)
        driver = self.engine.host.driver(started.id)
        return started if driver is None else await self.engine.closed(driver)

    async def stopped(self, name: str, *disks: Disk, to: str) -> Path:
        """Return the right image of a guest that has moved there and does not run any more."""
        qemu = await self.guest(name, *disks)
        pivot = await self.copy(name, self.directory / to)
        assert pivot.outcome == "switched", pivot
        qemu.kill()
        session = self.engine.host.get(name).session
        if session is not None:
            await session.closed()
        return self.directory / to


@pytest.fixture
async def desk(
    engine: Engine, qemu_factory: QemuFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Desk]:
    for bound in ("OTHERS_QUERY_S", "OTHERS_FILE_TIMEOUT_S"):  # on a busy machine, no answer in time is another answer
        monkeypatch.setattr(limits, bound, PATIENCE_S)
    reads = await Reads.attach(engine.state_dir, engine.host, engine.journal)
    await engine.journal.check_file()
    yield Desk(engine, reads, qemu_factory, tmp_path)
    reads.end()
    await reads.close()


async def test_the_right_image_of_a_stopped_guest(desk: Desk):
    """By its name, a hard link, a symbolic link, and by its name alone after it is gone."""
    right = await desk.stopped("web2", Disk(desk.image("c.qcow2")), to="b.qcow2")
    await desk.guest("web1", Disk(desk.image("a.qcow2")))
    hard, symbolic = desk.directory / "hard.qcow2", desk.directory / "symbolic.qcow2"
    hard.hardlink_to(right)
    symbolic.symlink_to(right)
    for name in (right, hard, symbolic):
        with pytest.raises(ConflictError, match=r"the right image of web2 disk0.*--force"):
            await desk.copy("web1", name, reuse=True)
    hard.unlink()
    right.unlink()
    with pytest.raises(ConflictError, match="the right image of web2 disk0"):
        await desk.copy("web1", right)
    with pytest.raises(ConflictError, match="the right image of web2 disk0"):
        await desk.run(Kind.SNAPSHOT, "web1", Target("disk0", str(right)))


async def test_an_image_below_the_right_image_of_a_stopped_guest(desk: Desk):
    """Read from the headers, several layers down; neither copied over nor committed into."""
    base = desk.image("base.qcow2")
    middle = desk.image("middle.qcow2", backing=base)
    qemu = await desk.guest("web2", Disk(middle))
    snapshot = await desk.run(Kind.SNAPSHOT, "web2", Target("disk0", str(desk.directory / "top.qcow2")))
    assert snapshot.outcome == "switched", snapshot
    await desk.guest("web1", Disk(desk.image("over.qcow2", backing=base), node={"file": _unlocked(desk, "over.qcow2")}))
    qemu.kill()
    session = desk.engine.host.get("web2").session
    if session is not None:
        await session.closed()
    with pytest.raises(ConflictError, match=r"base.qcow2 lies below .*top.qcow2, the right image of web2 disk0"):
        await desk.run(Kind.COMMIT, "web1", Target("disk0"))
    middle.rename(desk.directory / "moved")
    with pytest.raises(ConflictError, match=r"middle.qcow2 lies below the right image of web2 disk0"):
        await desk.copy("web1", middle)


def _unlocked(desk: Desk, name: str) -> dict[str, object]:
    return {"driver": "file", "filename": str(desk.directory / name), "locking": "off"}


async def test_an_image_that_another_running_guest_has_open(desk: Desk):
    """Also where QEMU takes no locks: as its image, below it, as a node without a disk, by a name of fd sets."""
    active, lower, loose = (desk.image(name, "raw") for name in ("active.raw", "lower.raw", "loose.raw"))
    top = desk.directory / "top.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", lower, top], check=True)
    backing = {"driver": "raw", "read-only": True, "file": _unlocked(desk, "lower.raw")}
    other = await desk.guest(
        "web2",
        Disk(active, format="raw", node={"file": _unlocked(desk, "active.raw")}),
        Disk(top, node={"backing": backing}),
    )
    other.spy("blockdev-add", {**_unlocked(desk, "loose.raw"), "node-name": "loose"})
    await desk.guest("web1", Disk(desk.image("a.qcow2")))
    hard = desk.directory / "hard.raw"
    hard.hardlink_to(active)
    for path, why in (
        (active, "is in use by web2 disk0"),
        (hard, "is in use by web2 disk0"),
        (lower, "is in use by web2 disk1"),
        (loose, "is open in QEMU of web2"),
    ):
        with pytest.raises(ConflictError, match=f"{path.name} {why}"):
            await desk.copy("web1", path, "raw", reuse=True)
    assert active.read_bytes() == bytes(len(active.read_bytes()))


async def test_only_the_disk_that_has_a_file_open_is_in_doubt(desk: Desk):
    """An external data file is below one of two disks, and a loose node below none of them."""
    data, loose = desk.directory / "data.raw", desk.image("loose.raw", "raw")
    subprocess.run(
        ["qemu-img", "create", "-q", "-f", "qcow2", "-o", f"data_file={data}", desk.directory / "d.qcow2", SIZE],
        check=True,
    )
    node = {"data-file": "data"}
    before = ({**_unlocked(desk, "data.raw"), "node-name": "data"},)
    disks = [Disk(desk.directory / "d.qcow2", node=node, before=before), Disk(desk.image("plain.qcow2"))]
    await desk.guest("web2", *disks)
    other = await desk.guest("web3", Disk(desk.image("c.qcow2")))
    other.spy("blockdev-add", {**_unlocked(desk, "loose.raw"), "node-name": "loose"})
    await desk.guest("web1", Disk(desk.image("a.raw", "raw"), format="raw"))
    assert (await desk.copy("web1", loose, "raw", reuse=True, force=True)).outcome == "switched"
    assert await desk.reads.overwritten() == {}
    forced = await desk.copy("web1", data, "raw", reuse=True, force=True)
    assert forced.outcome == "switched"
    assert desk.engine.facts(forced, "accepted")["overwrites"] == [f"{data} is open in QEMU of web2 disk0"]
    assert list(await desk.reads.overwritten()) == [("web2", "disk0")]


async def test_a_loop_device_is_its_file(desk: Desk):
    """One guest has the file, the other one is sent to a device on it; neither may a disk move onto its own image."""
    disk = desk.image("disk.raw", "raw")
    loop = subprocess.run(["losetup", "-f", "--show", disk], check=False, capture_output=True, text=True)
    if loop.returncode:
        pytest.skip(f"no loop device: {loop.stderr.strip()}")
    device = loop.stdout.strip()
    try:
        await desk.guest("web2", Disk(disk, format="raw", node={"file": _unlocked(desk, "disk.raw")}))
        await desk.guest("web1", Disk(desk.image("a.raw", "raw"), format="raw"))
        with pytest.raises(ConflictError, match="is in use by web2 disk0"):
            await desk.copy("web1", device, "raw", reuse=True)
        with pytest.raises(BadRequestError, match="cannot take disk0: it is its present image"):
            await desk.copy("web2", device, "raw", reuse=True, force=True)
    finally:
        subprocess.run(["losetup", "-d", device], check=True)


async def test_the_image_that_a_disk_has_left_is_its_own(desk: Desk):
    """It is stale, and the record says so; no force is needed."""
    old = desk.image("old.qcow2")
    await desk.guest("web1", Disk(old))
    await desk.copy("web1", desk.directory / "new.qcow2")
    back = await desk.copy("web1", old, reuse=True)
    assert back.outcome == "switched"
    (said,) = desk.engine.facts(back, "accepted")["returns_to"]
    assert said.startswith(f"{old} was stale: "), said


async def test_a_forced_pivot_puts_the_other_disk_in_doubt(desk: Desk):
    """Its record says so; nothing but a person's word ends the doubt, and not while the pivot may still write."""
    right = await desk.stopped("web2", Disk(desk.image("c.qcow2")), to="b.qcow2")
    await desk.guest("web1", Disk(desk.image("a.qcow2")))
    request = PivotRequest(
        "web1", Kind.COPY, (Target("disk0", str(right)),), CopyOptions(reuse=True, force=True, pivot=False)
    )
    forced = await desk.starter.start(request, WHO)
    assert desk.engine.facts(forced, "accepted")["overwrites"] == [f"{right} is the right image of web2 disk0"]
    accept = Accepting(desk.engine.host, desk.engine.journal, desk.reads, desk.starter.reservations).accept
    word = AcceptRequest(image=str(right), reason="seen")
    with pytest.raises(ConflictError, match=f"pivot {forced.id} of web1 still works on"):
        await accept("web2", "disk0", word, WHO)
    driver = desk.engine.host.driver(forced.id)
    assert driver is not None
    await desk.engine.resting(driver)
    await driver.complete(WHO)
    await desk.engine.closed(driver)
    for found in (await _verdict(desk, "web2"), _offline(desk, "web2")):
        assert (found.certain, str(found.outcome)) == (False, "unknown"), found
        assert f"Pivot {forced.id} of web1 was forced to write to {right}" in found.reason
    assert (await _verdict(desk, "web1")).certain
    await accept("web2", "disk0", word, WHO)
    assert (await _verdict(desk, "web2")).certain
    assert _offline(desk, "web2").certain


async def _two_stopped(desk: Desk) -> Path:
    """Return an image that nobody has yet; two guests have moved and ended."""
    for name in ("web1", "web2"):
        await desk.stopped(name, Disk(desk.image(f"{name}.qcow2")), to=f"{name}-new.qcow2")
    return desk.image("found.qcow2")


async def _accept(desk: Desk, domain: str, image: Path) -> Verdict:
    accepting = Accepting(desk.engine.host, desk.engine.journal, desk.reads, desk.starter.reservations)
    return await accepting.accept(domain, "disk0", AcceptRequest(image=str(image), reason="so", format="qcow2"), WHO)


async def test_one_image_is_accepted_for_two_guests_at_once(desk: Desk):
    """One of the two people, whichever was later, hears that it is just becoming the other's, or has become that."""
    found = await _two_stopped(desk)
    words = [_accept(desk, name, found) for name in ("web1", "web2")]
    said = await asyncio.gather(*words, return_exceptions=True)
    (taken,) = [word for word in said if isinstance(word, Verdict)]
    (refused,) = [word for word in said if isinstance(word, ConflictError)]
    other = "web1" if taken.domain == "web2" else "web2"
    with pytest.raises(ConflictError, match=f"it holds the data of {taken.domain} disk0"):
        await _accept(desk, other, found)
    assert "just being accepted as the image of another disk" in refused.message or taken.domain in refused.message


async def test_a_word_for_an_image_that_is_being_accepted(desk: Desk):
    """The first one is not recorded yet."""
    found = await _two_stopped(desk)
    async with desk.starter.reservations.of_word(str(found)):
        with pytest.raises(ConflictError, match="just being accepted as the image of another disk"):
            await _accept(desk, "web1", found)


@pytest.mark.parametrize("restarted", [False, True], ids=["", "by-an-earlier-pivotd"])
async def test_an_image_to_which_an_open_pivot_of_another_disk_writes_is_not_accepted(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, *, restarted: bool
):
    """Else both disks would be certain of it after the switch; nor while such a pivot is being recorded."""
    found = await _two_stopped(desk)
    await desk.guest("web3", Disk(desk.image("web3.qcow2")))
    options = CopyOptions(pivot=False, reuse=True)
    request = PivotRequest("web3", Kind.COPY, (Target("disk0", str(found)),), options)
    accept, go_on = desk.engine.journal.accept, asyncio.Event()

    async def when_let(*facts: Any) -> Any:
        await go_on.wait()
        return await accept(*facts)

    monkeypatch.setattr(desk.engine.journal, "accept", when_let)
    begins = asyncio.ensure_future(desk.starter.start(request, WHO))
    await until(lambda: bool(desk.starter.reservations.accepting))
    with pytest.raises(ConflictError, match="a pivot that begins just now writes to"):
        await _accept(desk, "web1", found)
    go_on.set()
    pivot = await begins
    if restarted:
        desk.starter.reservations = Reservations(desk.engine.host)
    with pytest.raises(ConflictError, match=f"pivot {pivot.id} of web3 may write to"):
        await _accept(desk, "web1", found)
    driver = desk.engine.host.driver(pivot.id)
    assert driver is not None
    await driver.cancel(WHO)
    await desk.engine.closed(driver)
    assert (await _accept(desk, "web1", found)).image == str(found)


async def test_a_pivot_to_an_image_that_is_being_accepted(desk: Desk):
    """The word is not recorded yet, so no look at the journal shows it."""
    found = await _two_stopped(desk)
    await desk.guest("web3", Disk(desk.image("web3.qcow2")))
    request = PivotRequest("web3", Kind.COPY, (Target("disk0", str(found)),), CopyOptions(reuse=True))
    async with desk.starter.reservations.of_word(str(found)):
        with pytest.raises(ConflictError, match="just being accepted as the image of another disk"):
            await desk.starter.start(request, WHO)
    assert (await _accept(desk, "web1", found)).image == str(found)
    with pytest.raises(ConflictError, match="is the right image of web1 disk0"):
        await desk.starter.start(request, WHO)


async def test_an_image_above_the_right_one_of_another_disk_is_not_accepted(desk: Desk):
    """That guest writes below it; what lies below both is nobody's to write to."""
    rights = [await desk.stopped(name, Disk(desk.image(f"{name}.raw", "raw"), format="raw"), to=f"{name}.qcow2")
              for name in ("web1", "web2")]  # fmt: skip
    over = desk.image("over.qcow2", backing=desk.image("middle.qcow2", backing=rights[0]))
    with pytest.raises(
        ConflictError, match=r"web1.qcow2 lies below it, and it holds the data of web1 disk0.*domain rm"
    ):
        await _accept(desk, "web2", over)
    assert (await _accept(desk, "web1", over)).image == str(over)
    beside = desk.image("beside.qcow2", backing=rights[0])
    assert (await _accept(desk, "web2", beside)).image == str(beside)


async def test_a_disk_that_pivotd_never_moved_is_in_doubt_too(desk: Desk):
    """The journal has no history of it, and still says whether it was overwritten."""
    active = desk.image("active.raw", "raw")
    await desk.guest("web2", Disk(active, format="raw", node={"file": _unlocked(desk, "active.raw")}))
    await desk.guest("web1", Disk(desk.image("a.raw", "raw"), format="raw"))
    await desk.copy("web1", active, "raw", reuse=True, force=True)
    for found in (await _verdict(desk, "web2"), _offline(desk, "web2")):
        assert (found.certain, found.outcome) == (False, None), found


async def _verdict(desk: Desk, domain: str):
    return (await desk.reads.verdicts(domain, "disk0", lambda one: one))[0]


def _offline(desk: Desk, domain: str):
    journal = OfflineJournal(str(desk.engine.state_dir))
    try:
        return journal.verdicts(domain, "disk0")[0]
    finally:
        journal.close()


async def test_a_pivot_that_ends_between_a_plan_and_its_record_is_seen(desk: Desk):
    """The look at the journal comes after the reservation: what was open in between has left its record."""
    await desk.guest("web2", Disk(desk.image("c.qcow2")))
    await desk.guest("web1", Disk(desk.image("a.qcow2")))
    target = desk.image("target.qcow2")
    doubts = desk.reads.doubts

    async def first(domain: str, *, ask_fleet: bool):
        if domain == "web1":  # planned, and not yet reserved
            assert (await desk.copy("web2", target, reuse=True)).outcome == "switched"
        return await doubts(domain, ask_fleet=ask_fleet)

    desk.reads.doubts = first  # type: ignore[method-assign]
    with pytest.raises(ConflictError, match="the right image of web2 disk0"):
        await desk.copy("web1", target, reuse=True)


async def test_what_nobody_can_see_is_refused(desk: Desk):
    """A right image whose header pivotd cannot read may lie on the destination; a full copy lies on nothing."""
    right = await desk.stopped("web2", Disk(desk.image("c.qcow2")), to="b.qcow2")
    await desk.guest("web1", Disk(desk.image("a.qcow2")))
    target = desk.image("target.qcow2")
    supervisor = desk.engine.host.get("web1")
    request = PivotRequest("web1", Kind.COPY, (Target("disk0", str(target)),), CopyOptions(reuse=True))
    planned = await plan(request, supervisor.session, [], pivot="01K9ABCDEFGHJKMNPQRSTV9999", who=WHO)
    ((pivot, disk),) = await desk.reads.latest("web2")
    wanted = {str(target): places.of(str(target))}
    strange = Image(str(right), "vmdk", "")
    with pytest.raises(backing.BlindError, match=f"pivotd cannot read what is below {right}, a vmdk image"):
        needed_images.below_right((pivot, disk), strange, wanted, {})
    assert needed_images.below_right((pivot, disk), strange, wanted, {str(right): []}) == []

    async def latest(_domain, _disk=None):
        return [(pivot, replace(disk, destination=strange))]

    desk.reads.latest = latest  # type: ignore[method-assign]
    await Holders(desk.engine.host, desk.reads).check(planned)

    async def had(_image):
        return [(replace(pivot, kind=Kind.PULL), disk)]

    desk.reads.had = had  # type: ignore[method-assign]
    with pytest.raises(ConflictError, match=r"nobody can tell whether another disk needs it: web2 disk0.*--force"):
        await Holders(desk.engine.host, desk.reads).check(planned)


async def test_a_guest_that_goes_on_under_another_name(desk: Desk):
    """Its disk is the same one: it may be moved, and then nobody is certain under the old name any more."""
    right = await desk.stopped("web2", Disk(desk.image("c.qcow2")), to="b.qcow2")
    await desk.guest("web3", Disk(right))
    top = desk.directory / "top.qcow2"
    assert (await desk.run(Kind.SNAPSHOT, "web3", Target("disk0", str(top)))).outcome == "switched"
    (live,) = await desk.reads.verdicts("web2", "disk0", lambda one: one)
    (offline,) = OfflineJournal(desk.engine.state_dir).verdicts("web2", "disk0")
    for found in (live, offline):
        assert not found.certain
        assert "web3 ran on" in found.reason
    assert (await desk.run(Kind.COMMIT, "web3", Target("disk0"))).outcome == "switched"


async def test_a_commit_of_two_devices_on_one_node(desk: Desk):
    """What a snapshot of both has made, a commit of both takes back: each of the two is the pivot's own."""
    node = {"driver": "qcow2", "node-name": "fmt", "file": {"driver": "file", "filename": str(desk.image("a.qcow2"))}}
    devices = (("-device", f"virtio-blk-pci,id={name},drive=fmt,share-rw=on") for name in ("da", "db"))
    extra = ["-blockdev", json.dumps(node), *chain.from_iterable(devices)]
    qemu = desk._start_qemu((), name="web1", paused=True, extra=extra)
    await desk.engine.connect(qemu, "web1")
    snapshot = await desk.run(Kind.SNAPSHOT, "web1", Target("da", str(desk.directory / "top.qcow2")))
    assert [disk.disk for disk in snapshot.disks] == ["da", "db"]
    commit = await desk.run(Kind.COMMIT, "web1", Target("db"))
    assert {disk.outcome for disk in commit.disks} == {"switched"}


async def test_a_running_guest_whose_disk_moves_on_under_another_name_is_an_alarm(desk: Desk):
    """Two guests on one image, as QEMU permits without locks: the one that stays behind is told of at once."""
    await desk.guest("web2", Disk(desk.image("c.qcow2")))
    assert (await desk.copy("web2", desk.directory / "b.qcow2")).outcome == "switched"
    await desk.guest("web3", Disk(desk.directory / "b.qcow2", node={"file": _unlocked(desk, "b.qcow2")}))
    alarms = asyncio.ensure_future(Alarms(desk.engine.host, desk.engine.journal, desk.reads).run())
    moved = await desk.run(Kind.SNAPSHOT, "web3", Target("disk0", str(desk.directory / "top.qcow2")))
    assert moved.outcome == "switched"
    async with asyncio.timeout(60):
        while not desk.engine.host.get("web2").alarms:
            await asyncio.sleep(0.02)
    assert "web3 ran on" in desk.engine.host.get("web2").alarms["disk0"]
    alarms.cancel()


async def test_another_disk_gains_nothing_from_a_name_that_moved_on(desk: Desk):
    """Only the disk that has moved on may write to what the journal names under its old name."""
    right = await desk.stopped("web2", Disk(desk.image("c.qcow2")), to="b.qcow2")
    unlocked = {"file": _unlocked(desk, "other.qcow2")}
    qemu = await desk.guest("web3", Disk(right), Disk(desk.image("other.qcow2"), node=unlocked))
    top = desk.directory / "top.qcow2"
    assert (await desk.copy("web3", top)).outcome == "switched"
    qemu.kill()
    supervisor = desk.engine.host.get("web3")
    if supervisor.session is not None:
        await supervisor.session.closed()
    desk._start_qemu([Disk(desk.directory / "other.qcow2", name="disk1", node=unlocked)], name="web3", paused=True)
    async with asyncio.timeout(60):
        while supervisor.session is None:
            await supervisor.tried()
    request = PivotRequest("web3", Kind.COPY, (Target("disk1", str(right), "qcow2"),), CopyOptions(reuse=True))
    with pytest.raises(ConflictError, match=r"b\.qcow2 .* of web2 disk0.*--force"):
        await desk.starter.start(request, WHO)


async def test_a_qemu_that_does_not_answer(desk: Desk, monkeypatch: pytest.MonkeyPatch):
    """Its descriptors say at once which files it has: what it does not have may be written, and nothing else."""
    monkeypatch.setattr(limits, "QUERY_TIMEOUT_S", 600)
    monkeypatch.setattr(limits, "OTHERS_QUERY_S", 0.2)
    active = desk.image("active.qcow2")
    hung = await desk.guest("web2", Disk(active, node={"file": _unlocked(desk, "active.qcow2")}))
    await desk.guest("web1", Disk(desk.image("a.qcow2", backing=desk.image("base.qcow2"))))
    os.kill(hung.pid, signal.SIGSTOP)
    try:
        with pytest.raises(
            ConflictError, match=r"active.qcow2 is open in QEMU of web2|QEMU .* has .*active.qcow2 open"
        ):
            await desk.copy("web1", active, reuse=True)
        assert (await desk.copy("web1", desk.image("other.qcow2"), reuse=True)).outcome == "switched"
    finally:
        os.kill(hung.pid, signal.SIGCONT)


async def test_a_silent_qemu_whose_descriptors_nobody_may_see(desk: Desk):
    """An image that no QEMU has locked, and that this one did not show at the last look, is not its."""
    active, free = desk.image("active.qcow2"), desk.image("free.qcow2")
    await desk.guest("web2", Disk(active, node={"file": _unlocked(desk, "active.qcow2")}))
    await desk.guest("web1", Disk(desk.image("a.qcow2")))
    session = desk.engine.host.get("web2").session
    assert session is not None
    shown, hidden = await session.blocks(), 1 << 30
    request = PivotRequest("web1", Kind.COPY, (Target("disk0", str(free)),), CopyOptions(reuse=True))
    pivot = await plan(request, desk.engine.host.get("web1").session, [], pivot="01K9ABCDEFGHJKMNPQRSTV9999", who=WHO)

    def told(image: Path, known=shown):
        return needed_images.of_silent("web2", hidden, known, needed_images.wanted([Image(str(image), "", "")]), pivot)

    assert told(free) == ([], [])
    assert told(free, None) is None
    assert [one.disk for one in told(active)[0]] == ["disk0"]
    assert told(desk.directory / "a.qcow2") is None  # locked: by whom is not known


async def test_a_disk_that_is_no_file_hides_nothing(desk: Desk):
    """Where pivotd may not see QEMU's files: storage of no file of this host is not the image. Of quorum nobody knows."""
    nothing = {"driver": "null-co", "size": 1 << 20, "read-zeroes": True, "node-name": "nothing"}
    raw = {"driver": "raw", "offset": 512, "size": 4096, "file": nothing, "node-name": "part"}
    extra = ["-blockdev", json.dumps(raw), "-device", "virtio-blk-pci,id=part,drive=part"]
    qemu = desk._start_qemu((), name="web2", paused=True, extra=extra)
    await desk.engine.connect(qemu, "web2")
    await desk.guest("web1", Disk(desk.image("a.qcow2")))
    target = desk.image("target.qcow2")
    session = desk.engine.host.get("web2").session
    assert session is not None
    blocks = await session.blocks()
    assert blocks.disks["part"].filename.startswith("json:")
    request = PivotRequest("web1", Kind.COPY, (Target("disk0", str(target)),), CopyOptions(reuse=True))
    pivot = await plan(request, desk.engine.host.get("web1").session, [], pivot="01K9ABCDEFGHJKMNPQRSTV9999", who=WHO)
    wanted = needed_images.wanted([pivot.disks[0].destination])
    assert needed_images.in_use(needed_images.Process("web2", blocks, None, None), wanted, pivot) == ([], [])
    quorum = replace(blocks.disks["part"].layers[0], filename='json:{"driver": "quorum", "children": []}')
    disks = {"part": replace(blocks.disks["part"], layers=(quorum,))}
    process = needed_images.Process("web2", replace(blocks, disks=disks), None, None)
    assert needed_images.in_use(process, wanted, pivot)[1] != []


async def test_a_header_that_nobody_can_read(desk: Desk):
    """What pivotd has made it on is known without it, and is all that it needs; a merged image may need anything."""
    base = desk.image("base.qcow2")
    kinds = {"web2": (Kind.SNAPSHOT,), "web3": (Kind.SNAPSHOT, Kind.PULL)}
    for name, verbs in kinds.items():
        first = desk.image(f"{name}.qcow2", backing=base if name == "web2" else None)
        qemu = await desk.guest(name, Disk(first, node={"file": _unlocked(desk, first.name)}))
        for verb in verbs:
            target = Target("disk0", str(desk.directory / f"{name}-top.qcow2") if verb is Kind.SNAPSHOT else "")
            assert (await desk.run(verb, name, target)).outcome in {"switched", "merged"}
        qemu.kill()
        session = desk.engine.host.get(name).session
        if session is not None:
            await session.closed()
    await desk.guest("web1", Disk(desk.image("over.qcow2", backing=base), node={"file": _unlocked(desk, "over.qcow2")}))
    _make_unreadable(desk.directory / "web2-top.qcow2")
    with pytest.raises(ConflictError, match=r"base.qcow2 lies below .*web2-top.qcow2, the right image of web2 disk0"):
        await desk.run(Kind.COMMIT, "web1", Target("disk0"))
    assert (await desk.copy("web1", desk.image("other.qcow2"), reuse=True)).outcome == "switched"
    _make_unreadable(desk.directory / "web3-top.qcow2")
    with pytest.raises(ConflictError, match=r"nobody can tell .* web3 disk0: pivotd cannot read .*web3-top.qcow2"):
        await desk.copy("web1", desk.image("another.qcow2"), reuse=True)


def _make_unreadable(image: Path) -> None:
    """Also for root, whom no permission keeps out."""
    image.rename(image.with_suffix(".away"))
    image.symlink_to(image)


async def test_no_look_falls_into_the_pause_of_another_guest(desk: Desk):
    """QEMU answers one question after the other: the request waits until pivotd has no pause open there."""
    await desk.guest("web2", Disk(desk.image("c.qcow2")))
    await desk.guest("web1", Disk(desk.image("a.qcow2")))
    other = desk.engine.host.get("web2")
    assert other.session is not None
    blocks, asked = other.session.blocks, []

    async def watched():
        asked.append(other.window.locked())
        return await blocks()

    other.session.blocks = watched  # type: ignore[method-assign]
    await other.window.acquire()
    copy = asyncio.ensure_future(desk.copy("web1", desk.image("target.qcow2"), reuse=True))
    async with asyncio.timeout(60):
        while not other.window._waiters:  # type: ignore[attr-defined]
            assert not asked, "in the pause"
            await asyncio.sleep(0.01)
    other.window.release()
    assert (await copy).outcome == "switched"
    assert asked == [False]
