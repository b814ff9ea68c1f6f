"""Claims guests for this host when it meets them, and releases those that leave it by a migration.

A release that is owed is in the journal: neither the end of QEMU nor that of pivotd makes it forgotten. A QEMU that
ended before anybody saw its guest leave owes nothing: the guest may have died there, and a person takes it elsewhere.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from weakref import WeakValueDictionary

from pivotd import limits
from pivotd.app.due_domains import DueDomains
from pivotd.app.registry import Host
from pivotd.core.fleet import FleetView
from pivotd.core.observation import LEAVING, MIGRATION_STATES
from pivotd.core.rules.fleet_owners import doubting_all, leaving, meeting, owned
from pivotd.core.rules.fleet_pivots import Here
from pivotd.engine.ports import Clock, Fleet
from pivotd.engine.supervisor import Supervisor
from pivotd.errors import FleetConflictError, FleetError, JournalError, PivotdError
from pivotd.journal.journal import Journal
from pivotd.log import get_logger
from pivotd.qmp.session import Session

log = get_logger()


class OwnedGuests:
    """Looks at each domain on a new connection and when its guest stops or runs again, until it is settled who owns it.

    A guest of another host is left alone: the log says so once, and its pivots say it at ``ready``.
    """

    def __init__(  # noqa: PLR0913, PLR0917 - what it works with
        self,
        host: Host,
        fleet: Fleet,
        clock: Clock,
        journal: Journal,
        enter: Callable[[str], Awaitable[None]],
        on_owned: Callable[[str], None],
    ) -> None:
        """``enter``: tell the fleet, which does not know this domain, where its disks are. Raises: PivotdError.

        ``on_owned``: a guest that is here belongs to this host from now on, so that its images can be compared.
        """
        self._host = host
        self._enter = enter
        self._on_owned = on_owned
        self._foreign: set[str] = set()
        """Guests that are here and were not this host's when that was last read."""
        self._journal = journal
        self._fleet = fleet
        self._clock = clock
        self._connected: dict[str, Session] = {}
        self._here: set[str] = set()
        """Guests that the last look has seen in a QEMU that is still connected. Only they are claimed: one that was
        released is in a QEMU here for a while, too.
        """
        self._left: dict[str, int | None] = {}
        """Guests that were seen to leave and are to be released, each with the owner's epoch; QEMU may be gone."""
        self._epochs: dict[str, int] = {}
        """Under which epoch this host owns the guests that are here, as far as it was read since they are."""
        self._told: dict[str, str] = {}
        self._due = DueDomains(lambda domain: self._try(domain, self._look))
        self._in_fleet = DueDomains(lambda domain: self._try(domain, self._agree), at_once=limits.FLEET_READS_AT_ONCE)
        self._again: dict[str, asyncio.TimerHandle] = {}
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def run(self) -> None:
        """Look whenever a look is due; ends only when it is cancelled."""
        self._host.listeners.append(self._on_changed)
        for name in self._host.supervisors:
            self._on_changed(name)
        try:
            await self._remember()
            async with asyncio.TaskGroup() as group:
                group.create_task(self._due.run())
                group.create_task(self._in_fleet.run())
        finally:
            self._host.listeners.remove(self._on_changed)
            for timer in self._again.values():
                timer.cancel()

    async def _try(self, domain: str, look: Callable[[str], Awaitable[None]]) -> None:
        """Look; what fails is tried again later."""
        try:
            await look(domain)
        except FleetConflictError:
            self._due.ask(domain)
        except PivotdError as error:
            self._ask_later(domain)
            if isinstance(error, FleetError):
                self._tell(domain, error.message)
        except Exception as error:  # one domain must end neither the looks at the others nor, with them, pivotd
            self._ask_later(domain)
            log.exception("domain.not-checked", domain=domain, error=repr(error))

    async def _remember(self) -> None:
        """Go on with what the pivotd before has owed, once each of these QEMUs was connected to or could not be."""
        while True:
            try:
                owed = await self._journal.owed_releases()
                break
            except JournalError:  # its own alarms tell of that
                await asyncio.sleep(limits.FLEET_AGAIN_S)
        wait_s = limits.CONNECT_TIMEOUT_S + limits.GREETING_TIMEOUT_S
        supervisors = [one for name in owed if (one := self._host.supervisors.get(name)) is not None]
        await asyncio.gather(*(supervisor.settled(wait_s) for supervisor in supervisors))
        for domain, epoch in owed.items():
            self._left.setdefault(domain, epoch)
            self._due.ask(domain)

    def _on_changed(self, domain: str) -> None:
        """Ask for a look at each new connection, and when a pivot has ended: a release waits for the last outcome."""
        supervisor = self._host.supervisors.get(domain)
        session = None if supervisor is None else supervisor.session
        if supervisor is None or session is None:
            self._connected.pop(domain, None)
            self._here.discard(domain)
            if domain in self._left:
                self._due.ask(domain)
            return
        if session is not self._connected.get(domain):
            self._connected[domain] = session
            self._here.discard(domain)
            self._epochs.pop(domain, None)  # it may have been taken since, also by this host
            session.subscribe(self._on_event(supervisor, session))
            self._due.ask(domain)
        elif domain in self._left:
            self._due.ask(domain)

    def _on_event(self, supervisor: Supervisor, session: Session) -> Callable[[], None]:
        known = (session.stops, session.resumes)

        def on_event() -> None:
            nonlocal known
            if (session.stops, session.resumes) != known:
                known = (session.stops, session.resumes)
                if supervisor.window.locked():  # pivotd has stopped it, or it leaves in that moment
                    self._ask_later(supervisor.name)
                else:
                    self._due.ask(supervisor.name)

        return on_event

    def _ask_later(self, domain: str) -> None:
        if domain not in self._again:
            loop = asyncio.get_running_loop()

            def again() -> None:
                del self._again[domain]
                supervisor = self._host.supervisors.get(domain)
                if supervisor is not None and supervisor.window.locked():  # no look may lengthen a pause
                    self._ask_later(domain)
                else:
                    self._due.ask(domain)

            self._again[domain] = loop.call_later(limits.FLEET_AGAIN_S, again)

    async def _look(self, domain: str) -> None:
        """Note whether a guest leaves, without a word of the fleet: its QEMU may end at once, and etcd may be away.

        Raises: QmpError: its QEMU does not answer; JournalError.
        """
        supervisor = self._host.supervisors.get(domain)
        session = None if supervisor is None else supervisor.session
        state = None if session is None else await session.run_state()
        if state is None or state in MIGRATION_STATES:
            self._here.discard(domain)
        elif self._connected.get(domain) is session:
            self._here.add(domain)
        if state in LEAVING:
            async with self._lock(domain):
                await self._owes(domain, self._epochs.get(domain))
        elif state is not None and state not in MIGRATION_STATES:
            await self._settled(domain, "the guest runs here")
        elif domain not in self._left:
            return
        self._in_fleet.ask(domain)

    async def _agree(self, domain: str) -> None:
        """Claim, release or leave alone. Raises: FleetError, JournalError."""
        session = self._connected.get(domain)
        if domain not in self._here and domain not in self._left:
            return
        view = await self._fleet.read(domain, self._fleet.timeout_s)
        if not view.known and self._is_here(domain):
            await self._enter(domain)
            view = await self._fleet.read(domain, self._fleet.timeout_s)
        if domain not in self._here and domain not in self._left:
            return  # it has gone while the fleet was read
        here = Here(self._fleet.host, self._fleet.boot_id, self._clock.utc_now(), present=self._is_here(domain))
        after = meeting(view, here) if here.present else await self._leaving(view, here)
        if after != view:
            await self._fleet.write(view, after, self._fleet.timeout_s)
            if here.present:
                log.info("fleet.claimed", domain=domain, host=self._fleet.host)
            else:
                log.info("fleet.released", domain=domain, host=self._fleet.host)
        mine = owned(after, here, self._left.get(domain))
        if not here.present and not mine:
            await self._settled(domain, "it belongs to this host no more, or was taken by it since")
        if here.present and mine and after.owner is not None and self._connected.get(domain) is session:
            self._epochs[domain] = after.owner.epoch
        if here.present and mine and (after != view or domain in self._foreign):
            self._foreign.discard(domain)
            self._on_owned(domain)
        elif here.present and not mine:
            self._foreign.add(domain)
        if mine != here.present:  # the outcome of a pivot is still to be told, or another host has the guest
            self._ask_later(domain)
        if here.present and not mine and after.owner is not None and after.owner.host is not None:
            self._tell(domain, f"the guest belongs to host {after.owner.host} in the fleet, and is also here")
        else:
            self._told.pop(domain, None)

    def _is_here(self, domain: str) -> bool:
        return domain in self._here and domain not in self._left

    async def _leaving(self, view: FleetView, here: Here) -> FleetView:
        """Return what the fleet has to hold; first the journal knows that this is owed, and under which epoch."""
        domain = view.domain
        if not owned(view, here, self._left[domain]):
            return view
        if domain in self._host.looked_at:
            return view  # the fleet may have to hear of what was seen, and only its owner can tell
        assert view.owner is not None
        async with self._lock(domain):
            if domain not in self._left:
                return view  # it runs here again, as another look has seen
            await self._owes(domain, view.owner.epoch)
        # The next host has nothing in its journal that would tell of a doubt that the fleet has not heard of yet.
        return leaving(doubting_all(view, here, await self._journal.other_images(domain)), here)

    def _lock(self, domain: str) -> asyncio.Lock:
        """Return the lock of what is known to be owed for a domain, in the journal and here."""
        return self._locks.setdefault(domain, asyncio.Lock())

    async def _owes(self, domain: str, epoch: int | None) -> None:
        """Remember that a guest leaves; durably as soon as the owner's epoch is known."""
        if domain in self._left and epoch in {None, self._left[domain]}:
            return
        if epoch is not None:
            await self._journal.owe_release(domain, epoch)
        self._left[domain] = epoch

    async def _settled(self, domain: str, why: str) -> None:
        async with self._lock(domain):
            if domain in self._left:
                await self._journal.settle_release(domain, why)
                del self._left[domain]

    def _tell(self, domain: str, reason: str) -> None:
        if self._told.get(domain) != reason:
            self._told[domain] = reason
            log.warning("fleet.not-owner", domain=domain, reason=reason)
