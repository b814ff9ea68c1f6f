"""Kill pivotd at every point of a pivot, round after round.

    python -m tests.chaos.campaign --help

The points come from a recorded clean run: every message between pivotd and QEMU in both directions, before it is
forwarded; those that change something, and their answers, also right after; and every fdatasync of the journal.
"""

# ruff: noqa: T201 - a campaign speaks

from __future__ import annotations

import argparse
import itertools
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests.chaos.rounds import Point, Result, Setup, run_round
from tests.support.proxy import Direction, When

CHANGING = {
    "object-add",
    "object-del",
    "blockdev-add",
    "blockdev-create",
    "blockdev-mirror",
    "blockdev-del",
    "stop",
    "cont",
    "job-complete",
    "job-finalize",
    "job-cancel",
    "job-dismiss",
}
WORKERS = 2
"""Rounds wait more than they compute."""
FDATASYNCS_MAX = 16
"""A clean run needs fewer; the walk ends with the first that is not reached."""

PAUSE_POINTS = (
    Point("return:stop", 1, Direction.FROM_QEMU, When.AFTER),
    Point("command:job-finalize", 1, Direction.TO_QEMU, When.BEFORE),
    Point("return:job-finalize", 1, Direction.FROM_QEMU, When.BEFORE),
    Point("command:cont", 1, Direction.TO_QEMU, When.BEFORE),
)
"""Where the guest is paused and each step of the pause has just been taken: recovery starts from here."""


@dataclass(frozen=True, slots=True)
class Job:
    """One round to run."""

    setup: Setup
    point: Point | None
    kill_qemu: bool = False
    again: Point | None = None

    def __str__(self) -> str:
        words = [
            f"{self.setup.disks} disks",
            "paused before" if self.setup.paused else "running",
            f"kill at {self.point}",
        ]
        if self.kill_qemu:
            words.append("QEMU too")
        if self.again:
            words.append(f"again at {self.again}")
        return ", ".join(words)


def record(setup: Setup, point: Point | None = None) -> Result:
    """Return a clean run, or one that is struck once and recovers."""
    return run_round(setup, point)


def points(messages: Sequence[tuple[Direction, str, int]], *, thin: bool = False) -> list[Point]:
    """Return the points of a recorded run, each message once.

    ``thin`` leaves out queries, their answers, and events: pivotd is where the next or the last command finds it.
    """
    found = []
    seen = set()
    for direction, label, nth in messages:
        if (direction, label, nth) in seen:
            continue
        seen.add((direction, label, nth))
        kind, _, name = label.partition(":")
        changing = name in CHANGING and kind != "event"
        if not thin or changing:
            found.append(Point(label, nth, direction, When.BEFORE))
        if changing:
            found.append(Point(label, nth, direction, When.AFTER))
    return found


def run(jobs: Iterable[Job], keep: Path | None = None) -> tuple[int, int, list[str]]:
    """Run rounds side by side; return how many ran, how many reached their point, and every broken promise."""

    def one(job: Job) -> tuple[Job, Result]:
        def save(directory: Path) -> None:
            if keep is not None:
                shutil.copytree(
                    directory, keep / str(abs(hash(str(job)))), ignore=shutil.ignore_patterns("*.qmp", "*.sock")
                )

        return job, run_round(job.setup, job.point, kill_qemu=job.kill_qemu, again=job.again, keep=save)

    ran = struck = 0
    problems = []
    with ThreadPoolExecutor(WORKERS) as pool:
        for job, result in pool.map(one, jobs):
            ran += 1
            struck += result.struck
            for problem in result.problems:
                problems.append(f"[{job}] {problem}")
                print(problems[-1], flush=True)
    return ran, struck, problems


def messages_jobs(setup: Setup, *, kill_qemu: bool, thin: bool) -> list[Job]:
    """Return one round for each point of a clean run."""
    clean = record(setup)
    assert not clean.problems, clean.problems
    return [Job(setup, point, kill_qemu) for point in points(clean.messages, thin=thin)]


def recovery_jobs(setup: Setup, first: Point, *, thin: bool) -> list[Job]:
    """Return one round for each message of the recovery after a kill at ``first``."""
    whole = record(setup, first)
    assert whole.struck, first
    assert not whole.problems, whole.problems
    before = next(
        index for index, (way, label, nth) in enumerate(whole.messages)
        if (way, label, nth) == (first.direction, first.label, first.nth)
    )  # fmt: skip
    # A point is counted from the strike on: the hook that strikes again starts there.
    later: dict[tuple[Direction, str], itertools.count[int]] = {}
    recovered = []
    for way, label, _ in whole.messages[before + 1 :]:
        counter = later.setdefault((way, label), itertools.count(1))
        recovered.append((way, label, next(counter)))
    return [Job(setup, first, again=point) for point in points(recovered, thin=thin)]


def fdatasync_jobs(setup: Setup, *, kill_qemu: bool) -> list[Job]:
    """Return one round for each of the first fdatasyncs of a thread of pivotd: most are the journal's."""
    return [Job(setup, Point("", fdatasync=n), kill_qemu) for n in range(1, FDATASYNCS_MAX + 1)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the whole campaign."""
    parser = argparse.ArgumentParser(description="Kill pivotd at every point of a pivot.")
    parser.add_argument("--disks", type=int, default=1)
    parser.add_argument("--paused", action="store_true", help="the guest was paused before")
    parser.add_argument("--legacy", action="store_true", help="disks by -drive")
    parser.add_argument("--thin", action="store_true", help="leave out mere queries")
    parser.add_argument("--keep", type=Path, help="copy the directory of each failed round there")
    options = parser.parse_args(arguments)
    setup = Setup(disks=options.disks, paused=options.paused, legacy=options.legacy)
    keep = options.keep or Path(tempfile.mkdtemp(prefix="pivotd-chaos-"))
    failed = 0
    parts = {
        "QEMU alive": lambda: messages_jobs(setup, kill_qemu=False, thin=options.thin),
        "QEMU killed too": lambda: messages_jobs(setup, kill_qemu=True, thin=options.thin),
        "fdatasync, QEMU alive": lambda: fdatasync_jobs(setup, kill_qemu=False),
        "fdatasync, QEMU killed too": lambda: fdatasync_jobs(setup, kill_qemu=True),
    }
    for point in PAUSE_POINTS:
        parts[f"again after {point}"] = lambda point=point: recovery_jobs(setup, point, thin=options.thin)
    for name, make in parts.items():
        started_s = time.monotonic()
        ran, struck, problems = run(make(), keep)
        failed += len(problems)
        print(f"{name}: {ran} rounds, {struck} struck, {len(problems)} problems, {time.monotonic() - started_s:.0f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
