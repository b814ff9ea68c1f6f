"""When a pivot may pause its guest, and when the guest may run on, in a host that belongs to a fleet. Pure.

Each host of the fleet must be able to tell the right image without this one. So the fleet knows of a pivot before its
guest is paused, and of its outcome before the guest runs on; the local journal always has either first.
"""

from __future__ import annotations

from dataclasses import dataclass

from pivotd.core.actions import Action, Close, HandOver, Resume, TellFleet, Wait
from pivotd.core.attempt import Attempt
from pivotd.core.fleet import ACCEPTED, FleetDisk, FleetImage, FleetView, OnSilence, Owner
from pivotd.core.pivot import FleetStage, Outcome, Phase, Pivot
from pivotd.core.rules.fleet_changes import announced, claimed, published, withdrawn

_ENDED = frozenset({FleetStage.TOLD, FleetStage.SUPERSEDED})


@dataclass(frozen=True, slots=True)
class Here:
    """This host, as the fleet knows it; ``utc_now`` is RFC 3339.

    ``present``: the guest is in a QEMU of this host, running or not, and neither arrives nor leaves by a migration.
    """

    host: str
    boot_id: str
    utc_now: str
    present: bool = True


@dataclass(frozen=True, slots=True)
class Superseded:
    """The pivot's outcome is no longer of any use; ``reason`` is one sentence."""

    reason: str


def before_intent(view: FleetView, pivot: Pivot, here: Here, on_silence: OnSilence) -> FleetView | str:
    """Return what the fleet has to hold before the guest may be paused, or one sentence why it must not be.

    A guest without an owner, or whose owner has released it, is claimed in the same transaction.
    """
    owner, intent = view.owner, view.intent
    if (refusal := of_another(view, here.host)) is not None:
        return refusal
    if intent is not None and (intent.pivot != pivot.id or owner is None or owner.host is None):
        return (
            f"the fleet does not know yet what became of pivot {intent.pivot}, which the journal of {intent.host} says"
        )
    if pivot.fleet_epoch != view.epoch and (elsewhere := _elsewhere(view, pivot)) is not None:
        return elsewhere
    if owner is None or owner.host is None:
        if not here.present:
            return "the guest has left its host by a migration, and is not here"
        view = claimed(view, here.host, here.boot_id, here.utc_now)
    return announced(view, pivot, on_silence)


def _elsewhere(view: FleetView, pivot: Pivot) -> str | None:
    """Return one sentence if the fleet does not have a disk on the source of a pivot.

    Nobody has compared them if the fleet did not answer when the pivot was asked for, or the guest had other owners
    since; and after the pivot nobody could.
    """
    when = "did not answer when" if pivot.fleet_epoch is None else "the guest had another owner since"
    for disk in pivot.disks:
        known, source = view.disk(disk.disk), FleetImage(disk.source.filename, disk.source.format)
        if known is None or (known.outcome is not Outcome.UNKNOWN and known.image == source):
            continue
        names = known.image.filename
        if known.outcome is Outcome.UNKNOWN and known.other is not None:
            names += f" or {known.other.filename}"
        return (
            f"the fleet has {disk.disk} on {names}, and {when} this pivot from {source.filename} was asked for: cancel "
            "it, and ask again"
        )
    return None


def of_another(view: FleetView, host: str) -> str | None:
    """Return one sentence if the guest belongs to another host, which alone may pause it; else None."""
    owner = view.owner
    if owner is None or owner.host in {None, host}:
        return None
    return (
        f"the guest belongs to host {owner.host} in the fleet since {owner.since}: move it there, or fence that "
        f"host and `pivotctl fleet take {view.domain}` here"
    )


def after_outcome(view: FleetView, pivot: Pivot, here: Here, only: str | None = None) -> FleetView | Superseded:
    """Return what the fleet has to hold once the outcome of a pivot is in the journal; the view itself if it does.

    Only the owner under whose epoch the pivot was announced may tell, and only while its intent is there: nobody has
    decided otherwise then. ``only``: the disk of which this is the last pivot, if it may not be that of others.
    """
    owner, announced_ = view.owner, pivot.fleet is FleetStage.ANNOUNCED
    if owner is None:  # it never knew the guest, or has forgotten it
        if not here.present and (view.forgotten or moved(pivot)):
            return Superseded("the fleet has forgotten the guest, which is not here: another host may have had it")
        return published(claimed(view, here.host, here.boot_id, here.utc_now), pivot, here.utc_now, only)
    mine = view.intent is not None and view.intent.pivot == pivot.id
    if mine:
        only = None  # no disk of an announced pivot was moved since
    told = [view.disk(disk.disk) for disk in pivot.disks if only in {None, disk.disk}]
    told_all = not mine and all(known is not None and known.pivot == pivot.id for known in told)
    if owner.host != here.host or (announced_ and owner.epoch != pivot.fleet_epoch):
        if owner.host == here.host and told_all and all(_is_ours(known, owner) for known in told):
            return view  # told with the claim after the fleet had forgotten the guest; that answer was lost
        who = "nobody, since it has left by a migration" if owner.host is None else f"host {owner.host}"
        return Superseded(f"the guest belongs to {who} in the fleet, under epoch {owner.epoch}, since {owner.since}")
    if not moved(pivot):
        return _kept(view, pivot, here, only)
    if told_all:
        return view
    if announced_ and not mine:
        return Superseded("its intent was removed from the fleet without its outcome, by somebody who settled it")
    return published(view, pivot, here.utc_now, only)


def _is_ours(known: FleetDisk | None, owner: Owner) -> bool:
    """Return whether an outcome was told under this owner, and is no person's word."""
    return known is not None and known.epoch == owner.epoch and known.outcome != ACCEPTED


def _kept(view: FleetView, pivot: Pivot, here: Here, only: str | None) -> FleetView:
    """Without its intent, the fleet names what the last pivot of each disk left, which should be the source.

    A disk that it does not know was never moved, or it was made to forget that.
    """
    told = withdrawn(view, pivot.id)
    for disk in pivot.disks:
        if only not in {None, disk.disk}:
            continue
        known = view.disk(disk.disk)
        forgotten = known is None and before_forgetting(view, pivot)
        if forgotten or (known is not None and known.image != FleetImage(disk.source.filename, disk.source.format)):
            told = published(told, pivot, here.utc_now, disk.disk)
    return told


def before_forgetting(view: FleetView, pivot: Pivot) -> bool:
    """Return whether the fleet was made to forget the guest after a pivot was announced, or perhaps was."""
    return bool(view.forgotten) and (pivot.fleet_epoch is None or pivot.fleet_epoch < view.forgotten)


def telling(pivot: Pivot, attempt: Attempt) -> Action | None:
    """Return the message that the fleet must get now, None if none is due.

    The guest waits for the outcome of a switch. It does not wait for that of a pivot that has kept the source.
    """
    if not attempt.in_fleet or not attempt.fleet_due or is_told(pivot, attempt):
        return None
    if pivot.phase is Phase.DECIDED and pivot.owes_resume:
        return TellFleet() if moved(pivot) and not _given_up(pivot, attempt) else None
    if pivot.phase is Phase.DECIDED:
        return TellFleet()
    waits_for_user = pivot.phase is Phase.READY and pivot.hold and not pivot.owes_resume
    return TellFleet() if waits_for_user and pivot.fleet is FleetStage.ANNOUNCED else None


def held(pivot: Pivot, attempt: Attempt, action: Action) -> Action:
    """Return the action, or what the pivot waits for instead as long as the fleet does not know its outcome."""
    if pivot.phase is not Phase.DECIDED or is_told(pivot, attempt):
        return action
    silent = attempt.fleet_silent or "it is about to be told"
    if not attempt.in_fleet:
        silent = "this host has left it: configure [fleet] again"
    if isinstance(action, Resume) and moved(pivot) and pivot.fleet is FleetStage.ANNOUNCED:
        may_run = pivot.options.on_silence == OnSilence.RESUME and not attempt.in_fleet
        if not may_run and not _given_up(pivot, attempt):
            return Wait(f"the guest stays paused until the fleet knows of the switch: {silent}")
    if isinstance(action, Close | HandOver) and attempt.in_fleet:
        if attempt.fleet_due:
            return TellFleet()
        return Wait(f"the fleet does not know the outcome yet: {silent}")
    return action


def _given_up(pivot: Pivot, attempt: Attempt) -> bool:
    """Return whether the guest may run on although the fleet has not answered; it was asked at least once, and lately.

    A host that was frozen has to ask again: it may have been taken for lost, and its guest runs elsewhere.
    """
    tried = attempt.fleet_silent is not None and not attempt.fleet_silence_stale and attempt.deadline_passed
    return tried and pivot.options.on_silence == OnSilence.RESUME


def is_told(pivot: Pivot, attempt: Attempt) -> bool:
    """Return whether the fleet needs to hear nothing of what became of a pivot."""
    if not pivot.switches or pivot.fleet in _ENDED or attempt.fleet_told:
        return True
    return pivot.fleet is FleetStage.NONE and not (attempt.in_fleet and moved(pivot))


def moved(pivot: Pivot) -> bool:
    """Return whether some disk is not certainly where it was."""
    return any(disk.outcome not in {None, Outcome.KEPT, Outcome.MERGED} for disk in pivot.disks)
