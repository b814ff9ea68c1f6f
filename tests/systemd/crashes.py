"""Crash a host at random instants of its pivots, again and again; each boot has to find the right images by itself.

python -m tests.systemd.crashes --crashes 20 --seed 7
"""

# ruff: noqa: T201 - a campaign speaks

from __future__ import annotations

import argparse
import contextlib
import json
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.support.seeds import drawn
from tests.support.waiting import WAIT_S
from tests.systemd.boot_host import UNIT, BootHost, install_guest
from tests.systemd.container import Container

PAUSE_S = 0.03
"""A pause of two disks takes less: an instant after the STOP event falls into it, or right after it."""
SHARE_AWAY = 0.35
"""Of boots at which pivotd cannot start, so that the journal alone has to answer."""


@dataclass(frozen=True, slots=True)
class Crash:
    """One crash. ``at``: of a usual pivot's length from the request on, or of PAUSE_S from ``stop`` on."""

    verb: str
    from_stop: bool
    at: float
    pivotd_away: bool

    @classmethod
    def drawn(cls, rng: random.Random) -> Crash:
        """Return a crash with everything chosen at random."""
        return cls(rng.choice(("copy", "snapshot")), rng.random() < 0.5, rng.random() * 1.1, rng.random() < SHARE_AWAY)

    def __str__(self) -> str:
        where = "of the pause" if self.from_stop else "of the request"
        return f"{self.verb} at {self.at:.3f} {where}{', pivotd away' if self.pivotd_away else ''}"


@dataclass(frozen=True, slots=True)
class Seen:
    """What a crash showed; ``problem`` is empty if every promise was kept."""

    crash: Crash
    booted: str
    problem: str
    seconds: float

    def __str__(self) -> str:
        return f"{self.crash}: booted on {self.booted}, {self.seconds:.1f} s{f' PROBLEM {self.problem}' * bool(self.problem)}"


class Crashes:
    """The host between its crashes."""

    def __init__(self, host: BootHost) -> None:
        self.host = host
        began_s = time.monotonic()
        done = host.move("copy", host.targets("copy"))
        said = done.communicate(timeout=WAIT_S)
        assert done.returncode == 0, said
        self.usual_s = time.monotonic() - began_s

    def run(self, crash: Crash) -> Seen:
        """Crash the host in a pivot, boot it, and compare what the guest was started from with what the images hold."""
        began_s = time.monotonic()
        host = self.host
        sources, targets = host.images(), host.targets(crash.verb)
        host.spy.events()
        asking = host.move(crash.verb, targets)
        if crash.from_stop:
            host.spy.await_event("STOP", timeout_s=WAIT_S)
            time.sleep(crash.at * PAUSE_S)
        else:
            time.sleep(crash.at * self.usual_s)
        host.crash()
        asking.communicate(timeout=WAIT_S)
        lacks = {image: host.missing(image) for pair in (sources, targets) for image in pair.values()
                 if (host.container.root / image.lstrip("/")).exists()}  # fmt: skip
        host.pivotd_is_away(away=crash.pivotd_away)
        host.boot()
        booted, problem = "nothing", ""
        try:
            host.await_guest()
            images = host.images()
            booted = {frozenset(sources.items()): "the source", frozenset(targets.items()): "the destination"}.get(
                frozenset(images.items()), str(images)
            )
            problem = self._problem(images, lacks, crash)
        except (AssertionError, OSError) as error:
            problem = f"{type(error).__name__}: {error}"
        return Seen(crash, booted, problem, time.monotonic() - began_s)

    def _problem(self, images: dict[str, str], lacks: dict[str, list[int] | str], crash: Crash) -> str:
        """Return what is wrong with the start of the guest, or nothing."""
        for disk, image in images.items():
            if lack := lacks.get(image, "whatever was written since the disk was moved"):
                return f"{disk} was started from {image}, which lacks {lack}; images: {lacks}"
        if self.host.container.property_of(UNIT, "NRestarts") != "0":
            return f"the guest was started more than once: {self.host.said()}"
        if crash.pivotd_away:
            self.host.start_pivotd()
        shown = self.host.await_connected()
        status, verdicts = self.host.ctl("verdict", "web1")
        said = {one["disk"]: one["image"] for one in verdicts} if status == 0 else verdicts
        if said != images or shown["alarms"]:
            return f"QEMU uses {images}, the verdicts are {said}, the alarms {shown['alarms']}"
        return ""


def evidence(host: BootHost) -> str:
    """Return what there is to know after a problem: the last pivots with all records, the log, what QEMU shows."""
    parts = [host.said()]
    status, pivots = host.ctl("pivot", "ls", "--limit", "2")
    found = pivots if status == 0 else []
    parts += [json.dumps(host.ctl("pivot", "show", pivot["id"])[1], indent=1) for pivot in found]
    parts.append(host.container.run("journalctl", "--no-pager", "-u", "pivotd", "-o", "cat", check=False).stdout)
    with contextlib.suppress(OSError):
        parts += [json.dumps(host.spy.execute(command)) for command in ("query-status", "query-block", "query-jobs")]
    return "\n".join(parts)


def main(arguments: Sequence[str] | None = None) -> int:
    """Crash so many times; return 1 if any promise was broken."""
    parser = argparse.ArgumentParser(description="Crash a host at random instants of its pivots. Needs root.")
    parser.add_argument("--crashes", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="0 takes PIVOTD_SEED, or one at random")
    options = parser.parse_args(arguments)
    rng = random.Random(f"host crashes/{drawn(options.seed)}")
    with Container(Path("/")) as container:
        install_guest(container, None)
        host = BootHost(container)
        host.boot()
        host.first_start()
        crashes = Crashes(host)
        failed = 0
        for number in range(options.crashes):
            seen = crashes.run(Crash.drawn(rng))
            print(f"{number + 1:>3}  {seen}", flush=True)
            if seen.problem:
                print(evidence(host))
                failed += 1
                break  # what the guest runs on now is no start for another crash
    print(f"{number + 1} crashes, {failed} with a problem")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
