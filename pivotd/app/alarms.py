"""Alarms: a QEMU that runs on another image than the one that holds the data."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress

from pivotd import limits
from pivotd.app import telling_words
from pivotd.app.due_domains import DueDomains
from pivotd.app.fleet_doubts import FleetDoubts
from pivotd.app.libvirt_moves import follow
from pivotd.app.live_verdicts import Key, image_names
from pivotd.app.old_images import of_old
from pivotd.app.reads import Reads
from pivotd.app.registry import Host
from pivotd.core.fleet import FleetImage
from pivotd.core.observation import LEAVING
from pivotd.core.pivot import Phase, Pivot, PivotDisk, Record
from pivotd.core.request import Manager
from pivotd.core.standing import Standing
from pivotd.core.standing_back import patient
from pivotd.core.verdict import Verdict
from pivotd.engine.ports import Fleet
from pivotd.engine.supervisor import Supervisor
from pivotd.errors import FleetError, PivotdError, QmpError
from pivotd.journal.journal import Journal
from pivotd.log import get_logger
from pivotd.qmp.session import Session

log = get_logger()

DOUBTING = frozenset({"overwrites", "moves_on_from"})
"""Facts of a new pivot that put disks of other domains in doubt."""


class Alarms:
    """Looks at each domain when pivotd has connected to it, and whenever its verdicts may have changed.

    A supervisor's ``alarms`` hold one sentence for each disk; they go when the connection does, or when a person or a
    look settles the doubt. Each alarm is logged and recorded once.
    """

    def __init__(self, host: Host, journal: Journal, reads: Reads, fleet: Fleet | None = None) -> None:
        self._fleet = fleet
        self._doubts = None if fleet is None else FleetDoubts(host, journal, fleet)
        self._host = host
        self._journal = journal
        self._reads = reads
        self._connected: dict[str, Session] = {}
        self._due = DueDomains(lambda domain: self._try(domain, self._watch))
        self._images = DueDomains(lambda domain: self._try(domain, self._look_after_others))
        self._leaving: set[str] = set()
        """Domains whose guest was last seen to leave: an older look at its images must not end that doubt."""
        self._again: dict[str, asyncio.TimerHandle] = {}

    async def run(self) -> None:
        """Look whenever a look is due; ends only when it is cancelled."""
        self._host.listeners.append(self._on_changed)
        self._reads.listeners.append(self._on_news)
        unsubscribe = self._journal.subscribe(self._on_records)
        for name in self._host.supervisors:
            self._on_changed(name)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._due.run())
                group.create_task(self._images.run())
                if self._doubts is not None:
                    group.create_task(self._doubts.run())
        finally:
            unsubscribe()
            self._host.listeners.remove(self._on_changed)
            self._reads.listeners.remove(self._on_news)
            for timer in self._again.values():
                timer.cancel()

    async def _try(self, domain: str, look: Callable[[str], Awaitable[None]]) -> None:
        """Look; what fails is tried again later."""
        try:
            await look(domain)
        except PivotdError as error:
            self._ask_again(domain, limits.ALARM_AGAIN_S)
            log.warning("domain.not-checked", domain=domain, error=error.message)
        except Exception as error:  # one domain must not end the looks at the others
            self._ask_again(domain, limits.ALARM_AGAIN_S)
            log.exception("domain.not-checked", domain=domain, error=repr(error))

    def _on_changed(self, domain: str) -> None:
        """Ask for a look at each new connection."""
        supervisor = self._host.supervisors.get(domain)
        session = None if supervisor is None else supervisor.session
        if supervisor is None or session is None:
            self._connected.pop(domain, None)
        elif session is not self._connected.get(domain):
            self._connected[domain] = session
            session.subscribe(self._on_stop(supervisor, session))
            self._ask(domain)

    def _on_news(self, domain: str) -> None:
        """Ask for a look at a domain of which a reader has seen something new."""
        if (supervisor := self._host.supervisors.get(domain)) is not None:
            self._ask_outside_pauses(supervisor)

    def _on_stop(self, supervisor: Supervisor, session: Session) -> Callable[[], None]:
        """Return what looks whenever the guest has stopped or runs again: it may leave by a migration, or have stayed.

        Its QEMU may end right after that.
        """
        known = (session.stops, session.resumes)
        jobs = session.detached

        def on_event() -> None:
            nonlocal known, jobs
            if session.detached != jobs:
                jobs = session.detached
                self._ask_again(supervisor.name, limits.LIBVIRT_MOVE_S)
            if (session.stops, session.resumes) != known:
                known = (session.stops, session.resumes)
                self._ask_outside_pauses(supervisor)

        return on_event

    def _ask_outside_pauses(self, supervisor: Supervisor) -> None:
        """Ask for a look as soon as pivotd has no pause open: no look may lengthen one."""
        name = supervisor.name
        if not supervisor.window.locked():
            self._ask(name)
        else:
            self._ask_again(name, limits.ALARM_PAUSE_S)

    def _ask_again(self, domain: str, delay_s: float) -> None:
        """Ask for a look later, once, however many have failed, and outside pauses."""

        def again() -> None:
            del self._again[domain]
            if (supervisor := self._host.supervisors.get(domain)) is not None:
                self._ask_outside_pauses(supervisor)

        if domain not in self._again:
            self._again[domain] = asyncio.get_running_loop().call_later(delay_s, again)

    def _ask(self, domain: str) -> None:
        if (timer := self._again.pop(domain, None)) is not None:
            timer.cancel()
        self._due.ask(domain)

    def _on_records(self, records: list[Record]) -> None:
        for record in records:
            if record.event == "journal-moved" or not DOUBTING.isdisjoint(record.facts):
                for domain in self._connected:
                    self._ask(domain)
            elif record.domain is not None and (record.phase is Phase.CLOSED or record.event == "image-accepted"):
                self._ask(record.domain)
                for supervisor in self._host.supervisors.values():
                    if supervisor.alarms:  # it may be about a disk of that domain
                        self._ask(supervisor.name)

    async def _watch(self, domain: str) -> None:
        """Note that a guest leaves, first of all: its QEMU may end at once, and its storage may hang."""
        supervisor = self._host.supervisors.get(domain)
        session = None if supervisor is None else supervisor.session
        if session is None:
            return
        if await session.run_state() in LEAVING:
            self._leaving.add(domain)
            await self._journal.left(domain)
        else:
            self._leaving.discard(domain)
        self._images.ask(domain)

    async def _look_after_others(self, domain: str) -> None:
        self._host.looked_at.add(domain)
        try:
            with patient():
                await self._look(domain)
        finally:
            self._host.looked_at.discard(domain)

    async def _look(self, domain: str) -> None:
        """Compare the images of a guest with its verdicts."""
        supervisor = self._host.supervisors.get(domain)
        session = None if supervisor is None else supervisor.session
        if supervisor is None or session is None:
            return
        if supervisor.manager is Manager.LIBVIRT and not await self._reads.latest(domain):
            return  # there is nothing to compare: not even a query, which libvirt would note, is due
        live, found = await self._reads.checked(domain)
        doubts = await self._reads.in_doubt(live, found)
        if live.unsettled:
            self._ask_again(domain, limits.ALARM_AGAIN_S)
        if doubts and await self._follow(domain, session, doubts):
            self._ask(domain)
            return
        old = await self._reads.old_images(live)
        doubts = of_old(old) | doubts
        busy = {disk.disk for driver in supervisor.drivers.values() for disk in driver.pivot.disks}
        alarms = {disk: await self._sentence(supervisor, disk, one) for disk, one in doubts.items() if disk not in busy}
        doubted = set[Key]()  # by one image for each disk: two would take turns in the journal
        for disk, seen in live.astray_of(domain).items():
            doubted.add((domain, disk))
            if disk in alarms:
                await self._doubt(*seen, by_fleet=(domain, disk) in live.by_fleet)  # whatever has become of QEMU since
        for one in old:
            if one.is_copy or one.of in doubted:
                image = one.image.filename, one.image.format
                await self._journal.is_used(*one.left, image, one.asked, one.key)
            else:
                doubted.add(one.of)
                await self._doubt(*one.left, one.image, by_fleet=False)
        if self._fleet is not None and (others := live.never_moved_astray(domain)):
            await self._tell_stray(self._fleet, domain, others)
        for pivot, moved in live.settled():
            await self._settle(pivot, moved)
        for pivot, moved, file in live.files_of(domain):
            await self._journal.calm(limits.CLEAN_UP_HELD_BACK_S)  # no guest waits in its pause for this record
            await self._journal.saw_file(pivot.id, domain, moved.disk, file)
        known = supervisor.alarms
        if supervisor.session is not session:
            return  # a new connection asks for a look of its own
        supervisor.alarms = alarms
        self._host.changed.set()
        for disk in alarms.keys() - known.keys():
            log.error("domain.wrong-image", domain=domain, disk=disk, pivot=doubts[disk].pivot, reason=alarms[disk])
            facts = {"disk": disk, "right": doubts[disk].image, "reason": alarms[disk]}
            await self._journal.note("wrong-image", facts, domain=domain, pivot=doubts[disk].pivot)

    async def _doubt(self, pivot: Pivot, disk: PivotDisk, other: FleetImage, *, by_fleet: bool) -> None:
        """Record that a guest runs on another image: once its QEMU has ended, only the record tells of its writes."""
        asked = await self._reads.asked(other.filename)
        await self._journal.ran_on(pivot, disk, (other.filename, other.format), asked, by_fleet=by_fleet)
        if self._doubts is not None:
            self._doubts.ask(pivot.domain)

    async def _tell_stray(self, fleet: Fleet, domain: str, others: Mapping[str, FleetImage]) -> None:
        """Tell the fleet of disks whose guest runs elsewhere than it says, and of which the journal has no row."""
        try:
            async with self._host.lock(domain):
                await telling_words.stray(fleet, domain, others)
        except FleetError as error:
            self._try_again(domain, error)

    async def _settle(self, pivot: Pivot, disk: PivotDisk) -> None:
        """End the doubts about a disk that QEMU has on its right image."""
        try:
            async with self._host.lock(pivot.domain):
                if disk.ran_on is not None and not await self._is_astray(pivot, disk):
                    return  # a person has settled it meanwhile
                if disk.ran_on is None or await telling_words.settle(self._fleet, pivot, disk):
                    # Also a guest that has left while this waited. No await comes in between.
                    if pivot.domain not in self._leaving:
                        await self._journal.seen(pivot.id, pivot.domain, disk.disk)
                else:  # it may be claimed here later
                    self._ask_again(pivot.domain, limits.ALARM_AGAIN_S)
        except FleetError as error:
            self._try_again(pivot.domain, error)

    async def _is_astray(self, pivot: Pivot, disk: PivotDisk) -> bool:
        known = await self._journal.other_images(pivot.domain)
        return (pivot.id, disk.disk) in {(last.id, one.disk) for last, one in known}

    def _try_again(self, domain: str, error: PivotdError) -> None:
        self._ask_again(domain, limits.ALARM_AGAIN_S)
        log.warning("domain.not-checked", domain=domain, error=error.message)

    async def _follow(self, domain: str, session: Session, doubts: Mapping[str, Verdict]) -> bool:
        """Return whether a disk was followed to where libvirt has moved it; no pivot of the domain begins meanwhile."""
        try:
            async with self._host.lock(domain):
                return await follow(session, doubts.values(), self._journal, self._reads, self._fleet)
        except (FleetError, QmpError) as error:
            self._try_again(domain, error)
        return False

    async def _sentence(self, supervisor: Supervisor, disk: str, doubt: Verdict) -> str:
        """Return what is wrong with the image on which a disk runs, or why nobody knows which one is right.

        ``doubt``: on that disk, or on another one that has left this image.
        """
        if (doubt.domain, doubt.disk) != (supervisor.name, disk):
            return doubt.reason
        session, stale = supervisor.session, None
        with suppress(PivotdError):  # QEMU has ended, or its storage does not answer
            shown = (await session.disks()).get(doubt.disk) if session is not None else None
            if session is not None and shown is not None:
                using = (await image_names(shown, session))[0]
                stale = await self._reads.history(using, doubt)
        if stale is None or stale.finding.standing is not Standing.STALE:
            return f"{doubt.disk}: {doubt.reason}"
        return f"{doubt.disk} runs on {using}, which is stale since {stale.finding.since}: {stale.finding.why}"
