"""Who owns a guest in a fleet: its first host, the host it migrates to, or one that takes it from a lost host. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from pivotd.core.fleet import FleetImage, FleetView
from pivotd.core.pivot import FleetStage, Outcome, Pivot, PivotDisk
from pivotd.core.rules.fleet_changes import accepted, claimed, doubted, released, taken
from pivotd.core.rules.fleet_pivots import Here, Superseded, after_outcome
from pivotd.core.rules.fleet_words import fleet_verdict
from pivotd.core.verdict import right_image


def meeting(view: FleetView, here: Here) -> FleetView:
    """Return what the fleet has to hold once a guest was seen here; the view itself if there is nothing to do.

    The guest of another host is left alone, and so is one of whose disks another host may still have to tell.
    """
    if not here.present or view.intent is not None or (view.owner is not None and view.owner.host is not None):
        return view
    return claimed(view, here.host, here.boot_id, here.utc_now)


def owned(view: FleetView, here: Here, epoch: int | None) -> bool:
    """Return whether the guest is still this host's, under this epoch if it is known: it was not taken since."""
    owner = view.owner
    return owner is not None and owner.host == here.host and epoch in {None, owner.epoch}


def leaving(view: FleetView, here: Here) -> FleetView:
    """Return what the fleet has to hold once a guest has left here by a migration; the view itself if nothing is due.

    An intent comes first: only this host can tell what became of it.
    """
    if view.owner is None or view.owner.host != here.host or view.intent is not None:
        return view
    return released(view, here.utc_now)


def take_over(view: FleetView, here: Here, chosen: Mapping[str, FleetImage]) -> FleetView | str:
    """Return what the fleet has to hold once this host takes the guest from one that was fenced, or why it must not.

    ``chosen``: a person's word, by disk, needed where the fleet's verdict is unknown, and refused where it is certain.
    The caller answers for the fencing: a host that still runs the guest would write on.
    """
    about = {move.disk for move in view.intent.moves} if view.intent is not None else set()
    names = sorted(about | {disk.disk for disk in view.disks})
    images: dict[str, FleetImage] = {}
    for name in names:
        word = fleet_verdict(view, name)
        if word.certain and name in chosen and chosen[name] != word.image:
            right = "the one it has" if word.image is None else word.image.filename
            return f"the image of {name} is certain: {right}; no choice is to be made"
        if not word.certain and name not in chosen:
            both = " or ".join(image.filename for image in word.candidates)
            return f"the image of {name} is not known: {word.reason}; choose with --image {name}={both}"
        if not word.certain and chosen[name] not in word.candidates:
            both = " or ".join(image.filename for image in word.candidates)
            return f"{chosen[name].filename} is no image that {name} can be on: it is {both}"
        if not word.certain:
            images[name] = chosen[name]
        elif name in about and word.image is not None:
            images[name] = word.image
    if unknown := sorted(chosen.keys() - set(names)):
        return f"pivotd has never moved {unknown[0]}: there is nothing to choose"
    return taken(view, here.host, here.boot_id, here.utc_now, images)


def doubting(view: FleetView, here: Here, pivot: str, images: tuple[FleetImage, FleetImage], disk: str) -> FleetView:
    """Return what the fleet has to hold once a guest has run on another image here; or the view itself.

    ``images``: the one by ``pivot``, the disk's last one here, and the other one. An announced pivot tells for itself.
    """
    right, other = images
    if not owned(view, here, None) or view.move(disk) is not None:
        return view
    if (known := view.disk(disk)) is not None:
        if known.image != right:  # another host has moved it since
            pivot, right = known.pivot, known.image
        if other == right or (known.outcome is Outcome.UNKNOWN and other == known.other):
            return view
    return doubted(view, pivot, disk, (right, other), here.utc_now)


def doubting_all(view: FleetView, here: Here, disks: Iterable[tuple[Pivot, PivotDisk]]) -> FleetView:
    """Return what the fleet has to hold of disks, with their last pivots, whose guest has run on other images here."""
    for pivot, disk in disks:
        if (other := disk.ran_on) is not None:
            right = right_image(disk)
            images = (FleetImage(right.filename, right.format), FleetImage(other.filename, other.format))
            view = doubting(view, here, pivot.id, images, disk.disk)
    return view


def straying(view: FleetView, here: Here, others: Mapping[str, FleetImage]) -> FleetView:
    """Return what the fleet has to hold of disks that were never moved here, and run here on other images."""
    for disk, other in others.items():
        if (known := view.disk(disk)) is not None:
            view = doubting(view, here, known.pivot, (known.image, other), disk)
    return view


def settling(view: FleetView, here: Here, pivot: str, image: FleetImage, disk: str) -> FleetView:
    """Return what the fleet has to hold once a guest in doubt was seen on its right image again; or the view itself.

    ``pivot`` is the disk's last one here, ``image`` the one that it names.
    """
    known = view.disk(disk)
    if not owned(view, here, None) or known is None or (known.outcome, known.pivot) != (Outcome.UNKNOWN, pivot):
        return view
    return accepted(view, pivot, disk, image, here.utc_now) if image in {known.image, known.other} else view


def accepting(view: FleetView, here: Here, pivot: Pivot, disk: str, image: FleetImage) -> FleetView | str:
    """Return what the fleet has to hold once a person has named the image of a disk here, or why that must not be.

    ``pivot`` is the disk's last one here and closed. A guest that the fleet has forgotten is entered again; of one that
    it never knew, nothing is to be told.
    """
    owner = view.owner
    if owner is None and pivot.fleet is FleetStage.NONE:
        return view
    if owner is None:
        view = claimed(view, here.host, here.boot_id, here.utc_now)
        return accepted(view, pivot.id, disk, image, here.utc_now)
    if owner.host != here.host:
        who = "no host yet, since it has left one by a migration" if owner.host is None else f"host {owner.host}"
        return f"the guest belongs to {who} in the fleet: settle it there, or `pivotctl fleet take {view.domain}` here"
    if view.intent is not None and view.intent.pivot == pivot.id:
        told = after_outcome(view, pivot, here)
        if isinstance(told, Superseded):
            return told.reason
        view = told
    if view.intent is not None:
        return (
            f"pivot {view.intent.pivot} was announced in the fleet, and this journal does not know what became of it: "
            f"`pivotctl fleet take {view.domain} --fenced --image {disk}=IMAGE`"
        )
    return accepted(view, pivot.id, disk, image, here.utc_now)
