"""Two hosts and what their fleet keeps of one guest, searched completely with the rules of pivotd/core/rules/fleet_*.

`python -m tests.model.fleet_hosts --targets DE --migrations 1` prints the size of the search, or the shortest story that
ends in a wrong answer. Every step is atomic here: what happens inside one, the search of the real driver tells.

A host without power, a pivotd that is dead or frozen and a fleet that does not answer need no state of their own: whoever
takes no step is one of these. What they lose is modelled: QEMU ends, and a pivotd forgets what is in its memory.
"""

from __future__ import annotations

import argparse
import sys
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

from pivotd.core.actions import Resume, TellFleet
from pivotd.core.attempt import Attempt
from pivotd.core.fleet import FleetImage, FleetView, OnSilence
from pivotd.core.pivot import Accepted, FleetStage, Identity, Image, Outcome, Phase, Pivot, PivotDisk, RanOn
from pivotd.core.request import CopyOptions, Kind, Manager, Requester
from pivotd.core.rules.fleet_changes import forgotten
from pivotd.core.rules.fleet_local import DiskHere, Together, together
from pivotd.core.rules.fleet_owners import (
    accepting,
    doubting_all,
    leaving,
    meeting,
    owned,
    settling,
    straying,
    take_over,
)
from pivotd.core.rules.fleet_pivots import (
    Here,
    Superseded,
    after_outcome,
    before_intent,
    held,
    is_told,
    moved,
    of_another,
    telling,
)
from pivotd.core.rules.fleet_words import fleet_verdict
from pivotd.core.verdict import doubtful, of_pivot, right_image, without_pivot

NOW = "2026-11-23T09:00:00.000000Z"
HOSTS = ("H", "N")


@dataclass(frozen=True, slots=True)
class FleetBounds:
    """What one search covers. ``targets``: the images to which the pivots move, one after the other; ``S`` is the first."""

    on_silence: OnSilence = OnSilence.RESUME
    targets: str = "D"
    disks: int = 1
    restarts: int = 1
    """How often a guest that has ended is started again where it was."""
    migrations: int = 0
    takes: int = 1
    losses: int = 1
    """How many writes to the fleet are late or double, or lose their answer."""
    conditional: bool = True
    """The fleet refuses a write if anything has changed since the view was read; False: what would happen otherwise."""
    alone: int = 0
    """How many pivots are made while no fleet is configured; the fleet names older images then, and that host must not."""
    words: int = 0
    """How often a person says on the guest's host, with one disk, that it is where it runs."""
    unfenced: bool = False
    """The guest may be taken while it stands still in a pause of a host that only seemed dead."""
    forgets: int = 0
    """How often a person has the fleet forget the guest, or the fleet has lost all that it kept."""
    split: bool = False
    """A pivot moves any of the disks, not always all of them."""
    strays: int = 0
    """How often somebody starts the guest, which has one disk, on any image, or moves it to ``X`` without pivotd."""
    manager: Manager = Manager.PIVOTD

    def __str__(self) -> str:
        return (
            f"fleet, {self.on_silence}, {self.manager}, S to {' to '.join(self.targets)}, {self.disks} disk(s), "
            f"{self.restarts} restart(s), {self.migrations} migration(s), {self.takes} take(s), {self.losses} lost"
            f"{f', {self.alone} alone' * bool(self.alone)}{f', {self.words} word(s)' * bool(self.words)}{f', {self.forgets} forgotten' * bool(self.forgets)}{f', {self.strays} astray' * bool(self.strays)}{', any of them' * self.split}{', unfenced' * self.unfenced}{', unconditional' * (not self.conditional)}"
        )


class Local(NamedTuple):
    """One pivot in a host's journal: all of it is durable."""

    number: int
    source: str
    """The image of each disk of the guest before it."""
    disks: tuple[int, ...]
    """Those that it moves."""
    phase: str = "ready"  # ready pausing decided closed
    outcomes: str = ""  # of each disk: s(witched) k(ept)
    owes: bool = False
    stage: FleetStage = FleetStage.NONE
    epoch: int | None = None
    """Of the guest's owner when the pivot was accepted, or announced; None: the fleet did not answer."""
    alone: bool = False
    """Made while no fleet was configured."""
    word: str = ""
    """The image of the disk by a person's word."""


class Host(NamedTuple):
    """``asked``, ``told``, ``waited``, ``here`` and ``look`` are in pivotd's memory alone."""

    journal: tuple[Local, ...] = ()
    left: bool = False
    """The guest has left by a migration, and was not seen here again."""
    owed: int | None = None
    """The owner's epoch under which it has left: that one is to be released."""
    asked: bool = False
    """The fleet has the intent."""
    told: bool = False
    """The fleet has the outcome."""
    waited: bool = False
    """The fleet was asked, and did not answer within the longest pause."""
    here: bool = False
    """The last look has seen the guest in a QEMU of this host."""
    look: str = ""
    """The image on which the guest was seen to run, until the journal has that; empty: nothing is to be recorded."""
    ran_on: str = ""
    """In the journal: the image, not the one of the last pivot, on which the guest was seen to run since."""


class State(NamedTuple):
    view: FleetView
    hosts: tuple[Host, Host]
    guest: int | None = 0
    """The host on which QEMU lives."""
    run: bool = True
    roots: str = "S"
    """The image of each disk; of a guest that is dead, the last."""
    ok: frozenset[tuple[int, str]] = frozenset()
    same: bool = True
    """The QEMU in which the last pivot began."""
    began: int = 0
    """How many pivots have begun."""
    wire: frozenset[FleetView] = frozenset()
    """Writes that may still land; none does after another one has, since all were read at the same revision."""
    restarts: int = 0
    migrations: int = 0
    takes: int = 0
    losses: int = 0
    alone: int = 0
    words: int = 0
    forgets: int = 0
    forgotten: bool = False
    """What the fleet does not know says nothing any more."""
    stale: bool = False
    """The fleet has missed a move."""
    foul: int | None = None
    """The host from which the guest was taken although it was not fenced: a QEMU stands still there."""
    strays: int = 0
    unseen: bool = False
    """The guest was started or moved without pivotd, which has not recorded that: nobody can know."""
    departed: int | None = None
    """The host whose QEMU the guest has left by a migration, as its pivotd has not seen yet."""
    unmet: bool = False
    """The guest was started from the image it was made with, before the fleet had met it: every host may do that."""
    wrong: str = ""
    """A promise that was broken in the last step."""


class Model:
    """The steps of the world and of the two pivotds, within bounds."""

    def __init__(self, bounds: FleetBounds) -> None:
        self.bounds = bounds
        self.pivot = lru_cache(maxsize=None)(self._pivot)

    def first(self) -> State:
        bounds = self.bounds
        return State(
            FleetView("web1"), (Host(), Host()),
            roots="S" * bounds.disks, ok=frozenset((disk, "S") for disk in range(bounds.disks)),
            restarts=bounds.restarts, migrations=bounds.migrations, takes=bounds.takes,
            losses=bounds.losses, alone=bounds.alone, words=bounds.words, forgets=bounds.forgets,
            strays=bounds.strays,
        )  # fmt: skip

    def _pivot(self, local: Local, number_of: int) -> Pivot:
        """Return the real pivot that a journal would hold."""
        source, target = local.source, self.bounds.targets[local.number]
        outcome = {"s": Outcome.SWITCHED, "k": Outcome.KEPT}
        disks = []
        for at, index in enumerate(local.disks):
            old, new = (
                Image(f"/{source[index]}{index}", "raw", f"n{index}"),
                Image(f"/{target}{index}", "raw", f"d{index}"),
            )
            ended = outcome[local.outcomes[at]] if local.outcomes else None
            word = Accepted(f"/{local.word}{index}", "raw", NOW, 0, "") if local.word else None
            disks.append(PivotDisk(f"disk{index}", index, "", 1, old, new, "job", outcome=ended, accepted=word))
        phase = {"ready": Phase.READY, "pausing": Phase.PAUSING, "decided": Phase.DECIDED, "closed": Phase.CLOSED}
        return Pivot(
            f"pivot{number_of}", "", "web1", "", Kind.COPY, phase[local.phase], Requester(0, 0, 0),
            CopyOptions(on_silence=self.bounds.on_silence), tuple(disks), NOW, Identity("", 0, 0, ""),
            manager=self.bounds.manager, asking=local.phase == "pausing", owes_resume=local.owes, fleet=local.stage, fleet_epoch=local.epoch,
            decided_at=NOW if local.outcomes else None,
        )  # fmt: skip

    def here(self, s: State, at: int) -> Here:
        return Here(HOSTS[at], "boot", NOW, present=s.guest == at)

    # -- messages to the fleet -----------------------------------------------------------------------------------

    def lands(self, s: State, after: FleetView) -> State:
        """A write is applied; it was read at the revision that still holds."""
        return s._replace(view=self.known(after), wire=frozenset() if self.bounds.conditional else s.wire - {after})

    @staticmethod
    def known(view: FleetView) -> FleetView:
        return replace(view, revision=0)  # of two writes of one revision only one lands: the number does not matter

    def writes(self, s: State, after: FleetView, what: str, answered: State) -> Iterator[tuple[str, State]]:
        """Send a write: answered, or lost in one of the ways. ``answered``: the sender as it is with an answer."""
        yield f"{what}: answered", self.lands(answered, after)
        if s.losses:
            fewer = s._replace(losses=s.losses - 1)
            yield f"{what}: written, the answer is lost", self.lands(fewer, after)
            yield f"{what}: late", fewer._replace(wire=s.wire | {self.known(after)})
            if not self.bounds.conditional:
                double = self.lands(answered._replace(losses=s.losses - 1), after)
                yield f"{what}: answered, and once more on its way", double._replace(wire=s.wire | {self.known(after)})

    # -- all that may happen -------------------------------------------------------------------------------------

    def steps(self, s: State) -> Iterator[tuple[str, State]]:
        yield from self.world(s)
        yield from self.people(s)
        yield from self.strays(s)
        for at, host in enumerate(s.hosts):
            yield from self.pivotd(s, at, host)

    def world(self, s: State) -> Iterator[tuple[str, State]]:
        if s.guest is not None and s.run:
            ok = frozenset(enumerate(s.roots))
            if s.ok != ok:
                yield "the guest writes", s._replace(ok=ok)
        for late in s.wire:
            yield "a late write lands", self.lands(s, late)
        if s.guest is not None:
            yield "QEMU ends", s._replace(guest=None, run=False, same=False)
        for at, host in enumerate(s.hosts):
            if host != down(host):
                yield f"pivotd of {HOSTS[at]} forgets", self.host(s, at, down(host))

    @staticmethod
    def host(s: State, at: int, host: Host) -> State:
        hosts = list(s.hosts)
        hosts[at] = host
        return s._replace(hosts=(hosts[0], hosts[1]))

    def strays(self, s: State) -> Iterator[tuple[str, State]]:
        """What pivotd has no part in, on the host that has the guest, while no pivot of it is open."""
        at = next((at for at in range(len(HOSTS)) if s.view.owner is not None and s.view.owner.host == HOSTS[at]), None)
        if not s.strays or at is None or s.departed is not None:
            return
        host = s.hosts[at]
        if (host.journal and host.journal[-1].phase != "closed") or host.left:
            return
        if not host.journal and s.view.disk("disk0") is None:
            return  # nobody has ever moved it: it is where its definition says
        fewer = s._replace(strays=s.strays - 1, unseen=True)
        if s.guest is None:
            switched = {
                self.bounds.targets[one.number] for each in s.hosts for one in each.journal if "s" in one.outcomes
            }
            for image in sorted({"S", *switched}):
                t = fewer._replace(guest=at, run=True, roots=image, same=False)
                if s.unseen or host.ran_on or not fleet_verdict(s.view, "disk0").certain:
                    # Of several other images, the last one is named.
                    t = t._replace(ok=frozenset({(0, image)}))
                yield f"somebody starts the guest on {HOSTS[at]}: {image}", t
        elif s.guest == at and s.run and s.roots != "X":
            yield "another program moves the disk: X", fewer._replace(roots="X", ok=s.ok | {(0, "X")})

    def people(self, s: State) -> Iterator[tuple[str, State]]:
        if s.guest is not None and s.run and s.words:
            yield from self.accepts(s, s.guest)
        if s.forgets and s.view.owner is not None and s.view.intent is None:
            gone = s._replace(
                view=self.known(forgotten(s.view)), wire=frozenset(), forgets=s.forgets - 1, forgotten=True
            )
            yield "the fleet forgets the guest", gone
        other = None if s.guest is None else 1 - s.guest
        if other is not None and s.run and s.migrations and s.departed is None:
            yield from self.migrates(s, other)
        if s.guest is None and s.takes:
            yield from self.takes(s, foul=False)
        paused = s.guest is not None and not s.run and not any(host.told for host in s.hosts)
        if self.bounds.unfenced and paused and s.takes:
            yield from self.takes(s, foul=True)
        if s.guest is None and s.restarts:
            for at, host in enumerate(s.hosts):
                yield from self.restarts(s, at, host)
            yield from self.virsh_start(s)

    def migrates(self, s: State, to: int) -> Iterator[tuple[str, State]]:
        """Whoever manages the guest moves it; no host does so while a guest stands still for a pivot."""
        old = s.hosts[1 - to]
        last = old.journal[-1] if old.journal else None
        if last is not None and last.phase == "pausing":
            return
        t = s._replace(guest=to, migrations=s.migrations - 1, same=False, departed=1 - to)
        yield f"the guest migrates to {HOSTS[to]}", t

    def takes(self, s: State, *, foul: bool) -> Iterator[tuple[str, State]]:
        for at in range(len(HOSTS)):
            if s.view.owner is None or s.view.owner.host == HOSTS[at]:
                continue
            unknown = {
                f"disk{disk}": disk for disk in range(self.bounds.disks)
                if not fleet_verdict(s.view, f"disk{disk}").certain
            }  # fmt: skip
            chosen = {}
            for name, disk in unknown.items():
                images = fleet_verdict(s.view, name).candidates
                chosen[name] = next((one for one in images if self.right(s, disk, one)), images[0])
            after = take_over(s.view, self.here(s, at), chosen)
            if isinstance(after, str):
                continue
            images = [fleet_verdict(after, f"disk{disk}").image for disk in range(self.bounds.disks)]
            if s.forgotten and None in images:
                continue  # nobody is told an image
            roots = "".join("S" if image is None else image.filename[1] for image in images)
            t = self.lands(s, after)._replace(guest=at, run=True, same=False, takes=s.takes - 1)
            t = t._replace(foul=s.guest if foul else None)
            lacking = self.lacking(s, roots)
            if lacking and (s.unseen or self.is_owed(s)):  # known only to the lost host, if at all
                t, lacking = t._replace(ok=frozenset(enumerate(roots))), ""
            yield (
                f"{HOSTS[at]} takes the guest: {roots}{', not fenced' * foul}",
                t._replace(roots=roots, wrong=lacking, unseen=False, departed=still(s, at)),
            )

    @staticmethod
    def right(s: State, disk: int, image: FleetImage) -> bool:
        return (disk, image.filename[1]) in s.ok

    def lacking(self, s: State, roots: str) -> str:
        lacking = [f"{image}{disk}" for disk, image in enumerate(roots) if (disk, image) not in s.ok]
        return f"a guest starts from {', '.join(lacking)}, which lacks writes" if lacking else ""

    def restarts(self, s: State, at: int, host: Host) -> Iterator[tuple[str, State]]:
        """`pivotctl image` is asked on a host, and the guest starts from what it says."""
        found = self.local(s, at, host)
        if found is None or not knows(s, host):
            return
        roots, tell = found
        fewer = s._replace(restarts=s.restarts - 1)
        lacking = "" if s.unseen else self.lacking(s, roots)
        ok = frozenset(enumerate(roots)) if s.unseen else s.ok  # what only that QEMU could have shown is lost
        started = fewer._replace(
            guest=at, run=True, roots=roots, same=False, ok=ok, wrong=lacking, departed=still(s, at)
        )
        started = self.host(started, at, host._replace(left=False, owed=None))._replace(
            unmet=s.unmet or s.view.owner is None
        )
        if tell is None:
            yield f"the guest starts again on {HOSTS[at]}: {roots}", started
            return
        yield from self.writes(s, tell, f"`image` on {HOSTS[at]} tells {roots}", started)

    def accepts(self, s: State, at: int) -> Iterator[tuple[str, State]]:
        """A person says that the guest is right where it runs: its fleet learns of it first, if there is one."""
        host = s.hosts[at]
        if (
            self.bounds.split
            or not host.journal
            or host.journal[-1].phase != "closed"
            or host.left
            or not self.right(s, 0, image_of(s))
        ):
            return
        fewer, last = s._replace(words=s.words - 1), host.journal[-1]
        host = host._replace(ran_on="", look="")
        after = accepting(s.view, self.here(s, at), self.pivot(last, number(at, last)), "disk0", image_of(s))
        if not isinstance(after, str):
            told = self.now(fewer, at, host, word=s.roots, epoch=after.epoch)
            yield from self.writes(fewer, after, f"a person accepts {s.roots} on {HOSTS[at]}", told)
        if self.bounds.alone:
            untold = self.now(fewer, at, host, word=s.roots, epoch=None, alone=True)._replace(stale=True)
            yield f"a person accepts {s.roots} on {HOSTS[at]}, without a fleet", untold

    def virsh_start(self, s: State) -> Iterator[tuple[str, State]]:
        """Libvirt starts its guest again without a question to pivotd: from either image, while both are complete."""
        at = next((at for at, host in enumerate(s.hosts) if host.journal and not host.left), None)
        mine = at is not None and s.view.owner is not None and s.view.owner.host == HOSTS[at]
        if self.bounds.manager is Manager.LIBVIRT and mine and not self.lacking(s, s.roots):
            yield f"virsh start: {s.roots}", s._replace(guest=at, run=True, restarts=s.restarts - 1)

    def together(self, s: State, at: int, host: Host, *, live: bool) -> Together:
        """Return what host and fleet together say of every disk. ``live``: its guest is in a QEMU here, which answers."""
        disks, left = [], host.left or s.departed == at  # whoever asks looks at QEMU
        for disk in range(self.bounds.disks):
            shown = FleetImage(f"/{s.roots[disk]}{disk}", "raw") if live else None
            last = next((local for local in reversed(host.journal) if disk in local.disks), None)
            if last is None:
                disks.append(DiskHere(without_pivot("web1", f"disk{disk}"), left=left, live=shown))
                continue
            pivot = self.pivot(last, number(at, last))
            moved = replace(pivot.disks[last.disks.index(disk)], left_at=NOW if left else None, ran_on=ran_on(host))
            said = doubtful(of_pivot(pivot, moved), moved)
            disks.append(DiskHere(said, (pivot, moved), left=left, live=shown))
        return together(s.view, Here(HOSTS[at], "boot", NOW), disks)

    def local(self, s: State, at: int, host: Host) -> tuple[str, FleetView | None] | None:
        """Return what host and fleet say of every disk without a QEMU, and what to tell the fleet; None: not certain."""
        found = self.together(s, at, host, live=False)
        if not all(one.certain for one in found.verdicts):
            return None
        if s.forgotten and any(one.image is None for one in found.verdicts):
            return None  # nobody is told an image
        roots = "".join("S" if one.image is None else one.image[1] for one in found.verdicts)
        return roots, found.tell

    # -- pivotd ---------------------------------------------------------------------------------------------------

    def pivotd(self, s: State, at: int, host: Host) -> Iterator[tuple[str, State]]:
        yield from self.looks(s, at, host)
        yield from self.owns(s, at, host)
        yield from self.doubts(s, at, host)
        if not host.journal or host.journal[-1].phase == "closed":
            in_doubt = s.view.intent is None and not fleet_verdict(s.view, "disk0").certain
            astray = host.ran_on or s.unseen or (in_doubt and not host.journal)  # refused: QEMU is looked at first
            if s.guest == at and s.run and s.began < len(self.bounds.targets) and not host.left and not astray:
                yield from self.begins(s, at, host)
            return
        last = host.journal[-1]
        if last.phase == "ready":
            yield from self.ready(s, at, host, last)
        elif last.phase == "pausing":
            yield from self.pausing(s, at, host, last)
        else:
            yield from self.decided(s, at, host, last)

    def begins(self, s: State, at: int, host: Host) -> Iterator[tuple[str, State]]:
        for disks in self.choices():
            of = f" of disk {disks}" * self.bounds.split

            def begun(
                what: str, epoch: int | None, *, alone: bool = False, disks: tuple[int, ...] = disks, of: str = of
            ) -> tuple[str, State]:
                new = Local(s.began, s.roots, disks, epoch=epoch, alone=alone)
                after = self.host(s, at, Host((*host.journal, new), host.left, here=host.here))
                return f"{HOSTS[at]}: a pivot{of} begins{what}", after._replace(began=s.began + 1, same=True)

            if of_another(s.view, HOSTS[at]) is None:
                yield begun("", s.view.epoch)
            if s.losses:
                name, t = begun(", without an answer", None)
                yield name, t._replace(losses=s.losses - 1)
            if s.alone and s.view.owner is not None:
                name, t = begun(", without a fleet", None, alone=True)
                yield name, t._replace(alone=s.alone - 1)

    def choices(self) -> list[tuple[int, ...]]:
        """Return the disks that a pivot may move."""
        every = tuple(range(self.bounds.disks))
        return [every, *((disk,) for disk in every)] if self.bounds.split else [every]

    def owns(self, s: State, at: int, host: Host) -> Iterator[tuple[str, State]]:
        """What a pivotd does about guests that come and go, as it has last seen them."""
        here = self.here(s, at)
        if host.left and (host.look or host.owed is None or not owned(s.view, here, host.owed)):
            return  # a look that is under way comes first; or nothing is owed
        if host.left:
            after = leaving(doubting_all(s.view, here, self.astray(at, host)), here)
        elif (entered := self.entering(s, at, host)) is not None:
            yield from self.writes(s, entered, f"{HOSTS[at]} enters the guest", s)
            return
        else:
            after = meeting(s.view, replace(here, present=host.here))
        if after is not s.view:
            yield from self.writes(s, after, f"{HOSTS[at]} {'releases' if host.left else 'claims'} the guest", s)

    def entering(self, s: State, at: int, host: Host) -> FleetView | None:
        """Return what pivotd tells of the images of a guest that it sees here, and whose last pivot has ended."""
        if s.guest != at or not s.run or not host.here or host.left or host.look:
            return None
        if not host.journal or host.journal[-1].phase != "closed":
            return None
        return self.together(s, at, host, live=True).tell

    def looks(self, s: State, at: int, host: Host) -> Iterator[tuple[str, State]]:
        """What pivotd sees, and acts on later."""
        here, closed = s.guest == at, not host.journal or host.journal[-1].phase == "closed"
        if s.departed == at:
            owner = s.view.owner
            epoch = owner.epoch if owner is not None and owner.host == HOSTS[at] else None
            t = self.host(s, at, host._replace(left=True, here=False, owed=epoch))
            yield f"{HOSTS[at]} sees that the guest has left", t._replace(departed=None)
            return
        if (here != host.here and may_claim(s)) or (here and host.left):
            seen = host._replace(here=here, left=host.left and not here, owed=None if here else host.owed)
            yield f"{HOSTS[at]} sees {'' if here else 'no more '}the guest", self.host(s, at, seen)
        astray = self.bounds.strays and (s.unseen or host.ran_on)
        if astray and here and s.run and closed and host.look != s.roots and not host.left:
            yield f"{HOSTS[at]} sees {s.roots}", self.host(s, at, host._replace(look=s.roots))

    def doubts(self, s: State, at: int, host: Host) -> Iterator[tuple[str, State]]:
        """What pivotd does about a guest that it has seen on another image, or on the right one again."""
        told = self.astray(at, host)
        after = doubting_all(s.view, self.here(s, at), told)
        if after != s.view:
            yield from self.writes(s, after, f"{HOSTS[at]} tells of the doubt", s)
        if not host.look:
            return
        if not host.journal:
            yield from self.tells_at_once(s, at, host)
            return
        last = host.journal[-1]
        pivot = self.pivot(last, number(at, last))
        right, word = right_image(pivot.disks[0]).filename[1], fleet_verdict(s.view, "disk0")
        seen = host._replace(look="")
        mine = owned(s.view, self.here(s, at), None)  # otherwise the guest has run elsewhere since
        known = s._replace(unseen=s.unseen and (host.look != s.roots or not mine))
        if host.look != right:
            if word.image is not None and word.image.filename[1] == host.look:
                yield f"{HOSTS[at]}: the fleet has the guest there", self.host(known, at, seen)
            else:
                new = seen._replace(ran_on=host.look)
                yield f"{HOSTS[at]} records that the guest ran on {host.look}", self.host(known, at, new)
        elif self.contradicted(s, at, host, pivot):  # another host has moved it on, and this one has the guest back
            new = seen._replace(ran_on=host.look)
            told = f"{HOSTS[at]} records that the guest ran on {host.look}, not where the fleet says"
            yield told, self.host(known, at, new)
        elif not host.ran_on:
            # Whoever has started the guest there wants it there.
            wanted = known._replace(ok=frozenset(enumerate(s.roots))) if right == s.roots else known
            yield f"{HOSTS[at]}: that is right", self.host(wanted, at, seen)
        elif s.view.intent is None and owned(s.view, self.here(s, at), None):
            image = FleetImage(f"/{right}0", "raw")
            after = settling(s.view, self.here(s, at), pivot.id, image, "disk0")
            now = fleet_verdict(after, "disk0")
            agreed = now.certain and now.image in {None, image}
            named = agreed or image in now.candidates  # a third image is not
            settled = self.host(known if named else s, at, seen._replace(ran_on="" if agreed else host.ran_on))
            yield from self.writes(s, after, f"{HOSTS[at]} settles the doubt", settled)

    def tells_at_once(self, s: State, at: int, host: Host) -> Iterator[tuple[str, State]]:
        """What pivotd does about a guest whose disk it has never moved: only the fleet can keep that it runs elsewhere."""
        seen = self.host(s, at, host._replace(look=""))
        if s.guest != at:
            yield f"{HOSTS[at]}: QEMU has ended before the fleet knew", seen
            return
        if not owned(s.view, self.here(s, at), None):
            return  # it looks again once it has claimed the guest
        # Of a disk that the fleet has never known, it says no more than that.
        known = seen._replace(unseen=s.unseen and (host.look != s.roots or s.view.disk("disk0") is None))
        after = straying(s.view, self.here(s, at), {"disk0": FleetImage(f"/{host.look}0", "raw")})
        if after == s.view:
            yield f"{HOSTS[at]}: the fleet knows", known
        else:
            yield from self.writes(s, after, f"{HOSTS[at]} tells that the guest runs on {host.look}", known)

    def contradicted(self, s: State, at: int, host: Host, pivot: Pivot) -> bool:
        """Return whether the fleet names another image than the one where the guest was seen, which the journal names."""
        moved = replace(pivot.disks[0], ran_on=ran_on(host))
        seen = DiskHere(of_pivot(pivot, moved), (pivot, moved), live=FleetImage(f"/{host.look}0", "raw"))
        (found,) = together(s.view, self.here(s, at), [seen]).verdicts
        return found.outcome is Outcome.UNKNOWN

    def astray(self, at: int, host: Host) -> list[tuple[Pivot, PivotDisk]]:
        """Return the disk with its last pivot, if the journal has that the guest ran elsewhere."""
        if not host.ran_on:
            return []
        pivot = self.pivot(host.journal[-1], number(at, host.journal[-1]))
        return [(pivot, replace(pivot.disks[0], ran_on=ran_on(host)))]

    def is_owed(self, s: State) -> bool:
        """Return whether a host is about to tell the fleet that a guest of its own has run on another image."""
        return any(
            doubting_all(s.view, self.here(s, at), self.astray(at, host)) != s.view for at, host in enumerate(s.hosts)
        )

    def ready(self, s: State, at: int, host: Host, last: Local) -> Iterator[tuple[str, State]]:
        if s.guest != at or not s.same or not s.run:
            yield (
                f"{HOSTS[at]}: its guest is gone: kept",
                self.now(s, at, host, phase="decided", outcomes="k" * len(last.disks)),
            )
            return
        yield f"{HOSTS[at]}: cancelled", self.now(s, at, host, phase="decided", outcomes="k" * len(last.disks))
        if host.asked or last.alone:
            t = self.now(s, at, host, phase="pausing", owes=True)
            yield f"{HOSTS[at]}: the intent is durable, the guest stops", t._replace(run=False)
            return
        pivot = self.pivot(last, number(at, last))
        if last.alone:
            return
        after = before_intent(s.view, pivot, self.here(s, at), self.bounds.on_silence)
        if not isinstance(after, str):
            assert after.owner is not None
            noted = self.now(s, at, host, stage=FleetStage.ANNOUNCED, epoch=after.owner.epoch)
            answered = self.host(noted, at, noted.hosts[at]._replace(asked=True))
            yield from self.writes(noted, after, f"{HOSTS[at]}: announces", answered)

    def pausing(self, s: State, at: int, host: Host, last: Local) -> Iterator[tuple[str, State]]:
        n, target = len(last.disks), self.bounds.targets[last.number]
        roots = [s.roots[disk] for disk in last.disks]
        gone = s.guest != at or not s.same
        if gone and self.bounds.manager is Manager.LIBVIRT:
            on = "".join("s" if image == target else "k" for image in roots)
            yield f"{HOSTS[at]}: what libvirt starts is recorded", self.now(s, at, host, phase="decided", outcomes=on)
            return
        if gone:
            yield f"{HOSTS[at]}: QEMU is gone: kept", self.now(s, at, host, phase="decided", outcomes="k" * n)
            return
        if s.run:
            yield (
                f"{HOSTS[at]}: found running: kept",
                self.now(s, at, host, phase="decided", outcomes="k" * n, owes=False),
            )
            return
        on = "".join("s" if image == target else "k" for image in roots)
        if "s" in on:
            yield f"{HOSTS[at]}: the outcome is durable", self.now(s, at, host, phase="decided", outcomes=on)
            back = self.now(s, at, host, phase="decided", outcomes="k" * n)
            yield f"{HOSTS[at]}: taken back", back._replace(roots=last.source)
            return
        yield f"{HOSTS[at]}: given up", self.now(s, at, host, phase="decided", outcomes="k" * n)
        both = s.ok | {(disk, target) for disk in last.disks}
        if s.ok != both:
            yield f"{HOSTS[at]}: pending", s._replace(ok=both)
        else:
            yield f"{HOSTS[at]}: finalize", s._replace(roots=on_target(s.roots, last.disks, target))
            if n > 1:
                yield f"{HOSTS[at]}: only the first disk moves", s._replace(roots=target + last.source[1:])

    def decided(self, s: State, at: int, host: Host, last: Local) -> Iterator[tuple[str, State]]:
        pivot = self.pivot(last, number(at, last))
        attempt = Attempt(
            in_fleet=not last.alone,
            fleet_told=host.told,
            fleet_silent="no answer" if host.waited else None,
            deadline_passed=host.waited,
        )
        if isinstance(telling(pivot, attempt), TellFleet):
            after = after_outcome(s.view, pivot, self.here(s, at))
            told = self.host(s, at, host._replace(told=True))
            if isinstance(after, Superseded):
                yield f"{HOSTS[at]}: superseded", self.now(s, at, host, stage=FleetStage.SUPERSEDED, owes=False)
            elif after == s.view and moved(pivot):
                yield f"{HOSTS[at]}: reads that the fleet knows", told
            else:
                yield from self.writes(s, after, f"{HOSTS[at]}: tells the outcome", told)
        if last.owes and moved(pivot) and not host.waited and not host.told:
            yield f"{HOSTS[at]}: no answer within the pause", self.host(s, at, host._replace(waited=True))
        if last.owes:
            if s.foul != at and (s.guest != at or not s.same):
                yield f"{HOSTS[at]}: there is no guest to resume", self.now(s, at, host, owes=False)
            elif isinstance(held(pivot, attempt, Resume()), Resume):
                stage = FleetStage.TOLD if host.told else last.stage
                missed = s.stale or (last.alone and moved(pivot))
                t = self.now(s, at, host, owes=False, stage=stage)._replace(run=True, stale=missed)
                if s.foul == at and not host.waited and moved(pivot):
                    t = t._replace(wrong="a guest that another host has taken was resumed")
                yield f"{HOSTS[at]}: cont", t
        elif is_told(pivot, attempt):
            stage = FleetStage.TOLD if host.told else last.stage
            yield f"{HOSTS[at]}: closed", self.now(s, at, host, phase="closed", stage=stage)

    def now(self, s: State, at: int, host: Host, **changes: object) -> State:
        """Record a change of the host's last pivot."""
        last = host.journal[-1]._replace(**changes)
        return self.host(s, at, host._replace(journal=(*host.journal[:-1], last)))

    def nobody_settles(self, s: State) -> bool:
        """Return whether the guest is where its host's journal says, which knows of no doubt."""
        if s.guest is None or s.view.owner is None or s.view.owner.host != HOSTS[s.guest] or s.departed is not None:
            return False
        host = s.hosts[s.guest]
        if not host.journal or host.journal[-1].phase != "closed" or host.left:
            return False
        pivot, known = self.pivot(host.journal[-1], number(s.guest, host.journal[-1])), s.view.disk("disk0")
        right = right_image(pivot.disks[0])
        if self.bounds.disks > 1 or known is None or right.filename[1] != s.roots:
            return False
        image = FleetImage(right.filename, right.format)
        if known.epoch != s.view.owner.epoch or (host.ran_on and known.image != image):
            return False  # it is about another host's pivot, or another host's doubt
        after = settling(s.view, self.here(s, s.guest), pivot.id, image, "disk0")
        return not host.ran_on or not fleet_verdict(after, "disk0").certain

    def nobody_tells(self, s: State) -> bool:
        """Return whether the end of a QEMU would leave its host uncertain for ever, although the guest is where it says."""
        if not s.view.forgotten or s.guest is None or not s.run or s.unseen or s.stale or s.departed is not None:
            return False
        at, host = s.guest, s.hosts[s.guest]
        open_, doubted = not host.journal or host.journal[-1].phase != "closed", host.left or host.ran_on
        if open_ or doubted or s.view.intent is not None or not owned(s.view, self.here(s, at), None):
            return False
        live, roots = self.together(s, at, host, live=True), [f"/{image}{at}" for at, image in enumerate(s.roots)]
        if live.tell is not None or [one.image for one in live.verdicts] != roots:
            return False
        return not all(one.certain for one in self.together(s, at, host, live=False).verdicts)

    # -- promises -------------------------------------------------------------------------------------------------

    def wrong(self, s: State) -> str | None:
        if s.wrong:
            return s.wrong
        if s.foul is not None:
            return None
        for disk in range(0 if s.stale or s.unseen else self.bounds.disks):
            word = fleet_verdict(s.view, f"disk{disk}")
            if s.forgotten and word.certain and word.image is None:
                continue
            image = "S" if word.image is None else word.image.filename[1]
            if word.certain and (disk, image) not in s.ok and not self.is_owed(s):
                return f"the fleet says {image}{disk} for certain, and that lacks writes"
            if not word.certain and s.view.intent is None and self.nobody_settles(s):
                return "the guest is where the journal says, and the fleet is uncertain for ever"
            unheard = self.is_owed(s) or (s.view.intent is not None and any(host.ran_on for host in s.hosts))
            if not word.certain and not unheard and not any(self.right(s, disk, one) for one in word.candidates):
                return f"the fleet calls disk{disk} unknown, and names no image that has every write"
            on_silence_wait = self.bounds.on_silence is OnSilence.WAIT and self.bounds.manager is Manager.PIVOTD
            if on_silence_wait and not word.certain and not self.bounds.strays:
                return "the fleet does not know, although guests wait for it"
        if self.nobody_tells(s):
            return "the guest is where its host's journal says, and the fleet is never told again"
        for at, host in enumerate(s.hosts):
            found = self.local(s, at, host) if s.guest != at and knows(s, host) else None
            if found is not None and s.guest is not None and s.view.owner is not None and not s.unmet:
                return f"{HOSTS[at]} lets the guest start, which runs on {HOSTS[s.guest]}"
            if found is not None and not s.unseen and (lacking := self.lacking(s, found[0])):
                return f"{HOSTS[at]}: {lacking}"
        return None


def may_claim(s: State) -> bool:
    """Return whether the guest may be claimed some time: otherwise it does not matter what was seen of it."""
    owned_now = s.view.owner is not None and s.view.owner.host is not None
    moves = s.migrations or s.departed is not None or any(host.left for host in s.hosts)
    return bool(not owned_now or s.forgets or s.wire or moves)


def plain(s: State) -> State:
    """Return the state without what does not matter any more."""
    if may_claim(s) or not any(host.here for host in s.hosts):
        return s
    return s._replace(hosts=(s.hosts[0]._replace(here=False), s.hosts[1]._replace(here=False)))


def still(s: State, at: int) -> int | None:
    """Return whose pivotd may still see that the guest has left, once a new QEMU of it is on this host."""
    return None if s.departed == at else s.departed


def ran_on(host: Host) -> RanOn | None:
    """Return what the journal has of the image on which the guest of a host ran."""
    return RanOn(f"/{host.ran_on}0", "raw", NOW) if host.ran_on else None


def knows(s: State, host: Host) -> bool:
    """Return whether a host has to give no wrong answer: it made the move that the fleet has missed, or none was missed."""
    return not s.stale or any(local.alone for local in host.journal)


def on_target(roots: str, disks: tuple[int, ...], target: str) -> str:
    """Return the images with those of ``disks`` switched."""
    return "".join(target if disk in disks else image for disk, image in enumerate(roots))


def image_of(s: State) -> FleetImage:
    """Return the image of the first disk of the guest."""
    return FleetImage(f"/{s.roots[0]}0", "raw")


def number(at: int, local: Local) -> int:
    """Return a number that no other pivot has."""
    return local.number * 10 + at


def down(host: Host) -> Host:
    """Return what is left of it when pivotd dies."""
    return host._replace(asked=False, told=False, waited=False, here=False, look="")


@dataclass(slots=True)
class FleetFound:
    """What a search has seen; ``story`` is the shortest one that breaks a promise, None if none does."""

    bounds: FleetBounds
    states: int
    story: list[str] | None
    ends: set[str]

    def __str__(self) -> str:
        if self.story is not None:
            return f"{self.bounds}: " + "\n    ".join(self.story)
        return f"{self.bounds}: {self.states} states"


def search(bounds: FleetBounds) -> FleetFound:
    """Search every state within the bounds, breadth first, until a promise is broken."""
    model = Model(bounds)
    first = model.first()
    before: dict[State, tuple[str, State] | None] = {first: None}
    todo = deque([first])
    ends: set[str] = set()
    while todo:
        s = todo.popleft()
        for host in s.hosts:
            ends |= {f"{one.outcomes} {one.stage}" for one in host.journal if one.phase == "closed"}
        if why := model.wrong(s):
            story, at = [why], s
            while (came := before[at]) is not None:
                story.append(came[0])
                at = came[1]
            return FleetFound(bounds, len(before), story[::-1], ends)
        for name, found in model.steps(s):
            t = plain(found)
            if t not in before:
                before[t] = (name, s)
                todo.append(t)
    return FleetFound(bounds, len(before), None, ends)


def main() -> None:
    """Run one search from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--on-silence", type=OnSilence, default=OnSilence.RESUME, choices=list(OnSilence))
    parser.add_argument("--manager", type=Manager, default=Manager.PIVOTD, choices=list(Manager))
    parser.add_argument("--targets", default="D")
    parser.add_argument("--unfenced", action="store_true")
    parser.add_argument("--split", action="store_true")
    for name in ("disks", "restarts", "migrations", "takes", "losses", "alone", "words", "forgets", "strays"):
        parser.add_argument(f"--{name}", type=int, default=getattr(FleetBounds(), name))
    found = search(FleetBounds(**vars(parser.parse_args())))
    print(found)  # noqa: T201 - a command
    sys.exit(found.story is not None)


if __name__ == "__main__":
    main()
