"""Refuses to write to what other disks need: the right image of one, an image below it, an image that QEMU has open."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

from pivotd import limits
from pivotd.app.registry import Host
from pivotd.core import known_chain
from pivotd.core.overwritten import Overwritten
from pivotd.core.pivot import Image, JsonObject, Pivot, PivotDisk
from pivotd.core.standing import ImageFound, Standing
from pivotd.core.verdict import right_image
from pivotd.errors import BadRequestError, ConflictError, PivotdError
from pivotd.host import files, process
from pivotd.host.backing import Below, BlindError
from pivotd.host.threads import in_thread
from pivotd.planning import needed_images
from pivotd.planning.needed_images import Holder, Process, Wanted
from pivotd.qmp.blocks import Blocks
from pivotd.qmp.session import Session

Key = tuple[str, str]
"""Domain and disk."""
Moved = tuple[Pivot, PivotDisk]
"""A pivot, and one of its disks."""
NEEDED = {
    Standing.CURRENT: "is the right image of",
    Standing.BASE: "lies below the right image of",
    Standing.IN_SYNC: "is kept in sync for",
    Standing.DESTINATION: "is being written for",
    Standing.UNKNOWN: "may be the right image of",
}
ROUNDS_MAX = 3
"""A domain that is connected meanwhile may have the image open: look again."""


class History(Protocol):
    """What these checks need of the journal; app.reads.Reads has it."""

    async def known(self, pivot: str) -> Pivot | None:
        """Return one pivot by its id or its request id."""
        ...

    async def latest(self, domain: str | None, disk: str | None = None) -> list[Moved]:
        """Return the last pivot of each disk with its entry for the disk."""
        ...

    async def standings(self, image: str) -> list[ImageFound]:
        """Return how an image stands to each disk that has ever had it, by the journal alone."""
        ...

    async def overwritten(self) -> dict[Key, Overwritten]:
        """Return the disks whose image a pivot of another one overwrites, or has moved on from."""
        ...

    async def had(self, image: str) -> list[Moved]:
        """Return every pivot that had an image of this name, the newest first; none if several disks had it."""
        ...


@dataclass(slots=True)
class Found:
    """What stands against a pivot: disks that need its images, and sentences on what cannot be seen."""

    holders: list[Holder] = field(default_factory=list)
    blind: list[str] = field(default_factory=list)
    returns: list[ImageFound] = field(default_factory=list)
    """Images that the pivot's own disk has left before."""
    renamed: dict[Key, str] = field(default_factory=dict)
    """Disks whose right image, as the journal has it, is or was the source of this guest: perhaps the same disk."""

    def add(self, found: tuple[list[Holder], list[str]]) -> None:
        """Take in one look; of several reasons for one disk the first one counts."""
        known = {(one.image, one.domain, one.disk) for one in self.holders}
        self.holders += [one for one in found[0] if (one.image, one.domain, one.disk) not in known]
        self.blind += found[1]

    def overwritten(self, pivot: Pivot) -> list[Overwritten]:
        """Return the disks of which nobody is certain any more once the pivot writes or switches."""
        disks = {(one.domain, one.disk): one.image for one in self.holders if one.disk}
        sources = {disk.source.filename for disk in pivot.disks if pivot.switches}
        moved = {key: image for key, image in self.renamed.items() if image in sources and key not in disks}
        return [Overwritten(*key, image, pivot.id, pivot.domain) for key, image in disks.items()] + [
            Overwritten(*key, image, pivot.id, pivot.domain, moved_on=True) for key, image in moved.items()
        ]

    @property
    def facts(self) -> JsonObject:
        """Return what the record of the pivot says of this."""
        names = [f"{one.image} {one.why} {one.name}" for one in self.holders]
        returns = [f"{one.asked} was {one.finding.standing}: {one.finding.why}" for one in self.returns]
        moved = [f"{image} is the right image of {domain} {disk}" for (domain, disk), image in self.renamed.items()]
        said: JsonObject = {
            "overwrites": names,
            "not_looked_at": self.blind,
            "returns_to": returns,
            "moves_on_from": moved,
        }
        return {name: value for name, value in said.items() if value}


class Holders:
    """Finds the disks that need the images of a pivot."""

    def __init__(self, host: Host, history: History) -> None:
        self._host = host
        self._history = history

    async def check(self, pivot: Pivot) -> Found:
        """Return what ``--force`` permits. No other pivot may begin to write to the images meanwhile.

        Raises: ConflictError: something stands against the pivot; BadRequestError: a storage does not answer.
        """
        found = await self._find(pivot)
        own = next((one for one in found.holders if one.own), None)
        if own is not None:
            raise BadRequestError(f"{own.image} {own.why} {own.name}: name another image", disk=own.disk)
        if pivot.options.force:
            return found
        for one in found.holders:
            raise ConflictError(
                f"{one.image} {one.why} {one.name}: name another one; --force writes to it, and nobody can be certain "
                f"of {one.name} afterwards",
                domain=one.domain, disk=one.disk, image=one.image,
            )  # fmt: skip
        for why in found.blind:
            raise ConflictError(
                f"{needed_images.targets(pivot)[0][1].filename}: nobody can tell whether another disk needs it: {why}; "
                "--force goes on without a look"
            )
        return found

    async def _find(self, pivot: Pivot) -> Found:
        found = Found()
        targets = needed_images.targets(pivot)
        own = {(pivot.domain, disk.disk) for disk in pivot.disks}
        for key, mark in (await self._history.overwritten()).items():
            mover = await self._history.known(mark.pivot) if mark.moved_on and mark.by == pivot.domain else None
            if mover is not None and not own.isdisjoint((mover.domain, disk.disk) for disk in mover.disks):
                found.renamed[key] = mark.image
        for disk in pivot.movers:
            for one in await self._history.standings(disk.source.filename):
                key = one.verdict.domain, one.verdict.disk
                if key not in own and one.finding.standing is Standing.CURRENT:
                    found.renamed[key] = disk.source.filename
        for disk, image in targets:
            for one in await self._history.standings(image.filename):
                key = one.verdict.domain, one.verdict.disk
                if key in own:
                    found.returns += [one] * (key == (pivot.domain, disk.disk))
                elif one.finding.standing in NEEDED and key not in found.renamed:
                    found.add(([Holder(image.filename, *key, NEEDED[one.finding.standing])], []))
        if targets and needed_images.is_there(pivot):
            await self._look(pivot, [image for _, image in targets], found)
        return found

    async def _look(self, pivot: Pivot, images: Sequence[Image], found: Found) -> None:
        names = [image.filename for image in images]
        try:
            wanted = await in_thread(limits.FILE_TIMEOUT_S, needed_images.wanted, images, paths=names)
        except TimeoutError as error:
            raise BadRequestError(f"{error}: try again when it does") from None
        seen: set[Key] = set()
        looked: set[Session] = set()
        for _ in range(ROUNDS_MAX):
            new = {name: session for name, session in self._sessions().items() if session not in looked}
            if not new:
                break
            looked |= set(new.values())
            for shown in await asyncio.gather(*(self._in_use(*one, wanted, pivot, seen) for one in new.items())):
                found.add(shown)
        seen |= {(pivot.domain, disk.disk) for disk in pivot.disks} | found.renamed.keys()
        left = [one for one in await self._history.latest(None) if (one[0].domain, one[1].disk) not in seen]
        for first in range(0, len(left), limits.FILES_AT_ONCE):
            part = left[first : first + limits.FILES_AT_ONCE]
            for below in await asyncio.gather(*(self._below(one, wanted) for one in part)):
                found.add(below)

    def _sessions(self) -> dict[str, Session]:
        return {name: one.session for name, one in self._host.supervisors.items() if one.session is not None}

    async def _in_use(
        self, domain: str, session: Session, wanted: Wanted, pivot: Pivot, seen: set[Key]
    ) -> tuple[list[Holder], list[str]]:
        """Return the disks of one QEMU that have the images, and what cannot be seen; note in ``seen`` what it has."""
        try:
            await self._no_pause(domain)
            blocks = await _soon(session)
            if blocks is None:
                told = await self._of_silent(domain, session, wanted, pivot)
                if told is not None:
                    return told
                await self._no_pause(domain)
                blocks = await session.blocks()
            names = [layer.filename for disk in blocks.disks.values() for layer in disk.layers]

            def look() -> tuple[list[Holder], list[str]]:
                opened, directory = files.opened(session.pid), process.working_directory(session.pid)
                return needed_images.in_use(Process(domain, blocks, directory, opened), wanted, pivot)

            shown = await in_thread(limits.FILE_TIMEOUT_S, look, paths=names)
        except (PivotdError, TimeoutError) as error:
            told = await self._of_silent(domain, session, wanted, pivot)
            why = error.message if isinstance(error, PivotdError) else str(error)
            return ([], [f"{domain}: {why}"]) if told is None else told
        seen |= {(domain, disk) for disk in blocks.disks}
        return shown

    async def _no_pause(self, domain: str) -> None:
        """Wait while pivotd holds the guest of a domain in a pause: no look of another one may lengthen it.

        What is sent right after this reaches QEMU before the ``stop`` of the next pause. Raises: TimeoutError.
        """
        supervisor = self._host.supervisors.get(domain)
        try:
            async with asyncio.timeout(limits.OTHERS_PAUSE_S):
                while supervisor is not None and supervisor.window.locked():
                    async with supervisor.window:
                        pass
        except TimeoutError:
            raise TimeoutError("pivotd works on its disks in a pause: try again when that has ended") from None

    async def _of_silent(
        self, domain: str, session: Session, wanted: Wanted, pivot: Pivot
    ) -> tuple[list[Holder], list[str]] | None:
        """Return what can be told of a QEMU that does not answer, or whose storage does not; None: nothing."""
        if domain == pivot.domain:
            return None
        look = partial(needed_images.of_silent, domain, session.pid, session.shown, wanted, pivot)
        with contextlib.suppress(TimeoutError):
            # Its descriptors may lead to storage that hangs, which must cost looks at this QEMU alone.
            return await in_thread(limits.OTHERS_FILE_TIMEOUT_S, look, paths=[session.path])
        return None

    async def _below(self, moved: Moved, wanted: Wanted) -> tuple[list[Holder], list[str]]:
        """Return a disk whose right image is, or lies on, one of the images, and what cannot be seen of that."""
        disk = f"{moved[0].domain} {moved[1].disk}"
        right = right_image(moved[1])
        known: dict[str, list[Below]] = {}
        while True:
            try:
                look = partial(needed_images.below_right, moved, right, wanted, known)
                return await in_thread(limits.OTHERS_FILE_TIMEOUT_S, look, paths=[right.filename]), []
            except TimeoutError as error:
                return [], [f"{disk}: {error}"]
            except BlindError as error:
                below = known_chain.right_below(error.image, await self._history.had(error.image))
                if below is None or error.image in known:
                    return [], [f"{disk}: {error}"]
                known[error.image] = [(image.filename, image.format) for image in below]


async def _soon(session: Session) -> Blocks | None:
    """Return what a QEMU shows, None if it does not answer at once. Raises: QmpError."""
    try:
        async with asyncio.timeout(limits.OTHERS_QUERY_S):
            return await session.blocks()
    except TimeoutError:
        return None
