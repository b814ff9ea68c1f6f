"""Verdicts of the journal, checked against what QEMU shows now."""

from __future__ import annotations

import asyncio
import os.path
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from pivotd import limits
from pivotd.core import verdict
from pivotd.core.fleet import FleetImage
from pivotd.core.image_names import describe, image_format, same_format, storable
from pivotd.core.observation import LEAVING, MIGRATION_STATES, NEVER_RAN
from pivotd.core.phases import is_decided
from pivotd.core.pivot import FileSeen, Image, Pivot, PivotDisk
from pivotd.core.verdict import Presence, Verdict
from pivotd.errors import QmpError
from pivotd.host import files, held, process
from pivotd.host.threads import in_thread, of_each
from pivotd.journal.changes import utc_now
from pivotd.qmp.blocks import DiskSeen
from pivotd.qmp.session import Session
from pivotd.qmp.whole_names import images_of

Key = tuple[str, str]
"""Domain and disk."""
Moved = tuple[Pivot, PivotDisk]
"""The last pivot of a disk, and the disk in it."""
Known = tuple[Image, files.Birth]
"""An image, and the birth of its file."""


class LiveVerdicts:
    """The journal's verdict on each disk, checked against QEMU. ``latest``: the last pivot of each disk."""

    def __init__(self, latest: Iterable[Moved]) -> None:
        self._last: dict[Key, Moved] = {(pivot.domain, disk.disk): (pivot, disk) for pivot, disk in latest}
        self._found: dict[Key, Verdict] = {key: verdict.of_pivot(*moved) for key, moved in self._last.items()}
        self.seen: dict[Key, str] = {}
        """Disks whose guest is in a QEMU that has the right image, and the last pivot of each."""
        self.left: set[str] = set()
        """Domains whose guest leaves its QEMU by a migration, or has left it."""
        self.unchecked: dict[str, str] = {}
        """Why of a domain only the journal's word is known: its QEMU, or its storage, does not answer."""
        self.shown: dict[Key, FleetImage] = {}
        """What the QEMUs use now whose guests neither arrive nor leave by a migration."""
        self.spoiled: frozenset[Key] = frozenset()
        """Disks of which a pivot of another disk has overwritten an image."""
        self.unsettled = False
        """The fleet is about to know who owns the guest: look again."""
        self.theirs: set[Key] = set()
        """Disks whose verdict is the fleet's: of their image, the journal knows no file."""
        self.astray: dict[Key, FleetImage] = {}
        """What the guest of a disk runs on, or may have run on, that is not the image of its last pivot, or, if another
        host has moved it since, not the fleet's.
        """
        self.by_fleet: set[Key] = set()
        """Those of ``astray`` whose guest is on the image of this journal, where the fleet names another, or has."""
        self.against: dict[Key, FleetImage | None] = {}
        """Disks of which this host is certain, and the fleet contradicts it, with the image that the fleet names."""
        self._ran: set[Key] = set()
        """Disks whose guests have run in the QEMUs that show them."""
        self.disks: dict[Key, DiskSeen] = {}
        """What the QEMUs have shown of their disks."""
        self._asked: set[str] = set()
        """Domains whose QEMU is connected."""
        self._strays: dict[Key, str] = {}
        """Why the name of the image that QEMU has, and that is the right one, leads to another file or to none."""
        self._files: dict[Key, FileSeen] = {}
        """The file of the right image on which a guest runs, where its name leads to it."""
        self._confirmed: set[Key] = set()
        """Disks that the pivot's own QEMU has shown: this QEMU lives, so no other one starts the guest."""

    async def all(self, sessions: Mapping[str, Session], disk: str | None = None) -> dict[Key, Verdict]:
        """Return the verdicts, sorted; of all disks or of those with this name. ``sessions``: the connected QEMUs."""
        self._asked = set(sessions)
        await asyncio.gather(*(self._check_domain(name, session) for name, session in sessions.items()))
        for key, (pivot, _) in self._last.items():
            if verdict.may_be_overtaken(pivot) and key not in self._confirmed:
                self._found[key] = verdict.provisional(self._found[key])
        now = utc_now()
        for key, (_, moved) in self._last.items():
            known = replace(moved, left_at=moved.left_at or now) if key[0] in self.left else moved
            if key not in self.seen:
                self._found[key] = verdict.doubtful(self._found[key], known)
        return {key: found for key, found in sorted(self._found.items()) if disk is None or key[1] == disk}

    def moved(self, key: Key) -> Moved | None:
        """Return the last pivot of a disk, None if the journal has none."""
        return self._last.get(key)

    def is_asked(self, domain: str) -> bool:
        """Return whether the QEMU of a domain has shown what it has."""
        return domain in self._asked and domain not in self.unchecked

    def runs_on(self, key: Key) -> int | None:
        """Return the process of the QEMU of the disk's last pivot if that has perhaps not ended."""
        if (moved := self._last.get(key)) is None:
            return None
        known = moved[0].identity
        return None if process.is_gone(known.pid, known.start_ticks, known.boot_id) else known.pid

    def has_run(self, key: Key) -> bool:
        """Return whether the guest of a disk has run in the QEMU that shows it, and neither arrives nor leaves."""
        return key in self._ran and key in self.shown

    def own(self, key: Key) -> bool:
        """Return whether a disk was moved, and QEMU shows it on the image that its last pivot names."""
        return key in self._last and key not in self.astray

    def hidden(self, domain: str) -> list[Moved]:
        """Return the last pivots of the disks of a domain that its QEMU does not show."""
        return [moved for key, moved in self._last.items() if key[0] == domain and key not in self.disks]

    def is_confirmed(self, key: Key) -> bool:
        """Return whether the QEMU of the disk's last pivot was seen."""
        return key in self._confirmed

    def contradicted_before(self, key: Key, known: Verdict) -> Verdict | None:
        """Return what is left of the verdict on a disk whose guest is on an image that the fleet has contradicted.

        That QEMU shows what the journal names does not end such a doubt. None: there is none.
        """
        moved, other = self._last.get(key), self.shown.get(key)
        if moved is None or other is None or (ran_on := moved[1].ran_on) is None:
            return None
        if not ran_on.by_fleet or FleetImage(ran_on.filename, ran_on.format) != other:
            return None
        return verdict.doubtful(known, moved[1])

    def contradict(self, key: Key, *, by_fleet: bool = False) -> None:
        """Note that what QEMU shows of a disk is not the image that holds its data, if its guest has ever run there."""
        if key in self._ran:
            self.astray[key] = self.shown[key]
            if by_fleet:
                self.by_fleet.add(key)

    def settled(self) -> list[Moved]:
        """Return the last pivot of each disk for which QEMU has just ended a doubt of the journal."""
        return [self._last[key] for key in self.seen if self._is_doubted(key) and key not in self.astray]

    def astray_of(self, domain: str) -> dict[str, tuple[Pivot, PivotDisk, FleetImage]]:
        """Return the disks of a domain, each with its last pivot, whose guest runs on another image, and that image.

        Not of a guest that has left this host since: it may be on an image to which another host has moved it, unless
        the fleet knows better.
        """
        return {
            key[1]: (*self._last[key], other)
            for key, other in self.astray.items()
            if key[0] == domain and key in self._last and (self._last[key][1].left_at is None or key in self.against)
        }

    def never_moved_astray(self, domain: str) -> dict[str, FleetImage]:
        """Return the disks of a domain, never moved on this host, whose guest runs elsewhere than the fleet says."""
        return {key[1]: other for key, other in self.astray.items() if key[0] == domain and key not in self._last}

    def news(self) -> set[str]:
        """Return the domains with a guest that runs on another image, of which the journal has no record."""
        return {
            domain
            for domain, _ in self.astray
            for _, moved, other in self.astray_of(domain).values()
            if moved.ran_on is None or FleetImage(moved.ran_on.filename, moved.ran_on.format) != other
        }

    def _is_doubted(self, key: Key) -> bool:
        moved = self._last[key][1]
        return moved.doubtful or moved.left_at is not None or moved.ran_on is not None

    async def with_files(self, found: Mapping[Key, Verdict]) -> dict[Key, Verdict]:
        """Return verdicts with what their images' names lead to now."""
        images = [self._right(key, one) for key, one in found.items()]
        looked = zip(found.items(), await _look(images), strict=True)
        checked = {key: one if seen is None else verdict.check_file(one, seen) for (key, one), seen in looked}
        for key, why in self._strays.items():
            if (one := checked.get(key)) is not None and one.certain:
                checked[key] = verdict.nameless(one, why)
        return checked

    def _right(self, key: Key, found: Verdict) -> Known | None:
        """Return the image of a verdict, None if there is none, or if QEMU was asked for its name just now."""
        moved = self._last.get(key)
        if key in self.theirs:
            return None if found.image is None else (Image(found.image, found.format or "", ""), files.UNKNOWN_BIRTH)
        if moved is None:
            return None
        pivot, disk = moved
        known, birth = files.last_seen(verdict.right_image(disk), pivot, disk)
        return (replace(known, filename=found.image), birth) if found.image is not None else (known, birth)

    def files_of(self, domain: str) -> list[tuple[Pivot, PivotDisk, FileSeen]]:
        """Return the last pivot of each disk of a domain whose file is another one than the journal has, and the file.

        QEMU has just been seen to run with that as the right image.
        """
        return [
            (*self._last[key], file)
            for key, file in self._files.items()
            if key[0] == domain and self._last[key][1].file_seen != file
        ]

    async def _check_domain(self, name: str, session: Session) -> None:
        try:
            run_state = await session.run_state()
            if run_state in LEAVING:
                self.left.add(name)
            for disk in (await session.disks()).values():
                await self._check_disk((name, disk.disk), disk, session, run_state)
        except QmpError as error:
            self.unchecked[name] = f"its QEMU does not answer ({error.message})"
        except TimeoutError as error:
            self.unchecked[name] = str(error)

    async def _check_disk(self, key: Key, disk: DiskSeen, session: Session, run_state: str) -> None:
        moved, is_here = self._last.get(key), run_state not in MIGRATION_STATES
        self.disks[key] = disk
        if is_here and run_state != NEVER_RAN:
            self._ran.add(key)
        if moved is None:
            live = verdict.Live((await image_names(disk, session))[0], format_of(disk))
            found = verdict.without_pivot(*key, live)
            if is_here:
                self.shown[key] = FleetImage(storable(live.image), live.format)
            stray = await in_thread(limits.FILE_TIMEOUT_S, _astray, live.image, disk, session.pid, paths=[live.image])
            self._found[key] = found if stray is None else verdict.nameless(found, stray)
        else:
            paths = [*(layer.filename for layer in disk.layers), verdict.right_image(moved[1]).filename]
            live, stray, file = await in_thread(limits.FILE_TIMEOUT_S, _checked, disk, moved, session, paths=paths)
            if stray is not None:
                self._strays[key] = stray
            if file is not None and is_here and run_state != NEVER_RAN:
                self._files[key] = file
            known = self._found[key]
            self._found[key] = verdict.check(known, live, decided=is_decided(moved[0]))
            if is_here:
                self.shown[key] = FleetImage(storable(live.image), live.format)
                if self._found[key].outcome is not known.outcome:
                    self.contradict(key)
            if live.is_right and is_here and (run_state != NEVER_RAN or moved[1].ran_on is None):
                self.seen[key] = moved[0].id
            if live.same_qemu:
                self._confirmed.add(key)


async def image_names(disk: DiskSeen, session: Session) -> list[str]:
    """Return the complete names of a disk's images, the active one first; QEMU's own if the storage does not answer."""
    shown = [layer.filename for layer in disk.layers]
    directory = process.working_directory(session.pid)
    try:
        found = await in_thread(limits.FILE_TIMEOUT_S, images_of, disk.layers, directory, paths=shown)
    except TimeoutError:
        return shown
    return [image.filename for image in found]


def _astray(image: str, disk: DiskSeen, pid: int) -> str | None:
    """Return why the name of an image certainly does not lead to what QEMU has open, None if nothing shows that."""
    has, data = held.look(pid), disk.layers[0].data_file
    found = held.astray(image, has)
    if found is None and data is not None:
        found = held.data_astray(data, process.working_directory(pid), has)
    return None if found is None or found.unseen else found.why


def _checked(disk: DiskSeen, last: Moved, session: Session) -> tuple[verdict.Live, str | None, FileSeen | None]:
    """Return how QEMU's image stands to the last pivot, and of the right one why its name leads elsewhere, or its file.

    The file only where QEMU certainly has it.
    """
    live, has = _live(disk, last, session), held.look(session.pid)
    right = verdict.right_image(last[1])
    known, _ = files.last_seen(right, *last)
    name = known.filename
    held_still = known.file_id is not None and known.file_id in (has.opened or ())
    held_still = held_still and same_format(right.format, live.format)
    if live.image == name and held_still and files.file_id(name) != known.file_id:
        live = replace(live, is_right=True)  # its name leads elsewhere by now
    if not live.is_right or live.renamed:
        return live, None, None
    found = held.astray(name, has)
    if found is None:
        file = None if has.opened is None else files.seen_now(name)
        return live, None, file if file is not None and file.file_id in (has.opened or ()) else None
    return live, None if found.unseen or found.fleeting else found.why, None


def _live(disk: DiskSeen, last: Moved, session: Session) -> verdict.Live:
    pivot, moved = last
    known = pivot.identity
    same = (known.pid, known.start_ticks, known.boot_id) == (
        session.pid,
        process.start_ticks(session.pid),
        process.boot_id(),
    )
    right = verdict.right_image(moved)
    directory = process.working_directory(session.pid)
    file = files.resolve(disk.filename, directory)
    shown = format_of(disk)
    is_file = same_format(right.format, shown) and _is(right, pivot, moved, file)
    return verdict.Live(
        image=images_of(disk.layers, directory)[0].filename,
        format=shown,
        same_qemu=same,
        is_right=is_file or (same and disk.node == right.node and not _is_another(right, file)),
        is_destination=same and disk.node == moved.destination.node,
        renamed=files.renamed(right, pivot, file),
    )


def _is_another(image: Image, file: files.File) -> bool:
    """Return whether QEMU certainly has another file below a node than the image's: a client may exchange that."""
    known = describe(image.filename).path
    if file.path is None or known is None or os.path.normpath(known) == os.path.normpath(file.path):
        return False
    return None not in {image.file_id, file.file_id} and image.file_id != file.file_id


def format_of(disk: DiskSeen) -> str:
    """Return the format of a disk's image, below filters; QEMU shows a filter as an image above its own."""
    return image_format([disk.format, *(layer.format for layer in disk.layers)]) or disk.format


def _is(image: Image, pivot: Pivot, disk: PivotDisk, file: files.File) -> bool:
    """Return whether a file that QEMU has open is an image of a pivot: by name and number, by a link, or renamed."""
    if file.path is None:
        return False
    known, birth = files.last_seen(image, pivot, disk)
    if files.born_otherwise(file.path, birth):
        return False
    if os.path.normpath(describe(known.filename).text) == os.path.normpath(file.path):
        return None in {known.file_id, file.file_id} or known.file_id == file.file_id
    linked = file.file_id is not None and files.file_id(known.filename) == file.file_id
    return linked or files.renamed(image, pivot, file)


async def _look(images: Sequence[Known | None]) -> list[Presence | None]:
    """Return what the names of images lead to; one hanging storage costs only the images on it."""
    names = {known: known[0].filename for known in images if known is not None}
    found, _ = await of_each(limits.OTHERS_FILE_TIMEOUT_S, _presence, names)
    return [None if known is None else found.get(known, Presence.UNSEEN) for known in images]


def _presence(known: Known) -> Presence | None:
    return files.presence(known[0], sees_all=False, birth=known[1])
