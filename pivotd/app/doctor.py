"""The part of `pivotctl doctor` that only the daemon can tell: as its own user, in its own sandbox, on its monitors.

Every look is bounded. What could not be seen in time is a finding of its own, never a check that has passed.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import fields
from datetime import UTC, datetime

from pivotd import __version__, limits
from pivotd.app import guest_checks, image_checks
from pivotd.app.domains import Domains
from pivotd.app.fleet_service import FleetService
from pivotd.app.guest_checks import Looked
from pivotd.app.reads import Reads
from pivotd.app.registry import Host
from pivotd.app.retention import Retention
from pivotd.app.shared_answer import SharedAnswer
from pivotd.client import checks, shown
from pivotd.client.answers import DoctorArea, DoctorFinding, DoctorReport, FleetStatus, Health
from pivotd.config import Config, load
from pivotd.core.phases import is_decided
from pivotd.core.pivot import FleetStage, Phase
from pivotd.core.request import Manager
from pivotd.core.verdict import right_image
from pivotd.errors import ConflictError, DomainUnreachableError, PivotdError
from pivotd.host import threads
from pivotd.journal.journal import Journal

Found = list[DoctorFinding]
AGAIN = "run `pivotctl doctor` again; if it stays, see `journalctl -u pivotd`"


class Doctor:
    """Looks at everything that the daemon has; changes nothing, and waits while a guest is in its pause."""

    def __init__(  # noqa: PLR0913, PLR0917 - the parts of the daemon that it looks at
        self,
        config: Callable[[], Config],
        host: Host,
        journal: Journal,
        reads: Reads,
        domains: Domains,
        fleet: FleetService,
        health: Callable[[], Health],
        retention: Retention,
    ) -> None:
        self._config, self._host, self._journal, self._reads = config, host, journal, reads
        self._domains, self._fleet, self._health, self._retention = domains, fleet, health, retention
        self._shared = SharedAnswer(self._look)

    async def report(self) -> DoctorReport:
        """Return what is wrong, by area; who asks at once shares a report. Raises: TooBusyError: too many wait."""
        return await self._shared.get()

    async def _look(self) -> DoctorReport:
        """Return what is wrong now."""
        deadline = asyncio.get_running_loop().time() + limits.DOCTOR_S
        await self._journal.look_for_names()
        looked, verdicts, libvirt, fleet, loaded = await asyncio.gather(
            self._guests(deadline),
            _bounded(checks.VERDICT_CHECKS, self._of_verdicts(), deadline),
            _bounded(("libvirt-disagrees",), self._of_libvirt(), deadline),
            _bounded(checks.of_area("fleet"), self._of_fleet(), deadline),
            _bounded(("config-not-loaded",), self._of_configuration(), deadline),
        )
        stale = await _bounded(("stale-image",), self._of_images(looked), deadline)
        astray = {one.subject for each in looked.values() for one in each.findings if one.check == "image-astray"}
        verdicts = [one for one in verdicts if one.subject not in astray]  # the same, said twice
        areas = [
            DoctorArea("configuration", _by(), "", ("config-not-loaded",), tuple(loaded)),
            DoctorArea("journal", _by(), "", ("journal-failing",), (*self._of_journal(), *self._not_archived())),
            self._pivots(),
            DoctorArea("verdicts", _by(), "every disk of the journal", checks.VERDICT_CHECKS, tuple(verdicts)),
            *self._of_guests(looked, stale),
        ]
        config = self._config()
        if config.libvirt.uri is not None:
            made = ("libvirt-unreachable", "libvirt-disagrees")
            areas.append(DoctorArea("libvirt", _by(), config.libvirt.uri, made, (*libvirt, *self._left_out())))
        if config.fleet.endpoints:
            looked_at = ", ".join(config.fleet.endpoints)
            areas.append(DoctorArea("fleet", _by(), looked_at, checks.of_area("fleet"), tuple(fleet)))
        files = tuple(map(str, config.files))
        return DoctorReport(__version__, files, str(self._journal.path), tuple(areas))

    # -- guests and their disks

    async def _guests(self, deadline: float) -> dict[str, Looked]:
        turns, guests = asyncio.Semaphore(limits.DOCTOR_AT_ONCE), asyncio.Semaphore(limits.DOCTOR_GUESTS_AT_ONCE)
        names = sorted(self._host.supervisors)

        async def look(name: str) -> Looked:
            try:
                async with asyncio.timeout_at(deadline), guests:
                    async with self._reads.door:
                        await asyncio.sleep(0)  # one at a time, and none while a guest is in its pause
                    supervisor = self._host.supervisors.get(name)
                    # One that was forgotten meanwhile has no trouble.
                    return Looked() if supervisor is None else await guest_checks.look(supervisor, turns)
            except (TimeoutError, PivotdError) as error:
                why = error.message if isinstance(error, PivotdError) else f"no answer within {limits.DOCTOR_S:.0f} s"
                made = (*checks.of_area("guests"), *checks.OF_DISK)
                return Looked([checks.unseen(made, name, why, AGAIN)])

        return dict(zip(names, await asyncio.gather(*map(look, names)), strict=True))

    def _of_guests(self, looked: dict[str, Looked], stale: Found) -> Iterable[DoctorArea]:
        every: Found = [finding for one in looked.values() for finding in one.findings] + stale
        rooms = {device: room for one in looked.values() for device, room in one.rooms.items()}
        every += image_checks.of_rooms(rooms.values())
        every += [
            checks.found("monitor-skipped", one.qmp, one.reason, "correct the configuration, or `pivotctl domain rm`")
            for one in self._health().domains.skipped
            if one.qmp not in self._libvirts()
        ]
        off = sum(one.off for one in looked.values())
        guests = f"{_many(len(looked), 'domain')}{f', {off} off' if off else ''}"
        disks = _many(sum(one.disks for one in looked.values()), "disk")
        notes = tuple(guest_checks.versions(looked.values()))
        for area, what, told in (("guests", guests, notes), ("disks", disks, ())):
            made = checks.of_area(area) if looked else ()
            yield DoctorArea(area, _by(), what, made, tuple(_of_area(every, area)), told)
        others = [one for one in every if checks.CHECKS[one.check].area not in {"guests", "disks"}]
        for area in dict.fromkeys(checks.CHECKS[one.check].area for one in others):
            yield DoctorArea(area, _by(), guests, (), tuple(_of_area(others, area)))

    async def _of_images(self, looked: dict[str, Looked]) -> Found:
        """Return guests on an image that is stale for another disk, and right for none of their own."""
        found: Found = []
        for name in looked:
            supervisor = self._host.supervisors.get(name)
            session = None if supervisor is None else supervisor.session
            if supervisor is None or session is None or session.shown is None or supervisor.window.locked():
                continue
            for disk, seen in sorted(session.shown.disks.items()):
                standings = await self._reads.standings(seen.filename)
                own = any((one.verdict.domain, one.verdict.disk) == (name, disk) for one in standings)
                if own or disk in supervisor.alarms:
                    continue
                _, left = await self._reads.left_by(seen.filename)
                for (pivot, moved), finding in left:
                    whose = f"{pivot.domain} {moved.disk}"
                    what = f"it runs on {seen.filename}, which is {finding.standing} for {whose}: {finding.why}"
                    remedy = f"if it is meant to be {whose}, stop it and start it on {right_image(moved).filename}"
                    found.append(checks.found("stale-image", f"{name} {disk}", what, remedy))
        return found

    # -- the rest

    def _of_journal(self) -> tuple[DoctorFinding, ...]:
        if self._journal.healthy:
            return ()
        remedy = "make room, or mend the storage of the state directory: nothing new starts until a record is written"
        what = "the last record could not be written"
        if self._journal.lost is not None:
            what, remedy = self._journal.lost, "docs/journal.md, under Durability: nothing new starts until then"
        return (checks.found("journal-failing", str(self._journal.path), what, remedy),)

    def _not_archived(self) -> Iterator[DoctorFinding]:
        remedy = "mend that; then `pivotctl journal archive`, or wait: pivotd tries again by itself"
        for obstacle in self._retention.obstacles:
            what = f"old pivots stay in the journal: {obstacle}"
            yield checks.found("journal-archive", None, what, remedy, severity=checks.WARNING)

    def _pivots(self) -> DoctorArea:
        health = self._health().domains
        found: Found = []
        for one in health.failing:
            remedy = f"mend what it says; pivotd tries again by itself, or `pivotctl pivot cancel {one.pivot}`"
            found.append(checks.found("pivot-fails", f"{one.domain}, pivot {one.pivot}", one.reason, remedy))
        for pivot in health.pivots_without_driver:
            what, remedy = "it is open, and nobody drives it", "`systemctl restart pivotd`, and report this"
            found.append(checks.found("pivot-fails", f"pivot {pivot}", what, remedy))
        for domain in health.silent_with_open_pivots:
            why = self._host.supervisors[domain].detail
            remedy = "see whether its QEMU lives; pivotd decides nothing until it answers or has ended"
            found.append(checks.found("qemu-silent", domain, why, remedy))
        drivers = self._host.drivers()
        for pivot, driver in sorted(drivers.items()):
            known = driver.pivot
            since_s = _seconds_since(known.created_at)
            if known.phase is Phase.READY and known.hold and since_s > checks.DAY_S:
                what = f"it waits at ready since {known.created_at[:16]}, and copies every write meanwhile"
                remedy = f"`pivotctl pivot complete {pivot}`, or `pivot cancel {pivot}`"
                found.append(checks.found("pivot-waits", f"{known.domain}, pivot {pivot}", what, remedy))
        return DoctorArea("pivots", _by(), _many(len(drivers), "open pivot"), checks.of_area("pivots"), tuple(found))

    async def _of_verdicts(self) -> Found:
        verdicts = await self._reads.verdicts(None, None, shown.verdict)
        alarmed = {(s.name, disk) for s in self._host.supervisors.values() for disk in s.alarms}
        found = [checks.of_verdict(one) for one in verdicts if (one.domain, one.disk) not in alarmed]
        return [one for one in found if one is not None]

    async def _of_configuration(self) -> Found:
        used = self._config()
        if not used.files:
            return []
        path = str(used.files[0])
        try:
            new = await threads.in_thread(limits.FILE_TIMEOUT_S, load, used.files[0], paths=[path])
        except PivotdError as error:
            remedy = "correct it before pivotd is restarted: it would not start"
            return [checks.found("config-not-loaded", path, error.message, remedy, severity=checks.ERROR)]
        if new == used:
            return []
        changed = [name for name in _SECTIONS if getattr(new, name) != getattr(used, name)]
        restart = {"state_dir", "socket", "libvirt", "fleet"}.intersection(changed)
        remedy = f"`systemctl {'restart' if restart else 'reload'} pivotd`"
        what = f"the daemon runs with other values than the files have now: {', '.join(changed)}"
        return [checks.found("config-not-loaded", path, what, remedy)]

    # -- libvirt and the fleet

    def _libvirts(self) -> dict[str, str]:
        return {**self._host.libvirts_left_out, **dict(self._host.libvirts_unusable.values())}

    def _left_out(self) -> Found:
        remedy = "docs/libvirt.md says what pivotd needs of it; it looks again by itself"
        return [checks.found("libvirt-unreachable", *row, remedy) for row in self._host.libvirts_left_out.items()]

    async def _of_libvirt(self) -> Found:
        found: Found = []
        for name, supervisor in sorted(self._host.supervisors.items()):
            if supervisor.manager is not Manager.LIBVIRT or supervisor.session is None:
                continue
            busy = {disk.disk for driver in supervisor.drivers.values() for disk in driver.pivot.disks}
            try:
                views = await self._domains.disks(name)
            except (DomainUnreachableError, PivotdError) as error:
                found.append(checks.unseen(("libvirt-disagrees",), name, error.message, AGAIN))
                continue
            for view in views:
                believed = view.libvirt
                if believed is not None and not believed.agree and view.disk not in busy:
                    following = believed.next if believed.persistent else "none"
                    what = f"QEMU has {view.image}, libvirt's definition {believed.live}, its next boot {following}"
                    remedy = "docs/libvirt.md, after a crash: the hook repairs it when libvirtd starts again"
                    found.append(checks.found("libvirt-disagrees", f"{name} {view.disk}", what, remedy))
        return found

    async def _of_fleet(self) -> Found:
        try:
            status = await self._fleet.status(lambda status: status)
        except ConflictError:
            return []
        found = of_status(status, self._host.drivers())
        for pivot, driver in sorted(self._host.drivers().items()):
            known = driver.pivot
            if known.fleet is FleetStage.ANNOUNCED and is_decided(known):
                what = "its outcome is in this host's journal, and the fleet has not confirmed it"
                remedy = "see that etcd answers: pivotd tells it by itself; until then, another host calls it unknown"
                found.append(checks.found("fleet-undecided", f"{known.domain}, pivot {pivot}", what, remedy))
        return found


_SECTIONS = tuple(one.name for one in fields(Config) if one.compare)


def of_status(status: FleetStatus, driven: Collection[str]) -> Found:
    """Return what is wrong with the fleet; pivots that are ``driven`` here are not decided yet, which is no fault."""
    if not status.quorum:
        remedy = "bring up a majority of its nodes: `pivotctl fleet status`"
        also = ("fleet-node", "fleet-undecided")
        return [checks.found("fleet-silent", None, str(status.error), remedy, also=also)]
    found = [
        checks.found("fleet-node", node.endpoint, node.error, "mend that node: one more lost may be a majority")
        for node in status.nodes
        if node.error is not None
    ]
    for one in (one for one in status.undecided if one.pivot not in driven):
        what = f"pivot {one.pivot} was announced by {one.host}, and its outcome is not known ({one.on_silence})"
        remedy = f"start pivotd on {one.host}, or if that host is lost, `pivotctl fleet take {one.domain} --fenced`"
        found.append(checks.found("fleet-undecided", one.domain, what, remedy, severity=checks.WARNING))
    return found


async def _bounded(made: Sequence[str], work: Awaitable[Found], deadline: float) -> Found:
    """Return what work has found, or that these checks could not be made in time."""
    try:
        async with asyncio.timeout_at(deadline):
            return await work
    except TimeoutError as error:
        return [checks.unseen(made, None, str(error) or f"no answer within {limits.DOCTOR_S:.0f} s", AGAIN)]
    except PivotdError as error:
        return [checks.unseen(made, None, error.message, AGAIN)]


def _of_area(findings: Iterable[DoctorFinding], area: str) -> Iterable[DoctorFinding]:
    return (one for one in findings if checks.CHECKS[one.check].area == area)


def _by() -> str:
    """Return as whom this process looks."""
    return f"pivotd as uid {os.geteuid()}, in its own namespace"


def _many(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _seconds_since(at: str) -> float:
    """Return how long ago a time of the journal was by the clock, which may have been set since."""
    return (datetime.now(UTC) - datetime.fromisoformat(at)).total_seconds()
