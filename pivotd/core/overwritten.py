"""Images that a pivot writes to, or moves on from, although another disk needs them. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace

from pivotd.core.pivot import Outcome
from pivotd.core.verdict import Verdict


@dataclass(frozen=True, slots=True)
class Overwritten:
    """A disk that needed ``image`` when ``pivot`` of the domain ``by`` was told to write to it.

    ``moved_on``: it was not, but the guest of ``by`` ran on the image, and the pivot has moved it to another one.
    """

    domain: str
    disk: str
    image: str
    pivot: str
    by: str
    moved_on: bool = False


def doubted(verdict: Verdict, by: Overwritten | None) -> Verdict:
    """Return the verdict on a disk of which somebody has overwritten an image; a person must look."""
    if by is None:
        return verdict
    if by.moved_on:
        reason = (
            f"{by.by} ran on {by.image}, which the journal names for this disk, and pivot {by.pivot} moved it on: if "
            "both are one guest, its data is there now; compare the images before a guest starts."
        )
        evidence = f"{by.image} was the source of pivot {by.pivot} of {by.by}"
    else:
        reason = (
            f"Pivot {by.pivot} of {by.by} was forced to write to {by.image}, which this disk needs: compare the images "
            "before a guest starts."
        )
        evidence = f"pivot {by.pivot} of {by.by} was started with --force"
    outcome = None if verdict.outcome is None else Outcome.UNKNOWN
    return replace(verdict, outcome=outcome, certain=False, reason=reason, evidence=(*verdict.evidence, evidence))
