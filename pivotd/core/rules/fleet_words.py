"""What the fleet says of a disk's image, and what a host's own journal is worth beside that. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from pivotd.core.fleet import FleetDisk, FleetImage, FleetIntent, FleetMove, FleetView, OnSilence
from pivotd.core.pivot import FleetStage, Outcome, Pivot, PivotDisk
from pivotd.core.request import Manager
from pivotd.core.rules.fleet_pivots import before_forgetting
from pivotd.core.verdict import right_image


@dataclass(frozen=True, slots=True)
class FleetVerdict:
    """Which image holds a disk's data, by the fleet. ``image`` None with ``certain``: pivotd has never moved the disk.

    ``candidates``: the images of which one is right, if it is not certain. ``decides``: the host whose journal knows.
    """

    image: FleetImage | None
    certain: bool
    reason: str
    candidates: tuple[FleetImage, ...] = ()
    decides: str | None = None
    pivot: str | None = None


def fleet_verdict(view: FleetView, disk: str) -> FleetVerdict:
    """Return the fleet's word on one disk. It is right whichever host is dead and whatever message is on its way."""
    move = view.move(disk)
    if view.intent is not None and move is not None:
        return _announced(view.intent, move)
    known = view.disk(disk)
    if known is None:
        return FleetVerdict(None, certain=True, reason=never_moved(view, "this disk"))
    return _decided(known)


def never_moved(view: FleetView, what: str) -> str:
    """Return the words for a domain or disk of which the fleet knows no move."""
    if view.forgotten:
        since = f"since this fleet was made to forget {view.domain}"
        return f"pivotd has not moved {what} {since}; what was before is not known"
    return f"pivotd has never moved {what} in this fleet"


def _announced(intent: FleetIntent, move: FleetMove) -> FleetVerdict:
    """The outcome is not known: with ``wait`` the guest is not resumed on the destination before it is.

    libvirt may start its guest from either image meanwhile, without a question to pivotd.
    """
    if intent.on_silence is OnSilence.WAIT and intent.manager is Manager.PIVOTD:
        return FleetVerdict(
            move.source,
            certain=True,
            reason=f"pivot {intent.pivot} was announced and its outcome was not: the guest has not run on since",
            pivot=intent.pivot,
        )
    return FleetVerdict(
        None,
        certain=False,
        reason=f"pivot {intent.pivot} was announced and its outcome was not: the journal of {intent.host} decides",
        candidates=(move.source, move.destination),
        decides=intent.host,
        pivot=intent.pivot,
    )


def _decided(known: FleetDisk) -> FleetVerdict:
    if known.outcome is Outcome.UNKNOWN:
        both = (known.image,) if known.other is None else (known.image, known.other)
        return FleetVerdict(
            None,
            certain=False,
            reason=f"the evidence since pivot {known.pivot} contradicts itself: compare the images",
            candidates=both,
            pivot=known.pivot,
        )
    return FleetVerdict(
        known.image, certain=True, reason=f"pivot {known.pivot}: {known.outcome}, since {known.at}", pivot=known.pivot
    )


class Worth(StrEnum):
    """What the word of this host's journal on a disk is worth."""

    CERTAIN = "certain"
    """The fleet says the same, or leaves the disk to this host."""
    TELL_FIRST = "tell first"
    """It is right, and the fleet has to learn of it before anybody acts on it: another host could read another word."""
    FLEETS = "fleet's"
    """The fleet knows of a later move, or takes this disk for undecided: its word counts, not the journal's."""
    FORGOTTEN = "forgotten"
    """The fleet knew the outcome and knows nothing of the disk now: another host may have moved it since."""
    CONTRADICTS = "contradicts"
    """The fleet names another image, and never heard of this pivot: nobody can tell which is later."""


def worth(view: FleetView, pivot: Pivot, disk: PivotDisk) -> Worth:
    """Return what the local outcome of a disk's last pivot is worth, of a guest that belongs to this host or to none.

    Whoever starts a guest by it does so after TELL_FIRST was told: otherwise the guest's next writes go to an image
    that the fleet does not name.
    """
    word = fleet_verdict(view, disk.disk)
    if pivot.fleet is FleetStage.ANNOUNCED and view.owner is not None and view.owner.epoch == pivot.fleet_epoch:
        return Worth.TELL_FIRST
    if pivot.fleet in {FleetStage.ANNOUNCED, FleetStage.SUPERSEDED} and word.image is not None:
        return Worth.FLEETS
    if not word.certain:
        return Worth.FLEETS
    right = right_image(disk)
    kept = disk.outcome in {None, Outcome.KEPT, Outcome.MERGED} and disk.accepted is None
    if word.image is not None:
        told = pivot.fleet is FleetStage.TOLD and disk.accepted is None
        later = told or ((kept or disk.accepted is not None) and _is_later(view, pivot, disk.disk))
        if word.image == FleetImage(right.filename, right.format):
            return Worth.CERTAIN
        return Worth.FLEETS if later else Worth.CONTRADICTS
    if _is_forgotten(view, pivot, moved=not kept):
        return Worth.FORGOTTEN
    return Worth.CERTAIN if kept else Worth.TELL_FIRST


def _is_forgotten(view: FleetView, pivot: Pivot, *, moved: bool) -> bool:
    """Return whether the fleet may have known more of a disk than it does: it was made to forget, or has lost its data.

    What a pivot that has moved nothing has told leaves no trace of its disk, and the claim with which it was to be
    announced may never have arrived.
    """
    if view.forgotten:
        return before_forgetting(view, pivot)
    if moved:
        return pivot.fleet is not FleetStage.NONE
    return (pivot.fleet_epoch or 0) > view.epoch + (pivot.fleet is FleetStage.ANNOUNCED)


def _is_later(view: FleetView, pivot: Pivot, disk: str) -> bool:
    """Return whether the fleet's word on a disk was written after a pivot, or a person's word, was accepted here.

    It was if it was written under a later owner.

    Moves that were made while no fleet was configured, and of which it has not heard, are then older too, or in a later
    pivot of the journal.
    """
    if view.intent is not None and view.move(disk) is not None:
        return pivot.fleet_epoch is not None and view.intent.epoch > pivot.fleet_epoch
    known = view.disk(disk)
    return pivot.fleet_epoch is not None and known is not None and known.epoch > pivot.fleet_epoch
