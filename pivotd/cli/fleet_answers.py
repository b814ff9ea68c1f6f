"""What the fleet keeps, in the types that pivotctl shows."""

from __future__ import annotations

from pivotd.client.answers import FleetCandidate, FleetDomain, FleetVerdict
from pivotd.core.fleet import FleetView
from pivotd.core.rules.fleet_words import fleet_verdict


def disks(view: FleetView) -> list[str]:
    """Return the disks of which the fleet knows, in order."""
    announced = {move.disk for move in view.intent.moves} if view.intent is not None else set()
    return sorted(announced | {disk.disk for disk in view.disks})


def verdict(view: FleetView, disk: str) -> FleetVerdict:
    """Return the fleet's verdict on one disk."""
    word, known, owner = fleet_verdict(view, disk), view.disk(disk), view.owner
    decided = known is not None and word.pivot == known.pivot
    return FleetVerdict(
        domain=view.domain,
        disk=disk,
        image=None if word.image is None else word.image.filename,
        format=None if word.image is None else word.image.format,
        outcome=known.outcome if known is not None and decided else None,  # type: ignore[arg-type]
        certain=word.certain,
        reason=word.reason,
        candidates=tuple(FleetCandidate(image.filename, image.format) for image in word.candidates),
        decides=word.decides,
        pivot=word.pivot,
        since=known.at if known is not None and decided else None,
        host=None if owner is None else owner.host,
        epoch=None if owner is None else owner.epoch,
    )


def domain(view: FleetView) -> FleetDomain:
    """Return everything of one domain."""
    owner = view.owner
    return FleetDomain(
        domain=view.domain,
        host=None if owner is None else owner.host,
        epoch=None if owner is None else owner.epoch,
        since=None if owner is None else owner.since,
        pivot=None if view.intent is None else view.intent.pivot,
        disks=tuple(verdict(view, disk) for disk in disks(view)),
    )
