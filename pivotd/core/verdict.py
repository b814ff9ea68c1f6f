"""Which image holds a disk's data: from the journal alone, or checked against what QEMU shows now. Pure.

The rule: a durable ``switched`` names the destination, anything else the source.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from pivotd.core.pivot import Outcome, Phase, Pivot, PivotDisk


@dataclass(frozen=True, slots=True)
class Verdict:
    """Which image holds a disk's data, and why; these fields are part of the public API."""

    domain: str
    disk: str
    image: str | None
    format: str | None
    outcome: Outcome | None
    certain: bool
    pivot: str | None
    since: str | None
    reason: str
    evidence: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Live:
    """What QEMU shows of one disk now, and how it relates to the images of the disk's last pivot.

    ``same_qemu``: the process in which that pivot was made. ``is_source`` and ``is_destination`` compare nodes in the
    same process, files in another one.
    """

    image: str
    format: str
    same_qemu: bool = False
    is_source: bool = False
    is_destination: bool = False


def of_pivot(pivot: Pivot, disk: PivotDisk) -> Verdict:
    """Return the journal's verdict on one disk of one pivot."""
    evidence = [f"pivot {pivot.id} of {pivot.created_at} is in phase {pivot.phase}"]
    if disk.outcome is None or pivot.decided_at is None:
        evidence.append("the journal holds no `switched` record for this disk")
        reason = "No switch was recorded, so the source holds every write that the guest was told is complete."
        outcome = Outcome.KEPT
    else:
        evidence.append(f"outcome `{disk.outcome}` was recorded at {pivot.decided_at}")
        outcome = disk.outcome
        reason = _REASON[outcome]
    if pivot.error:
        evidence.append(pivot.error)
    image = disk.destination if outcome is Outcome.SWITCHED else disk.source
    other = disk.source if outcome is Outcome.SWITCHED else disk.destination
    if other != image:
        evidence.append(f"the other image is {other.filename}")
    if pivot.window_open:
        evidence.append("a mirror back keeps the other image in sync; without QEMU it is out of date")
    return Verdict(
        domain=pivot.domain,
        disk=disk.disk,
        image=image.filename,
        format=image.format,
        outcome=outcome,
        certain=outcome is not Outcome.UNKNOWN,
        pivot=pivot.id,
        since=pivot.decided_at or pivot.created_at,
        reason=reason,
        evidence=tuple(evidence),
    )


_REASON = {
    Outcome.SWITCHED: "The switch was seen in the block graph and recorded before the guest could run on.",
    Outcome.KEPT: "The pivot was given up: the guest goes on with the source.",
    Outcome.MERGED: "Layers below the image were merged: the image is the same, on a shorter chain.",
    Outcome.UNKNOWN: "The evidence contradicts itself: compare both images before the guest is started again.",
}


def without_pivot(domain: str, disk: str, live: Live) -> Verdict:
    """Return the verdict on a disk that the journal does not know."""
    return Verdict(
        domain=domain,
        disk=disk,
        image=live.image,
        format=live.format,
        outcome=None,
        certain=True,
        pivot=None,
        since=None,
        reason="pivotd has never moved this disk; this is the image that QEMU uses now.",
        evidence=("no pivot of this disk in the journal",),
    )


def check(verdict: Verdict, live: Live, *, decided: bool) -> Verdict:
    """Return the verdict checked against what QEMU shows now; a contradiction makes it ``unknown``.

    ``decided``: the pivot's outcome is durable. An open pivot may be between the switch and its record. The guest is
    then paused, and the source is right until the record is durable.
    """
    shown = f"QEMU uses {live.image} now"
    expected = live.is_destination if verdict.outcome is Outcome.SWITCHED else live.is_source
    if expected or verdict.outcome is Outcome.UNKNOWN or (not decided and live.is_destination and live.same_qemu):
        return replace(verdict, evidence=(*verdict.evidence, shown))
    who = "the same QEMU process" if live.same_qemu else "another QEMU process"
    return replace(
        verdict,
        outcome=Outcome.UNKNOWN,
        certain=False,
        reason=f"The journal names {verdict.image}, but {who} uses {live.image}: "
        "somebody changed the disk without pivotd; compare the images before you trust either.",
        evidence=(*verdict.evidence, shown),
    )


def may_be_overtaken(pivot: Pivot) -> bool:
    """Return whether a process that drives this pivot may have seen the switch, with the record still in flight."""
    return pivot.phase in {Phase.PAUSING, Phase.CANCELLING}


def provisional(verdict: Verdict) -> Verdict:
    """Return the verdict on such a pivot if pivotd lives and its QEMU was not seen: it is right now but may change.

    If somebody started the guest on the source now, the record could still follow and name the destination. Once
    pivotd is dead or the pivot is decided, no record can follow.
    """
    return replace(
        verdict,
        certain=False,
        reason="pivotd is alive in the middle of this switch and may be about to record its outcome: ask again in a "
        "moment, or stop pivotd first.",
    )
