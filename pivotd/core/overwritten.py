"""Images that a forced pivot writes to although another disk needs them. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace

from pivotd.core.pivot import Outcome
from pivotd.core.verdict import Verdict


@dataclass(frozen=True, slots=True)
class Overwritten:
    """A disk that needed ``image`` when ``pivot`` of the domain ``by`` was told to write to it."""

    domain: str
    disk: str
    image: str
    pivot: str
    by: str


def doubted(verdict: Verdict, by: Overwritten | None) -> Verdict:
    """Return the verdict on a disk of which somebody has overwritten an image; a person must look."""
    if by is None:
        return verdict
    return replace(
        verdict,
        outcome=None if verdict.outcome is None else Outcome.UNKNOWN,
        certain=False,
        reason=f"Pivot {by.pivot} of {by.by} was forced to write to {by.image}, which this disk needs: compare the "
        "images before a guest starts.",
        evidence=(*verdict.evidence, f"pivot {by.pivot} of {by.by} was started with --force"),
    )
