"""What host and fleet together say of a guest's images: the word by which somebody may start the guest. Pure.

A host's journal is certain only together with the fleet's answer. What the fleet has not been told yet, it is told
before anybody starts the guest by it: whoever took the guest afterwards would start it from another image.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from pivotd.core import verdict
from pivotd.core.fleet import FleetImage, FleetView
from pivotd.core.phases import is_decided
from pivotd.core.pivot import Outcome, Pivot, PivotDisk
from pivotd.core.rules.fleet_pivots import Here, Superseded, after_outcome
from pivotd.core.rules.fleet_words import FleetVerdict, Worth, fleet_verdict, worth
from pivotd.core.verdict import Verdict, right_image


@dataclass(frozen=True, slots=True)
class DiskHere:
    """One disk as its host knows it; all of this was read before the fleet was.

    ``verdict``: the journal's, checked with QEMU where that answers. ``moved``: the disk's last pivot here.
    """

    verdict: Verdict
    moved: tuple[Pivot, PivotDisk] | None = None
    live: FleetImage | None = None
    """The image that a QEMU of this host uses now; its guest neither arrives nor leaves by a migration."""
    left: bool = False
    """The guest has left this host by a migration, and was not seen here again."""
    driven: bool = False
    """The last pivot is open, and a pivotd or its QEMU is alive: its driver tells the fleet, nobody else."""
    spoiled: bool = False
    """A pivot of another disk has overwritten an image of it, as this journal knows: a person must look."""
    seen: bool = False
    """The QEMU of the last pivot lives: nobody starts another one."""


@dataclass(frozen=True, slots=True)
class Together:
    """What host and fleet say. ``tell``: what the fleet has to hold before a verdict counts; None: it does.

    ``against``: the disks of which this host was certain, and on whose image a guest of this host must not be, or may
    not be, by the fleet; with the one that it names for certain.
    """

    verdicts: tuple[Verdict, ...]
    tell: FleetView | None = None
    against: Mapping[str, FleetImage | None] = field(default_factory=dict)


def together(view: FleetView, here: Here, disks: Iterable[DiskHere]) -> Together:
    """Return the verdicts on disks of one domain, in the order given. ``view`` was read after ``disks``."""
    found: list[Verdict] = []
    tell, elsewhere = view, view.owner is not None and view.owner.host != here.host
    against: dict[str, FleetImage | None] = {}
    for disk in disks:
        said, pivot = _one(view, here, disk)
        if pivot is not None:
            told = after_outcome(tell, pivot, here, only=said.disk)
            if isinstance(told, Superseded):
                said = _uncertain(said, f"What became of pivot {pivot.id} counts no more: {told.reason}.")
            else:
                tell = told
        found.append(said)
        if not elsewhere and disk.verdict.certain and disk.live is not None and said.outcome is Outcome.UNKNOWN:
            against[said.disk] = fleet_verdict(view, said.disk).image
    return Together(tuple(found), tell if tell != view else None, against)


def unanswered(disk: DiskHere, why: str, *, again: bool) -> Verdict:
    """Return the verdict while the fleet does not answer. ``again``: it may soon."""
    named = "" if disk.verdict.image is None else f" It names {disk.verdict.image}."
    reason = (
        f"The fleet does not answer, and another host may have had the guest since: {why}.{named} If you know that "
        "none has, --local takes this host's word alone."
    )
    return replace(_uncertain(disk.verdict, reason), pending=again or disk.verdict.pending)


def alone(disk: DiskHere, why: str) -> Verdict:
    """Return this host's word, for somebody who knows that no other host has taken the guest."""
    said = disk.verdict
    return replace(said, evidence=(*said.evidence, f"this host's word alone, as requested: {why}"))


def _one(view: FleetView, here: Here, disk: DiskHere) -> tuple[Verdict, Pivot | None]:
    """Return the verdict, and the pivot of which the fleet has to hear before that counts."""
    said, owner = disk.verdict, view.owner
    if owner is not None and owner.host != here.host:
        return _elsewhere(view, disk), None
    if said.pending or disk.spoiled or _is_astray(view, disk):
        return said, None
    if disk.moved is None:
        return _fleets(view, disk), None
    match worth(view, *disk.moved):
        case Worth.CERTAIN if said.outcome is not Outcome.UNKNOWN:
            return replace(said, evidence=(*said.evidence, "the fleet agrees")), None
        case Worth.TELL_FIRST:
            return _to_tell(disk, disk.moved[0])
        case Worth.FORGOTTEN:
            return _forgotten(disk, *disk.moved)
        case Worth.CONTRADICTS:
            return _contradicts(view, disk), None
        case _:
            return _fleets(view, disk), None


def _is_astray(view: FleetView, disk: DiskHere) -> bool:
    """Return whether the guest has run on an image that the fleet does not name, and QEMU is gone.

    It runs where the fleet says if another host had moved it, and the fleet did not answer when it was seen here.
    """
    if disk.live is not None or (other := _other(disk)) is None:
        return False
    return fleet_verdict(view, disk.verdict.disk).image != other


def _other(disk: DiskHere) -> FleetImage | None:
    """Return on which image the guest of a disk has run that is not the right one, as the journal knows."""
    other = None if disk.moved is None else disk.moved[1].ran_on
    return None if other is None else FleetImage(other.filename, other.format)


def _to_tell(disk: DiskHere, pivot: Pivot) -> tuple[Verdict, Pivot | None]:
    said = disk.verdict
    if disk.driven and disk.seen and not is_decided(pivot):
        return said, None
    if disk.driven:
        reason = f"The fleet does not know yet what became of pivot {pivot.id}: pivotd tells it as soon as it can."
        return replace(_uncertain(said, reason), pending=True), None
    return said, pivot if said.certain and not disk.left else None


def _forgotten(disk: DiskHere, pivot: Pivot, moved: PivotDisk) -> tuple[Verdict, Pivot | None]:
    """While QEMU uses the image here, it is the right one, and the fleet learns of it again."""
    right = right_image(moved)
    if disk.live == FleetImage(right.filename, right.format):
        return _to_tell(disk, pivot)
    reason = (
        f"The fleet knew of pivot {pivot.id} and has forgotten the guest, which another host may have had since. This "
        f"journal names {disk.verdict.image}: compare the images, then `pivotctl verdict accept`."
    )
    return _uncertain(disk.verdict, reason), None


def _elsewhere(view: FleetView, disk: DiskHere) -> Verdict:
    assert view.owner is not None
    name, since = disk.verdict.domain, view.owner.since
    if view.owner.host is None:
        reason = (
            f"The guest has left its host by a migration at {since}, and its new host has not claimed it yet; if it is "
            f"lost, `pivotctl fleet take {name}`."
        )
        return replace(_uncertain(disk.verdict, reason), pending=True)
    mine = "" if disk.moved is None else f" This journal names {disk.verdict.image}, which counts no more."
    reason = (
        f"The guest belongs to host {view.owner.host} in the fleet since {since}: `pivotctl fleet verdict {name}` "
        f"names its images.{mine}"
    )
    return replace(_uncertain(disk.verdict, reason), pending=False)


def _fleets(view: FleetView, disk: DiskHere) -> Verdict:
    """Return the fleet's word on a disk of a guest that belongs to this host, or to none."""
    said, word = disk.verdict, fleet_verdict(view, disk.verdict.disk)
    if not word.certain:
        names = " or ".join(image.filename for image in word.candidates)
        said = _uncertain(said, f"The fleet is not certain: {word.reason}; the image is {names}.")
        is_stray = disk.live is not None and (disk.moved is None or disk.live == _other(disk))
        return replace(said, outcome=Outcome.UNKNOWN) if is_stray else said
    if disk.left and disk.live is None:
        return said if not said.certain else _uncertain(said, "The guest has left this host by a migration.")
    if word.image is None:
        return said
    if disk.live is not None and disk.live != word.image:
        reason = f"The fleet names {word.image.filename}, but QEMU uses {disk.live.filename}: compare the images."
        return replace(_uncertain(said, reason), outcome=Outcome.UNKNOWN)
    if not said.certain and said.outcome is not Outcome.UNKNOWN and disk.live is None:
        return said  # a doubt of this journal's that is not about another host
    return _named(view, said, word, word.image)


def _named(view: FleetView, said: Verdict, word: FleetVerdict, image: FleetImage) -> Verdict:
    known = view.disk(said.disk)
    decided = known if known is not None and known.pivot == word.pivot else None
    return Verdict(
        domain=said.domain,
        disk=said.disk,
        image=image.filename,
        format=image.format,
        outcome=Outcome.KEPT if decided is None else decided.outcome,
        certain=True,
        pivot=word.pivot,
        since=None if decided is None else decided.at,
        reason=f"By the fleet: {word.reason}.",
        evidence=(*said.evidence, "the fleet knows more of this disk than the journal of this host"),
    )


def _contradicts(view: FleetView, disk: DiskHere) -> Verdict:
    word = fleet_verdict(view, disk.verdict.disk)
    assert word.image is not None
    reason = (
        f"The fleet names {word.image.filename} and never heard of pivot {disk.verdict.pivot}, by which this journal "
        f"names {disk.verdict.image}: compare the images, then `pivotctl verdict accept`."
    )
    said = _uncertain(disk.verdict, reason)
    return said if disk.live is None else replace(said, outcome=Outcome.UNKNOWN)


def _uncertain(said: Verdict, reason: str) -> Verdict:
    """Return a verdict that nobody may start a guest by; of a disk that was never moved here, nothing is known."""
    outcome = Outcome.UNKNOWN if said.outcome is None else said.outcome
    return replace(said, outcome=outcome, certain=False, reason=reason, file=None)


def disks_of(view: FleetView) -> list[str]:
    """Return the disks of which the fleet knows, in order."""
    announced = {move.disk for move in view.intent.moves} if view.intent is not None else set()
    return sorted(announced | {disk.disk for disk in view.disks})


def unknown_here(view: FleetView, disks: Iterable[DiskHere]) -> list[DiskHere]:
    """Return the disks that the fleet knows, and this host does not."""
    known = {disk.verdict.disk for disk in disks}
    return [DiskHere(verdict.without_pivot(view.domain, name)) for name in disks_of(view) if name not in known]
