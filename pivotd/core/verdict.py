"""Which image holds a disk's data: from the journal alone, or checked against what QEMU shows now. Pure.

The rule: a durable ``switched`` names the destination, anything else the source.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Literal

from pivotd.core.image_names import same_format
from pivotd.core.pivot import Image, Outcome, Phase, Pivot, PivotDisk, RanOn
from pivotd.core.request import Manager

ACCEPTED: Literal["accepted"] = "accepted"
"""The outcome of a verdict that rests on a person's word."""


class Presence(StrEnum):
    """What the name of an image leads to now."""

    THERE = "there"
    """To the file that the journal knows, as far as that can be told."""
    GONE = "gone"
    """To no file."""
    REPLACED = "replaced"
    """To another file than the one that the journal knows."""
    UNSEEN = "unseen"
    """Nobody could look: no permission, a storage that does not answer, or a path that a sandbox may hide."""
    NO_FILE = "no file"
    """It is no path, but for example the address of an NBD export."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Which image holds a disk's data, and why; these fields are part of the public API.

    ``pending``: it may change in a moment, ask again. ``file``: what the image's name leads to, None where
    nobody has looked, or where the verdict is not certain anyway.
    """

    domain: str
    disk: str
    image: str | None
    format: str | None
    outcome: Outcome | Literal["accepted"] | None
    certain: bool
    pivot: str | None
    since: str | None
    reason: str
    evidence: tuple[str, ...]
    pending: bool = False
    file: Presence | None = None


@dataclass(frozen=True, slots=True)
class Live:
    """What QEMU shows of one disk now, and how it relates to the images of the disk's last pivot.

    ``same_qemu``: the process in which that pivot was made. ``is_right`` and ``is_destination`` compare with the image
    of the verdict and with the pivot's destination: nodes in the same process, files in another one.
    ``renamed``: it is the right file, under another name than the journal has.
    """

    image: str
    format: str
    same_qemu: bool = False
    is_right: bool = False
    is_destination: bool = False
    renamed: bool = False


def right_image(disk: PivotDisk) -> Image:
    """Return the image that holds the data of a disk of a pivot, by the rule or by a person's word."""
    if disk.accepted is not None:
        return Image(disk.accepted.filename, disk.accepted.format, "")
    return disk.destination if disk.outcome is Outcome.SWITCHED else disk.source


def of_pivot(pivot: Pivot, disk: PivotDisk) -> Verdict:
    """Return the journal's verdict on one disk of one pivot."""
    if disk.accepted is not None:
        return _accepted(pivot, disk)
    evidence = [f"pivot {pivot.id} of {pivot.created_at} is in phase {pivot.phase}"]
    if disk.outcome is None or pivot.decided_at is None:
        evidence.append("the journal holds no `switched` record for this disk")
        reason = "No switch was recorded, so the source holds every write that the guest was told is complete."
        outcome = Outcome.KEPT
    else:
        evidence.append(f"outcome `{disk.outcome}` was recorded at {pivot.decided_at}")
        outcome = disk.outcome
        reason = _REASON[outcome]
        if outcome is Outcome.SWITCHED and pivot.error is not None:
            reason = "The switch was seen in the block graph and recorded."  # the error may say that the guest ran
    if pivot.error:
        evidence.append(pivot.error)
    image = right_image(disk)
    other = disk.source if outcome is Outcome.SWITCHED else disk.destination
    if other != image and disk.switches:
        evidence.append(f"the other image is {other.filename}")
    pending = is_pending(pivot, disk)
    if pending:
        reason = PENDING
    if pivot.window_open:
        evidence.append("a mirror back keeps the other image in sync; without QEMU it is out of date")
    return Verdict(
        domain=pivot.domain,
        disk=disk.disk,
        image=image.filename,
        format=image.format,
        outcome=outcome,
        certain=outcome is not Outcome.UNKNOWN and not pending,
        pivot=pivot.id,
        since=pivot.decided_at or pivot.created_at,
        reason=reason,
        evidence=tuple(evidence),
        pending=pending,
    )


PENDING = (
    "libvirt was asked to switch, and what came of it is not recorded yet: both images are complete, and the next boot "
    "of the guest decides. pivotd asks libvirt and records it: start pivotd if it does not run, and ask again."
)


def is_pending(pivot: Pivot, disk: PivotDisk) -> bool:
    """Return whether nobody may start the guest yet, whoever is dead: libvirt has perhaps switched the disk."""
    return pivot.manager is Manager.LIBVIRT and pivot.asking and disk.outcome is None


def _accepted(pivot: Pivot, disk: PivotDisk) -> Verdict:
    word = disk.accepted
    assert word is not None
    return Verdict(
        domain=pivot.domain,
        disk=disk.disk,
        image=word.filename,
        format=word.format,
        outcome=ACCEPTED,
        certain=True,
        pivot=pivot.id,
        since=word.at,
        reason=f"Accepted by uid {word.uid}: {word.reason}",
        evidence=(
            f"outcome `{disk.outcome}` of pivot {pivot.id} was recorded at {pivot.decided_at}",
            f"uid {word.uid} accepted {word.filename} at {word.at}",
        ),
    )


_REASON = {
    Outcome.SWITCHED: "The switch was seen in the block graph and recorded before the guest could run on.",
    Outcome.KEPT: "The pivot was given up: the guest goes on with the source.",
    Outcome.MERGED: "Layers below the image were merged: the image is the same, on a shorter chain.",
    Outcome.UNKNOWN: "The evidence contradicts itself: compare both images before the guest is started again.",
}


def without_pivot(domain: str, disk: str, live: Live | None = None) -> Verdict:
    """Return the verdict on a disk that the journal does not know; without ``live``, while nobody can ask QEMU."""
    if live is None:
        reason = "The journal holds no pivot of this disk; only QEMU can tell which image it uses."
    else:
        reason = "pivotd has never moved this disk; this is the image that QEMU uses now."
    return Verdict(
        domain=domain,
        disk=disk,
        image=None if live is None else live.image,
        format=None if live is None else live.format,
        outcome=None,
        certain=True,
        pivot=None,
        since=None,
        reason=reason,
        evidence=("no pivot of this disk in the journal",),
    )


def nameless(verdict: Verdict, why: str) -> Verdict:
    """Return the verdict on an image that QEMU uses and to which its name does not lead."""
    reason = f"QEMU uses {verdict.image} now, but {why}: without this QEMU, that name does not lead to the data."
    return replace(verdict, certain=False, reason=reason)


def check(verdict: Verdict, live: Live, *, decided: bool) -> Verdict:
    """Return the verdict checked against what QEMU shows now; a contradiction makes it ``unknown``.

    ``decided``: the pivot's outcome is durable. An open pivot may be between the switch and its record. The guest is
    then paused, and the source is right until the record is durable.
    """
    shown = f"QEMU uses {live.image} now"
    if live.is_right and live.renamed and verdict.outcome is not Outcome.UNKNOWN:
        moved = f"{verdict.image} was renamed to {live.image}: it is the same file"
        return replace(verdict, image=live.image, evidence=(*verdict.evidence, shown, moved))
    if (
        live.is_right
        or verdict.pending
        or verdict.outcome is Outcome.UNKNOWN
        or (not decided and live.is_destination and live.same_qemu)
    ):
        return replace(verdict, evidence=(*verdict.evidence, shown))
    who = "the same QEMU process" if live.same_qemu else "another QEMU process"
    return replace(
        verdict,
        outcome=Outcome.UNKNOWN,
        certain=False,
        reason=_contradiction(verdict, f"{who} uses", live.image, live.format),
        evidence=(*verdict.evidence, shown),
    )


def _contradiction(verdict: Verdict, who: str, image: str, image_format: str, at: str | None = None) -> str:
    """Return in what a guest's image is another one: its name, its format, or else its file; ``at``: it ran then."""
    when = "" if at is None else f" at {at}"
    if image == verdict.image and not same_format(verdict.format or "", image_format):
        return (
            f"The journal names {image} as {verdict.format}, but {who} it as {image_format}{when}: what is written so "
            "may destroy the image; look at it before you trust it."
        )
    used, why = image, "somebody changed the disk without pivotd"
    if image == verdict.image:
        used, why = "another file of that name", f"the file {image} was replaced"
    end = "; compare the images" if at is None else ", and either image may lack writes; compare them"
    return f"The journal names {verdict.image}, but {who} {used}{when}: {why}{end} before you trust either."


def doubtful(verdict: Verdict, moved: PivotDisk, *, is_copy: bool = False) -> Verdict:
    """Return the verdict on a disk that nobody has seen since its journal or its guest went somewhere else.

    ``moved``: the disk in its last pivot. ``is_copy``: the journal is another file than its daemon left, so it may lack
    the latest moves.
    """
    if not verdict.certain or not (moved.doubtful or moved.left_at or moved.ran_on or is_copy):
        return verdict
    if moved.ran_on is not None:
        return _astray(verdict, moved.ran_on)
    if moved.left_at is not None:
        return replace(
            verdict,
            certain=False,
            reason=f"The guest left by a migration at {moved.left_at}, and another host may have moved its disks "
            f"since. This journal names {verdict.image}, but the guest was not seen on that here again, and no "
            "person has accepted it.",
        )
    return replace(
        verdict,
        certain=False,
        reason=f"This journal was restored, copied or upgraded, and may lack the latest moves. It names "
        f"{verdict.image}, but pivotd has not seen QEMU on that since, and no person has accepted it.",
    )


def _astray(verdict: Verdict, other: RanOn) -> Verdict:
    reason = _contradiction(verdict, "the guest ran on", other.filename, other.format, other.at)
    if other.by_fleet:
        reason = (
            f"The guest ran on {other.filename} at {other.at}, which this journal names, but in the fleet another host "
            "had moved the disk on: either image may lack writes; compare them before you trust either."
        )
    return replace(
        verdict,
        outcome=Outcome.UNKNOWN,
        certain=False,
        reason=reason,
        evidence=(*verdict.evidence, f"QEMU used {other.filename} at {other.at}"),
    )


def may_be_overtaken(pivot: Pivot) -> bool:
    """Return whether a process that drives this pivot may have seen the switch, with the record still in flight."""
    return pivot.phase in {Phase.PAUSING, Phase.CANCELLING}


def provisional(verdict: Verdict) -> Verdict:
    """Return the verdict on such a pivot if pivotd lives and its QEMU was not seen: it is right now but may change.

    One that is pending anyway keeps its reason.

    If somebody started the guest on the source now, the record could still follow and name the destination. Once
    pivotd is dead or the pivot is decided, no record can follow.
    """
    if verdict.pending:
        return verdict
    return replace(
        verdict,
        certain=False,
        pending=True,
        reason="pivotd is alive in the middle of this switch and may be about to record its outcome: ask again in a "
        "moment, or stop pivotd first.",
    )


def overtaken(verdict: Verdict) -> Verdict:
    """Return the verdict on a disk of which records were written during each look: its parts are of several moments."""
    if verdict.pending:
        return verdict
    reason = "pivotd records what happens to this disk faster than it can be looked at: ask again in a moment."
    return replace(verdict, certain=False, pending=True, reason=reason)


def unasked(verdict: Verdict, what: str, *, is_known: bool, why: str | None) -> Verdict:
    """Return the verdict while a QEMU of the guest runs that pivotd cannot ask: it may have moved on since.

    Nobody can start the guest beside it; once it has ended, the journal's word counts. ``is_known``: pivotd has the
    domain, and so will ask that QEMU as soon as it can. ``what``: that it runs, in words; ``why``: what is in the way.
    One that is not certain anyway keeps its reason.
    """
    if not verdict.certain:
        return replace(verdict, pending=verdict.pending or is_known)
    known = f"The journal names {verdict.image}"
    if verdict.outcome is None:
        known = "The journal has never moved this disk"
    cannot = f"cannot tell which image its guest uses now{f' ({why})' if why else ''}: ask again"
    if not is_known:
        cannot = f"has no domain {verdict.domain} to ask: add the domain, or ask again once that QEMU has ended"
    reason = f"{known}, but {what}, and pivotd {cannot}."
    return replace(verdict, certain=False, pending=is_known, reason=reason)


_MISSED = {
    Presence.GONE: "is not there any more",
    Presence.REPLACED: "leads to another file now",
    Presence.UNSEEN: "could not be looked at",
}


def check_file(verdict: Verdict, presence: Presence) -> Verdict:
    """Return the verdict with what its image's name leads to; a guest cannot start from a file that is not there."""
    if not verdict.certain:
        return verdict  # whatever the file is, a person must look
    verdict = replace(verdict, file=presence)
    if presence not in _MISSED:
        return verdict
    verdict = replace(verdict, evidence=(*verdict.evidence, f"{verdict.image} {_MISSED[presence]}"))
    if presence is Presence.UNSEEN:
        return verdict
    reason = (
        f"The journal names {verdict.image}, but that name {_MISSED[presence]}: find the file before a guest starts."
    )
    if presence is Presence.GONE:
        reason = f"The journal names {verdict.image}, but it {_MISSED[presence]}: find the file before a guest starts."
    return replace(verdict, certain=False, reason=reason)
