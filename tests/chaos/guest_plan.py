"""What happens in a round with a real guest, chosen at random, and what all rounds showed."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from enum import StrEnum

from tests.support.moves import Move

PAUSE_S = 0.015
"""A pause takes 5 to 15 ms: an instant chosen at random after the STOP event falls inside it, or right after."""
FREEZE_MAX_S = 0.8
"""Longer than max_pause."""
MORE_KILLS_MAX = 2


class Kind(StrEnum):
    """What happens to whom."""

    KILL_PIVOTD = "kill pivotd"
    FREEZE_PIVOTD = "freeze pivotd"
    FREEZE_QEMU = "freeze QEMU"
    KILL_QEMU = "kill QEMU"
    KILL_BOTH = "kill both"


WEIGHTS = {
    Kind.KILL_PIVOTD: 35,
    Kind.FREEZE_PIVOTD: 10,
    Kind.FREEZE_QEMU: 10,
    Kind.KILL_QEMU: 20,
    Kind.KILL_BOTH: 25,
}
ENDS_QEMU = {Kind.KILL_QEMU, Kind.KILL_BOTH}


class Aim(StrEnum):
    """From when the instant counts."""

    REQUEST = "request"
    STOP = "stop"
    CLOSED = "closed"


@dataclass(frozen=True, slots=True)
class GuestRound:
    """One round. ``at`` is a fraction: of a usual pivot's length from the request on, of PAUSE_S from ``stop`` on."""

    kind: Kind
    aim: Aim
    at: float
    freeze_s: float = 0.0
    more_kills_s: tuple[float, ...] = ()
    """Further kills of pivotd, each so long after the one before: in its start-up or its recovery."""
    move: Move = Move.COPY
    """What is asked for, of the disks whose chain allows it; of none, a snapshot or a copy takes its place."""

    def __str__(self) -> str:
        words = [f"{self.move}: {self.kind} at {self.at:.3f} from {self.aim}"]
        words += [f"for {self.freeze_s:.3f} s"] * bool(self.freeze_s)
        words += [f"pivotd again after {s:.3f} s" for s in self.more_kills_s]
        return ", ".join(words)


def random_round(rng: random.Random) -> GuestRound:
    """Return a round with everything chosen at random."""
    kind = rng.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
    aim = rng.choice((Aim.REQUEST, Aim.STOP))
    more = rng.randrange(MORE_KILLS_MAX + 1) if kind in {Kind.KILL_PIVOTD, Kind.KILL_BOTH} else 0
    return GuestRound(
        kind,
        aim,
        rng.random() * 1.2,
        rng.uniform(0.02, FREEZE_MAX_S) if kind in {Kind.FREEZE_PIVOTD, Kind.FREEZE_QEMU} else 0.0,
        tuple(rng.uniform(0.0, 0.4) for _ in range(more)),
        rng.choice(list(Move)),
    )


@dataclass
class Summary:
    """What all rounds showed."""

    rounds: dict[Kind, int] = field(default_factory=dict)
    outcomes: dict[Kind, dict[str, int]] = field(default_factory=dict)
    longest_pause_ms: dict[Kind, float] = field(default_factory=dict)
    pivotd_starts: int = 0
    acks: int = 0
    wrong: list[str] = field(default_factory=list)
    """Verdicts that named an image without an acknowledged write, or not the one that QEMU used."""
    broken: list[str] = field(default_factory=list)
    """Other broken promises: a guest that does not run, a pivot that does not close."""

    def count(self, kind: Kind, outcome: str, pause_ms: float) -> None:
        """Take one round."""
        self.rounds[kind] = self.rounds.get(kind, 0) + 1
        by_outcome = self.outcomes.setdefault(kind, {})
        by_outcome[outcome] = by_outcome.get(outcome, 0) + 1
        self.longest_pause_ms[kind] = max(self.longest_pause_ms.get(kind, 0.0), pause_ms)

    def __str__(self) -> str:
        lines = [f"{'':16}{'rounds':>8}{'switched':>10}{'kept':>8}{'other':>8}{'longest pause':>16}"]
        for kind in Kind:
            if kind in self.rounds:
                outcomes = dict(self.outcomes[kind])
                switched, kept = outcomes.pop("switched", 0), outcomes.pop("kept", 0)
                pause = "-" if kind in ENDS_QEMU else f"{self.longest_pause_ms[kind]:.0f} ms"
                other = sum(outcomes.values())
                lines.append(f"{kind:16}{self.rounds[kind]:>8}{switched:>10}{kept:>8}{other:>8}{pause:>16}")
        lines.append(
            f"{sum(self.rounds.values())} rounds, {self.pivotd_starts} starts of pivotd, {self.acks} acknowledged writes, "
            f"{len(self.wrong)} wrong verdicts, {len(self.broken)} other broken promises"
        )
        return "\n".join(lines)
