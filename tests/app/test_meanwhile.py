"""What else happens between a check and its record: a guest leaves, a person says something, a pivot begins or ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from pivotd.app import reservations
from pivotd.app.accepting import Accepting
from pivotd.app.alarms import Alarms
from pivotd.app.service import DaemonService
from pivotd.client.requests import AcceptRequest
from pivotd.config import Config
from pivotd.core.pivot import Image, Phase, Pivot
from pivotd.core.request import CopyOptions, Kind, PivotRequest, Target
from pivotd.core.undo import Undo
from pivotd.core.verdict import Verdict
from pivotd.engine.inbox import Release
from pivotd.errors import ConflictError
from tests.app.conftest import WHO, engine
from tests.app.test_holders import Desk, desk
from tests.conftest import QemuFactory
from tests.support.qemu import Disk, Qemu

__all__ = ["desk", "engine"]
pytestmark = pytest.mark.qemu
TIMEOUT_S = 90.0


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(TIMEOUT_S):
        while not holds():
            await asyncio.sleep(0.01)


@pytest.fixture
async def events(desk: Desk) -> AsyncIterator[list[str]]:
    """The events that are recorded; the guests are watched for alarms meanwhile."""
    found: list[str] = []
    desk.engine.journal.subscribe(lambda records: found.extend(str(record.event) for record in records))
    alarms = asyncio.ensure_future(Alarms(desk.engine.host, desk.engine.journal, desk.reads).run())
    yield found
    alarms.cancel()
    await asyncio.wait([alarms])


async def running(desk: Desk, start_qemu: QemuFactory, image: Path) -> Qemu:
    """Return the QEMU of a guest that runs, so that it stops when it leaves."""
    qemu = start_qemu([Disk(image)])
    await desk.engine.connect(qemu)
    return qemu


def leave(desk: Desk, qemu: Qemu) -> None:
    """Let the guest leave by a migration."""
    qemu.spy("migrate", uri=f"exec:cat > {desk.directory / 'guest'}")


async def end(desk: Desk, qemu: Qemu) -> None:
    """End a QEMU, and wait until no pivot is open and pivotd knows of the end."""
    qemu.kill()
    supervisor = desk.engine.host.get("web1")
    await until(lambda: supervisor.session is None and not supervisor.drivers)


async def verdict(desk: Desk, domain: str) -> Verdict:
    return (await desk.reads.verdicts(domain, "disk0", lambda one: one))[0]


def request(domain: str, image: Path, **options: Any) -> PivotRequest:
    return PivotRequest(domain, Kind.COPY, (Target("disk0", str(image)),), CopyOptions(**options))


@asynccontextmanager
async def locked(desk: Desk, work: Callable[[], Any]) -> AsyncIterator[asyncio.Future[Any]]:
    """Begin work, and let it wait for the lock of web1."""
    lock = desk.engine.host.lock("web1")
    async with lock:
        begun = asyncio.ensure_future(work())
        await until(lambda: " waiters:1" in repr(lock) or begun.done())
        yield begun


class Held(Accepting):
    """A word that waits after its last check; what a slow storage, or etcd, does."""

    def __init__(self, desk: Desk, domain: str, image: Path) -> None:
        super().__init__(desk.engine.host, desk.engine.journal, desk.reads, desk.starter.reservations)
        self._checked, self.go_on = asyncio.Event(), asyncio.Event()
        word = AcceptRequest(image=str(image), reason="so", format="qcow2")
        self.said = asyncio.ensure_future(self.accept(domain, "disk0", word, WHO))

    async def _refuse_of_another(self, *facts: Any) -> None:
        await super()._refuse_of_another(*facts)
        self._checked.set()
        await self.go_on.wait()

    async def checked(self) -> None:
        """Wait until nothing is left to be checked. Raises: what refuses the word."""
        await until(lambda: self._checked.is_set() or self.said.done())
        if self.said.done():
            await self.said


Say = Callable[[str, Path], Held]


@pytest.fixture
async def say(desk: Desk) -> AsyncIterator[Say]:
    """Begin to accept an image for disk0 of a domain; whatever a test leaves waiting goes on at its end."""
    words: list[Held] = []

    def accept(domain: str, image: Path) -> Held:
        words.append(Held(desk, domain, image))
        return words[-1]

    yield accept
    for word in words:
        word.go_on.set()
    if words:
        await asyncio.wait([word.said for word in words])


async def test_a_guest_that_leaves_while_a_pivot_of_it_is_planned(
    desk: Desk, qemu_factory: QemuFactory, events: list[str]
):
    """The new pivot would end the doubt about the guest, and then keep a source on which another host has written."""
    qemu = await running(desk, qemu_factory, desk.image("a.qcow2"))
    await desk.copy("web1", desk.directory / "b.qcow2")
    wanted = request("web1", desk.directory / "c.qcow2")
    async with locked(desk, lambda: desk.starter.start(wanted, WHO)) as asked:
        leave(desk, qemu)
        await until(lambda: "guest-left" in events)
    with pytest.raises(ConflictError, match="web1 is postmigrate"):
        await asked
    await end(desk, qemu)
    assert not (await verdict(desk, "web1")).certain


async def test_a_guest_that_leaves_while_a_look_waits_to_end_a_doubt(desk: Desk, qemu_factory: QemuFactory):
    """It was elsewhere before, and was seen here on the right image again."""
    qemu = await running(desk, qemu_factory, desk.image("a.qcow2"))
    await desk.copy("web1", desk.directory / "b.qcow2")
    await desk.engine.journal.left("web1")
    looks = Alarms(desk.engine.host, desk.engine.journal, desk.reads)
    async with locked(desk, lambda: looks._look("web1")) as look:
        leave(desk, qemu)
        await until(lambda: qemu.run_state() == "postmigrate")
        await looks._watch("web1")
    await look
    await end(desk, qemu)
    assert not (await verdict(desk, "web1")).certain


async def test_a_guest_that_leaves_while_a_word_is_recorded(
    desk: Desk, say: Say, qemu_factory: QemuFactory, events: list[str]
):
    """The person has not known of it; a repetition counts."""
    qemu = await running(desk, qemu_factory, desk.image("a.qcow2"))
    right = desk.directory / "b.qcow2"
    await desk.copy("web1", right)
    word = say("web1", right)
    await word.checked()
    leave(desk, qemu)
    await until(lambda: "guest-left" in events)
    await end(desk, qemu)
    word.go_on.set()
    with pytest.raises(ConflictError, match="something else has happened to web1 disk0 meanwhile"):
        await word.said
    assert not (await verdict(desk, "web1")).certain
    again = say("web1", right)
    again.go_on.set()
    await again.said
    assert (await verdict(desk, "web1")).certain


async def test_a_pivot_that_begins_while_a_word_is_recorded(desk: Desk, say: Say):
    """The word is for another image than that of the guest, which has just started: that stays to be settled."""
    right = await desk.stopped("web1", Disk(desk.image("a.qcow2")), to="b.qcow2")
    word = say("web1", desk.image("found.qcow2"))
    await word.checked()
    desk.engine.host.remove("web1")
    await desk.guest("web1", Disk(right))
    begins = asyncio.ensure_future(desk.starter.start(request("web1", desk.directory / "c.qcow2"), WHO))
    await until(lambda: " waiters:1" in repr(desk.engine.host.lock("web1")))
    word.go_on.set()
    await word.said
    with pytest.raises(ConflictError, match="web1 disk0 is in doubt"):
        await begins
    assert not (await verdict(desk, "web1")).certain


async def test_a_word_for_an_image_above_one_to_which_a_pivot_writes(desk: Desk, say: Say):
    """The pivot has looked at what other disks need before the word was recorded; it is open, or being recorded."""
    await desk.stopped("web2", Disk(desk.image("c.qcow2")), to="d.qcow2")
    await desk.guest("web1", Disk(desk.image("a.qcow2")))
    below = desk.image("below.qcow2")
    over = desk.image("over.qcow2", backing=desk.image("middle.qcow2", backing=below))
    pivot = await desk.starter.start(request("web1", below, reuse=True, pivot=False), WHO)
    word = say("web2", over)
    with pytest.raises(ConflictError, match=r"of web1 may write to .*below.qcow2, which lies below .*over.qcow2"):
        await word.checked()
    driver = desk.engine.host.driver(pivot.id)
    assert driver is not None
    await driver.cancel(WHO)
    await desk.engine.closed(driver)
    image = Image(str(below), "qcow2", "")
    (marks,) = await reservations.marks([image])
    desk.starter.reservations.reserve("another one", [(image, marks)])
    word = say("web2", over)
    with pytest.raises(ConflictError, match=r"begins just now writes to .*below.qcow2, which lies below .*over.qcow2"):
        await word.checked()
    desk.starter.reservations.accepting.clear()
    word = say("web2", over)
    word.go_on.set()
    assert (await word.said).certain


async def test_a_pivot_to_an_image_below_one_that_is_being_accepted(desk: Desk, say: Say):
    """So does another person's word for that image; two accepted images may share what lies below them."""
    for name in ("web2", "web3"):
        await desk.stopped(name, Disk(desk.image(f"{name}.qcow2")), to=f"{name}-new.qcow2")
    await desk.guest("web1", Disk(desk.image("a.qcow2")))
    below = desk.image("below.qcow2")
    word = say("web2", desk.image("over.qcow2", backing=below))
    await word.checked()
    with pytest.raises(ConflictError, match=r"below.qcow2 is just being accepted .* or lies below that"):
        await desk.starter.start(request("web1", below, reuse=True), WHO)
    other = say("web3", below)
    other.go_on.set()
    with pytest.raises(ConflictError, match="is just being accepted as the image of another disk"):
        await other.said
    other = say("web3", desk.image("other.qcow2", backing=below))
    await other.checked()
    for one in (word, other):
        one.go_on.set()
        assert (await one.said).certain


async def in_window(desk: Desk) -> Pivot:
    """Return a pivot of web1 that can be undone."""
    pivot = await desk.starter.start(request("web1", desk.directory / "b.qcow2", keep_synced=True), WHO)
    driver = desk.engine.host.driver(pivot.id)
    assert driver is not None
    return await desk.engine.until(driver, lambda now: now.phase is Phase.DECIDED and not now.owes_resume)


def undo(desk: Desk, pivot: Pivot) -> asyncio.Future[Pivot]:
    driver = desk.engine.host.driver(pivot.id)
    assert driver is not None
    return asyncio.ensure_future(driver.undo(Undo("01K9ABCDEFGHJKMNPQRSTV0000", WHO)))


async def test_an_undo_of_a_guest_that_has_left(desk: Desk, qemu_factory: QemuFactory, events: list[str]):
    """The disk has another last pivot then, and its QEMU ends before anybody can see once more that it has left."""
    qemu = await running(desk, qemu_factory, desk.image("a.qcow2"))
    pivot = await in_window(desk)
    leave(desk, qemu)
    await until(lambda: "guest-left" in events)
    desk.engine.journal.subscribe(lambda records: records[0].event == "undo-requested" and qemu.kill())
    await undo(desk, pivot)
    await end(desk, qemu)
    found = await verdict(desk, "web1")
    assert found.pivot != pivot.id
    assert not found.certain


async def test_a_word_for_an_image_right_before_an_undo_switches_to_it(
    desk: Desk, say: Say, monkeypatch: pytest.MonkeyPatch
):
    """The pivot that undoes has no driver yet, and the one before it has ended."""
    await desk.stopped("web2", Disk(desk.image("c.qcow2")), to="d.qcow2")
    await desk.guest("web1", Disk(desk.image("a.qcow2")))
    pivot = await in_window(desk)
    driver, marks = desk.engine.host.driver(pivot.id), reservations.marks
    assert driver is not None

    async def then_it_is_undone(images: Any) -> Any:
        found = await marks(images)
        undo(desk, pivot)
        while driver.successor is None:
            await asyncio.sleep(0)
        assert list(desk.engine.host.drivers()) == [pivot.id]
        return found

    monkeypatch.setattr(reservations, "marks", then_it_is_undone)
    async with desk.engine.host.get("web1").window:
        word = say("web2", desk.directory / "a.qcow2")
        word.go_on.set()
        with pytest.raises(ConflictError, match=r"of web1 may write to .*a.qcow2"):
            await word.said
    await until(lambda: not desk.engine.host.drivers())
    assert (await verdict(desk, "web1")).image == str(desk.directory / "a.qcow2")


async def test_a_release_while_an_undo_is_recorded(desk: Desk):
    """Nobody is told that the old image is out of date: it is about to be the right one."""
    await desk.guest("web1", Disk(desk.image("a.qcow2")))
    pivot = await in_window(desk)
    driver = desk.engine.host.driver(pivot.id)
    assert driver is not None
    release = Release(WHO)
    is_recorded = "undo-requested"
    desk.engine.journal.subscribe(lambda new: new[0].event == is_recorded and driver.state.inbox.post(release))
    undone = undo(desk, pivot)
    with pytest.raises(ConflictError, match="takes it back"):
        await release.future
    await until(lambda: not desk.engine.host.drivers())
    found = await verdict(desk, "web1")
    assert (found.pivot, found.image) == ((await undone).id, str(desk.directory / "a.qcow2"))


async def test_a_pivot_is_cancelled_right_after_its_record(desk: Desk, monkeypatch: pytest.MonkeyPatch):
    """It has no driver yet; it was too late to cancel it, with the outcome None."""
    await desk.guest("web1", Disk(desk.image("a.qcow2")))
    journal = desk.engine.journal
    service, accept = DaemonService(Config(), desk.engine.host, journal, desk.reads), journal.accept
    cancelled: list[asyncio.Future[Pivot]] = []

    async def then_it_is_cancelled(*facts: Any) -> tuple[Pivot, bool]:
        found = await accept(*facts)
        cancelled.append(asyncio.ensure_future(service.cancel(found[0].id, WHO)))
        lock = desk.engine.host.lock("web1")
        await until(lambda: " waiters:1" in repr(lock) or cancelled[0].done())
        return found

    monkeypatch.setattr(journal, "accept", then_it_is_cancelled)
    pivot = await service.start(request("web1", desk.directory / "b.qcow2"), WHO)
    await cancelled[0]
    await until(lambda: not desk.engine.host.drivers())
    assert (await desk.reads.pivot(pivot.id)).outcome == "kept"
