"""Rounds of a fleet: hosts, etcd, pivotd and QEMU are killed and frozen at random, under a guest that writes.

    make fleet ROUNDS=200 SEED=7

Two pivotd with a journal each play two hosts; etcd has three nodes; a host reaches them by proxies that lose, delay and
double its messages. Each certain answer, whoever gives it, must name an image that holds every write that the guest was
told is complete; an unknown one must name two of which one does. A take-over must answer with such images.
"""

# ruff: noqa: T201 - a campaign speaks

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pivotd.core.fleet import FleetView
from pivotd.core.pivot import FleetStage
from pivotd.core.rules.fleet_words import fleet_verdict
from pivotd.errors import FleetError
from tests.chaos.guest_rounds import wanted
from tests.chaos.guest_world import Requester, chain_of
from tests.chaos.process import journal, try_call
from tests.fleet.etcd import Cluster
from tests.fleet.etcds import missing
from tests.fleet.hosts import DOMAIN, FleetHost, Site, until
from tests.fleet.judge import FleetJudge
from tests.fleet.outages import Outages
from tests.fleet.plan import FleetRound, Summary, Victim, Weather, random_round
from tests.fleet.wires import Message, Place, Struck
from tests.support.history import verdicts
from tests.support.seeds import drawn

CLOSE_TIMEOUT_S = 120.0
STRIKE_TIMEOUT_S = 60.0
LOOK_S = 0.05
OWNER_TIMEOUT_S = 30.0
ASK_S = 0.2
FROZEN_S = 1.0
"""At least so long before a frozen host wakes: nobody is quicker with a fence."""
EXIT_UNREACHABLE, EXIT_UNKNOWN, EXIT_NEVER_MOVED = 3, 6, 7
MODES = ("resume", "wait")
ENDS_QEMU = {Victim.QEMU, Victim.BOTH}
LOSES_HOST = {Victim.HOST, Victim.FROZEN}
_NUMBERS = itertools.count(1)
"""Of rounds: the names of images and requests stand in journals that outlive their hosts."""


class FleetRounds:
    """Rounds at one site. ``other_image`` points the judge at the image that the fleet does *not* name."""

    def __init__(self, site: Site, summary: Summary, rng: random.Random, *, other_image: bool = False) -> None:
        self.site, self._summary, self._rng = site, summary, rng
        self._outages = Outages(site.cluster, site.view)
        self._judge = FleetJudge(site, summary, self._say, other_image=other_image)
        self._usual_s = 0.5
        self._struck_s = 0.0
        self._said: list[str] = []
        self._round: FleetRound
        self._name = ""

    def play(self, planned: FleetRound) -> list[str]:
        """Play one round; return its broken promises."""
        self._round, self._said, self._name = planned, [], f"round-{next(_NUMBERS)}"
        site, before = self.site, self.site.writes.last()
        self._accept()
        if planned.weather_first:
            self._outages.begin(planned.weather, site.here.wires)
        site.here.wires.make_noise(self._rng, planned.noise)
        try:
            if planned.message is Message.RELEASE:
                self._migrate()
            elif planned.message is Message.CLAIM:
                self._claim()
            else:
                self._pivot()
            self._end()
        finally:
            self._heal()
        self._summary.acks += site.writes.last() - before
        self._summary.rounds[str(planned.victim)] += 1
        return self._said

    # -- what is going on when it strikes

    def _pivot(self) -> None:
        site, planned = self.site, self._round
        chains = {disk: chain_of(Path(image)) for disk, image in site.images.items()}
        targets = {disk: Path(image) for disk, image in site.targets().items()}
        move, wishes = wanted(planned.move, chains, targets)
        struck = None if planned.message is None else site.here.wires.arm(planned.message, planned.place)
        site.here.wires.lose_answers_of(Message.INTEND if planned.message is Message.WITHDRAW else None)
        requester = Requester(site.here.daemon, self._name, move.kind, wishes, max_pause_ms=planned.max_pause_ms)
        try:
            if struck is None:
                time.sleep(planned.at * self._usual_s)
            else:
                self._reach(struck, requester)
            self._hit(requester)
            self._judged(requester)
        finally:
            requester.stop()

    def _claim(self) -> None:
        """The fleet has forgotten the guest, and pivotd meets it again."""
        site = self.site
        self._heal()
        if not self._settled():
            return
        behind = {
            one.disk for one in verdicts(journal(site.here.daemon.state_dir)) if one.image != site.images[one.disk]
        }
        for disk in behind:  # only the fleet knows where they are
            self._accept_word(disk)
        site.forget()
        struck = site.here.wires.arm(Message.CLAIM, self._round.place)
        site.here.restart(wait=False)
        struck.reached.wait(STRIKE_TIMEOUT_S)
        self._hit(None)
        self._judged(None)

    def _migrate(self) -> None:
        """The guest moves to the other host while it runs; from then on that is where it lives."""
        site, planned = self.site, self._round
        socket = site.directory / "m"
        socket.unlink(missing_ok=True)
        old, new = site.here, site.there
        site.start(new, incoming=f"unix:{socket}")
        assert old.qemu is not None
        assert new.qemu is not None
        struck = old.wires.arm(Message.RELEASE, planned.place)
        old.qemu.spy("migrate", {"uri": f"unix:{socket}"})
        moved = until(lambda: new.qemu is not None and new.qemu.run_state() == "running")
        self._check(moved, "the guest did not migrate")
        released = struck.reached.wait(STRIKE_TIMEOUT_S)
        self._check(released, f"{old.name} does not release the guest that has left it: {self._shown()}")
        if planned.victim is not Victim.NOBODY and planned.victim is not Victim.QEMU:
            old.daemon.kill()
        if planned.victim not in {Victim.NOBODY, Victim.PIVOTD}:
            old.kill_qemu()
        self._outages.begin(planned.weather, old.wires) if not planned.weather_first else None
        old.wires.go_on()
        with self._judge.still(new):
            self._judge.fleet("right after a migration")
        self._heal()
        old.wires.deliver()
        if planned.victim not in {Victim.NOBODY, Victim.QEMU}:
            if planned.victim in LOSES_HOST and planned.loses_journal:
                old.set_journal_aside()
            old.restart()
        site.swap()
        if not until(lambda: self._owner() == new.name, 10.0):
            self._summary.notes["a guest that migrated has to be taken: its old host has not released it"] += 1
            self._take()
        old.kill_qemu()

    def _accept(self) -> None:
        """Let a person say where the guest is, if its host cannot know: it has come back, and moves from before may be missing.

        That is so if etcd did not answer the request for the host's last pivot.
        """
        here, images = self.site.here, self.site.images

        def doubted() -> dict[str, Any]:
            words = here.words() or {}
            right = {disk for disk, one in words.items() if one["certain"] and one["image"] == images.get(disk)}
            return {disk: words.get(disk, {"reason": "no answer"}) for disk in images if disk not in right}

        known = {disk for disk in images if self._is_known(disk)}
        # pivotd may not answer yet, or not have looked at this QEMU.
        until(lambda: here.words() is not None and known.isdisjoint(doubted()), OWNER_TIMEOUT_S)
        for disk, one in doubted().items():
            self._check(disk not in known, f"its host says of {disk}: {one['reason']}")
            self._accept_word(disk)

    def _accept_word(self, disk: str) -> None:
        here, image = self.site.here, self.site.images[disk]
        body = {"image": image, "format": "qcow2", "reason": "the guest has come back"}
        answer = try_call(here.daemon, "POST", f"/v1/domains/{DOMAIN}/disks/{disk}/accept", body)
        self._check(bool(answer) and "kind" not in answer, f"the right image is not accepted: {answer}")
        self._summary.notes["journals from before a guest left, and came back: accepted by a person"] += 1

    def _is_known(self, disk: str) -> bool:
        """Return whether the guest's host can know the image of a disk, by its journal and the fleet."""
        pivots = (one for one in journal(self.site.here.daemon.state_dir) if any(d.disk == disk for d in one.disks))
        last, view = next(pivots, None), self.site.view()
        if last is None:
            return True
        return last.fleet_epoch is not None and last.fleet_epoch >= view.forgotten and view.disk(disk) is not None

    def _is_forgotten(self, disk: str) -> bool:
        """Return whether nobody can know a disk of a guest that has ended: the fleet was made to forget it, and not told again."""
        with contextlib.suppress(FleetError):
            view = self.site.view()
            return bool(view.forgotten) and view.intent is None and view.disk(disk) is None
        return False

    # -- the strike

    def _reach(self, struck: Struck, requester: Requester) -> None:
        """Wait until the message is where it is to be struck, or the pivot ends without it."""
        here, deadline_s, cancelled = self.site.here, time.monotonic() + STRIKE_TIMEOUT_S, False
        while not struck.reached.wait(LOOK_S) and time.monotonic() < deadline_s:
            pivot = self._journalled(here)
            if pivot is None:
                if requester.answer is not None and "phase" not in requester.answer:
                    self._check(held=False, text=f"the request was refused: {requester.answer}")
                    break
                continue
            if pivot.phase == "closed":
                break
            announced = struck.message is Message.WITHDRAW and pivot.fleet is FleetStage.ANNOUNCED
            if (announced or pivot.hold) and not cancelled:
                cancelled = (try_call(here.daemon, "POST", f"/v1/pivots/{pivot.id}/cancel") or {}).get(
                    "phase"
                ) is not None
        what = "struck" if struck.reached.is_set() else "did not come"
        self._summary.notes[f"{struck.message} {struck.place}: {what}"] += 1

    def _hit(self, requester: Requester | None) -> None:
        site, planned = self.site, self._round
        here, self._struck_s = site.here, time.monotonic()
        match planned.victim:
            case Victim.PIVOTD:
                here.daemon.kill()
            case Victim.QEMU:
                here.kill_qemu()
            case Victim.BOTH | Victim.HOST:
                here.daemon.kill()
                here.kill_qemu()
            case Victim.FROZEN:
                here.freeze()
                if not self._stays_paused():
                    here.kill_qemu()  # a guest that runs has to be fenced
        if requester is not None and (planned.victim in ENDS_QEMU or planned.victim in LOSES_HOST):
            requester.abandon()
        if not planned.weather_first:
            self._outages.begin(planned.weather, here.wires)
        if planned.victim in LOSES_HOST:
            self._judge.fleet(f"before its last messages have come ({planned})")
        here.wires.go_on()
        here.wires.lose_answers_of(None)

    def _stays_paused(self) -> bool:
        """Return whether the frozen guest is in its pause, and etcd will learn of no outcome of it."""
        planned = self._round
        pivot = self._journalled(self.site.here)
        asked = planned.message is Message.PUBLISH and planned.place in {Place.BEFORE, Place.LATE}
        return asked and pivot is not None and pivot.owes_resume and self.site.view().intent is not None

    # -- judging

    def _judged(self, requester: Requester | None) -> None:
        victim = self._round.victim
        if victim in LOSES_HOST:
            self._judge_lost()
        elif victim in ENDS_QEMU:
            self._judge_dead()
        else:
            self._judge_alive(requester)

    def _judge_alive(self, requester: Requester | None) -> None:
        """The guest goes on, on the image that everybody names."""
        here, began_s = self.site.here, time.monotonic()
        with self._judge.still(here):
            self._judge.fleet(f"with a guest that lives ({self._round})")
        if self._round.victim is Victim.PIVOTD:
            here.restart(wait=False)
        self._heal()
        here.wires.deliver()
        if requester is not None:
            answer = requester.await_answer(CLOSE_TIMEOUT_S)
            if not self._check(answer is not None and "phase" in answer, f"the request was answered {answer}"):
                return
            self._await_closed(here)
            self._usual_s = min(2.0, 0.8 * self._usual_s + 0.2 * (time.monotonic() - began_s))
        assert here.qemu is not None
        state = here.qemu.run_state()
        self._check(state == "running", f"the guest is {state}")
        self.site.images = self.site.roots(here)

    def _judge_dead(self) -> None:
        """The guest is started again on its host, once its pivotd and the fleet agree."""
        site, planned = self.site, self._round
        here = site.here
        offline = planned.offline and planned.victim is Victim.BOTH
        self._judge.fleet(f"after the end of QEMU ({planned})")
        if planned.victim is Victim.BOTH and not offline:
            here.restart()
        self._judge.host(here, f"after the end of QEMU ({planned})", offline=offline)
        if planned.asks_image:
            self._start_by_image(offline=offline)
            return
        if offline:
            here.restart()
        self._heal()
        here.wires.deliver()
        self._start_here()

    def _start_here(self) -> None:
        """Start the guest again on its host, once its pivot has ended; its pivotd lives, and etcd answers."""
        site, planned = self.site, self._round
        here = site.here
        if self._journalled(here) is not None:
            self._await_closed(here)
        view = self._judge.fleet(f"in the end ({planned})", certain=True)
        self._judge.host(here, f"in the end ({planned})")
        site.images |= {d: str(one["image"]) for d, one in (here.words() or {}).items() if d in site.images}
        if view is not None and view.disks:
            said = {disk.disk: disk.image.filename for disk in view.disks}
            # Where only the fleet knew of a disk, nobody does once it was made to forget the guest.
            agree = said.items() <= site.images.items() if view.forgotten else said == site.images
            self._check(agree, f"the fleet names {said}, the host {site.images}")
        site.start(here)

    def _start_by_image(self, *, offline: bool) -> None:
        """Start the guest from what its host answers, as soon as that is certain; nobody waits for the end of the pivot."""
        site, planned = self.site, self._round
        here = site.here
        ask = here.offline if offline else here.daemon.ctl
        if planned.weather in {Weather.NO_MAJORITY, Weather.CUT}:
            self._heal()
        for disk in site.images:
            answer = ask("image", DOMAIN, disk)
            deadline_s = time.monotonic() + OWNER_TIMEOUT_S
            while answer.status not in {0, EXIT_NEVER_MOVED} and time.monotonic() < deadline_s:
                if self._is_forgotten(disk):
                    break
                time.sleep(ASK_S)
                answer = ask("image", DOMAIN, disk)
            how = "image, offline" if offline else "image"
            self._summary.words[f"{how}: certain" if answer.status == 0 else f"{how}: status {answer.status}"] += 1
            if answer.status == 0:
                site.images |= {disk: answer.json["image"]}
            elif answer.status == EXIT_UNKNOWN and self._is_forgotten(disk):
                if not offline:
                    self._accept_word(disk)
            else:
                held = answer.status == EXIT_NEVER_MOVED
                self._check(held, f"`image` answers {answer.status}: {answer.stdout} {answer.stderr}")
        for image in site.images.values():
            self._judge.holds_all(image, f"image ({planned})")
        site.start(here)
        self._check(site.writes.await_more(), "the guest does not write on")
        if offline:
            here.restart()
        with self._judge.still(here):
            self._judge.fleet(f"with a guest that was started by `image` ({planned})")
        self._heal()
        here.wires.deliver()
        if self._journalled(here) is not None:
            self._await_closed(here)

    def _judge_lost(self) -> None:
        """Another host takes the guest; the lost one comes back, and changes nothing."""
        site, planned = self.site, self._round
        here, there = site.here, site.there
        if self._judge.fleet(f"host lost ({planned})") is None:
            status, said = self._answer(there, {})
            self._check(status == EXIT_UNREACHABLE, f"without a majority a take-over answers {status}: {said}")
        self._heal()
        if planned.late_first:
            here.wires.deliver()
            self._judge.fleet(f"host lost, late messages have come ({planned})")
        if planned.loses_taker and planned.victim is Victim.HOST and site.view().owner is not None:
            self._lose_taker()
            return
        site.images = self._take(there)
        site.start(there, locking=here.qemu is None)
        site.swap()
        self._check(until(lambda: self._owner() == there.name, OWNER_TIMEOUT_S), "the new host does not own the guest")
        if site.view().forgotten:
            self._accept()
        view = site.view()
        here.wires.deliver()
        self._unchanged(view, "late messages")
        self._come_back(here)
        self._unchanged(view, "the host that came back")

    def _lose_taker(self) -> None:
        """The host that takes the guest is lost, perhaps before etcd knows of it; the first one is back, and starts it."""
        site, planned = self.site, self._round
        here, there = site.here, site.there
        self._strike_take(there, planned.take or Place.BEFORE)
        there.daemon.kill()
        there.wires.go_on()
        if planned.loses_journal:
            here.set_journal_aside()
        here.restart()
        here.wires.deliver()
        self._judge.fleet(f"the taker is lost ({planned})")
        if planned.late_first:
            there.wires.deliver()
        if self._owner() == there.name:
            sure = [one["disk"] for one in (here.words() or {}).values() if one["certain"]]
            self._check(not sure, f"{here.name} is certain of {sure} of a guest that {there.name} has taken")
        if self._owner() == there.name or (planned.loses_journal and site.view().intent is not None):
            site.images = self._take(here, struck=False)
            if self._journalled(here) is not None:
                self._await_closed(here)
            site.start(here)
        else:
            self._start_here()
        self._check(site.writes.await_more(), "the guest does not write on")
        there.wires.deliver()
        if self._owner() == there.name:
            # Nothing had changed since it was read. Whoever typed it knows that it had no answer, and takes the guest here.
            self._summary.notes["take-overs of a lost host that arrived after its guest had started elsewhere"] += 1
            with self._judge.still(here):
                self._take(here, struck=False)
        there.restart()
        self._judge.believes_itself(there)
        self._summary.notes[f"hosts lost in their own take-over, {planned.take or Place.BEFORE}"] += 1

    def _strike_take(self, there: FleetHost, place: Place, chosen: dict[str, str] | None = None) -> None:
        """Begin a take-over, and kill pivotctl where its message is."""
        struck = there.wires.arm(Message.TAKE, place)
        with there.take(self._choice() if chosen is None else chosen) as command:
            struck.reached.wait(STRIKE_TIMEOUT_S / 4)  # a guest without an owner is not taken
            command.kill()

    def _choice(self) -> dict[str, str]:
        """Return what a person says of the disks of which the fleet is not certain: an image that holds every write."""
        words = {disk: fleet_verdict(self.site.view(), disk) for disk in self.site.images}
        return {
            disk: self._rng.choice(self._judge.complete(word) or [image.filename for image in word.candidates])
            for disk, word in words.items()
            if not word.certain
        }

    def _come_back(self, old: FleetHost) -> None:
        if self._round.victim is Victim.FROZEN:
            time.sleep(max(0.0, self._struck_s + FROZEN_S - time.monotonic()))
            old.thaw()
        else:
            if self._round.loses_journal:
                old.set_journal_aside()
            old.restart()
        if self._journalled(old) is not None:
            self._await_closed(old)
            paused = "left paused" in str(self._journalled(old).error)
            self._check(not paused or old.qemu is not None, f"{old.name} says that its QEMU, which is gone, is paused")
        if old.qemu is not None:
            state = old.qemu.run_state()
            self._check(state != "running", f"the old host, frozen in its pause, has let its guest run ({self._round})")
            old.kill_qemu()
            self._summary.notes["old hosts that woke up in their pause"] += 1
        self._judge.believes_itself(old)

    def _take(self, there: FleetHost | None = None, *, struck: bool = True) -> dict[str, str]:
        """Take the guest; return the image of each disk, after a look whether it holds every write.

        ``struck``: as the round says, pivotctl is killed in it first.
        """
        site, planned, there = self.site, self._round, there or self.site.here
        chosen = self._choice()
        if self._owner() == there.name:  # its journal is lost: a person has to name every image, certain or not
            words = {disk: fleet_verdict(site.view(), disk).image for disk in site.images}
            chosen |= {disk: image.filename for disk, image in words.items() if image is not None}
        if planned.take is not None and struck:
            self._strike_take(there, planned.take, chosen)
            there.wires.go_on()
        status, said = self._answer(there, chosen)
        if planned.take is not None and struck:
            there.wires.deliver()
        if status == EXIT_NEVER_MOVED and site.view().owner is None:
            self._summary.words["take: never heard of it"] += 1
            return site.images
        if not self._check(status == 0, f"the take-over answers {status}: {said}"):
            return site.images
        images = site.images | {one["disk"]: one["image"] for one in json.loads(said)}
        self._summary.words["take: chosen" if chosen else "take: certain"] += 1
        for image in images.values():
            self._judge.holds_all(image, f"take-over ({planned})")
        return images

    def _answer(self, host: FleetHost, chosen: dict[str, str]) -> tuple[int, str]:
        """Return status and answer of a take-over."""
        with host.take(chosen) as command:
            said, complaint = command.communicate(timeout=CLOSE_TIMEOUT_S)
        return command.returncode, said or complaint

    def _end(self) -> None:
        """At the end of each round the guest writes on, on its host, and everybody agrees."""
        site = self.site
        self._check(site.writes.await_more(), "the guest does not write on")
        self._check(self._settled(), "the fleet does not come to rest")
        if site.view().forgotten:
            self._accept()
        with self._judge.still(site.here):
            self._judge.fleet(f"at rest ({self._round})", certain=True)
            for disk, image in site.images.items():
                word = fleet_verdict(site.view(), disk)
                named = word.image.filename if word.image is not None else image
                self._check(named == image, f"the guest is on {image}, the fleet names {named}")
        site.sweep({disk: chain_of(Path(image)) for disk, image in site.images.items()})

    # -- small things

    def _heal(self) -> None:
        for host in self.site.hosts:
            host.wires.make_noise(self._rng, 0.0)
        self._check(self._outages.heal(), "etcd does not answer again")

    def _settled(self) -> bool:
        """Return whether the host of the guest owns it, and nothing is undecided."""

        def settled() -> bool:
            with contextlib.suppress(FleetError):
                view = self.site.view()
                return view.owner is not None and view.owner.host == self.site.here.name and view.intent is None
            return False

        return until(settled, OWNER_TIMEOUT_S)

    def _owner(self) -> str | None:
        with contextlib.suppress(FleetError):
            view = self.site.view()
            return None if view.owner is None else view.owner.host
        return None

    def _shown(self) -> str:
        with contextlib.suppress(FleetError):
            return str(self.site.view())
        return "no answer"

    def _unchanged(self, before: FleetView, by: str) -> None:
        after = self.site.view()
        self._check(after == before, f"{by} changed {before} to {after}")

    def _journalled(self, host: FleetHost) -> Any:
        return next((one for one in journal(host.daemon.state_dir) if one.request_id == self._name), None)

    def _await_closed(self, host: FleetHost) -> None:
        """Wait for the end of the round's pivot; one that waits at ready after its last attempt is cancelled."""
        deadline_s = time.monotonic() + CLOSE_TIMEOUT_S
        while time.monotonic() < deadline_s:
            pivot = self._journalled(host)
            if pivot is not None and pivot.phase == "closed":
                self._summary.notes[f"pivot {pivot.outcome}, fleet {pivot.fleet}"] += 1
                return
            if pivot is not None and pivot.hold:
                try_call(host.daemon, "POST", f"/v1/pivots/{pivot.id}/cancel")
            time.sleep(LOOK_S)
        self._check(held=False, text=f"the pivot did not close on {host.name}: {pivot}")

    def _check(self, held: bool, text: str) -> bool:
        if not held:
            self._summary.broken.append(text)
            self._say(text)
        return held

    def _say(self, text: str) -> None:
        self._said.append(text)


@contextlib.contextmanager
def rounds_at(
    directory: Path, cluster: Cluster, mode: str, summary: Summary, rng: random.Random, *, disks: int = 1,
    other_image: bool = False,
) -> Iterator[FleetRounds]:  # fmt: skip
    """Start two hosts and a guest, and yield rounds on them; the guest is gone at the end."""
    with Site(directory, cluster, f"/{directory.name}/", mode, disks) as site:
        yield FleetRounds(site, summary, rng, other_image=other_image)


def play_all(rounds: Sequence[tuple[str, FleetRound]], rng: random.Random, keep: Path, *, loud: bool = True) -> Summary:
    """Play rounds, those of one mode of ``on_silence`` after those of the other; what belongs to a failed one is kept."""
    summary = Summary()
    with tempfile.TemporaryDirectory(prefix="pv") as name, Cluster(Path(name) / "etcd") as cluster:
        for number, mode in enumerate(MODES):
            mine = [planned for which, planned in rounds if which == mode]
            if not mine:
                continue
            directory = Path(name) / mode
            directory.mkdir()
            with rounds_at(directory, cluster, mode, summary, rng, disks=1 + number) as played:
                for index, planned in enumerate(mine):
                    began_s = time.monotonic()
                    said = played.play(planned)
                    if loud:
                        print(f"{mode} {index}: {planned}: {time.monotonic() - began_s:.1f} s", flush=True)
                    for text in said:
                        print(f"{mode}, round {index}, {planned}: {text}", flush=True)
                    if said:
                        shutil.copytree(
                            directory, keep / f"{mode}-{index}", ignore=shutil.ignore_patterns("*.qmp", "*.sock", "m")
                        )
                        print(f"kept in {keep / f'{mode}-{index}'}", flush=True)
    return summary


def campaign(count: int, seed: int, keep: Path, *, loud: bool = False) -> Summary:
    """Play so many random rounds."""
    rng = random.Random(f"fleet/{seed}")
    return play_all([(MODES[n % len(MODES)], random_round(rng)) for n in range(count)], rng, keep, loud=loud)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a campaign and print its figures; 1 if any promise was broken."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0, help="0 takes PIVOTD_SEED, or one at random")
    parser.add_argument("--keep", type=Path, help="where failed rounds are kept")
    parser.add_argument("--loud", action="store_true", help="say each round")
    options = parser.parse_args(arguments)
    if (why := missing()) is not None:
        print(f"skipped: {why}")
        return 0
    seed = drawn(options.seed)
    keep = options.keep or Path(tempfile.mkdtemp(prefix="pivotd-fleet-"))
    began_s = time.monotonic()
    summary = campaign(options.rounds, seed, keep, loud=options.loud)
    took_s = time.monotonic() - began_s
    print(summary)
    print(f"{took_s:.0f} s, {options.rounds / took_s:.2f} rounds/s, seed {seed}")
    return int(bool(summary.wrong or summary.broken or summary.believed))


if __name__ == "__main__":
    sys.exit(main())
