"""What an evacuation leaves in the old places, and why."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from typing import Any

from msgspec.structs import asdict

from pivotd.cli.evacuate_places import Places
from pivotd.cli.evacuate_plan import OWN, DiskMove, Left
from pivotd.client import Client, ClientError, DiskView, DomainView, RefusedError, Verdict
from pivotd.client.answers import PivotOptions
from pivotd.errors import EXIT_UNKNOWN
from pivotd.host import backing
from pivotd.host.backing import BlindError

BY_HAND = "start it and evacuate again, or move the file by hand"


class Staying:
    """Finds the reasons for which disks do not move."""

    def __init__(self, client: Client, places: Places, domains: Sequence[str], options: Mapping[str, Any]) -> None:
        """``options``: fields of the requests."""
        self._client, self._places, self._domains, self._options = client, places, domains, options

    def of_absent(
        self, domain: DomainView, known: Iterable[Verdict], failure: ClientError | None = None
    ) -> Iterator[Left]:
        """Yield what is known of a domain whose QEMU does not answer, most likely because the guest is down.

        ``failure``: how a look at a guest that was connected has failed.
        """
        why = domain.detail or domain.connection or "unreachable" if failure is None else failure.message
        about = f"the guest does not run ({why})" if failure is None else f"the guest could not be looked at ({why})"
        found = [self._by_journal(one, about) for one in known if one.domain == domain.name]
        held = [left for left in found if left is not None]
        yield from held
        if not held:
            yield Left(domain.name, None, None, f"the guest was not looked at: {why}")

    def of_unknown(self, domains: Set[str], known: Iterable[Verdict]) -> Iterator[Left]:
        """Yield disks of guests that pivotd does not see now, such as those of libvirt's that are shut down."""
        for one in known:
            wanted = one.domain not in domains and (not self._domains or one.domain in self._domains)
            if wanted and one.file != "gone":
                left = self._by_journal(one, "pivotd does not see this guest now")
                if left is not None:
                    yield left

    def of_movable(self, domain: str, disk: DiskView, image: str, verdict: Verdict | None) -> Left | None:
        """Return why a disk whose image is in an old place is not moved, None if it can be."""
        if verdict is not None and not verdict.certain and not verdict.pending:
            return Left(domain, disk.disk, image, _doubt(verdict), EXIT_UNKNOWN)
        if disk.read_only:
            return Left(domain, disk.disk, image, "it is read-only, and pivotd moves what a guest writes to")
        if self._options["sync"] == "top" and (needed := [*self._needed(disk), *self._data_below(disk)]):
            reason = f"with --sync top it would still need {needed[0]}: leave --sync top out"
            return Left(domain, disk.disk, image, reason)
        return None

    def of_other(self, domain: str, disk: DiskView, verdict: Verdict | None) -> Iterator[Left]:
        """Yield what a disk whose image is elsewhere needs of the old places all the same."""
        about = (
            f"a backing image of {disk.image}, which lies elsewhere: `pivotctl pull` makes that independent of it, "
            "`pivotctl copy` moves it in full"
        )
        for layer in self._needed(disk):
            yield Left(domain, disk.disk, layer, about)
        if disk.image is not None and self._places.holds(disk.image):
            about = "it is a part of a device on a file there: `pivotctl copy` moves the disk"
            yield Left(domain, disk.disk, disk.image, about)
        for one in disk.data_files:
            if self._places.holds(one.path):
                about = f"the data of {one.image}, which lies elsewhere: `pivotctl copy` moves the disk in full"
                yield Left(domain, disk.disk, one.path, about)
        if (held := self._held(disk)) is not None:
            yield Left(domain, disk.disk, *held)
        elif verdict is not None and not verdict.pending and (doubt := self._in_doubt(verdict)) is not None:
            yield doubt

    def stranger(self, pivot: str, mine: Sequence[DiskMove]) -> str | None:
        """Return why an open pivot is another one than the one wanted, None if it makes this very move."""
        known = self._client.pivot(pivot)
        wanted = {disk.disk: os.path.normpath(disk.target) for disk in mine}
        goes = {disk.disk: os.path.normpath(disk.destination) for disk in known.disks}
        same = known.kind == "copy" and known.undo_of is None and all(goes.get(disk) == wanted[disk] for disk in wanted)
        if not same:
            return f"pivot {pivot} has the disk: wait for it or cancel it, then evacuate again"
        if (lacking := self._lacking(known.options)) is not None:
            return f"pivot {pivot} moves the disk there without this {lacking}: cancel it, then evacuate again"
        if known.rests and not known.request_id.startswith(OWN):
            return f"pivot {pivot} waits at ready: complete it with `pivotctl complete {pivot}`, or cancel it"
        return None

    def _lacking(self, known: PivotOptions) -> str | None:
        """Return the option that was given, and that an open pivot does not have; None if it has all of them."""
        wanted = self._options
        images = {} if wanted["image_options"] is None else asdict(wanted["image_options"])
        if wanted["secret_file"] not in {None, known.secret_file}:
            return "--secret-file"
        if any(value not in {None, getattr(known.image_options, name)} for name, value in images.items()):
            return "--option"
        return "--keep-synced" if wanted["keep_synced"] and not known.keep_synced else None

    def _by_journal(self, verdict: Verdict, why: str) -> Left | None:
        """Return what the journal says of a disk that QEMU does not show, None if no old place has to do with it."""
        if not verdict.certain:
            return self._in_doubt(verdict)
        if verdict.image is None:
            return None
        if self._places.holds(verdict.image):
            return Left(verdict.domain, verdict.disk, verdict.image, f"{why}: {BY_HAND}")
        try:
            below = backing.needed(verdict.image, verdict.format)
        except BlindError:
            return None
        held = next((name for name in below if self._places.holds(name)), None)
        if held is None:
            return None
        return Left(verdict.domain, verdict.disk, held, f"{why}, and {verdict.image} lies on it: {BY_HAND}")

    def _in_doubt(self, verdict: Verdict) -> Left | None:
        """Return that a disk may need an image of the old places, None if it is certain that it does not."""
        if verdict.certain or verdict.pivot is None:
            return None
        try:
            moved = [one for one in self._client.pivot(verdict.pivot).disks if one.disk == verdict.disk]
        except RefusedError:
            moved = []  # a pivot of another host of the fleet: only that one's journal has it
        images = [verdict.image, *(image for one in moved for image in (one.source, one.destination))]
        held = next((image for image in images if image is not None and self._places.holds(image)), None)
        if held is None:
            return None
        return Left(verdict.domain, verdict.disk, held, _doubt(verdict), EXIT_UNKNOWN)

    def _needed(self, disk: DiskView) -> list[str]:
        """Return the lower images of a disk that lie below the old places."""
        return [image for image in disk.backing_chain if self._places.holds(image)]

    def _data_below(self, disk: DiskView) -> list[str]:
        """Return the external data files of lower images that lie below the old places."""
        return [one.path for one in disk.data_files if one.image != disk.image and self._places.holds(one.path)]

    def _held(self, disk: DiskView) -> tuple[str, str] | None:
        """Return the image below the old places that an open pivot still needs for a disk elsewhere, and why."""
        if disk.phase is None or disk.pivot is None:
            return None
        known = self._client.pivot(disk.pivot)
        one = next((one for one in known.disks if one.disk == disk.disk), None)
        if one is None or known.closed is not None:
            return None
        if known.undo_until is not None and self._places.holds(one.source):
            until = f"pivot {known.id} keeps it in sync until {known.undo_until}"
            why = f"{until}: `pivotctl pivot release {known.id}` ends it"
            return one.source, why
        if known.outcome is None and self._places.holds(one.destination):
            return one.destination, f"pivot {known.id} moves the disk there: wait for it or cancel it"
        if known.outcome is None and self._places.holds(one.source):
            return one.source, f"pivot {known.id} has not recorded yet which image is right: evacuate again"
        return None


def _doubt(verdict: Verdict) -> str:
    return f"which image is right is not certain: {verdict.reason.rstrip('.')}; see `pivotctl verdict`"
