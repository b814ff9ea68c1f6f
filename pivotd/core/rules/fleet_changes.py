"""Every change of what a fleet keeps of a domain: from the view that was read to the one to write. Pure.

None of these checks whether its change is allowed: ``fleet_pivots`` and ``fleet_owners`` do. That nothing of the domain
has changed since the view was read, the write itself ensures.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from pivotd.core.fleet import (
    ACCEPTED,
    FleetDisk,
    FleetImage,
    FleetIntent,
    FleetMove,
    FleetView,
    OnSilence,
    Owner,
)
from pivotd.core.pivot import Image, Outcome, Pivot, PivotDisk


def claimed(view: FleetView, host: str, boot_id: str, utc_now: str) -> FleetView:
    """Return the view with this host as the owner, under a new epoch."""
    return replace(view, owner=Owner(host, _next_epoch(view), boot_id, utc_now))


def released(view: FleetView, utc_now: str) -> FleetView:
    """Return the view without an owner's host: the guest has left by a migration."""
    return replace(view, owner=Owner(None, _next_epoch(view), "", utc_now))


def forgotten(view: FleetView) -> FleetView:
    """Return the view without anything but the epoch: a journal that was told before is certain of nothing by that."""
    return FleetView(view.domain, forgotten=_next_epoch(view), revision=view.revision)


def announced(view: FleetView, pivot: Pivot, on_silence: OnSilence) -> FleetView:
    """Return the view with the intent of a pivot of its owner."""
    assert view.owner is not None
    assert view.owner.host is not None
    moves = tuple(FleetMove(disk.disk, _shown(disk.source), _shown(disk.destination)) for disk in pivot.disks)
    intent = FleetIntent(pivot.id, view.owner.host, view.owner.epoch, on_silence, pivot.manager, moves)
    return replace(view, intent=intent)


def published(view: FleetView, pivot: Pivot, utc_now: str, only: str | None = None) -> FleetView:
    """Return the view with the outcome of every disk of a pivot, or of ``only`` this one, and without its intent."""
    assert view.owner is not None
    epoch = view.owner.epoch
    disks = [disk for disk in pivot.disks if only in {None, disk.disk}]
    return _with_disks(withdrawn(view, pivot.id), tuple(_result(pivot, disk, epoch, utc_now) for disk in disks))


def withdrawn(view: FleetView, pivot: str) -> FleetView:
    """Return the view without the intent of a pivot; that of another one stays."""
    return replace(view, intent=None) if view.intent is not None and view.intent.pivot == pivot else view


def taken(view: FleetView, host: str, boot_id: str, utc_now: str, images: Mapping[str, FleetImage]) -> FleetView:
    """Return the view after a take-over: this host owns the guest, and starts it from ``images``, by disk.

    ``images`` holds every disk that the intent is about or whose outcome is unknown: by the verdict or by a person's
    word. Both are recorded as accepted, so that the verdict does not depend on a pivot that nobody can finish.
    """
    owned = claimed(replace(view, intent=None), host, boot_id, utc_now)
    assert owned.owner is not None
    pivot = "" if view.intent is None else view.intent.pivot
    found = []
    for name, image in images.items():
        known, move = view.disk(name), view.move(name)
        sides: list[FleetImage | None] = []
        if move is not None:
            sides = [move.source, move.destination]
        elif known is not None:
            sides = [known.image, known.other]
        other = next((side for side in sides if side is not None and side != image), None)
        about = pivot if move is not None or known is None else known.pivot
        found.append(FleetDisk(name, image, other, ACCEPTED, about, owned.owner.epoch, utc_now))
    return _with_disks(owned, tuple(found))


def accepted(view: FleetView, pivot: str, disk: str, image: FleetImage, utc_now: str) -> FleetView:
    """Return the view with a person's word on the image of one disk; ``pivot``: the last one, which left the doubt."""
    assert view.owner is not None
    known = view.disk(disk)
    sides = () if known is None else (known.image, known.other)
    other = next((side for side in sides if side is not None and side != image), None)
    return _with_disks(view, (FleetDisk(disk, image, other, ACCEPTED, pivot, view.owner.epoch, utc_now),))


def doubted(view: FleetView, pivot: str, disk: str, images: tuple[FleetImage, FleetImage], utc_now: str) -> FleetView:
    """Return the view in which nobody knows which of two images holds a disk; ``pivot``: the last one, of the first."""
    assert view.owner is not None
    return _with_disks(view, (FleetDisk(disk, *images, Outcome.UNKNOWN, pivot, view.owner.epoch, utc_now),))


def _next_epoch(view: FleetView) -> int:
    return view.epoch + 1


def _with_disks(view: FleetView, disks: tuple[FleetDisk, ...]) -> FleetView:
    by_name = {disk.disk: disk for disk in (*view.disks, *disks)}
    return replace(view, disks=tuple(by_name[name] for name in sorted(by_name)))


def _result(pivot: Pivot, disk: PivotDisk, epoch: int, utc_now: str) -> FleetDisk:
    source, destination = _shown(disk.source), _shown(disk.destination)
    if disk.accepted is not None:
        word = FleetImage(disk.accepted.filename, disk.accepted.format)
        rest = destination if word == source else source
        return FleetDisk(disk.disk, word, rest, ACCEPTED, pivot.id, epoch, utc_now)
    outcome = disk.outcome or Outcome.KEPT  # without a record, the source
    image, other = (destination, source) if outcome is Outcome.SWITCHED else (source, destination)
    return FleetDisk(disk.disk, image, other, outcome, pivot.id, epoch, utc_now)


def _shown(image: Image) -> FleetImage:
    return FleetImage(image.filename, image.format)
