"""Search every state that crashes, faults and other people can lead to, breadth first, with the real driver.

`python -m tests.model.explore --disks 2 --crashes 3 --faults 1` prints the size of the search, or the path to the
first broken promise. States are equal when no decision, promise or alternative can tell them apart.
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from pivotd.core import names
from pivotd.core.pivot import Identity, Phase, Pivot
from pivotd.core.request import CopyOptions, Requester
from tests.model import stepped
from tests.model.invariants import ViolationError
from tests.model.kinds import adopt, attach
from tests.model.qemu import Qemu
from tests.model.session import model_kernel
from tests.model.storage import Storage
from tests.model.world import World
from tests.support.moves import Move

PIVOT = "01K9ABCDEFGHJKMNPQRSTVWXYZ"
STEPS_TO_REST_MAX = 60
"""From any state, with nothing more going wrong, a pivot rests after at most so many steps of its driver."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """What one search covers."""

    disks: int = 1
    crashes: int = 1
    faults: int = 1
    quick: bool = True
    run_state: str = "running"
    legacy: bool = False
    named: bool = False
    """Layers and files are nodes with names of their own, as libvirt makes them: none goes with the one above."""
    from_phase: Phase = Phase.PREPARING
    attempts: int = 2
    keep_synced: bool = False
    move: Move = Move.COPY
    adopted: bool = False
    hold: bool = False
    """The pivot waits at READY for a person."""
    bandwidth: bool = False
    """Somebody may set the bandwidth at any moment, too."""

    def __str__(self) -> str:
        return (
            f"{self.move}, {self.disks} disk(s), {self.crashes} crash(es), {self.faults} fault(s), "
            f"found {self.run_state}, from {self.from_phase}, {'one write' if self.quick else 'answer by answer'}"
            f"{', legacy -drive' * self.legacy}{', named nodes' * self.named}{', kept in sync and undone' * self.keep_synced}{', adopted' * self.adopted}{', waits for a person' * self.hold}{', bandwidth set' * self.bandwidth}"
        )


@dataclass(slots=True)
class Found:
    """What a search has seen."""

    bounds: Any
    """Bounds, or those of another model."""
    states: int = 0
    edges: int = 0
    resting: int = 0
    steps_to_rest: int = 0
    seconds: float = 0.0
    phases: set[Phase] = field(default_factory=set)
    outcomes: set[str] = field(default_factory=set)

    def __str__(self) -> str:
        return (
            f"{self.bounds}: {self.states} states, {self.edges} edges, {self.resting} at rest, "
            f"at most {self.steps_to_rest} steps to rest, {self.seconds:.1f} s of CPU"
        )


def first_world(bounds: Bounds) -> World:
    """Return the world right after a request was accepted."""
    qemu = Qemu(Storage(), run_state=bounds.run_state)
    shape = adopt if bounds.adopted else attach
    disks = [shape(qemu, bounds.move, PIVOT, index, legacy=bounds.legacy) for index in range(bounds.disks)]
    if bounds.named:
        qemu.nodes = {name: replace(node, owned=False) for name, node in qemu.nodes.items()}
    pivot = Pivot(
        id=PIVOT,
        request_id=PIVOT,
        domain="web1",
        qmp="/model",
        kind=bounds.move.kind,
        phase=Phase.PREPARING,
        requested_by=Requester(0, 0, 1),
        options=CopyOptions(
            attempts=bounds.attempts, keep_synced=bounds.keep_synced, adopted=bounds.adopted, pivot=not bounds.hold
        ),
        disks=tuple(disks),
        created_at="2026-11-23T09:00:00.000000Z",
        identity=Identity("boot", 100, 100, names.nonce_object(PIVOT)),
    )
    world = World(pivot, qemu, quick=bounds.quick, bandwidth=bounds.bandwidth)
    advance_to(world, bounds.from_phase)
    world.crashes, world.faults = bounds.crashes, bounds.faults
    return world


def advance_to(world: World, phase: Phase) -> None:
    """Let a world go on, nothing going wrong, until its pivot is in a phase."""
    order = list(Phase)
    while order.index(world.durable.phase) < order.index(phase):
        _current[:] = [world]
        stepped.step(world)
        world.refresh(())


class Search:
    """One breadth-first search."""

    def __init__(self, bounds: Any, first: Callable[[Any], World]) -> None:
        self._first = first
        self.found = Found(bounds)
        self._origin: list[tuple[int, tuple[int, ...]]] = []
        self._number: dict[int, int] = {}
        self._default: dict[int, int] = {}
        self._rests: set[int] = set()

    def run(self) -> Found:
        """Search to the end. Raises: ViolationError, with the story of the path."""
        began = time.process_time()
        first = self._first(self.found.bounds)
        queue: deque[tuple[int, World]] = deque([(self._enter(first, -1, ()), first)])
        while queue:
            number, world = queue.popleft()
            self.found.phases.add(world.durable.phase)
            undo = "undo " if world.durable.undo_of is not None else ""
            self.found.outcomes |= {f"{undo}{world.durable.outcome}"} - {"None", "undo None"}
            if stepped.resting(world):
                self._rests.add(number)
                if world.durable.phase is Phase.CLOSED:
                    continue
            for path, after in self._successors(number, world):
                known = hash(after.key())
                if known not in self._number:
                    queue.append((self._enter(after, number, path), after))
                if not any(path):
                    self._default[number] = self._number[known]
                self.found.edges += 1
        self.found.states, self.found.resting = len(self._origin), len(self._rests)
        self._check_liveness()
        self.found.seconds = time.process_time() - began
        return self.found

    def _enter(self, world: World, parent: int, path: tuple[int, ...]) -> int:
        number = len(self._origin)
        self._origin.append((parent, path))
        self._number[hash(world.key())] = number
        return number

    def _successors(self, number: int, world: World) -> Iterator[tuple[tuple[int, ...], World]]:
        """Take every path through one step."""
        paths: list[tuple[int, ...]] = [()]
        while paths:
            path = paths.pop()
            after = world.copy(path)
            try:
                self._take(after)
            except ViolationError as error:
                raise ViolationError(f"{error}\n{self.story(number, path)}") from None
            taken = [*path, *[0] * (len(after.widths) - len(path))]
            for at in range(len(path), len(after.widths)):
                paths += [(*taken[:at], turn) for turn in range(1, after.widths[at] + 1)]
            after.refresh(())
            yield tuple(path), after

    @staticmethod
    def _take(world: World) -> None:
        _current[:] = [world]
        stepped.step(world)

    def _check_liveness(self) -> None:
        """From every state, nothing more going wrong, the pivot comes to rest within the bound."""
        distance: dict[int, int] = dict.fromkeys(self._rests, 0)
        for start in range(len(self._origin)):
            chain = []
            at = start
            while at not in distance:
                chain.append(at)
                if len(chain) > STEPS_TO_REST_MAX or at not in self._default:
                    raise ViolationError(f"no rest within {STEPS_TO_REST_MAX} steps\n{self.story(start, ())}")
                at = self._default[at]
            for back, number in enumerate(reversed(chain)):
                distance[number] = distance[at] + back + 1
        self.found.steps_to_rest = max(distance.values())

    def story(self, number: int, last: tuple[int, ...]) -> str:
        """Tell the path from the beginning to one state and one step beyond."""
        steps = [last]
        while number > 0:
            number, path = self._origin[number]
            steps.append(path)
        world = self._first(self.found.bounds)
        lines = [f"bounds: {self.found.bounds}", f"path: {steps[::-1]}"]
        for path in reversed(steps):
            world.refresh(path)
            world.trace = lines
            lines.append(f"    -- {_short(world)}")
            try:
                self._take(world)
            except ViolationError as error:
                lines.append(f"!!! {error}")
                break
        lines.append(f"    -- {_short(world)}")
        return "\n".join(lines)


def _short(world: World) -> str:
    pivot, qemu = world.durable, world.qemu
    about = "QEMU is dead"
    if qemu is not None:
        jobs = " ".join(f"{name[-2:]}:{job.status}" for name, job in qemu.jobs.items())
        roots = " ".join(str(disk.root)[-4:] for disk in qemu.disks.values())
        about = f"{qemu.run_state}; {jobs}; roots {roots}"
    lacking = [name for name, image in world.storage.images.items() if image.missing]
    return f"{pivot.phase} {pivot.outcome or ''}; {about}; lacking writes: {' '.join(lacking)}"


_current: list[World] = []
"""The world that the session's clock and processes belong to."""


def search(bounds: Any, first: Callable[[Any], World] = first_world) -> Found:
    """Search within bounds from the first world. Raises: ViolationError."""

    async def pause(event: object, timeout_s: float) -> None:
        await _current[0].pause(event, timeout_s)

    gc.disable()  # everything that a search makes it keeps
    try:
        with model_kernel(lambda: _current[0], pause):
            return Search(bounds, first).run()
    finally:
        gc.enable()


def main() -> None:
    """Run one search from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--disks", type=int, default=1)
    parser.add_argument("--crashes", type=int, default=1)
    parser.add_argument("--faults", type=int, default=1)
    parser.add_argument("--attempts", type=int, default=2)
    parser.add_argument("--found", default="running", help="the run state in which the guest is found")
    parser.add_argument("--named", action="store_true", help="layers and files are nodes with names of their own")
    parser.add_argument("--slow", action="store_true", help="stop and complete in two writes")
    parser.add_argument("--legacy", action="store_true")
    parser.add_argument("--move", type=Move, default=Move.COPY, choices=list(Move))
    parser.add_argument("--keep-synced", action="store_true", help="with the undo window, and an undo or a release")
    parser.add_argument("--adopted", action="store_true", help="the jobs and nodes are somebody else's")
    parser.add_argument("--hold", action="store_true", help="the pivot waits at ready for a person")
    parser.add_argument("--bandwidth", action="store_true", help="somebody may set the bandwidth at any moment")
    parser.add_argument("--from-phase", type=Phase, default=Phase.PREPARING, choices=list(Phase))
    options = parser.parse_args()
    chosen = vars(options)
    bounds = Bounds(quick=not chosen.pop("slow"), run_state=chosen.pop("found"), **chosen)
    try:
        print(search(bounds))  # noqa: T201 - a command
    except ViolationError as error:
        print(error)  # noqa: T201 - a command
        sys.exit(1)


if __name__ == "__main__":
    main()
