"""Rounds of chaos with a real guest: random kills and freezes of pivotd and QEMU under writes with fsync.

    make chaos ROUNDS=1000 SEED=7

After each kill of QEMU the image that the journal names must hold the last acknowledged block of every disk; otherwise
the guest must be running again, on the image that pivotd names.
"""

# ruff: noqa: T201 - a campaign speaks

from __future__ import annotations

import argparse
import contextlib
import random
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tests.chaos.guest_plan import ENDS_QEMU, PAUSE_S, Aim, GuestRound, Kind, Summary, random_round
from tests.chaos.guest_world import GuestWorld, Requester, Restarter, freeze, longest
from tests.chaos.image_check import depths_of
from tests.chaos.process import journal, try_call
from tests.support.daemon import Daemon
from tests.support.guest import LostWritesError
from tests.support.guest_assets import build
from tests.support.history import verdicts
from tests.support.moves import Move
from tests.support.seeds import drawn

CLOSE_TIMEOUT_S = 90.0
POLL_S = 0.005
ROUNDS_PER_WORLD = 40


LAYERS_MAX = 4


def wanted(move: Move, chains: dict[str, list[str]], targets: dict[str, Path]) -> tuple[Move, list[dict[str, str]]]:
    """Return the move and its disks: those whose chain allows it; where none does, another move of all."""
    needed = {Move.COMMIT: 2, Move.PULL: 2, Move.INNER_COMMIT: 3}.get(move, 1)
    able = {disk: chain for disk, chain in chains.items() if len(chain) >= needed}
    if not able:
        move, able = Move.SNAPSHOT, chains
    if move is Move.SNAPSHOT and max(map(len, chains.values())) >= LAYERS_MAX:
        move = Move.COPY
    match move:
        case Move.COPY | Move.SNAPSHOT:
            return move, [{"disk": disk, "image": str(targets[disk])} for disk in able]
        case Move.INNER_COMMIT:
            return move, [{"disk": disk, "top": chain[1], "base": chain[2]} for disk, chain in able.items()]
    return move, [{"disk": disk} for disk in able]


class GuestRounds:
    """Rounds on one guest. ``other_image`` points the judge at the image that the verdict does *not* name."""

    def __init__(self, world: GuestWorld, pivotd: Restarter, summary: Summary, *, other_image: bool = False) -> None:
        self.world, self._pivotd, self._summary = world, pivotd, summary
        self._other_image = other_image
        self._number = 0
        self._usual_s = 0.3
        self._said: list[str] = []

    def play(self, planned: GuestRound) -> list[str]:
        """Play one round; return its broken promises."""
        world = self.world
        self._number += 1
        self._said = []
        name = f"round-{self._number}"
        world.qemu.spy_events()
        world.transcript.write_bytes(b"")
        targets = {disk: world.directory / f"{disk}-{self._number}.qcow2" for disk in world.names}
        before = world.acks()
        move, wishes = wanted(planned.move, world.chains(), targets)
        requester = Requester(self._pivotd.daemon, name, move.kind, wishes)
        try:
            events = self._strike(planned)
            if planned.kind in ENDS_QEMU:
                requester.stop()
                outcome = self._judge_dead(name, planned)
                pause_ms = 0.0
                self._next_life()
            else:
                outcome = self._judge_alive(name, requester)
                events += world.qemu.spy_events()
                pause_ms = longest([event for event in events if event["event"] in {"STOP", "RESUME"}])
        finally:
            requester.stop()
        after = world.acks()
        self._summary.acks += sum(after[disk] - before[disk] for disk in after)
        self._summary.count(planned.kind, outcome, pause_ms)
        world.sweep()
        return self._said

    # -- the strike

    def _strike(self, planned: GuestRound) -> list[dict[str, Any]]:
        """Wait for the instant, and strike; return the events that were seen meanwhile."""
        world, seen = self.world, []
        if planned.aim is Aim.STOP:
            with contextlib.suppress(TimeoutError, ConnectionError):
                seen.append(world.qemu.await_event("STOP", timeout_s=CLOSE_TIMEOUT_S))
            time.sleep(planned.at * PAUSE_S)
        elif planned.aim is Aim.REQUEST:
            time.sleep(planned.at * self._usual_s)
        else:
            self._await_closed(f"round-{self._number}")
            world.await_acks(world.acks())
        match planned.kind:
            case Kind.FREEZE_PIVOTD:
                self._pivotd.freeze(planned.freeze_s)
            case Kind.FREEZE_QEMU:
                freeze(world.qemu.pid, planned.freeze_s)
            case Kind.KILL_PIVOTD:
                self._pivotd.kill()
            case Kind.KILL_QEMU:
                world.qemu.kill()
            case Kind.KILL_BOTH:
                self._pivotd.kill()
                world.qemu.kill()
        for pause_s in planned.more_kills_s:
            time.sleep(pause_s)
            self._pivotd.kill()
        return seen

    # -- judging

    def _pivot(self, name: str) -> Any:
        found = [pivot for pivot in journal(self._pivotd.daemon.state_dir) if pivot.request_id == name]
        return found[0] if found else None

    def _await_closed(self, name: str) -> Any:
        """Return the pivot once it is closed; one that waits at READY after its last attempt is cancelled."""
        daemon = self._pivotd.daemon
        deadline_s = time.monotonic() + CLOSE_TIMEOUT_S
        while time.monotonic() < deadline_s:
            pivot = self._pivot(name)
            if pivot is not None and pivot.phase == "closed":
                return pivot
            if pivot is not None and pivot.hold:
                try_call(daemon, "POST", f"/v1/pivots/{name}/cancel")
            time.sleep(POLL_S)
        self._say_broken(f"{name} did not close within {CLOSE_TIMEOUT_S:.0f} s")
        return self._pivot(name)

    def _judge_alive(self, name: str, requester: Requester) -> str:
        """The guest runs on, on the image that pivotd names."""
        world, started_s = self.world, time.monotonic()
        answer = requester.await_answer(CLOSE_TIMEOUT_S)
        if answer is None or "phase" not in answer:
            self._say_broken(f"the request was answered {answer}")
            return "refused"
        pivot = self._await_closed(name)
        self._usual_s = min(1.0, 0.8 * self._usual_s + 0.2 * (time.monotonic() - started_s))
        if (state := world.qemu.run_state()) != "running":
            self._say_broken(f"the guest is {state}")
            return "not running"
        world.await_acks(world.acks())
        roots, named = world.roots(), self._named()
        if roots != named:
            self._say_wrong(f"QEMU uses {roots}, the verdict is {named}")
        world.images = [Path(roots[disk]) for disk in world.names]
        if pivot is not None and not self._left_in_order():
            self._say_broken(f"left in QEMU: {world.qemu.jobs()}, {sorted(world.qemu.nodes())}")
        return str(pivot.outcome) if pivot is not None else "none"

    def _left_in_order(self) -> bool:
        qemu = self.world.qemu
        graph = qemu.spy("x-debug-query-block-graph")["nodes"]
        nodes = [node for node in graph if node["type"] == "block-driver"]
        return not qemu.jobs() and len(nodes) == 2 * sum(depths_of(qemu.spy("query-block")).values())

    def _judge_dead(self, name: str, planned: GuestRound) -> str:
        """QEMU is dead: what the journal names holds every acknowledged write, at once and in the end."""
        self.world.qemu.stop()
        self._check(self._named(), f"right after the end of QEMU ({planned})")
        pivot = self._pivot(name)
        if pivot is not None:
            pivot = self._await_closed(name)
        named = self._named()
        self._check(named, f"in the end ({planned})")
        self.world.images = [Path(named[disk]) for disk in self.world.names]
        return str(pivot.outcome) if pivot is not None else "none"

    def _named(self) -> dict[str, str]:
        """Return the image of each disk: what the journal alone names, the present one if it knows nothing."""
        present = dict(zip(self.world.names, map(str, self.world.images), strict=True))
        found = verdicts(journal(self._pivotd.daemon.state_dir))
        for verdict in found:
            if not verdict.certain:
                self._say_broken(f"the verdict is not certain: {verdict}")
        return present | {verdict.disk: str(verdict.image) for verdict in found}

    def _check(self, named: dict[str, str], when: str) -> None:
        if self._other_image:
            named = self._others(named)
        for image, numbers in self.world.missing(named).items():
            self._say_wrong(f"{when}: {image} lacks {len(numbers)} acknowledged writes, the last is {numbers[-1]}")

    def _others(self, named: dict[str, str]) -> dict[str, str]:
        """Return the images that the verdict does not name, where the last pivot has one."""
        others = {}
        for pivot in journal(self._pivotd.daemon.state_dir)[:1]:
            for disk in pivot.disks:
                sides = {disk.source.filename, disk.destination.filename} - {named[disk.disk]}
                for side in sides:
                    if Path(side).exists():
                        others[disk.disk] = side
        return others

    def _next_life(self) -> None:
        try:
            self.world.start()
        except LostWritesError as error:
            self._say_wrong(f"the guest itself: {error}")

    def _say_wrong(self, text: str) -> None:
        self._said.append(text)
        self._summary.wrong.append(text)

    def _say_broken(self, text: str) -> None:
        self._said.append(text)
        self._summary.broken.append(text)


@contextlib.contextmanager
def rounds_on(directory: Path, disks: int, summary: Summary, *, other_image: bool = False) -> Iterator[GuestRounds]:
    """Boot a guest, start pivotd, and yield rounds on them; everything is gone at the end."""
    with ExitStack() as stack:
        world = GuestWorld(directory, build(), disks)
        took_s = world.boot()
        stack.callback(world.stop)
        pivotd = Restarter(Daemon(directory, {"web1": world.qemu.qmp}))
        stack.callback(pivotd.stop)
        pivotd.start()
        print(f"a guest with {disks} disk(s) was booted, saved and continued in {took_s:.1f} s", flush=True)
        yield GuestRounds(world, pivotd, summary, other_image=other_image)
        summary.pivotd_starts += pivotd.starts


def campaign(count: int, seed: int, keep: Path) -> Summary:
    """Run so many random rounds on guests with 1 to 3 disks; what belongs to a failed round is copied to ``keep``."""
    rng = random.Random(seed)
    summary = Summary()
    worlds = max(3, -(-count // ROUNDS_PER_WORLD))
    for index in range(worlds):
        share = count * (index + 1) // worlds - count * index // worlds
        if not share:
            continue
        with tempfile.TemporaryDirectory(prefix="pv") as name:
            directory = Path(name)
            with rounds_on(directory, 1 + index % 3, summary) as rounds:
                for number in range(share):
                    planned = random_round(rng)
                    said = rounds.play(planned)
                    for text in said:
                        print(f"seed {seed}, guest {index}, round {number}, {planned}: {text}", flush=True)
                    if said:
                        target = keep / f"guest-{index}-round-{number}"
                        rounds.world.keep(target)
                        print(f"kept in {target}", flush=True)
    return summary


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a campaign and print its table."""
    parser = argparse.ArgumentParser(description="Kill and freeze pivotd and QEMU under a writing guest.")
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0, help="0 takes PIVOTD_SEED, or one at random")
    parser.add_argument("--keep", type=Path, help="where failed rounds are kept")
    options = parser.parse_args(arguments)
    seed = drawn(options.seed)
    keep = options.keep or Path(tempfile.mkdtemp(prefix="pivotd-chaos-"))
    started_s = time.monotonic()
    summary = campaign(options.rounds, seed, keep)
    print(summary)
    print(
        f"{time.monotonic() - started_s:.0f} s, {options.rounds / (time.monotonic() - started_s):.2f} rounds/s, seed {seed}"
    )
    return 1 if summary.wrong or summary.broken else 0


if __name__ == "__main__":
    sys.exit(main())
