"""Connections to libvirtd that break or stall at a bad moment: nothing of pivotd's ends with them, and nothing stays."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import threading
import time
from dataclasses import replace
from typing import Any

import pytest

from pivotd import limits
from pivotd.app.libvirt_domains import LibvirtDomains
from pivotd.app.registry import Host
from pivotd.core.observation import Root
from pivotd.core.pivot import Image
from pivotd.core.standing_back import patient
from pivotd.errors import DomainUnreachableError, QmpUnsentError
from pivotd.libvirt import library, passthrough
from pivotd.libvirt.domain_session import LibvirtSession
from pivotd.libvirt.line import Line
from pivotd.libvirt.passthrough import Passthrough
from tests.journal.samples import make_pivot
from tests.libvirt.between import Between
from tests.libvirt.domain import Domain
from tests.libvirt.libvirtd import Libvirtd

pytestmark = pytest.mark.qemu
REGISTER_EVENTS = 316
"""Source: libvirt, src/remote/remote_protocol.x, REMOTE_PROC_CONNECT_DOMAIN_EVENT_CALLBACK_REGISTER_ANY."""
UPDATE_DEVICE = 174
"""Source: libvirt, src/remote/remote_protocol.x, REMOTE_PROC_DOMAIN_UPDATE_DEVICE_FLAGS."""


def connections() -> int:
    gc.collect()
    return sum(isinstance(one, library.load().api.virConnect) for one in gc.get_objects())


def test_a_libvirtd_that_dies_right_after_it_was_reached_is_asked_again(libvirtd: Libvirtd):
    """The list of domains is not there yet, with the reason; the next look has it."""
    libvirtd.start()
    left_out: list[str] = []

    async def look_twice(uri: str) -> list[bool]:
        host = Host(lambda *_: pytest.fail("no pivot was asked for"))
        domains = LibvirtDomains(host, uri)
        answers = [await domains.look()]
        left_out.extend(host.libvirts_left_out.values())
        return [*answers, await domains.look()]

    with Between(libvirtd, {REGISTER_EVENTS: lambda: False}) as between:
        assert asyncio.run(look_twice(between.uri)) == [False, True]
    assert "libvirt's daemon is gone or hangs" in left_out[0]


def test_a_domain_that_starts_anew_while_it_is_connected_to_is_not_taken_for_the_old_one(
    libvirtd: Libvirtd, monkeypatch: pytest.MonkeyPatch
):
    """Its old process is gone, and nobody would tell: the session is with the new one."""
    monkeypatch.setattr(limits, "LIBVIRT_CONNECT_TIMEOUT_S", 60.0)  # the domain starts anew within one call
    libvirtd.start()
    domain = Domain(libvirtd, guest=False).define().boot()
    old = domain.qemu_pid()

    def start_anew() -> bool:
        libvirtd.ask("destroy", "web1")
        domain.boot()
        return True

    async def pid(uri: str) -> int:
        line = Line("web1")
        session = await LibvirtSession.open(uri, "web1", line)
        await session.close()
        line.end()
        return session.pid

    with Between(libvirtd, {REGISTER_EVENTS: start_anew}) as between:
        assert asyncio.run(pid(between.uri)) == domain.qemu_pid()
    assert domain.qemu_pid() != old


@pytest.mark.parametrize("libvirt_place", [None], indirect=True, ids=["installed"])
def test_a_reader_whose_turn_comes_after_the_end_of_its_connection_learns_that(libvirtd: Libvirtd):
    """It has let others go first, of whom one was the end."""
    libvirtd.start()
    Domain(libvirtd, guest=False).define().boot()

    async def read_late() -> None:
        line, free = Line("web1"), threading.Event()
        session = await LibvirtSession.open(libvirtd.uri, "web1", line)
        waiting = asyncio.ensure_future(line.call("a call", 20, free.wait))
        with patient():
            reading = asyncio.ensure_future(session.defined())
        await asyncio.sleep(0)
        await session.close()
        free.set()
        await waiting
        with pytest.raises(QmpUnsentError, match="the connection to libvirt has ended"):
            await reading
        line.end()

    asyncio.run(read_late())


def test_a_domain_that_is_paused_or_resumed_is_no_reason_to_look_for_domains(
    libvirtd: Libvirtd, monkeypatch: pytest.MonkeyPatch
):
    """It may be pivotd that pauses it, and no look may lengthen that; the end of the domain is one."""
    libvirtd.start()
    Domain(libvirtd, guest=False).define().boot()
    told: list[tuple[int, bool]] = []
    api = library.load().api

    async def live(uri: str) -> None:
        domains = LibvirtDomains(Host(lambda *_: pytest.fail("no pivot was asked for")), uri)
        loop, ended, real, looks = asyncio.get_running_loop(), asyncio.Event(), domains._on_lifecycle, [0]

        def on_event(*_: object) -> None:
            looks[0] += 1

        def on_lifecycle(connection: object, domain: object, event: int, *rest: object) -> None:
            before = looks[0]
            real(connection, domain, event, *rest)
            told.append((event, looks[0] > before))
            if event == api.VIR_DOMAIN_EVENT_STOPPED:
                loop.call_soon_threadsafe(ended.set)

        monkeypatch.setattr(domains, "_on_event", on_event)
        monkeypatch.setattr(domains, "_on_lifecycle", on_lifecycle)
        await domains._line.call("its events", 20, domains._running)
        for command in ("suspend", "resume", "destroy"):
            await asyncio.to_thread(libvirtd.ask, command, "web1")
        await asyncio.wait_for(ended.wait(), 20)
        await domains._line.call("the end", 20, domains._close)
        domains._line.end()

    asyncio.run(live(libvirtd.uri))
    assert {(api.VIR_DOMAIN_EVENT_SUSPENDED, False), (api.VIR_DOMAIN_EVENT_RESUMED, False)} <= set(told)
    assert (api.VIR_DOMAIN_EVENT_STOPPED, True) in told
    assert (api.VIR_DOMAIN_EVENT_SUSPENDED, True) not in told


def test_no_connection_is_left_of_a_libvirtd_that_has_died(libvirtd: Libvirtd):
    """Neither of one that was in use, nor of one that broke while it was made."""
    libvirtd.start()
    Domain(libvirtd, guest=False).define().boot()

    async def outlive(uri: str) -> int:
        line = Line("web1")
        for _ in range(3):
            with contextlib.suppress(DomainUnreachableError):
                session = await LibvirtSession.open(uri, "web1", line)
                libvirtd.kill()
                await asyncio.wait_for(session.closed(), 20)
                await session.close()
                del session
                libvirtd.start()
        await line.call("the end of the last", 20, int)
        return connections()

    others = connections()
    assert asyncio.run(outlive(libvirtd.uri)) <= others + 1


@pytest.mark.parametrize("meddles", [False, True], ids=["alone", "somebody else defines it"])
def test_only_a_definition_of_somebody_else_counts_as_one(
    libvirtd: Libvirtd, monkeypatch: pytest.MonkeyPatch, meddles: bool
):
    """Newer releases of libvirt also tell of the disk that pivotd itself has changed. The answer overtakes the event."""
    on_lifecycle = Passthrough._on_lifecycle

    def late(self: Passthrough, *facts: Any) -> None:
        time.sleep(0.2)
        on_lifecycle(self, *facts)

    monkeypatch.setattr(Passthrough, "_on_lifecycle", late)
    libvirtd.start()
    domain = Domain(libvirtd, guest=False).define().boot()
    reached: list[bool] = []

    def first() -> bool:
        if meddles:
            text = libvirtd.directory / "again.xml"
            text.write_text(libvirtd.ask("dumpxml", "web1", "--inactive"))
            libvirtd.ask("define", str(text))
        reached.append(True)
        return True

    async def agree(uri: str) -> tuple[frozenset[str], bool]:
        line = Line("web1")
        session = await LibvirtSession.open(uri, "web1", line)
        image = Image(str(domain.image()), "qcow2", "source")
        pivot = make_pivot(1, disk="vda")
        pivot = replace(pivot, disks=(replace(pivot.disks[0], source=image),))
        first_time = await session.agree(pivot, {"vda": Root.SOURCE})
        await asyncio.sleep(0.2)
        # What libvirt tells of the first time late is not somebody else's the second time.
        again = await session.agree(pivot, {"vda": Root.SOURCE})
        await session.close()
        line.end()
        assert again == (frozenset({"vda"}), False)
        return first_time

    with Between(libvirtd, {UPDATE_DEVICE: first}) as between:
        assert asyncio.run(agree(between.uri)) == (frozenset({"vda"}), meddles)
    assert reached


@pytest.mark.parametrize("restarts", [False, True], ids=["the same libvirtd", "another one"])
def test_a_call_whose_answer_was_lost_cannot_go_on_in_another_libvirtd(libvirtd: Libvirtd, restarts: bool):
    """A pause need not wait for it; the same libvirtd behind a new connection may still carry it out."""
    libvirtd.start()
    domain = Domain(libvirtd, guest=False).define().boot()

    async def look(uri: str) -> tuple[bool, bool]:
        line = Line("web1")
        session = await LibvirtSession.open(uri, "web1", line)
        pivot = replace(make_pivot(1, disk="vda"), identity=session.identity())
        image = Image(str(domain.image()), "qcow2", "source")
        pivot = replace(pivot, disks=(replace(pivot.disks[0], source=image),))
        before = (await session.look(pivot)).calling
        line.lose()
        if restarts:
            libvirtd.kill()
            libvirtd.start()
        await session.close()
        session = await LibvirtSession.open(uri, "web1", line)
        after = (await session.look(pivot)).calling
        await session.close()
        line.end()
        return before, after

    assert asyncio.run(look(libvirtd.uri)) == (False, not restarts)


@pytest.mark.parametrize("quick_before", [True, False])
def test_a_slow_look_has_waited_for_an_earlier_call_only_before_a_quick_one(
    libvirtd: Libvirtd, monkeypatch: pytest.MonkeyPatch, quick_before: bool
):
    """A busy machine must not keep a pivot open for as long as it is busy."""
    libvirtd.start()
    domain = Domain(libvirtd, guest=False).define().boot()

    async def look(uri: str) -> bool:
        line = Line("web1")
        session = await LibvirtSession.open(uri, "web1", line)
        pivot = replace(make_pivot(1, disk="vda"), identity=session.identity())
        image = Image(str(domain.image()), "qcow2", "source")
        pivot = replace(pivot, disks=(replace(pivot.disks[0], source=image),))
        if quick_before:
            monkeypatch.setattr(limits, "LIBVIRT_QUICK_S", 60.0)
            assert not (await session.look(pivot)).calling
        monkeypatch.setattr(limits, "LIBVIRT_QUICK_S", 0.0)
        calling = (await session.look(pivot)).calling
        await session.close()
        line.end()
        return calling

    assert asyncio.run(look(libvirtd.uri)) is not quick_before


def test_whether_libvirt_tells_of_pivotds_own_changes_is_learned(
    libvirtd: Libvirtd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a release that is not known: after one change that nobody disturbed, a definition of somebody else's is seen."""
    monkeypatch.setattr(passthrough, "TELLS_NO_CHANGES", 0)
    monkeypatch.setattr(passthrough, "TELLS_CHANGES", 99_000_000)
    monkeypatch.setattr(passthrough, "_learned", set())
    libvirtd.start()
    domain = Domain(libvirtd, guest=False).define().boot()

    def first() -> bool:
        text = libvirtd.directory / "again.xml"
        text.write_text(libvirtd.ask("dumpxml", "web1", "--inactive"))
        libvirtd.ask("define", str(text))
        return True

    async def agree_twice(uri: str) -> list[bool]:
        line = Line("web1")
        session = await LibvirtSession.open(uri, "web1", line)
        pivot = make_pivot(1, disk="vda")
        source = Image(str(domain.image()), "qcow2", "source")
        pivot = replace(pivot, disks=(replace(pivot.disks[0], source=source),))
        raced = []
        for begin in (False, True, False):
            between.armed = begin
            raced.append((await session.agree(pivot, {"vda": Root.SOURCE}))[1])
            await asyncio.sleep(passthrough.TOLD_S + 0.2)
        await session.close()
        line.end()
        return raced

    with Between(libvirtd, {UPDATE_DEVICE: first}) as between:
        assert asyncio.run(agree_twice(between.uri)) == [False, True, False]
