"""A person's word on which image holds a disk's data: it settles what pivotd cannot know."""

from __future__ import annotations

import stat
from collections.abc import Collection, Sequence
from pathlib import Path

from pivotd import limits
from pivotd.app import telling_words
from pivotd.app.live_verdicts import Key, format_of, image_names
from pivotd.app.reads import Reads
from pivotd.app.registry import Host
from pivotd.app.reservations import Reservations
from pivotd.client.requests import AcceptRequest
from pivotd.core import nbd
from pivotd.core.fleet import FleetImage
from pivotd.core.image_names import describe, same_format
from pivotd.core.pivot import Accepted, FileSeen, Image, Phase, Pivot, PivotDisk
from pivotd.core.request import Requester
from pivotd.core.standing import ImageFound, Standing
from pivotd.core.verdict import Presence, Verdict
from pivotd.engine.pivot_log import by
from pivotd.engine.ports import Fleet
from pivotd.errors import BadRequestError, ConflictError, FleetError, NotFoundError, RevisionConflictError
from pivotd.host import backing, files, qcow2
from pivotd.host.backing import BlindError
from pivotd.host.threads import in_thread
from pivotd.journal.changes import utc_now
from pivotd.journal.journal import Journal
from pivotd.log import get_logger
from pivotd.qmp.blocks import DiskSeen
from pivotd.qmp.session import Session

log = get_logger()
NEEDED = frozenset({Standing.CURRENT, Standing.BASE})


class Accepting:
    """Records the word with the last pivot of the disk: the next pivot goes on from there."""

    def __init__(
        self, host: Host, journal: Journal, reads: Reads, reservations: Reservations, fleet: Fleet | None = None
    ) -> None:
        self._fleet = fleet
        self._host = host
        self._journal = journal
        self._reads = reads
        self._reservations = reservations

    async def accept(self, domain: str, disk: str, word: AcceptRequest, who: Requester) -> Verdict:
        """Record that an image holds a disk's data.

        The fleet learns of it first: without its answer nothing is recorded, and a repetition is safe.

        Raises: NotFoundError, ConflictError (a pivot is open, QEMU uses another image, the guest belongs to another
        host), BadRequestError, FleetError, JournalError.
        """
        await self._host.finish(self._accept(domain, disk, word, who))
        return (await self._reads.verdicts(domain, disk, lambda one: one))[0]

    async def _accept(self, domain: str, disk: str, word: AcceptRequest, who: Requester) -> None:
        async with self._host.lock(domain):
            pivot, known = await self._last(domain, disk)
            image = word.image if word.image.startswith("json:") else nbd.canonical(word.image) or word.image
            if (why := await self._reads.cannot_ask(domain, disk)) is not None:
                raise ConflictError(f"your word has to wait: {why}", domain=domain, disk=disk)
            file = await self._check(pivot, known, image)
            mark = await self._refuse_while_written(domain, disk)
            image_format = word.format or await self._format(domain, disk, image)
            await self._refuse_other_format(domain, disk, image, image_format)
            await self._check_content(image, image_format)
            below = await self._below(image, image_format)
            async with self._reservations.of_word(image, below):
                await self._refuse_of_another(pivot, known, image, below)
                accepted = Accepted(image, image_format, utc_now(), who.uid, word.reason)
                await self._record(pivot, known, accepted, who, mark=mark, file=file)

    async def _record(  # noqa: PLR0913 - the word, and what was known when it was given
        self,
        pivot: Pivot,
        known: PivotDisk,
        accepted: Accepted,
        who: Requester,
        *,
        mark: str | None,
        file: FileSeen | None,
    ) -> None:
        """Tell the fleet, and record the word with the last pivot. Raises: ConflictError, FleetError, JournalError."""
        disk, image, reason = known.disk, accepted.filename, accepted.reason
        epoch = await self._tell_fleet(pivot, disk, FleetImage(image, accepted.format))
        facts = {"disk": disk, "image": image, "format": accepted.format, "reason": reason, "uid": who.uid}
        try:
            await self._journal.accept_image(pivot, known, accepted, facts, mark=mark, fleet_epoch=epoch, file=file)
        except RevisionConflictError:
            raise ConflictError(
                f"something else has happened to {pivot.domain} {disk} meanwhile: look at `pivotctl verdict "
                f"{pivot.domain} {disk}` and try again"
            ) from None
        told = {"disk": disk, "image": image, "reason": reason, **by(who)}
        log.warning("domain.image-accepted", domain=pivot.domain, pivot=pivot.id, **told)

    async def _tell_fleet(self, pivot: Pivot, disk: str, image: FleetImage) -> int | None:
        """Return the ``fleet_epoch`` to record. Raises: ConflictError, FleetError: telling_words.tell()."""
        try:
            return await telling_words.tell(self._fleet, pivot, disk, image)
        except FleetError as error:
            error.message += "; your word is not recorded here: repeat the command"
            raise

    async def _last(self, domain: str, disk: str) -> tuple[Pivot, PivotDisk]:
        latest = await self._reads.latest(domain, disk)
        if not latest:
            self._host.get(domain)
            raise NotFoundError(f"the journal holds no pivot of {domain} {disk}: there is nothing to accept", disk=disk)
        pivot, known = latest[0]
        if pivot.phase is not Phase.CLOSED:
            raise ConflictError(f"pivot {pivot.id} of {domain} {disk} is still open: wait for it first", pivot=pivot.id)
        return pivot, known

    async def _refuse_while_written(self, domain: str, disk: str) -> str | None:
        """Return the pivot of another disk that puts this one in doubt. Raises: ConflictError: it is still open."""
        mark = (await self._reads.overwritten()).get((domain, disk))
        if mark is not None and (await self._reads.pivot(mark.pivot)).phase is not Phase.CLOSED:
            raise ConflictError(
                f"pivot {mark.pivot} of {mark.by} still works on {mark.image}: wait for it, or cancel it first",
                pivot=mark.pivot,
            )
        return None if mark is None else mark.pivot

    async def _refuse_of_another(self, pivot: Pivot, known: PivotDisk, image: str, below: Sequence[str]) -> None:
        """Raises: ConflictError: another disk of a domain that pivotd has needs the image, or may: ask again.

        Nor may it be certain of one below that: its guest would write there. By the journal alone: the locks of a QEMU
        that runs keep a guest from starting above what it writes to.

        Not where that is meant: of two devices on one image, of a disk that a pivot of the other domain puts in doubt,
        because both may be one guest, and where the guest runs on the image as this disk, or as one never moved.
        """
        if await self._uses(pivot.domain, known.disk) is not None:
            return
        key = (pivot.domain, known.disk)
        mark = (await self._reads.overwritten()).get(key)
        found, silent = await self._reads.image_here(image)
        if any(_key(one) == key for one in found):  # it has had it: QEMU shows it under another name now
            found = [one for one in found if one.verdict.domain != pivot.domain or one.verdict.pivot is not None]
        needs = {_key(one): _refusal(one, pivot, known, image) for one in found if _may_need(one, NEEDED)}
        for name in below:
            said = f"{name} lies below it, and "
            standings = [one for one in await self._reads.standings(name) if _may_need(one, {Standing.CURRENT})]
            needs |= {
                _key(one): _refusal(one, pivot, known, image, said) for one in standings if _key(one) not in needs
            }
        needs |= {other: _not_yet(image, other, why) for other, why in silent.items() if other not in needs}
        for (domain, disk), why in needs.items():
            together = domain == pivot.domain and any(
                two.disk == disk and two.source.filename == known.source.filename for two in pivot.disks
            )
            is_meant = together or (mark is not None and mark.by == domain) or domain not in self._host.supervisors
            if (domain, disk) != key and not is_meant:
                raise ConflictError(why, domain=domain, disk=disk, image=image)

    async def _refuse_other_format(self, domain: str, disk: str, image: str, image_format: str) -> None:
        """Raises: ConflictError: QEMU uses the image in another format."""
        _, seen = await self._shown(domain, disk)
        if seen is not None and not same_format(format_of(seen), image_format):
            raise ConflictError(
                f"{domain} runs on {image} as {format_of(seen)} now, not as {image_format}: stop the guest first, or "
                f"accept it with --format {format_of(seen)}",
                image=image,
            )

    async def _uses(self, domain: str, disk: str) -> str | None:
        """Return the image that QEMU has as a disk, None if no QEMU shows one."""
        session, seen = await self._shown(domain, disk)
        return None if seen is None or session is None else (await image_names(seen, session))[0]

    async def _shown(self, domain: str, disk: str) -> tuple[Session | None, DiskSeen | None]:
        supervisor = self._host.supervisors.get(domain)
        session = None if supervisor is None else supervisor.session
        return session, None if session is None else (await session.disks()).get(disk)

    async def _check_content(self, image: str, image_format: str) -> None:
        """Raises: BadRequestError: what is there is certainly no image of this format."""
        try:
            why = await in_thread(limits.FILE_TIMEOUT_S, _no_image, image, image_format, paths=[image])
        except TimeoutError as error:
            raise BadRequestError(f"{error}: try again when it does") from None
        if why is not None:
            raise BadRequestError(f"{image} {why}", image=image)

    async def _below(self, image: str, image_format: str) -> Sequence[str]:
        """Return the images below one, by headers; none where pivotd may not read them: the person answers for that."""
        try:
            return await in_thread(limits.FILE_TIMEOUT_S, backing.needed, image, image_format, paths=[image])
        except TimeoutError as error:
            raise BadRequestError(f"{error}: try again when it does") from None
        except BlindError:
            return ()

    async def _check(self, pivot: Pivot, known: PivotDisk, image: str) -> FileSeen | None:
        """Return the file that is accepted, None if pivotd sees none, or a device.

        Raises: BadRequestError: there is no such file; ConflictError: QEMU uses another one now.
        """
        using = await self._uses(pivot.domain, known.disk)
        try:
            paths = [image] if using is None else [image, using]
            there, same, file = await in_thread(limits.FILE_TIMEOUT_S, _compare, image, using, paths=paths)
        except TimeoutError as error:
            raise BadRequestError(f"{error}: try again when it does") from None
        if there is Presence.GONE:
            raise BadRequestError(f"there is no {image}: name the file that holds the data", image=image)
        if not same:
            raise ConflictError(
                f"{pivot.domain} runs on {using} now: stop the guest first, or accept {using}", image=using
            )
        return file

    async def _format(self, domain: str, disk: str, image: str) -> str:
        """Return the format in which the disk has had an image. Raises: BadRequestError: it never had it."""
        for pivot, moved in await self._reads.moved(image):
            sides = (moved.source, moved.destination, moved.top, moved.base)
            found = next((one.format for one in sides if one is not None and one.filename == image), None)
            if (pivot.domain, moved.disk) == (domain, disk) and found is not None:
                return found
        raise BadRequestError(f"{domain} {disk} never had {image}: say its format, qcow2 or raw", image=image)


def _key(one: ImageFound) -> Key:
    return one.verdict.domain, one.verdict.disk


def _refusal(one: ImageFound, pivot: Pivot, known: PivotDisk, image: str, said: str = "") -> str:
    """Return why an image that another disk needs, or may need, cannot be the one of a disk."""
    if not one.verdict.certain:
        return _not_yet(f"{image}: {said}" if said else image, _key(one), one.verdict.reason)
    gone = f"; if that guest is no more, `pivotctl domain rm {one.verdict.domain}` first"
    return (
        f"{image} cannot be the image of {pivot.domain} {known.disk}: {said}{one.finding.why}: name another one"
        f"{'' if one.verdict.domain == pivot.domain else gone}"
    )


def _not_yet(image: str, other: Key, why: str) -> str:
    return f"{image}: nobody can tell yet whether {' '.join(other)} needs it: {why}"


def _may_need(one: ImageFound, needed: Collection[Standing]) -> bool:
    """Return whether a disk certainly needs an image, or will perhaps do so as soon as its QEMU can be asked."""
    if one.verdict.certain:
        return one.finding.standing in needed
    return one.verdict.pending and one.finding.standing in {*needed, Standing.UNKNOWN}


def _compare(image: str, using: str | None) -> tuple[Presence, bool, FileSeen | None]:
    """Return whether an image is there, whether QEMU uses it, if it uses any, and its file.

    A name that leads nowhere may be hidden from pivotd; where pivotd sees the directory, there is no such file.
    """
    accepted = Image(image, "", "")
    there = files.presence(accepted, sees_all=True)
    if there is Presence.GONE and not files.sees_directory(image):
        there = Presence.UNSEEN
    return there, using is None or files.same(accepted, files.named(using)), files.seen_now(image)


def _no_image(image: str, image_format: str) -> str | None:
    """Return why nothing with this name is an image of this format, None if it may be one, or nobody may look."""
    path = describe(image).path
    try:
        found = None if path is None else Path(path).stat()
        if path is None or found is None:
            return None
        if not (stat.S_ISREG(found.st_mode) or stat.S_ISBLK(found.st_mode)):
            return "is neither a regular file nor a block device: it cannot hold a disk"
        head = qcow2.look(path) if image_format == "qcow2" else None
    except (OSError, ValueError):
        return None
    return None if head is None or head.header is not None else "holds no qcow2 image: say --format raw if it is raw"
