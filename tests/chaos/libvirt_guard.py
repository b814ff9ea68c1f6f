"""Kills libvirtd, pivotd and QEMU at random in pivots of libvirt that pivotd guards, under a writing guest.

    .venv/bin/python -m tests.chaos.libvirt_guard --rounds 30 --seed 7

Each round: a guest of libvirt writes, a copy waits for its end, `pivotctl libvirt pivot` asks for that, and at a random
instant after the intent libvirtd gets SIGKILL (A), pivotd too (B), QEMU too (C). What was killed is started again. Right is a round
after which QEMU, libvirt's definitions and the verdict name one image that holds every write that the guest was told
is on disk, the guest goes on, and libvirt can do another pivot. Without the hook a guest may also stay paused, with the
sentence that says what to do; such rounds are counted apart.
"""

# ruff: noqa: T201 - a campaign speaks

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.libvirt.domain import Domain
from tests.libvirt.guarding import Guarded, guard, until
from tests.libvirt.libvirtd import Libvirtd, missing
from tests.support.seeds import drawn

WHO = {"A": "libvirtd", "B": "libvirtd and pivotd", "C": "libvirtd, pivotd and QEMU"}
SETTLE_S = 30.0
PAUSE_S = 0.1
"""From the intent to the end of an undisturbed pivot, on busy cores; 0.03 s on free ones."""
RIGHT, WAITS, WRONG = "right", "guest waits for the hook", "WRONG"


def play(libvirtd: Libvirtd, who: str, at_s: float, *, hook: bool) -> tuple[str, str]:
    """Play one round; return one word for what came of it, and the facts."""
    libvirtd.clear()
    if hook:
        libvirtd.install_hook()
    libvirtd.start()
    domain = Domain(libvirtd, rate_per_s=200).define().boot()
    directory = Path(tempfile.mkdtemp(prefix="pivotd-guard-"))
    try:
        with guard(directory, libvirtd) as daemon, Guarded(domain, daemon) as guarded:
            guarded.await_domain()
            domain.copy()
            guarded.begin("libvirt", "pivot", domain.name, "vda")
            until(lambda: '"record": "pausing"' in daemon.log_path.read_text(), "the intent")
            time.sleep(at_s)
            libvirtd.kill()
            if who in "BC":
                daemon.kill()
            if who == "C":
                domain.kill_qemu()
            libvirtd.start()
            if who in "BC":
                daemon.start()
            return _judged(guarded, who)
    finally:
        shutil.rmtree(directory)


def _judged(guarded: Guarded, who: str) -> tuple[str, str]:
    domain, daemon = guarded.domain, guarded.daemon
    deadline_s = time.monotonic() + SETTLE_S
    while (pivot := guarded.pivot())["phase"] != "closed" and time.monotonic() < deadline_s:
        time.sleep(0.1)
    facts = f"{pivot['phase']} {pivot['outcome']}, pause {pivot['pause_ms']} ms, {domain.believe()}"
    verdict = daemon.ctl("verdict", domain.name, "vda").json
    if who == "C":
        right = verdict["certain"] and Path(verdict["image"]).name == domain.believe().next_boot
        right = right and domain.believe().next_boot in domain.complete()
        return (RIGHT if right else WRONG), f"{facts}, complete {domain.complete()}, verdict {verdict['image']}"
    if pivot["phase"] != "closed":
        end = guarded.ended()
        told = "restart libvirtd" in " ".join(end.detail.split()) and end.run_state == "paused"
        return (WAITS if told else WRONG), f"{facts}, {end.images}"
    try:
        guarded.assert_right()
    except AssertionError as error:
        return WRONG, f"{facts}: {error}"
    if not domain.writes_go_on():
        return WRONG, f"{facts}: the guest does not go on"
    root = domain.root()
    domain.kill_qemu()
    complete = until(domain.complete, "a complete image")
    return (RIGHT if root in complete else WRONG), f"{facts}, complete {complete}"


def main() -> int:
    """Play the rounds and count; 1 if any was wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0, help="0: a random one")
    parser.add_argument("--hook", action="store_true", help="install pivotd's hook first")
    options = parser.parse_args()
    if (why := missing()) is not None:
        print(f"skipped: {why}")
        return 0
    seed = options.seed or drawn()
    chosen, words = random.Random(seed), Counter[str]()
    print(f"seed {seed}")
    with Libvirtd() as libvirtd:
        for number in range(options.rounds):
            who, at_s = "ABC"[number % 3], chosen.uniform(0.0, 1.1 * PAUSE_S)
            word, facts = play(libvirtd, who, at_s, hook=options.hook)
            words[f"{WHO[who]}: {word}"] += 1
            print(f"{number:>4}  {WHO[who]} killed after {at_s * 1000:.0f} ms: {word}: {facts}", flush=True)
    for name, count in sorted(words.items()):
        print(f"{count:>4}  {name}")
    return int(any(name.endswith(WRONG) for name in words))


if __name__ == "__main__":
    sys.exit(main())
