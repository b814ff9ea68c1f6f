"""Cut the power of a host at random instants of its pivots, cut after cut.

    python -m tests.powercut.campaign --cuts 20 --seed 1

Cut number k of seed s is cut 0 of seed s + k: a row of the table is repeated with its own seed and ``--cuts 1``.
"""

# ruff: noqa: T201 - a campaign speaks

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.powercut.cut import Plan, run_cut
from tests.powercut.world import build_world
from tests.support.seeds import drawn


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the cuts, print the table, return 1 if any promise was broken."""
    parser = argparse.ArgumentParser(description="Cut the power of a host at random instants of its pivots.")
    parser.add_argument("--cuts", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="0 takes PIVOTD_SEED, or one at random")
    parser.add_argument("--keep", type=Path, help="copy the directory of each failed cut there")
    options = parser.parse_args(arguments)
    keep: Path = options.keep or Path(tempfile.mkdtemp(prefix="pivotd-powercut-"))
    world = build_world()
    first = drawn(options.seed, bits=24)
    print(f"{options.cuts} cuts", flush=True)
    failed = 0
    seconds = 0.0
    for seed in range(first, first + options.cuts):
        result = run_cut(Plan.of(seed), world, keep=lambda directory, seed=seed: _save(directory, keep / str(seed)))
        print(result.row(), flush=True)
        failed += bool(result.problems)
        seconds += result.seconds
    print(f"{options.cuts} cuts, {failed} with a problem, {seconds / max(1, options.cuts):.0f} s per cut")
    if failed:
        print(f"host disks, consoles and reports are in {keep}")
    return 1 if failed else 0


def _save(directory: Path, target: Path) -> None:
    shutil.copytree(directory, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.sock"))


if __name__ == "__main__":
    sys.exit(main())
