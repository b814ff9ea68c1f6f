"""Kill pivotd, QEMU or both at every point of a pivot, round after round.

    python -m tests.chaos.campaign --help

The points come from a recorded clean run: every message between pivotd and QEMU in both directions, before it is
forwarded; those that change something, and their answers, also right after. System calls are walked by strace until a
whole batch of rounds ends without being struck.
"""

# ruff: noqa: T201 - a campaign speaks

from __future__ import annotations

import argparse
import itertools
import random
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

from tests.chaos.image_check import CHANGING
from tests.chaos.plan import SYSCALLS, Heir, Plan, Point, Setup, Victims
from tests.chaos.rounds import Result, run_round
from tests.support.moves import Move
from tests.support.proxy import Direction, When
from tests.support.seeds import drawn

WORKERS = 2
"""Rounds wait about as long as they compute."""
BATCH = 4
SYSCALLS_MAX = 400
"""A clean run needs 40 to 130 of each kind."""
DEPTH_MAX = 3
"""Random rounds strike the recovery up to so many times."""

PAUSE_POINTS = (
    Point("return:stop", 1, Direction.FROM_QEMU, When.AFTER),
    Point("command:job-finalize", 1, Direction.TO_QEMU, When.BEFORE),
    Point("return:job-finalize", 1, Direction.FROM_QEMU, When.BEFORE),
    Point("command:cont", 1, Direction.TO_QEMU, When.BEFORE),
)
"""Where the guest is paused and each step of the pause has just been taken: recovery starts from here."""

SNAPSHOT_POINTS = (
    PAUSE_POINTS[0],
    Point("command:transaction", 1, Direction.TO_QEMU, When.BEFORE),
    Point("return:transaction", 1, Direction.FROM_QEMU, When.BEFORE),
    PAUSE_POINTS[3],
)
"""The same, where one transaction makes the switch."""

Messages = Sequence[tuple[Direction, str, int]]


@dataclass
class Tally:
    """What a set of rounds showed."""

    ran: int = 0
    struck: int = 0
    problems: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def __str__(self) -> str:
        rate = self.ran / self.seconds if self.seconds else 0
        return (
            f"{self.ran} rounds, {self.struck} struck, {len(self.problems)} problems, "
            f"{self.seconds:.0f} s, {rate:.1f} rounds/s"
        )


def run(plans: Iterable[Plan], *, until_unstruck: bool = False) -> Tally:
    """Run rounds side by side; ``until_unstruck`` ends after a batch of which none reached its point."""
    tally = Tally()
    started_s = time.monotonic()
    remaining = iter(plans)
    with ThreadPoolExecutor(WORKERS) as pool:
        while batch := list(itertools.islice(remaining, BATCH if until_unstruck else None)):
            struck = 0
            for plan, result in zip(batch, pool.map(run_round, batch), strict=True):
                tally.ran += 1
                struck += result.struck
                for problem in result.problems:
                    tally.problems.append(f"[{plan}] {problem} (kept in {result.kept_in})")
                    print(tally.problems[-1], flush=True)
            tally.struck += struck
            if until_unstruck and not struck:
                break
    tally.seconds = time.monotonic() - started_s
    return tally


def clean(plan: Plan) -> Result:
    """Return a round without a strike, or with one that is recovered from; it must keep every promise."""
    result = run_round(plan)
    assert not result.problems, f"[{plan}] {result.problems} (kept in {result.kept_in})"
    assert result.struck == (plan.point is not None), plan
    return result


def points(messages: Messages, *, thin: bool = False) -> list[Point]:
    """Return the points of a recorded run, each message once.

    ``thin`` leaves out queries, their answers, and events: pivotd is where the next or the last command finds it.
    """
    found = []
    for direction, label, nth in dict.fromkeys(messages):
        kind, _, name = label.partition(":")
        changing = name in CHANGING and kind != "event"
        if not thin or changing:
            found.append(Point(label, nth, direction, When.BEFORE))
        if changing:
            found.append(Point(label, nth, direction, When.AFTER))
    return found


def renumbered(messages: Messages) -> Messages:
    """Return messages counted from the first of them: a hook that is set there counts so."""
    counters: dict[tuple[Direction, str], Iterator[int]] = {}
    return [(way, label, next(counters.setdefault((way, label), itertools.count(1)))) for way, label, _ in messages]


def message_plans(
    setup: Setup, *, victims: Victims = Victims.PIVOTD, heir: Heir = Heir.NOBODY, thin: bool = False
) -> list[Plan]:
    """Return one round for each message of a clean run; of a cancelled pivot, for each after the request."""
    return [Plan(setup, point, victims, heir) for point in points(after_cancel(clean(Plan(setup))), thin=thin)]


def after_cancel(recorded: Result) -> Messages:
    """Return the messages from the one on at which a cancel was asked, all where none was."""
    return recorded.messages[max(0, (recorded.cancelled_after or 0) - 1) :]


def recovery_plans(setup: Setup, first: Point, *, thin: bool = False) -> list[Plan]:
    """Return one round for each message of the recovery after a kill of pivotd at ``first``."""
    whole = clean(Plan(setup, first)).messages
    before = whole.index((first.direction, first.label, first.nth))  # type: ignore[arg-type]
    recovered = renumbered(whole[before + 1 :])
    return [Plan(setup, first, again=(point,)) for point in points(recovered, thin=thin)]


def heir_plans(setup: Setup, first: Point, heir: Heir) -> list[Plan]:
    """Return one round for each message and each flush of the recovery that finds another QEMU."""
    plan = Plan(setup, first, Victims.BOTH, heir)
    found = clean(plan).recovery
    assert found, plan
    again = [*points(found), *(Point(nth=n, syscall="flush") for n in range(1, 9))]
    return [replace(plan, again=(point,)) for point in again]


def syscall_plans(
    setup: Setup, kind: str, *, victims: Victims = Victims.PIVOTD, heir: Heir = Heir.NOBODY, stride: int = 1
) -> Iterator[Plan]:
    """Yield one round for every ``stride``-th system call of a kind, to be run until none is reached."""
    for nth in range(1, SYSCALLS_MAX, stride):
        yield Plan(setup, Point(nth=nth, syscall=kind), victims, heir)


def random_plans(seed: int, count: int) -> Iterator[Plan]:
    """Yield rounds with everything chosen at random, and recoveries struck up to three times."""
    rng = random.Random(seed)
    recorded: dict[Setup, Messages] = {}
    for _ in range(count):
        setup = Setup(
            disks=rng.choice((1, 1, 2, 3)),
            paused=rng.random() < 0.15,
            legacy=rng.random() < 0.2,
            move=rng.choice(list(Move)),
        )
        setup = rng.choice([variant for variant in _variants(setup) if not (variant.outrun or variant.hangs)])
        if rng.random() < 0.3:
            setup = replace(setup, cancel=rng.choice(setup.cancels))
        victims = rng.choice(list(Victims))
        destination = setup.move.switches and not setup.nbd
        heirs = [heir for heir in Heir if destination or heir is not Heir.DESTINATION]
        heir = Heir.NOBODY if victims is Victims.PIVOTD else rng.choice(heirs)
        if setup not in recorded:
            recorded[setup] = clean(Plan(setup)).messages

        def some_point(messages: Messages, *, syscalls: bool) -> Point:
            if syscalls and rng.random() < 0.4:
                kind = rng.choice(list(SYSCALLS))
                return Point(nth=rng.randrange(1, 12 if kind in {"flush", "write"} else 60), syscall=kind)
            return rng.choice(points(messages, thin=rng.random() < 0.7))

        first = some_point(recorded[setup], syscalls=victims is not Victims.QEMU)
        depth = 0 if victims is Victims.QEMU else rng.randrange(DEPTH_MAX + 1)
        late = renumbered(recorded[setup][-60:])
        again = tuple(some_point(late, syscalls=True) for _ in range(depth))
        yield Plan(setup, first, victims, heir, again)


def _parts(setup: Setup, *, thin: bool, stride: int) -> dict[str, Callable[[], Tally]]:
    """Return the parts of the whole campaign for one kind of domain."""
    parts: dict[str, Callable[[], Tally]] = {}
    heirs = [Heir.NOBODY, *([] if setup.hangs else [Heir.SOURCE])]
    heirs += [Heir.DESTINATION] * (setup.move.switches and not setup.nbd)

    def add(name: str, work: Callable[[], Tally]) -> None:
        parts[f"{setup}: {name}"] = work

    def add_messages(setup: Setup, victims: Victims, heir: Heir) -> None:
        name = f"{victims} killed at every message" + (f", then {heir}" if heir is not Heir.NOBODY else "")
        parts[f"{setup}: {name}"] = lambda: run(message_plans(setup, victims=victims, heir=heir, thin=thin))

    for victims, heir in itertools.product(Victims, heirs):
        if victims is not Victims.PIVOTD or heir is Heir.NOBODY:
            add_messages(setup, victims, heir)
    if setup.hangs:
        return parts  # no such pivot comes to its switch
    for kind, victims in itertools.product(SYSCALLS, (Victims.PIVOTD, Victims.BOTH)):
        add(
            f"{victims} killed at every {kind}",
            lambda kind=kind, victims=victims: run(  # type: ignore[misc]
                syscall_plans(setup, kind, victims=victims, stride=stride), until_unstruck=True
            ),
        )
    for point in SNAPSHOT_POINTS if setup.move is Move.SNAPSHOT else PAUSE_POINTS:
        add(f"again after {point}", lambda point=point: run(recovery_plans(setup, point, thin=thin)))  # type: ignore[misc]
        for heir in set(heirs) - {Heir.NOBODY}:
            add(
                f"both killed at {point}, {heir}, pivotd killed again at every message and flush",
                lambda point=point, heir=heir: run(heir_plans(setup, point, heir)),  # type: ignore[misc]
            )
    for cancel, victims in itertools.product(setup.cancels, Victims):
        add_messages(replace(setup, cancel=cancel), victims, Heir.NOBODY)
    return parts


def _variants(setup: Setup) -> list[Setup]:
    """Return the kinds of domain and request that there are for one move, the plain one first."""
    found = [setup]
    if setup.move in {Move.COPY, Move.COMMIT}:
        found.append(replace(setup, adopted=True))
    if setup.move is Move.COPY:
        found += [replace(setup, nbd=True), replace(setup, nbd=True, hangs=True)]
    if setup.move is Move.COPY and setup.disks == 1:
        found.append(replace(setup, outrun=True))
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the whole campaign, or random rounds."""
    parser = argparse.ArgumentParser(description="Kill pivotd, QEMU or both at every point of a pivot.")
    parser.add_argument("--disks", type=int, default=1)
    parser.add_argument("--move", type=Move, choices=list(Move), help="only this one, not all of them")
    parser.add_argument("--paused", action="store_true", help="the guest was paused before")
    parser.add_argument("--legacy", action="store_true", help="disks by -drive")
    parser.add_argument("--thin", action="store_true", help="leave out mere queries")
    parser.add_argument("--stride", type=int, default=1, help="only every nth system call")
    parser.add_argument("--only", default="", metavar="TEXT", help="only the parts whose name contains this")
    parser.add_argument("--random", type=int, default=0, metavar="N", help="N rounds with everything chosen at random")
    parser.add_argument("--seed", type=int, default=0, help="of --random; 0 draws one")
    options = parser.parse_args(arguments)
    setup = Setup(disks=options.disks, paused=options.paused, legacy=options.legacy)
    moves = [options.move] if options.move else list(Move)
    if options.random:
        seed = drawn(options.seed)
        parts = {f"random, seed {seed}": lambda: run(random_plans(seed, options.random))}
    else:
        parts = {}
        for variant in itertools.chain.from_iterable(_variants(replace(setup, move=move)) for move in moves):
            parts |= _parts(variant, thin=options.thin, stride=options.stride)
    failed = 0
    for name, work in parts.items():
        if options.only in name:
            tally = work()
            failed += len(tally.problems)
            print(f"{name}: {tally}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
