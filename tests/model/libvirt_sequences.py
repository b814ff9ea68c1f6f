"""Sequences of what may happen to a guest of libvirt's, drawn by the state of the model, and played on both."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass

from pivotd.core.observation import JobBelief, Root
from tests.libvirt.libvirtd import Libvirtd
from tests.model.libvirt_played import Played
from tests.model.libvirt_real import LOOK_S, PATIENCE_S, Real, places
from tests.support.moves import Move

MOVES = (Move.COPY, Move.COMMIT, Move.SNAPSHOT)
DIES_IN_CALL = 0.4
"""How often libvirtd dies in a call that has places for that."""


@dataclass(frozen=True, slots=True)
class Happening:
    """One step: a call of libvirt, or who dies or starts. ``dies_at``: where libvirtd dies in it, if it gets there."""

    name: str
    image: Root | None = None
    dies_at: str | None = None
    hook: bool = False

    def __str__(self) -> str:
        dies = f", dies: {self.dies_at}" if self.dies_at else ""
        return f"{self.name}{f' {self.image}' if self.image else ''}{' with the hook' * self.hook}{dies}"


def draw(random_: random.Random, played: Played) -> Happening | None:
    """Return what happens next, None at the end of everything."""
    libvirtd, qemu = played.libvirtd, played.stage.qemu
    if not libvirtd.running:
        if qemu is not None and random_.random() < 0.1:
            return Happening("kill qemu")
        return _with_place(random_, "start libvirtd", played.move, hook=random_.random() < 0.5)
    if libvirtd.memory is None:
        if qemu is not None:  # forgotten
            return Happening(random_.choice(["kill libvirtd", "kill libvirtd", "suspend", "pivot", "kill qemu"]))
        if libvirtd.transient:
            return None
        name = random_.choice(["create", "create", "define", "update", "start", "suspend", "kill libvirtd"])
        return Happening(name, random_.choice([*Root][:3]) if name in {"define", "update"} else None)
    assert qemu is not None
    known = libvirtd.memory[0]
    others = ["suspend", "resume", "kill libvirtd", "define", "update"]
    rare = ["kill qemu", "destroy", "undefine", "reset"]
    on_source = known.live is Root.SOURCE is played.stage.root(played.disk)
    if played.move is Move.SNAPSHOT:
        mine = ["snapshot"]
    elif known.job is JobBelief.NONE and known.listed:
        mine = ["pivot", "abort", "start"]  # of a job without its mirror; not with a death of another kind
    elif known.job is JobBelief.NONE:
        mine = ["start"] * on_source + ["pivot"] * (random_.random() < 0.1)
    else:
        mine = ["pivot", "pivot", "abort"] + ["start"] * (random_.random() < 0.1)
    drawn = random_.random()
    pool = mine if mine and drawn < 0.55 else others if drawn < 0.93 else rare
    name = random_.choice(pool)
    if name in {"define", "update"}:
        return Happening(name, random_.choice([*Root][:3]))
    if known.job is JobBelief.NONE and known.listed:
        return Happening(name)
    return _with_place(random_, name, played.move)


def _with_place(random_: random.Random, name: str, move: Move, *, hook: bool = False) -> Happening:
    labels = list(places(name, move))
    dies = labels and random_.random() < (DIES_IN_CALL if name != "start libvirtd" else 0.1)
    return Happening(name, None, random_.choice(labels) if dies else None, hook)


class Pair:
    """The model and a real libvirtd, to which the same happens."""

    def __init__(self, libvirtd: Libvirtd, move: Move) -> None:
        self.real = Real(libvirtd, move)
        major, minor = map(int, libvirtd.version().split(".")[:2])
        qemu = self.real.qemu_version()
        self.played = Played(move, (major, minor), qemu)
        self.story: list[str] = [f"{move}, libvirt {libvirtd.version()}, QEMU {qemu}"]

    def take(self, step: Happening) -> str | None:
        """Let one thing happen on both sides; return what differs."""
        played, real = self.played, self.real
        mine = theirs = ""
        match step.name:
            case "kill libvirtd":
                played.kill_libvirtd()
                real.libvirtd.kill()
            case "kill qemu":
                played.kill_qemu()
                real.kill_qemu()
            case "start libvirtd":
                played.start_libvirtd(hook=step.hook, dies_at=step.dies_at)
                real.start_libvirtd(hook=step.hook, dies_at=step.dies_at, wanted=played.shown())
            case name:
                mine = played.call(name, step.image, step.dies_at)
                theirs = real.call(name, step.image, step.dies_at, played.shown())
        self.story.append(f"  {step}: {mine}")
        wanted = played.shown()
        until_s = time.monotonic() + PATIENCE_S
        while (shown := real.shown()) != wanted and time.monotonic() < until_s:
            time.sleep(LOOK_S)
        if (mine, wanted) == (theirs, shown):
            return None
        self.story.append(f"model: {mine} {wanted}\nreal:  {theirs} {real.said!r} {shown}")
        return "\n".join(self.story)


def play(random_: random.Random, pair: Pair, length: int) -> str | None:
    """Play a sequence of at most so many steps; return what differs, with its story."""
    for _ in range(length):
        step = draw(random_, pair.played)
        if step is None:
            return None
        if (differs := pair.take(step)) is not None:
            return differs
    return None
