"""Answers that are put together from several reads, and what else happens between those: each is of one moment."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pivotd import limits
from pivotd.app import reads
from pivotd.cli import right_images
from pivotd.cli.journal_answers import OfflineJournal
from pivotd.core.pivot import Phase, Pivot
from pivotd.core.rules.fleet_local import DiskHere
from pivotd.core.standing import Standing
from pivotd.core.verdict import Verdict, right_image
from pivotd.engine.driver import Driver
from pivotd.journal import offline, place
from pivotd.journal.journal import Journal
from tests.app.conftest import WHO, engine
from tests.app.test_holders import Desk, desk
from tests.app.test_meanwhile import end, request, running, until, verdict
from tests.conftest import QemuFactory
from tests.journal.samples import make_pivot
from tests.support.qemu import Disk

__all__ = ["desk", "engine"]
pytestmark = pytest.mark.qemu


async def at_ready(desk: Desk) -> Driver:
    """Return a pivot of web1 from a.qcow2 to b.qcow2 that waits at READY."""
    pivot = await desk.starter.start(request("web1", desk.directory / "b.qcow2", pivot=False), WHO)
    driver = desk.engine.host.driver(pivot.id)
    assert driver is not None
    await desk.engine.until(driver, lambda now: now.phase is Phase.READY)
    return driver


async def switched(desk: Desk, driver: Driver) -> Pivot:
    await driver.complete(WHO)
    return await desk.engine.closed(driver)


def then(work: Callable[..., Awaitable[Any]], happens: Callable[[], Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """Return what works, and returns its result once something else has happened."""

    async def both(*facts: Any) -> Any:
        found = await work(*facts)
        await happens()
        return found

    return both


async def test_an_image_to_which_a_pivot_switches_while_it_is_asked_for(desk: Desk, monkeypatch: pytest.MonkeyPatch):
    """It is written to, and then it holds the disk's data; it is stale at no moment."""
    await desk.guest("web1", Disk(desk.image("a.qcow2")))
    driver, image = await at_ready(desk), str(desk.directory / "b.qcow2")

    async def it_switches() -> None:
        if desk.engine.host.driver(driver.pivot.id) is not None:
            await switched(desk, driver)

    monkeypatch.setattr(reads, "in_chains", then(reads.in_chains, it_switches))
    (found,) = await desk.reads.image(image, lambda one: one)
    assert (found.finding.standing, found.verdict.image) == (Standing.CURRENT, image)


async def test_a_disk_that_changes_during_each_look(desk: Desk, monkeypatch: pytest.MonkeyPatch):
    """Nobody can tell whether the parts of such an answer fit together."""
    await desk.guest("web1", Disk(desk.image("a.qcow2")))
    driver, image = await at_ready(desk), str(desk.directory / "b.qcow2")
    bandwidths = iter(range(1 << 30, 2 << 30))

    async def it_changes() -> None:
        await driver.set_bandwidth(next(bandwidths), WHO)

    monkeypatch.setattr(reads, "in_chains", then(reads.in_chains, it_changes))
    (found,) = await desk.reads.image(image, lambda one: one)
    assert (found.finding.standing, found.verdict.certain, found.verdict.pending) == (Standing.UNKNOWN, False, True)
    assert (await verdict(desk, "web1")).certain
    monkeypatch.setattr(desk.reads, "overwritten", then(desk.reads.overwritten, it_changes))
    one = await verdict(desk, "web1")
    assert (one.certain, one.pending) == (False, True)


async def test_a_guest_that_ends_right_after_its_switch_while_others_are_recorded(
    desk: Desk, qemu_factory: QemuFactory, monkeypatch: pytest.MonkeyPatch
):
    """The journal was read before the switch, and its QEMU is asked after its end; the journal is never at rest."""
    qemu = await running(desk, qemu_factory, desk.image("a.qcow2"))
    driver, reads_of_journal = await at_ready(desk), 0

    async def others() -> None:
        await desk.engine.journal.note("domain-seen", {}, domain="web2")

    async def it_ends_at_last() -> None:
        nonlocal reads_of_journal
        reads_of_journal += 1
        if reads_of_journal == reads.VERDICT_READS_MAX:
            await switched(desk, driver)
            await end(desk, qemu)

    monkeypatch.setattr(desk.reads, "overwritten", then(desk.reads.overwritten, others))
    monkeypatch.setattr(desk.reads, "latest", then(desk.reads.latest, it_ends_at_last))
    found = await verdict(desk, "web1")
    holds = "a.qcow2" if desk.engine.host.driver(driver.pivot.id) is not None else "b.qcow2"
    assert not found.certain or found.image == str(desk.directory / holds)


@pytest.mark.parametrize("tried_again", [False, True], ids=["", "tried-again"])
async def test_a_guest_that_ends_right_after_its_switch_while_it_is_asked_for(
    desk: Desk, qemu_factory: QemuFactory, monkeypatch: pytest.MonkeyPatch, *, tried_again: bool
):
    """Whether pivotd has tried to reach it again before the end of the look, or not."""
    qemu = await running(desk, qemu_factory, desk.image("a.qcow2"))
    driver = await at_ready(desk)
    supervisor = desk.engine.host.get("web1")

    async def it_ends() -> None:
        if desk.engine.host.driver(driver.pivot.id) is not None:
            await switched(desk, driver)
            await end(desk, qemu)
            await until(lambda: supervisor.found_nobody is tried_again)

    if not tried_again:
        monkeypatch.setattr(limits, "RECONNECT_FIRST_S", 60.0)
    monkeypatch.setattr(desk.reads, "latest", then(desk.reads.latest, it_ends))
    found = await verdict(desk, "web1")
    assert (found.certain, found.image) == (True, str(desk.directory / "b.qcow2")), found.reason


@pytest.mark.parametrize("doubt", ["ran elsewhere", "left"])
async def test_a_doubt_that_is_recorded_while_a_guest_is_asked_for(
    desk: Desk, qemu_factory: QemuFactory, monkeypatch: pytest.MonkeyPatch, doubt: str
):
    """The journal was read before the doubt, and the QEMU that would have shown it has ended before the look."""
    right = await desk.stopped("web1", Disk(desk.image("a.qcow2")), to="b.qcow2")
    (known,) = await desk.reads.latest("web1", "disk0")
    qemu = qemu_factory([Disk(desk.directory / "a.qcow2" if doubt == "ran elsewhere" else right)])
    await until(lambda: desk.engine.host.get("web1").session is not None)

    async def it_is_recorded() -> None:
        if qemu.returncode is not None:
            return
        if doubt == "left":
            await desk.engine.journal.left("web1")
        else:
            await desk.engine.journal.ran_on(*known, (str(desk.directory / "a.qcow2"), "qcow2"))
        await end(desk, qemu)

    monkeypatch.setattr(desk.reads, "latest", then(desk.reads.latest, it_is_recorded))
    found = await verdict(desk, "web1")
    assert qemu.returncode is not None
    assert not found.certain, found


async def test_another_journal_is_found_out_while_a_guest_is_asked_for(desk: Desk, monkeypatch: pytest.MonkeyPatch):
    """The journal was read while nobody had looked whether it is the file of the last daemon; it is another one."""
    await desk.stopped("web1", Disk(desk.image("a.qcow2")), to="b.qcow2")
    journal = desk.engine.journal
    assert (await verdict(desk, "web1")).certain
    monkeypatch.setattr(place, "identity", lambda _path: "another file")
    monkeypatch.setattr(journal, "file_checked", False)

    async def it_is_found_out() -> None:
        if not journal.file_checked:
            assert await journal.check_file()

    monkeypatch.setattr(desk.reads, "latest", then(desk.reads.latest, it_is_found_out))
    assert not (await verdict(desk, "web1")).certain
    assert journal.file_checked


async def test_an_image_to_which_a_pivot_switches_while_the_journal_of_a_daemon_is_read(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
):
    """The last look of three is the one that counts, if none before it was of one moment."""
    await desk.guest("web1", Disk(desk.image("a.qcow2")))
    driver, image = await at_ready(desk), str(desk.directory / "b.qcow2")
    loop, journal = asyncio.get_running_loop(), OfflineJournal(str(desk.engine.state_dir))
    verdicts, bandwidths = journal._verdicts, iter(range(1 << 30, 2 << 30))

    def then_it_changes(*key: Any) -> Any:
        found, changes = verdicts(*key), driver.set_bandwidth(next(bandwidths), WHO)
        asyncio.run_coroutine_threadsafe(changes, loop).result()
        return found

    def then_it_switches(*key: Any) -> Any:
        found = verdicts(*key)
        if driver.pivot.phase is not Phase.CLOSED:
            asyncio.run_coroutine_threadsafe(switched(desk, driver), loop).result()
        return found

    monkeypatch.setattr(journal, "_verdicts", then_it_changes)
    (found,) = await asyncio.to_thread(journal.image, image)
    assert (found.standing, found.certain) == ("unknown", False)
    monkeypatch.setattr(journal, "_verdicts", then_it_switches)
    (found,) = await asyncio.to_thread(journal.image, image)
    assert (found.standing, found.image) == ("current", image)
    journal.close()


async def test_a_guest_that_ends_right_after_its_switch_while_its_journal_is_read(
    desk: Desk, qemu_factory: QemuFactory, monkeypatch: pytest.MonkeyPatch
):
    """The daemon that switches is too busy to answer: `image` reads the journal, and then looks whether QEMU runs."""
    qemu = await running(desk, qemu_factory, desk.image("a.qcow2"))
    driver = await at_ready(desk)
    loop, journal = asyncio.get_running_loop(), OfflineJournal(str(desk.engine.state_dir))

    async def it_ends() -> None:
        await switched(desk, driver)
        await end(desk, qemu)

    verdicts, due = journal.verdicts, [it_ends]

    def then_it_ends(*key: Any, local: bool) -> Any:
        found = verdicts(*key, local=local)
        if due:
            asyncio.run_coroutine_threadsafe(due.pop()(), loop).result()
        return found

    monkeypatch.setattr(journal, "verdicts", then_it_ends)
    app: Any = SimpleNamespace(journal=journal)
    (found,) = await asyncio.to_thread(right_images._offline, app, "web1", ["disk0"], local=False, away=True)
    assert (found.certain, found.pending) == (False, True)
    (found,) = await asyncio.to_thread(right_images._offline, app, "web1", ["disk0"], local=False, away=True)
    assert (found.certain, found.image) == (True, str(desk.directory / "b.qcow2"))
    journal.close()


async def test_pivotd_starts_right_after_a_private_copy_of_its_journal_was_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """It may have switched a disk since, whose QEMU does not run any more."""
    opened, pivot = Journal.open(tmp_path), make_pivot(1, images=str(tmp_path))
    await opened.check_file()
    await opened.accept(pivot, {})
    await opened.close()
    for disk in pivot.disks:
        Path(disk.source.filename).touch()
    monkeypatch.setattr(offline, "_connect_in_place", lambda _path: None)  # as for a journal of an older pivotd
    app: Any = SimpleNamespace(journal=OfflineJournal(str(tmp_path)))
    found = await asyncio.to_thread(right_images._offline, app, pivot.domain, [], local=False, away=True)
    assert {one.certain for one in found} == {True}
    app.journal.close()
    app.journal = OfflineJournal(str(tmp_path))
    opened = Journal.open(tmp_path)
    found = await asyncio.to_thread(right_images._offline, app, pivot.domain, [], local=False, away=True)
    assert {(one.certain, one.pending) for one in found} == {(False, True)}
    app.journal.close()
    await opened.close()


async def test_a_guest_of_a_forgotten_domain_that_is_started_on_its_old_image(desk: Desk):
    """As between the start of a guest whose monitor is to be discovered and the next round of that."""
    old = desk.image("a.qcow2")
    right = await desk.stopped("web1", Disk(old), to="b.qcow2")
    desk.engine.host.remove("web1")
    assert (await verdict(desk, "web1")).image == str(right)
    assert (await verdict(desk, "web1")).certain
    desk._start_qemu([Disk(old)], name="web1")
    assert not (await verdict(desk, "web1")).certain
    (found,) = await desk.reads.image(str(right), lambda one: one)
    assert (found.verdict.certain, found.finding.standing) == (False, Standing.UNKNOWN)


async def test_two_rounds_of_discovery_side_by_side(desk: Desk, monkeypatch: pytest.MonkeyPatch):
    """One has looked at the directory before the guest started, and ends after the other one has found its monitor."""
    host, pattern = desk.engine.host, str(desk.directory / "found-*.sock")
    matching = host.matching

    async def then_another_round(patterns: list[str]) -> list[str]:
        found = await matching(patterns)
        monkeypatch.setattr(host, "matching", matching)
        with socket.socket(socket.AF_UNIX) as monitor:
            monitor.bind(str(desk.directory / "found-1.sock"))
        await host.discover(patterns)
        assert "found-1" in host.supervisors
        return found

    monkeypatch.setattr(host, "matching", then_another_round)
    await host.discover([pattern])
    assert "found-1" in host.supervisors


async def test_a_pivot_ends_while_the_journal_of_a_daemon_is_read_for_the_fleet(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
):
    """The fleet's word is compared with the pivot by which the journal names an image, and with no later one."""
    await desk.guest("web1", Disk(desk.image("a.qcow2")))
    driver = await at_ready(desk)
    loop, journal = asyncio.get_running_loop(), OfflineJournal(str(desk.engine.state_dir))
    verdicts, compared = journal._verdicts, list[DiskHere]()

    def then_it_switches(*of_disks: Any) -> Any:
        found = verdicts(*of_disks)
        asyncio.run_coroutine_threadsafe(switched(desk, driver), loop).result()
        return found

    def together(of_domain: dict[str, list[DiskHere]], **_: bool) -> list[Verdict]:
        compared.extend(of_domain["web1"])
        return [one.verdict for one in compared]

    monkeypatch.setattr(journal, "_verdicts", then_it_switches)
    monkeypatch.setattr(journal, "fleet", SimpleNamespace(may_be=True, together=together))
    await asyncio.to_thread(journal.verdicts, "web1")
    ((said, moved),) = [(one.verdict, one.moved) for one in compared]
    assert moved is not None
    assert said.image == right_image(moved[1]).filename
    journal.close()
