"""Answers from the journal alone: the same types as the daemon's, without the facts that only the daemon sees."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections import defaultdict
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path

import msgspec

from pivotd import limits
from pivotd.cli.offline_fleet import OfflineFleet
from pivotd.client import DomainView, ImageVerdict, JournalStats, Pivot, PivotWithRecords, Record, Verdict, shown
from pivotd.config import load
from pivotd.core import pivot as core
from pivotd.core import verdict
from pivotd.core.list_filters import EVERY_EVENT, EventFilter, PivotFilter
from pivotd.core.names import no_domain
from pivotd.core.overwritten import doubted
from pivotd.core.pivot import Image, Phase
from pivotd.core.request import Manager
from pivotd.core.rules.fleet_local import DiskHere
from pivotd.core.standing import Finding, ImageFound, Moved
from pivotd.errors import ConfigError, NotFoundError
from pivotd.host import files, places, process
from pivotd.host.backing import BlindError
from pivotd.host.threads import in_thread
from pivotd.journal import images, lock, schema
from pivotd.journal.images import Key, images_found, obsolete, with_lower
from pivotd.journal.reader import Reader
from pivotd.journal.search import Place
from pivotd.journal.stats import stats
from pivotd.libvirt import qemu_process
from pivotd.planning import lower_images

UNSEEN = "read from the journal alone"
LOOKS_MAX = 3
"""A record of the daemon between the reads of one answer makes them of two moments: read again."""


class OfflineJournal:
    """The methods of client.Client that the journal alone can answer.

    Raises: NotFoundError, JournalError and its subclasses.
    """

    def __init__(self, state_dir: str) -> None:
        self.path = state_dir
        self._reader = Reader.offline(Path(state_dir))

    @cached_property
    def fleet(self) -> OfflineFleet:
        """Return the fleet of this host."""
        return OfflineFleet()

    def close(self) -> None:
        """Remove the private copy, if one was made."""
        self._reader.close()

    def domains(self) -> list[DomainView]:
        """Return the domains added at run time, and those that have pivots."""
        known: dict[str, tuple[str, str | None]] = {
            row.name: (row.qmp_path, "runtime") for row in self._reader.domains()
        }
        managers: dict[str, str] = {}
        open_pivots: defaultdict[str, list[str]] = defaultdict(list)
        for pivot, _ in self._reader.every_latest():
            known.setdefault(pivot.domain, (pivot.qmp, None))
            managers[pivot.domain] = pivot.manager.value
            # An open pivot is the last one of each of its disks.
            if not pivot.closed_at and pivot.id not in open_pivots[pivot.domain]:
                open_pivots[pivot.domain].append(pivot.id)
        return [
            DomainView(
                name,
                qmp,
                origin,
                None,
                UNSEEN,
                manager="libvirt" if managers.get(name) == "libvirt" else "pivotd",
                open_pivots=tuple(open_pivots[name]),
            )
            for name, (qmp, origin) in sorted(known.items())
        ]

    def pivots(  # noqa: PLR0913 - as many as the journal can be asked for
        self,
        domain: str | None = None,
        *,
        open_only: bool = False,
        kind: str | None = None,
        outcome: str | None = None,
        since: str | None = None,
        limit: int,
    ) -> Iterator[Pivot]:
        """Yield pivots, newest first."""
        chosen = PivotFilter(domain, open_only, kind, outcome, since)
        before: str | None = None
        while limit > 0:
            size = min(limits.PIVOTS_LISTED, limit)
            examined = size if chosen.indexed else limits.PIVOTS_EXAMINED_MAX
            found, before = self._reader.pivots_page(chosen, Place(size, before, examined))
            yield from map(shown.pivot, found)
            limit -= len(found)
            if before is None:
                return

    def pivot_count(self, domain: str | None = None, *, open_only: bool = False) -> int:
        """Return how many pivots there are."""
        return self._reader.count(PivotFilter(domain, open_only))

    def pivots_named(self, name: str) -> list[Pivot]:
        """Return the pivot with this id or request id; else those whose ids begin so, at most eleven."""
        return [shown.pivot(pivot) for pivot in self._reader.named(name, limits.PIVOTS_NAMED_MAX)]

    def pivot(self, pivot: str) -> PivotWithRecords:
        """Return one pivot with its records."""
        found = self._reader.with_records(pivot)
        if found is None:
            raise NotFoundError(f"the journal in {self.path} holds no pivot {pivot}", pivot=pivot)
        return shown.pivot_with_records(*found)

    def verdicts(self, domain: str | None = None, disk: str | None = None, *, local: bool = False) -> list[Verdict]:
        """Return the journal's verdicts on the requested disks, checked against their files.

        In a fleet one is certain only if the fleet has agreed. ``local``: or if it does not answer.
        """
        latest = list(self._reader.every_latest(domain, disk))
        found = self._verdicts(latest)
        if domain is not None and disk is not None and not found:
            mark = self._reader.overwritten().get((domain, disk))
            found = {(domain, disk): doubted(verdict.without_pivot(domain, disk), mark)}
        if self.fleet.may_be:
            found = self._in_fleet(found, latest, domain, every=disk is None, local=local)
        return [shown.verdict(one) for one in found.values()]

    def check_known(self, domain: str) -> None:
        """Raises: NotFoundError: neither the journal nor the configuration of this host has heard of a domain."""
        if any(row.name == domain for row in self._reader.domains()) or self._reader.latest(domain, limit=1):
            return
        with contextlib.suppress(ConfigError):
            if domain in load().domains:
                return
        if self.fleet.knows(domain):
            return
        raise NotFoundError(no_domain(domain, (row.name for row in self.domains())), domain=domain)

    def _verdicts(self, latest: Iterable[Moved]) -> dict[Key, verdict.Verdict]:
        found, beside_daemon = {}, self._reader.beside_daemon  # when these were read
        elsewhere = self._reader.is_copy()
        marks = self._reader.overwritten()
        for pivot, moved in latest:
            one = verdict.of_pivot(pivot, moved)
            if beside_daemon and verdict.may_be_overtaken(pivot):
                one = verdict.provisional(one)
            one = verdict.doubtful(one, moved, is_copy=elsewhere)
            one = doubted(one, marks.get((pivot.domain, moved.disk)))
            image, birth = files.last_seen(verdict.right_image(moved), pivot, moved)
            there = files.presence(image, sees_all=True, birth=birth)
            found[pivot.domain, moved.disk] = verdict.check_file(one, there)
        return found

    def _in_fleet(
        self,
        found: dict[Key, verdict.Verdict],
        latest: Iterable[Moved],
        domain: str | None = None,
        *,
        every: bool = False,
        local: bool,
    ) -> dict[Key, verdict.Verdict]:
        """Return the verdicts on these last pivots of disks together with the fleet's word.

        ``every``: with the disks of the domain that only the fleet knows.
        """
        last = {(pivot.domain, moved.disk): (pivot, moved) for pivot, moved in latest}
        of_domain: dict[str, list[DiskHere]] = {} if domain is None else {domain: []}
        marks, alive = self._reader.overwritten(), dict[str, bool]()
        for key, one in found.items():
            name, moved = key[0], last.get(key)
            driven = False
            if moved is not None and moved[0].phase is not Phase.CLOSED:
                if name not in alive:
                    alive[name] = self.beside_daemon or self.running(name) is not None
                driven = alive[name]
            left = moved is not None and moved[1].left_at is not None
            here = DiskHere(one, moved, left=left, driven=driven, spoiled=key in marks)
            of_domain.setdefault(name, []).append(here)
        said = self.fleet.together(of_domain, every=every and domain is not None, local=local)
        return {(one.domain, one.disk): _found(one, found.get((one.domain, one.disk))) for one in said}

    @property
    def beside_daemon(self) -> bool:
        """Whether a daemon has the journal."""
        return self._reader.beside_daemon

    @property
    def is_taken(self) -> bool:
        """Whether a daemon has taken the journal since a look: a private copy may be older than its work."""
        path = self._reader.path
        return not self.beside_daemon and path.name == schema.FILE_NAME and lock.is_owned(path)

    def running(self, domain: str) -> str | None:
        """Return one sentence if QEMU of a domain runs, or if nobody can tell; else None.

        Beside a daemon, nothing takes a monitor from it. Whether it can ask that QEMU, its journal does not tell.
        """
        for pivot, _ in self._reader.every_latest(domain):
            known = pivot.identity
            if not process.is_gone(known.pid, known.start_ticks, known.boot_id):
                return f"its QEMU runs (process {known.pid})"
            if pivot.manager is Manager.LIBVIRT and (pid := qemu_process.of_pivot(pivot)) is not None:
                return f"its QEMU runs (process {pid})"
        if self.beside_daemon:
            here = next(filter(process.listens, self._monitors(domain)), None)
            return None if here is None else f"its QEMU runs: it listens at {here}"
        return next((said for path in self._monitors(domain) if (said := _listens(path)) is not None), None)

    def _monitors(self, domain: str) -> list[str]:
        monitors = {row.qmp_path for row in self._reader.domains() if row.name == domain}
        with contextlib.suppress(ConfigError):
            monitors |= {str(path) for name, path in load().domains.items() if name == domain}
        return sorted(monitors | {pivot.qmp for pivot, _ in self._reader.every_latest(domain)})

    def image(self, image: str) -> list[ImageVerdict]:
        """Return what history says of one image, for each disk that has or had it; empty: never seen."""
        for _ in range(LOOKS_MAX):
            found, changed = self._image(image)
            if not changed:
                break
        return [shown.image(one) for one in images.overtaken(found, changed)]

    def _image(self, image: str) -> tuple[list[ImageFound], set[Key]]:
        """Return the same once, and the disks on which a daemon has recorded something meanwhile."""
        asked, place = places.asked(image), places.of(image)
        had = {(pivot.domain, disk.disk) for pivot, disk in self._reader.image(asked.names, asked.file_ids)}
        chains = asyncio.run(self._in_chains(place))
        keys = sorted(had | chains)
        latest = [one for key in keys for one in self._reader.latest(*key, limit=1)]
        verdicts = self._verdicts(latest)
        lower = dict[Key, Finding]()
        for key in sorted(chains):
            with contextlib.suppress(BlindError):
                if (finding := lower_images.by_headers(place, verdicts[key])) is not None:
                    lower[key] = finding
        if self.fleet.may_be:
            verdicts = self._in_fleet(verdicts, latest, local=False)

        last = {(pivot.domain, disk.disk): (pivot, disk) for pivot, disk in latest}

        def look() -> tuple[list[ImageFound], set[Key]]:
            found = images_found(self._reader, image, asked, verdicts, _is_gone)
            return with_lower(found, image, lower, verdicts), images.news(self._reader, last)

        return self._reader.at_once(look)

    async def _in_chains(self, place: places.Place) -> set[Key]:
        """Return the disks whose right images lie on a file; the storage of other guests may hang, and is left out."""
        latest = list(self._reader.every_latest())
        found: set[Key] = set()
        for first in range(0, len(latest), limits.FILES_AT_ONCE):
            part = [verdict.of_pivot(*one) for one in latest[first : first + limits.FILES_AT_ONCE]]
            looks = await asyncio.gather(*(_lies_on(place, one) for one in part))
            found |= {(one.domain, one.disk) for one, lies in zip(part, looks, strict=True) if lies}
        return found

    def obsolete(self) -> Iterator[ImageVerdict]:
        """Yield every image that no disk of the journal needs any more, by name."""
        after: str | None = ""
        while after is not None:
            found, after = obsolete(self._reader, after, limits.PIVOTS_LISTED)
            yield from map(shown.image, found)

    def events(
        self, after: int, *, domain: str | None = None, event: str | None = None, since: str | None = None
    ) -> Iterator[Record]:
        """Yield every existing record with seq > after."""
        chosen, place = EventFilter(domain, event, since), after
        while True:
            examined = limits.EVENTS_PAGE_MAX if chosen == EVERY_EVENT else limits.RECORDS_EXAMINED_MAX
            found, following = self._reader.events_page(chosen, Place(limits.EVENTS_PAGE_MAX, place, examined))
            yield from msgspec.convert(found, list[Record], from_attributes=True)
            if following is None:
                return
            place = following

    def last_events(
        self, limit: int, *, domain: str | None = None, event: str | None = None, since: str | None = None
    ) -> list[Record]:
        """Return the last ``limit`` records, oldest first."""
        chosen, before, newest_first = EventFilter(domain, event, since), None, list[core.Record]()
        while len(newest_first) < limit:
            wanted = min(limits.EVENTS_PAGE_MAX, limit - len(newest_first))
            found, before = self._reader.last_events(chosen, Place(wanted, before, limits.RECORDS_EXAMINED_MAX))
            newest_first += found
            if before is None:
                break
        return msgspec.convert(newest_first[::-1], list[Record], from_attributes=True)

    def journal_stats(self) -> JournalStats:
        """Return how large the journal and its archives are."""
        return stats(self._reader)


def _found(said: verdict.Verdict, before: verdict.Verdict | None) -> verdict.Verdict:
    """Return a verdict after a look at its image, where that is another one than the journal's."""
    if said.image is None or (before is not None and said.image == before.image):
        return said
    return verdict.check_file(said, files.presence(Image(said.image, said.format or "", ""), sees_all=True))


async def _lies_on(place: places.Place, one: verdict.Verdict) -> bool:
    paths = [] if one.image is None else [one.image]
    try:
        found = await in_thread(limits.OTHERS_FILE_TIMEOUT_S, lower_images.by_headers, place, one, paths=paths)
    except (BlindError, TimeoutError):
        return False
    return found is not None


def _is_gone(pivot: core.Pivot) -> bool:
    known = pivot.identity
    return process.is_gone(known.pid, known.start_ticks, known.boot_id)


def _listens(path: str) -> str | None:
    """Return one sentence if something answers at a monitor's path, or if this user may not try."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(limits.CONNECT_TIMEOUT_S)
        try:
            client.connect(path)
        except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError):
            return None
        except OSError as error:
            return f"nobody can tell whether its QEMU runs: {path}: {error.strerror or error}"
    return f"its QEMU runs: it listens at {path}"
