"""What happens in a round of a fleet: who is struck at which message, in which weather; and what all rounds showed."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TypeVar

from tests.fleet.wires import Message, Place
from tests.support.moves import Move

T = TypeVar("T")


class Victim(StrEnum):
    """Who is killed."""

    NOBODY = "nobody"
    PIVOTD = "pivotd"
    QEMU = "QEMU"
    BOTH = "both"
    HOST = "host"
    """pivotd and QEMU, and another host takes the guest. The lost one comes back later."""
    FROZEN = "frozen host"
    """It stands still, is taken for lost, and wakes after the take-over."""


class Weather(StrEnum):
    """What becomes of etcd."""

    FINE = "fine"
    NODE_KILLED = "a node killed"
    LEADER_KILLED = "leader killed"
    NODE_FROZEN = "a node frozen"
    LEADER_FROZEN = "leader frozen"
    NO_MAJORITY = "majority lost"
    CUT = "host cut off"


VICTIMS = {Victim.NOBODY: 10, Victim.PIVOTD: 25, Victim.QEMU: 10, Victim.BOTH: 15, Victim.HOST: 30, Victim.FROZEN: 10}
WEATHERS = {Weather.FINE: 50} | dict.fromkeys([one for one in Weather if one is not Weather.FINE], 8)
MESSAGES = {Message.CLAIM: 5, Message.INTEND: 15, Message.PUBLISH: 35, Message.WITHDRAW: 10, Message.RELEASE: 10}
MOVES = {Move.COPY: 70, Move.SNAPSHOT: 20, Move.COMMIT: 10}
NOISE = 0.3
"""Of all transactions of a noisy round."""


@dataclass(frozen=True, slots=True)
class FleetRound:
    """One round. The strike is at a message, or without one at an instant: ``at`` is a share of a usual pivot's length."""

    victim: Victim
    message: Message | None = None
    place: Place = Place.BEFORE
    at: float = 0.0
    weather: Weather = Weather.FINE
    weather_first: bool = False
    """Before the pivot is asked for; else with the strike."""
    noise: float = 0.0
    move: Move = Move.COPY
    max_pause_ms: int = 3000
    take: Place | None = None
    """Where pivotctl is killed in its take-over; the command is repeated."""
    late_first: bool = False
    """Whether late messages arrive before the take-over, or only after it."""
    loses_journal: bool = False
    """Whether the lost host comes back with an empty disk."""
    asks_image: bool = False
    """Whether its own host starts the guest again at once, from what `pivotctl image` answers."""
    offline: bool = False
    """Whether pivotd is dead when its host is asked: its journal and the fleet answer."""
    loses_taker: bool = False
    """Whether the host that takes the guest is lost in its take-over: the first one is back, and has to start it."""

    def __str__(self) -> str:
        where = f"{self.place} {self.message}" if self.message else f"at {self.at:.2f}"
        words = [f"{self.move}: {self.victim} {where}"]
        if self.weather is not Weather.FINE:
            words.append(f"{self.weather} {'first' if self.weather_first else 'then'}")
        words += [f"noise {self.noise:.1f}"] * bool(self.noise)
        words += [f"take struck {self.take}"] * (self.take is not None)
        words += ["late messages first"] * self.late_first + ["journal lost"] * self.loses_journal
        words += ["started by `image`"] * (self.asks_image and self.victim in {Victim.QEMU, Victim.BOTH})
        words += ["offline"] * (self.offline and self.victim is Victim.BOTH)
        words += ["the taker lost too"] * (self.loses_taker and self.victim is Victim.HOST)
        return ", ".join(words)


def random_round(rng: random.Random) -> FleetRound:
    """Return a round with everything chosen at random."""
    victim = _one_of(rng, VICTIMS)
    message = None if rng.random() < 0.25 else _one_of(rng, MESSAGES)
    weather = _one_of(rng, WEATHERS)
    found = FleetRound(
        victim,
        message,
        rng.choice(list(Place)),
        rng.random() * 1.2,
        weather,
        rng.random() < 0.5 and weather not in {Weather.NO_MAJORITY, Weather.CUT},
        NOISE if rng.random() < 0.3 else 0.0,
        _one_of(rng, MOVES),
        rng.choice((400, 3000)),
        rng.choice(list(Place)) if rng.random() < 0.3 else None,
        rng.random() < 0.5,
        rng.random() < 0.3,
        rng.random() < 0.7,
        rng.random() < 0.5,
        rng.random() < 0.3,
    )
    return playable(found)


def playable(found: FleetRound) -> FleetRound:
    """Return the round without what cannot be: only a guest whose switch nobody has heard of is frozen in its pause."""
    if found.victim is not Victim.FROZEN:
        return found
    if found.message in {None, Message.CLAIM, Message.RELEASE}:
        found = replace(found, message=Message.PUBLISH)
    return replace(found, move=Move.COPY, loses_journal=False)


def matrix(moves: tuple[Move, ...] = (Move.COPY,)) -> list[FleetRound]:
    """Return each transaction x each place x each victim, and the take-over x each place."""
    victims = (Victim.PIVOTD, Victim.QEMU, Victim.BOTH, Victim.HOST)
    found = [
        FleetRound(victim, message, place, move=move, asks_image=True)
        for move in moves
        for message in Message
        if message is not Message.TAKE
        for place in Place
        for victim in victims
    ]
    published = FleetRound(Victim.HOST, Message.PUBLISH, Place.BEFORE)
    takes = [replace(published, take=place, late_first=late) for place in Place for late in (False, True)]
    frozen = [
        FleetRound(Victim.FROZEN, message, place, max_pause_ms=400)
        for message in (Message.INTEND, Message.PUBLISH, Message.WITHDRAW)
        for place in Place
    ]
    offline = [
        FleetRound(Victim.BOTH, message, place, asks_image=True, offline=True)
        for message in (Message.INTEND, Message.PUBLISH)
        for place in Place
    ]
    twice = [
        replace(published, take=place, late_first=lost, loses_journal=lost, loses_taker=True)
        for place in Place
        for lost in (False, True)
    ]
    return found + takes + frozen + offline + twice


@dataclass
class Summary:
    """What all rounds showed."""

    rounds: Counter[str] = field(default_factory=Counter)
    words: Counter[str] = field(default_factory=Counter)
    """Who said what: `fleet: certain`."""
    notes: Counter[str] = field(default_factory=Counter)
    """What else happened, for whoever reads the figures."""
    acks: int = 0
    wrong: list[str] = field(default_factory=list)
    """Certain answers that named an image without an acknowledged write; an unknown one of whose images none has all."""
    broken: list[str] = field(default_factory=list)
    """Other broken promises."""
    believed: list[str] = field(default_factory=list)
    """Certain answers of an old host about a guest that was taken from it."""

    def __str__(self) -> str:
        lines = [f"  {count:>5}  {what}" for what, count in sorted(self.rounds.items())]
        lines += [f"  {count:>5}  {what}" for what, count in sorted(self.words.items())]
        lines += [f"  {count:>5}  {what}" for what, count in sorted(self.notes.items())]
        lines.append(
            f"{sum(self.rounds.values())} rounds, {self.acks} acknowledged writes, {len(self.wrong)} wrong answers, "
            f"{len(self.broken)} other broken promises, {len(self.believed)} old hosts that believe themselves"
        )
        return "\n".join(lines)


def _one_of(rng: random.Random, weights: dict[T, int]) -> T:
    return rng.choices(list(weights), list(weights.values()))[0]
