"""libvirtd killed at random in the end of a block job under a writing guest: libvirt alone, with the hook, guarded.

    make chaos-libvirt ROUNDS=200 SEED=7

Every round is played once by libvirt alone and once with pivotd's hook, with the same choices: a job of libvirt waits,
its end is asked for, and libvirtd gets SIGKILL at a random instant of that, or, with ``--kind copy``, of the whole copy
and pivot. libvirtd is started again. The third column is libvirt_guard.py: as many rounds guarded by pivotd, in which
pivotd and QEMU are killed too. Right is a round after which libvirt names the image that QEMU has, for the running domain and for its
next boot, and that image holds every write that the guest was told is on disk. With ``--kill-qemu``, QEMU is killed
too before libvirtd is started: right is then a next boot from such an image.
"""

# ruff: noqa: T201 - a campaign speaks

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.chaos import libvirt_guard
from tests.chaos.libvirt_guard import GUESTS, RIGHT, WAITS, WRONG
from tests.libvirt.domain import Domain
from tests.libvirt.libvirtd import Libvirtd, missing
from tests.support.seeds import drawn
from tests.support.waiting import until

QEMU_LATER_MAX_S = 3.0
SETTLE_S = 8.0
"""libvirt has reconnected to its domains long before."""
OVERSHOOT = 1.1
"""The last kills come after the operation."""
KINDS = {
    "pivot": ("copy", "blockjob web1 vda --pivot", 1),
    "copy": (None, "blockcopy web1 vda --dest {destination} --format qcow2 --transient-job --wait --pivot", 1),
    "abort": ("copy", "blockjob web1 vda --abort", 0),
    "commit": ("commit", "blockjob web1 vda --pivot", 0),
    "commit-abort": ("commit", "blockjob web1 vda --abort", 1),
}
"""What waits when a round begins, what libvirtd is killed in, and the image that the disk has after it undisturbed."""
COLUMNS: Mapping[str, Callable[[Libvirtd], None]] = {
    "plain": lambda _: None,
    "hook": Libvirtd.install_hook,
}
"""What is done to a host before its libvirtd starts."""
GUARD = "guard"
NEXT_STALE = "next boot stale"


@dataclass(frozen=True, slots=True)
class Plan:
    """``at_s``: from the request to the kill of libvirtd. ``qemu_after_s`` None: QEMU is left alive."""

    kind: str
    at_s: float
    qemu_after_s: float | None

    def __str__(self) -> str:
        later = "" if self.qemu_after_s is None else f", QEMU killed {self.qemu_after_s:.3f} s later"
        return f"libvirtd killed at {self.at_s * 1000:.1f} ms of the {self.kind}{later}"


def begin(libvirtd: Libvirtd, kind: str, guest: str) -> tuple[Domain, str]:
    """Boot a guest, bring it to where the round begins, and return the request for virsh."""
    domain = GUESTS[guest](libvirtd).define().boot()
    waits, request, _ = KINDS[kind]
    if waits == "copy":
        domain.copy()
    elif waits == "commit":
        domain.snapshot()
        domain.commit("vda", "--delete")
    return domain, request.format(destination=domain.image("vda", 1))


def measure(libvirtd: Libvirtd, kind: str, guest: str) -> float:
    """Return the seconds that the operation takes with nobody killed."""
    libvirtd.clear()
    libvirtd.start()
    domain, request = begin(libvirtd, kind, guest)
    virsh = libvirtd.virsh_session()
    started_s = time.monotonic()
    virsh.send(request)
    virsh.end()
    took_s = time.monotonic() - started_s
    assert domain.agrees(), domain.believe()
    assert domain.root() == domain.image("vda", KINDS[kind][2]).name
    assert domain.writes_go_on()
    return took_s


def play(libvirtd: Libvirtd, plan: Plan, install: Callable[[Libvirtd], None], guest: str) -> tuple[str, str]:
    """Play one round; return one word for what came of it, and the facts."""
    libvirtd.clear()
    install(libvirtd)
    libvirtd.start()
    domain, request = begin(libvirtd, plan.kind, guest)
    virsh = libvirtd.virsh_session()
    virsh.send(request)
    time.sleep(plan.at_s)
    libvirtd.kill()
    virsh.end()
    if plan.qemu_after_s is None:
        assert domain.writes_go_on()
    else:
        time.sleep(plan.qemu_after_s)
        domain.kill_qemu()
    libvirtd.start()
    return judged(domain, alive=plan.qemu_after_s is None)


def judged(domain: Domain, *, alive: bool) -> tuple[str, str]:
    """Return the word for what libvirt believes now, beside what QEMU has and what the images hold."""

    def believes() -> bool:
        believed = domain.believe()
        live = domain.root() if alive else believed.next_boot
        return believed.live == believed.next_boot == live and believed.mirror in {None, "yes"}

    agrees = until(believes, SETTLE_S)
    believed, root = domain.believe(), domain.root() if alive else None
    domain.libvirtd.clear_processes()
    holds = domain.complete()
    facts = (
        f"{believed.state}, root {root}, live {believed.live}, next boot {believed.next_boot}, mirror {believed.mirror}"
    )
    facts += f", complete: {', '.join(holds) or 'none'}; {domain.libvirtd.hook_said().strip()}"
    if agrees and believed.next_boot in holds:
        return RIGHT, facts
    if alive and believed.live == root and believed.mirror is None:
        return NEXT_STALE, facts
    return WRONG, facts


def campaign(options: argparse.Namespace, seed: int) -> Counter[tuple[str, str]]:
    """Play so many rounds of each column; return how often each column got each word."""
    rng = random.Random(seed)
    words: Counter[tuple[str, str]] = Counter()
    with Libvirtd(options.tree and options.tree.resolve()) as libvirtd:
        took_s = {kind: measure(libvirtd, kind, options.guest) for kind in options.kind}
        print("undisturbed: " + ", ".join(f"{kind} {took * 1000:.0f} ms" for kind, took in took_s.items()), flush=True)
        for number in range(options.rounds):
            kind = options.kind[number % len(options.kind)]
            later_s = rng.uniform(0, QEMU_LATER_MAX_S)
            plan = Plan(kind, rng.uniform(0, took_s[kind] * OVERSHOOT), later_s if options.kill_qemu else None)
            for column in (column for column in options.columns if column != GUARD):
                word, facts = play(libvirtd, plan, COLUMNS[column], options.guest)
                words[column, word] += 1
                print(f"round {number} {column}: {plan}: {word} ({facts})", flush=True)
    return words


def guarded(options: argparse.Namespace, seed: int) -> Counter[tuple[str, str]]:
    """Play so many guarded rounds, of the same kinds as far as pivotd guards them; return the words of that column."""
    kinds = [kind for kind in options.kind if kind in libvirt_guard.KINDS]
    asked = libvirt_guard.plans(random.Random(seed), kinds)
    keep = Path(tempfile.mkdtemp(prefix="pivotd-guard-"))
    with Libvirtd(options.tree and options.tree.resolve()) as libvirtd:
        words, _ = libvirt_guard.campaign(libvirtd, asked, options.rounds, guest=options.guest, hook=True, keep=keep)
    return Counter(
        {(GUARD, word): sum(n for said, n in words.items() if said.endswith(word)) for word in (RIGHT, WAITS, WRONG)}
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a campaign and print its figures; how libvirt does by itself is no error of ours."""
    parser = argparse.ArgumentParser(description="Kill libvirtd in the end of its block jobs.")
    parser.add_argument("--rounds", type=int, default=26)
    parser.add_argument("--seed", type=int, default=0, help="0 takes PIVOTD_SEED, or one at random")
    parser.add_argument("--kind", action="append", choices=KINDS, help="in turn; by default pivot alone")
    parser.add_argument(
        "--columns", type=lambda text: text.split(","), default=[*COLUMNS, GUARD], help="plain,hook,guard"
    )
    parser.add_argument("--guest", choices=GUESTS, default="tiny", help="tiny boots at once, linux in seconds")
    parser.add_argument("--tree", type=Path, help="a libvirt that `make libvirts` has fetched")
    parser.add_argument("--kill-qemu", action="store_true")
    options = parser.parse_args(arguments)
    options.kind = options.kind or ["pivot"]
    if (why := missing()) is not None:
        print(f"skipped: {why}")
        return 0
    seed = drawn(options.seed)
    started_s = time.monotonic()
    words = campaign(options, seed)
    if GUARD in options.columns:
        words += guarded(options, seed)
    print(f"{'':25}" + "".join(f"{column:>8}" for column in options.columns))
    for word in (RIGHT, NEXT_STALE, WAITS, WRONG):
        print(f"{word:25}" + "".join(f"{words[column, word]:>8}" for column in options.columns))
    print(f"{options.rounds} rounds of each, seed {seed}, {time.monotonic() - started_s:.0f} s")
    return 1 if words[GUARD, WRONG] or (words["hook", WRONG] and not options.kill_qemu) else 0


if __name__ == "__main__":
    sys.exit(main())
