"""Read-only requests: pivots, records, waits, the event stream, verdicts.

Single reads use one lane and long lists another, so that neither waits for the other. Lists are read and encoded in
pieces of limits.READ_AT_ONCE, each in a turn of its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from pivotd import limits
from pivotd.app.in_chains import in_chains
from pivotd.app.lanes import Door, Lane
from pivotd.app.live_verdicts import Key, LiveVerdicts, Moved
from pivotd.app.old_images import OldImage, of_old, old_images
from pivotd.app.registry import Host
from pivotd.app.unasked import Tried, Unasked
from pivotd.client.answers import JournalStats
from pivotd.core import known_chain
from pivotd.core.list_filters import EventFilter, PivotFilter
from pivotd.core.names import no_disk
from pivotd.core.overwritten import Overwritten, doubted
from pivotd.core.phases import is_resting
from pivotd.core.pivot import Outcome, Pivot, PivotDisk, Record
from pivotd.core.standing import Asked, Finding, ImageFound
from pivotd.core.verdict import Verdict, overtaken, without_pivot
from pivotd.errors import ArchiveError, ConflictError, DomainUnreachableError, NotFoundError
from pivotd.host import places
from pivotd.host.threads import in_thread
from pivotd.journal import images
from pivotd.journal.images import images_found, left_by, news, obsolete, standings, state_of, with_lower
from pivotd.journal.journal import Journal
from pivotd.journal.reader import Reader
from pivotd.journal.search import Found, Place
from pivotd.journal.stats import stats
from pivotd.qmp.session import Session

if TYPE_CHECKING:
    from pivotd.app.fleet_verdicts import FleetVerdicts

T = TypeVar("T")
VERDICT_READS_MAX = 3
"""A record written between the read of the journal and the look at QEMU may make both stale: read both again."""


class News:
    """The records announced at one moment; set once, then ``next`` is the announcement to wait for."""

    def __init__(self) -> None:
        self.told = asyncio.Event()
        self.records: list[Record] = []
        self.next: News | None = None


class Reads:
    """Implements api.ports.Reads with the journal and the host's supervisors."""

    def __init__(
        self, host: Host, journal: Journal, readers: Sequence[Reader], fleet: FleetVerdicts | None = None
    ) -> None:
        """Use ``attach``."""
        self._host = host
        self._fleet = fleet
        self._journal = journal
        self.listeners: list[Callable[[str], None]] = []
        """Called with the name of a domain of which a reader has just seen what the journal does not know."""
        self._single, self._lists = (Lane(reader, journal.calm) for reader in readers)
        self.door = Door(journal.calm)
        self._unasked = Unasked(host, self._lists)
        self._ending = False
        self._news = News()
        self._told_seq = journal.last_seq
        self._late: asyncio.TimerHandle | None = None
        self._unsubscribe = journal.subscribe(self._on_records)

    @classmethod
    async def attach(cls, state_dir: Path, host: Host, journal: Journal, fleet: FleetVerdicts | None = None) -> Reads:
        """Open the connections that read the journal of this daemon. Raises: JournalError."""
        return cls(host, journal, [await asyncio.to_thread(Reader.attach, state_dir) for _ in range(2)], fleet)

    def end(self) -> None:
        """Make streams and waits finish."""
        self._ending = True
        self._tell()

    async def close(self) -> None:
        """Close the connections once no reader is left."""
        self._unsubscribe()
        for lane in (self._single, self._lists):
            await asyncio.to_thread(lane.close)

    # -- pivots -------------------------------------------------------------------------------------------------

    async def pivots(
        self, chosen: PivotFilter, *, limit: int, before: str | None, encode: Callable[[Pivot], T]
    ) -> tuple[list[T], str | None]:
        """Return pivots that a filter wants, newest first, starting after ``before``, and the id from which to go on.

        ``encode`` converts each in the thread. Fewer than ``limit`` are found where many others had to be examined.
        """
        found: list[T] = []
        examined = 0
        while True:
            wanted = min(limits.READ_AT_ONCE, limit - len(found))
            at_once = wanted if chosen.indexed else limits.PIVOTS_EXAMINED_AT_ONCE
            look = partial(Reader.pivots_page, chosen=chosen, place=Place(wanted, before, at_once))
            page, before = await self._lists.read(_pivots, look, encode)
            found += page
            examined += at_once
            if before is None or len(found) >= limit or examined >= limits.PIVOTS_EXAMINED_MAX:
                return found, before

    async def count(self, chosen: PivotFilter) -> int:
        """Return how many pivots a filter wants that is indexed."""
        return await self._lists.read(Reader.count, chosen)

    async def named(self, name: str, encode: Callable[[Pivot], T]) -> list[T]:
        """Return the pivot with this id or request id; else those whose ids begin so, as many as a person can use."""
        return await self._single.read(_named, name, encode)

    async def pivot(self, pivot: str) -> Pivot:
        """Return one pivot by its id or its request id, as stored in the journal."""
        return await self._single.read(_pivot, pivot)

    async def known(self, pivot: str) -> Pivot | None:
        """Return one pivot by its id or its request id, None if there is none."""
        return await self._single.read(Reader.pivot, pivot)

    async def records(self, pivot: str) -> list[Record]:
        """Return every record of one pivot, oldest first."""
        return await self._single.read(Reader.records, pivot)

    async def undo_of(self, pivot: str) -> Pivot | None:
        """Return the pivot that undoes this one, None if there is none."""
        return await self._single.read(Reader.undo, pivot)

    async def current(self, pivot: str) -> Pivot:
        """Return one pivot by its id or its request id; an open one from its driver, without waiting for readers."""
        for supervisor in self._host.supervisors.values():
            for driver in supervisor.drivers.values():
                if pivot in {driver.pivot.id, driver.pivot.request_id}:
                    return driver.pivot
        return await self.pivot(pivot)

    async def shown(self, pivot: str, encode: Callable[[Pivot, list[Record]], T]) -> T:
        """Return one pivot with every record, oldest first; ``encode`` converts it in the thread."""
        return await self._single.read(_shown, encode, pivot)

    async def wait(self, pivot: str, timeout_s: float) -> Pivot:
        """Return the pivot as soon as it rests (closed, or waiting at READY), or its state after timeout_s."""
        deadline = asyncio.get_running_loop().time() + min(timeout_s, limits.WAIT_TIMEOUT_S_MAX)
        while True:
            news = self._news
            found = await self.pivot(pivot)
            if is_resting(found) or self._ending:
                return found
            try:
                async with asyncio.timeout_at(deadline):
                    await self._news_of(found.id, news)
            except TimeoutError:
                return found

    async def _news_of(self, pivot: str, news: News | None) -> None:
        while news is not None:
            await news.told.wait()
            if self._ending or any(record.pivot == pivot for record in news.records):
                return
            news = news.next

    # -- events -------------------------------------------------------------------------------------------------

    def _on_records(self, records: list[Record]) -> None:
        """Announce records, but not in the middle of a pause: readers would take processor time from it."""
        self._news.records += records
        if not self._journal.guest_paused:
            self._tell()
        elif self._late is None:
            self._late = asyncio.get_running_loop().call_later(limits.NEWS_DELAY_S, self._tell)

    def _tell(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None
        news, self._news = self._news, News()
        if news.records:
            self._told_seq = news.records[-1].seq
        news.next = self._news
        news.told.set()

    async def events(self, after: int, encode: Callable[[Record], T]) -> AsyncIterator[list[T]]:
        """Yield every durable record with seq > after, then new ones as they are announced, a list at a time."""
        while not self._ending:
            news = self._news
            if after < self._told_seq:
                page = await self._lists.read(_numbered, encode, after, limits.RECORDS_AT_ONCE)
            else:
                await news.told.wait()
                # A look into the journal may have shown some of them before they were told.
                page = [(record.seq, encode(record)) for record in news.records if record.seq > after]
            if page:
                after = page[-1][0]
                yield [encoded for _, encoded in page]

    async def events_page(
        self, chosen: EventFilter, after: int, limit: int, encode: Callable[[Record], T]
    ) -> tuple[list[T], int | None]:
        """Return up to ``limit`` records above ``after`` that a filter wants, oldest first, and where to go on."""
        return await self._page(partial(_records, chosen), after, limit, encode)

    async def last_events(
        self, chosen: EventFilter, before: int | None, limit: int, encode: Callable[[Record], T]
    ) -> tuple[list[T], int | None]:
        """Return the last records below ``before`` that a filter wants, oldest first, and below which to go on."""
        found, following = await self._page(partial(_last_records, chosen), before, limit, encode)
        return found[::-1], following

    async def _page(
        self,
        look: Callable[[Reader, int | None, int, Callable[[Record], T]], tuple[list[T], int | None]],
        place: int | None,
        limit: int,
        encode: Callable[[Record], T],
    ) -> tuple[list[T], int | None]:
        """Return records and the place from which to go on, examining no more than limits.RECORDS_EXAMINED_MAX."""
        found: list[T] = []
        for _ in range(0, limits.RECORDS_EXAMINED_MAX, limits.RECORDS_EXAMINED_AT_ONCE):
            wanted = min(limits.RECORDS_AT_ONCE, limit - len(found))
            page, place = await self._lists.read(look, place, wanted, encode)
            found += page
            if place is None or len(found) >= limit:
                break
        return found, place

    # -- verdicts -----------------------------------------------------------------------------------------------

    async def latest(self, domain: str | None, disk: str | None = None) -> list[tuple[Pivot, PivotDisk]]:
        """Return the last pivot of each disk with its entry for the disk, by domain and disk."""
        found: list[tuple[Pivot, PivotDisk]] = []
        after = ("", "")
        while page := await self._lists.read(Reader.latest, domain, disk, after, limits.READ_AT_ONCE):
            found += page
            if len(page) < limits.READ_AT_ONCE:
                break
            after = (page[-1][0].domain, page[-1][1].disk)
        return found

    async def verdicts(
        self, domain: str | None, disk: str | None, encode: Callable[[Verdict], T], *, local: bool = False
    ) -> list[T]:
        """Return the verdicts on all known disks, checked against QEMU where it answers, and against their files.

        In a fleet one is certain only if the fleet has agreed. ``local``: or if it does not answer.
        """
        live, found, tried = await self._asked_verdicts(domain, disk)
        for name in live.news():
            self.tell_news(name)
        if domain is not None and disk is not None and not found:
            supervisor = self._host.get(domain) if self._fleet is None else self._host.supervisors.get(domain)
            if supervisor is not None and supervisor.session is not None:
                _, every = await self.live_verdicts(domain, None)
                raise NotFoundError(no_disk(domain, disk, (known for _, known in every)), disk=disk)
            marks = await self.overwritten()
            found = {(domain, disk): doubted(without_pivot(domain, disk), marks.get((domain, disk)))}
        if self._fleet is not None:
            found = await self._fleet.together(live, found, domain, disk, local=local)
        result = list((await live.with_files(found)).values())
        monitors = await self._unasked.monitors(live, found)
        encoded: list[T] = []
        for first in range(0, len(result), limits.READ_AT_ONCE):
            pieces = result[first : first + limits.READ_AT_ONCE]
            part = [self._unasked.judge(live, one, monitors, tried) for one in pieces]
            encoded += await self._lists.read(_encoded, encode, part)
        return encoded

    async def cannot_ask(self, domain: str, disk: str) -> str | None:
        """Return why nobody can tell what the guest of a disk uses now; None: it was asked, or no QEMU runs."""
        live, found, tried = await self._asked_verdicts(domain, None)
        known = found.get((domain, disk), without_pivot(domain, disk))
        monitors = await self._unasked.monitors(live, [(domain, disk)])
        judged = self._unasked.judge(live, replace(known, certain=True), monitors, tried)
        return None if judged.certain else judged.reason

    def tell_news(self, domain: str) -> None:
        """Have the images of a domain looked at."""
        for listener in self.listeners:
            listener(domain)

    async def enter_fleet(self, domain: str) -> None:
        """Tell the fleet what it has forgotten of a guest that is here. Raises: FleetError, QmpError."""
        live, found = await self.live_verdicts(domain, None)
        if found and self._fleet is not None:
            await self._fleet.enter(live, found, domain)

    async def _asked_verdicts(
        self, domain: str | None, disk: str | None
    ) -> tuple[LiveVerdicts, dict[Key, Verdict], Tried]:
        """Return this host's verdicts after a try to reach each QEMU that was away. Raises: NotFoundError."""
        for _ in range(VERDICT_READS_MAX):
            tried = await self._unasked.connect(domain)
            live, found = await self._known_verdicts(domain, disk)
            if not self._unasked.has_missed(live, tried, domain):
                break
        live.unchecked |= tried.silent
        return live, found, tried

    async def _known_verdicts(self, domain: str | None, disk: str | None) -> tuple[LiveVerdicts, dict[Key, Verdict]]:
        """Return this host's verdicts, none if only the fleet knows the domain. Raises: NotFoundError."""
        try:
            return await self.live_verdicts(domain, disk)
        except NotFoundError:
            if self._fleet is None or domain is None or not await self._fleet.knows(domain):
                raise
            return LiveVerdicts([]), {}

    async def live_verdicts(self, domain: str | None, disk: str | None) -> tuple[LiveVerdicts, dict[Key, Verdict]]:
        """Return the verdicts on all known disks, or some, checked against QEMU, by domain and disk.

        One on whose disk something is recorded during each look is not certain.

        Raises: NotFoundError: neither journal nor daemon knows the domain.
        """
        before, is_checked = self._journal.last_seq, self._journal.file_checked
        latest = await self.latest(domain, disk)
        for _ in range(VERDICT_READS_MAX):
            if domain is not None and not latest:
                self._host.get(domain)
            live = LiveVerdicts(latest if is_checked else [(one, replace(disk, doubtful=True)) for one, disk in latest])
            found = await live.all(self._sessions([domain] if domain is not None else None), disk)
            marks = await self.overwritten()
            found = {key: doubted(one, marks.get(key)) for key, one in found.items()}
            live.spoiled = frozenset(marks)
            if self._journal.last_seq == before:
                return live, found
            seen, before, is_checked = latest, self._journal.last_seq, self._journal.file_checked
            latest = await self.latest(domain, disk)
            if not (changed := _changed(seen, latest)):  # other disks have other records all the time
                return live, found
        return live, {key: overtaken(one) if key in changed else one for key, one in found.items()}

    async def standings(self, image: str) -> list[ImageFound]:
        """Return how an image stands to each disk that ever had it, by the journal alone. Raises: ConflictError."""
        return await self._single.read(standings, image, await _asked(image))

    async def asked(self, image: str) -> Asked:
        """Return an image by all its names, and by its file; by the one name if its storage does not answer."""
        try:
            return await _asked(image)
        except ConflictError:
            return Asked(frozenset({image}))

    async def overwritten(self) -> dict[Key, Overwritten]:
        """Return, by domain and disk, the disks whose image a pivot of another one overwrites, or has moved on from."""
        return await self._single.read(Reader.overwritten)

    async def moved(self, image: str) -> list[tuple[Pivot, PivotDisk]]:
        """Return, for each disk that has ever had an image of this name, its last such pivot."""
        return await self._single.read(Reader.image, [image])

    async def had(self, image: str) -> list[tuple[Pivot, PivotDisk]]:
        """Return every pivot that had an image of this name, the newest first; none if several disks had it.

        None either if an archive that may have one cannot be read.
        """
        disks = {(pivot.domain, disk.disk) for pivot, disk in await self.moved(image)}
        if len(disks) != 1:
            return []
        ((domain, disk),) = disks
        bound = limits.PIVOTS_LISTED_MAX
        try:
            pivots, _ = await self.pivots(PivotFilter(domain), limit=bound, before=None, encode=lambda pivot: pivot)
        except ArchiveError:
            return []
        return known_chain.had(pivots, disk, image)

    async def checked(self, domain: str) -> tuple[LiveVerdicts, dict[Key, Verdict]]:
        """Return the verdicts on the disks of a domain, of which QEMU has shown those that it has.

        Raises: DomainUnreachableError: QEMU or its storage does not answer, so that only the journal's word is known.
        """
        live, found = await self.live_verdicts(domain, None)
        if domain in live.unchecked:
            why = live.unchecked[domain]
            raise DomainUnreachableError(f"domain {domain}: its images could not be looked at: {why}; try again")
        return live, found

    async def doubts(self, domain: str, *, ask_fleet: bool) -> tuple[dict[str, Verdict], bool]:
        """Return, by disk, the verdicts of a domain that a person has to settle, and whether the others are settled.

        Not ``ask_fleet``: it has just not answered. Raises: DomainUnreachableError.
        """
        live, found = await self.checked(domain)
        doubts = await self.in_doubt(live, found, compare=ask_fleet)
        return of_old(await self.old_images(live)) | doubts, not live.unsettled

    async def in_doubt(
        self, live: LiveVerdicts, found: Mapping[Key, Verdict], *, compare: bool = True
    ) -> dict[str, Verdict]:
        """Return, by disk, the verdicts of one domain whose evidence contradicts itself, or the fleet's word.

        A guest that another host has moved, and that has come back, runs where the fleet says. The journal stays in
        doubt: while the fleet does not answer, it would name an older image.
        """
        doubts = {key: one for key, one in found.items() if one.outcome is Outcome.UNKNOWN}
        shown = {key: one for key, one in found.items() if key in live.shown}
        sure, said = {key: one for key, one in shown.items() if one.certain}, {}
        if self._fleet is not None and shown:
            unsure = {key: one for key, one in shown.items() if not one.certain}
            for key, one in (await self._fleet.together(live, unsure, None, None, local=True)).items():
                live.unsettled |= not one.certain
                if one.certain or one.pending:
                    doubts.pop(key, None)
            said = await self._fleet.compared(live, sure) if compare else {}
        for key, known in sure.items():
            word = said.get(key)
            if word is not None and word.certain:
                continue
            live.unsettled |= self._fleet is not None
            doubt = word if key in live.against else live.contradicted_before(key, known)
            if doubt is not None:
                doubts[key] = doubt
                live.contradict(key, by_fleet=True)
        return {disk: one for (_, disk), one in doubts.items()}

    async def old_images(self, live: LiveVerdicts) -> list[OldImage]:
        """Return the disks of one domain that run on images which other disks have left."""
        return await old_images(live, self.left_by, self._runs_right)

    async def left_by(self, image: str) -> tuple[Asked, list[tuple[Moved, Finding]]]:
        """Return an image by all its names, and the last pivots of the disks that have left it, and how."""
        asked = await self.asked(image)
        return asked, await self._single.read(left_by, asked)

    async def _runs_right(self, key: Key) -> bool:
        live, _ = await self.live_verdicts(key[0], None)
        return key in live.seen

    def _sessions(self, domains: Iterable[str] | None) -> dict[str, Session]:
        """Return the connections to the QEMUs of these domains, or of all."""
        supervisors = self._host.supervisors
        names = supervisors if domains is None else domains
        return {n: s.session for n in names if (s := supervisors.get(n)) is not None and s.session is not None}

    async def image(self, image: str, encode: Callable[[ImageFound], T]) -> list[T]:
        """Return what history and QEMU say of one image, for each disk that has it or had it; empty: never seen.

        Raises: ConflictError: its storage does not answer.
        """
        found, _ = await self._found(image, self._fleet)
        return [encode(one) for one in found]

    async def image_here(self, image: str) -> tuple[list[ImageFound], dict[Key, str]]:
        """Return the same by the word of this host alone, and why of some disks nobody can tell if they lie on it.

        Raises: ConflictError.
        """
        return await self._found(image, None)

    async def _found(self, image: str, fleet: FleetVerdicts | None) -> tuple[list[ImageFound], dict[Key, str]]:
        asked = await _asked(image)
        for _ in range(VERDICT_READS_MAX):
            known, changed, silent = await self._look_for(image, asked, fleet)
            if not changed:
                break
        return images.overtaken(known, changed), silent

    async def _look_for(
        self, image: str, asked: Asked, fleet: FleetVerdicts | None
    ) -> tuple[list[ImageFound], set[Key], dict[Key, str]]:
        """Return the same once, and in between the disks on which something was recorded since QEMU was asked."""
        moved = await self._single.read(Reader.image, asked.names, asked.file_ids)
        had = {(pivot.domain, disk.disk) for pivot, disk in moved}
        live, found, tried = await self._asked_verdicts(None, None)  # the journal may not know that a QEMU has it
        lower, silent = await in_chains(image, self._host, self.had, live, found, self._journal.calm)
        found = {key: one for key, one in found.items() if key in had or key in lower or one.image in asked.names}
        if fleet is not None:
            found = await fleet.together(live, found, None, None, local=False)
        found = await live.with_files(found)
        monitors = await self._unasked.monitors(live, found)
        found = {key: self._unasked.judge(live, one, monitors, tried) for key, one in found.items()}
        last = {key: live.moved(key) for key in found}
        known, changed = await self._single.read(_images, image, asked, found, last)
        return with_lower(known, image, lower, found), changed, silent

    async def history(self, image: str, right: Verdict) -> ImageFound | None:
        """Return what the journal says of an image and one disk, None if that never had it. Raises: ConflictError."""
        verdicts = {(right.domain, right.disk): right}
        found = await self._single.read(images_found, image, await _asked(image), verdicts)
        return found[0] if found else None

    async def obsolete(self, after: str, limit: int, encode: Callable[[ImageFound], T]) -> tuple[list[T], str | None]:
        """Return those of the next ``limit`` images of the journal that no disk needs, and the name to go on from."""
        found: list[T] = []
        left, name = limit, after
        while left > 0:
            page, following = await self._lists.read(_obsolete, encode, name, min(limits.READ_AT_ONCE, left))
            found += page
            if following is None:
                return found, None
            left, name = left - limits.READ_AT_ONCE, following
        return found, name

    async def journal(self, encode: Callable[[JournalStats], T]) -> T:
        """Return how large the journal and its archives are."""
        return await self._lists.read(_stats, encode)


async def _asked(image: str) -> Asked:
    """Return an image by its names and its file. Raises: ConflictError: its storage does not answer."""
    try:
        return await in_thread(limits.FILE_TIMEOUT_S, places.asked, image, paths=[image])
    except TimeoutError as error:
        raise ConflictError(f"{error}: ask by domain and disk instead") from None


# -- what runs in the threads -----------------------------------------------------------------------------------


def _pivots(
    reader: Reader, look: Callable[[Reader], Found[Pivot, str]], encode: Callable[[Pivot], T]
) -> tuple[list[T], str | None]:
    found, following = look(reader)
    return [encode(pivot) for pivot in found], following


def _named(reader: Reader, name: str, encode: Callable[[Pivot], T]) -> list[T]:
    return [encode(pivot) for pivot in reader.named(name, limits.PIVOTS_NAMED_MAX)]


def _pivot(reader: Reader, pivot: str) -> Pivot:
    return _found(reader.pivot(pivot), pivot)


def _shown(reader: Reader, encode: Callable[[Pivot, list[Record]], T], pivot: str) -> T:
    return encode(*_found(reader.with_records(pivot), pivot))


def _found(found: T | None, pivot: str) -> T:
    if found is None:
        raise NotFoundError(f"there is no pivot {pivot}; see `pivotctl pivot ls`", pivot=pivot)
    return found


def _numbered(reader: Reader, encode: Callable[[Record], T], after: int, limit: int) -> list[tuple[int, T]]:
    return [(record.seq, encode(record)) for record in reader.events(after, limit)]


def _records(
    chosen: EventFilter, reader: Reader, after: int | None, limit: int, encode: Callable[[Record], T]
) -> tuple[list[T], int | None]:
    found, following = reader.events_page(chosen, Place(limit, after, limits.RECORDS_EXAMINED_AT_ONCE))
    return [encode(record) for record in found], following


def _last_records(
    chosen: EventFilter, reader: Reader, before: int | None, limit: int, encode: Callable[[Record], T]
) -> tuple[list[T], int | None]:
    found, following = reader.last_events(chosen, Place(limit, before, limits.RECORDS_EXAMINED_AT_ONCE))
    return [encode(record) for record in found], following


def _changed(before: Sequence[Moved], now: Sequence[Moved]) -> set[Key]:
    """Return the disks of which the journal says something else."""
    known = [{(pivot.domain, disk.disk): (pivot, disk) for pivot, disk in one} for one in (before, now)]
    keys = known[0].keys() | known[1].keys()
    return {key for key in keys if state_of(known[0].get(key)) != state_of(known[1].get(key))}


def _images(
    reader: Reader, image: str, asked: Asked, verdicts: Mapping[Key, Verdict], last: Mapping[Key, Moved | None]
) -> tuple[list[ImageFound], set[Key]]:
    return reader.at_once(lambda: (images_found(reader, image, asked, verdicts), news(reader, last)))


def _obsolete(reader: Reader, encode: Callable[[ImageFound], T], after: str, limit: int) -> tuple[list[T], str | None]:
    found, following = obsolete(reader, after, limit)
    return [encode(one) for one in found], following


def _stats(reader: Reader, encode: Callable[[JournalStats], T]) -> T:
    return encode(stats(reader))


def _encoded(_reader: Reader, encode: Callable[[Verdict], T], part: Sequence[Verdict]) -> list[T]:
    return [encode(verdict) for verdict in part]
