"""What a long history costs: verdicts, memory and the start of pivotd with a million pivots, beside an empty journal.

python -m bench.history [--pivots 1000000] [--disks 500] [--rounds 10] [--state-dir DIR]

DIR keeps the long journal for the next run: it takes minutes to make.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from bench.journal_rows import fill
from bench.pause import Client
from pivotd.errors import EXIT_DONE, EXIT_UNKNOWN
from tests.support.daemon import Daemon

CTL = Path(sys.executable).with_name("pivotctl")
LAST_DAY = "2026-11-22T09:00:00Z"
BEGINNING = "01H000000000000000000000007"[:-1]
LAST_UNKNOWN = "/v1/events?tail=true&event=unknown"
STARTS = "start to READY, long history", "start to READY, empty journal"


def peak_mb(pid: int) -> float:
    """Return the most memory that a process has had resident so far, in megabytes."""
    line = next(row for row in Path(f"/proc/{pid}/status").read_text().splitlines() if row.startswith("VmHWM"))
    return int(line.split()[1]) * 1024 / 1e6


def took_ms(what: Callable[[], object]) -> float:
    began_s = time.monotonic()
    what()
    return 1000 * (time.monotonic() - began_s)


def ctl(*arguments: object) -> None:
    """Run pivotctl as a whole command. No verdict is certain: the images of this history were never made."""
    done = subprocess.run([CTL, *map(str, arguments)], check=False, stdout=subprocess.DEVNULL)
    assert done.returncode in {EXIT_DONE, EXIT_UNKNOWN}, arguments


def measure(long: Daemon, empty: Daemon, rounds: int) -> tuple[dict[str, list[float]], float]:
    """Return milliseconds of each kind of look, and the daemon's peak of memory in megabytes."""
    found: dict[str, list[float]] = {}

    def note(kind: str, what: Callable[[], object]) -> None:
        found.setdefault(kind, []).append(took_ms(what))

    peak = 0.0
    client = Client(long.socket)
    disk = ("verdict", "d3", "disk1")
    for _ in range(rounds):
        for kind, daemon in zip(STARTS, (long, empty), strict=True):
            note(kind, daemon.start)
        note("pivotctl verdict D DISK", lambda: ctl("--socket", long.socket, *disk))
        note("the same, --offline beside the daemon", lambda: ctl("--offline", long.state_dir, *disk))
        note("GET /v1/verdicts", lambda: client("GET", "/v1/verdicts"))
        note("GET /v1/verdicts?image=", lambda: client("GET", "/v1/verdicts?image=/srv/images/new-of-a-guest.qcow2"))
        note("GET /v1/pivots?limit=1000", lambda: client("GET", "/v1/pivots?limit=1000"))
        note("GET /v1/pivots?open=true", lambda: client("GET", "/v1/pivots?open=true"))
        note("GET /v1/pivots?limit=0&total=true", lambda: client("GET", "/v1/pivots?limit=0&total=true"))
        note("GET /v1/pivots?since= (the last day)", lambda: client("GET", f"/v1/pivots?since={LAST_DAY}"))
        note("GET /v1/pivots?outcome=unknown, one page", lambda: client("GET", "/v1/pivots?outcome=unknown"))
        note("GET /v1/pivots?id= (the beginning of one)", lambda: client("GET", f"/v1/pivots?id={BEGINNING}"))
        note("GET /v1/events?tail=true&event=unknown, one page", lambda: client("GET", LAST_UNKNOWN))
        peak = max(peak, peak_mb(long.pid))
        long.kill()
        empty.kill()
        note("pivotctl --offline verdict D DISK, daemon killed", lambda: ctl("--offline", long.state_dir, *disk))
        note("pivotctl --offline verdict, all disks", lambda: ctl("--offline", long.state_dir, "verdict"))
    return found, peak


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure what a long history costs.")
    parser.add_argument("--pivots", type=int, default=1_000_000)
    parser.add_argument("--disks", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--state-dir", type=Path, help="keep the long journal here, or take the one that is here")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="pb", dir="/var/tmp") as name:
        directories = [Path(name) / kind for kind in ("long", "empty")]
        for directory in directories:
            directory.mkdir()
        long, empty = (Daemon(directory, {}) for directory in directories)
        if options.state_dir is not None:
            shutil.rmtree(long.state_dir)
            options.state_dir.mkdir(exist_ok=True)
            long.state_dir.symlink_to(options.state_dir.absolute())
        if not (long.state_dir / "journal.db").exists():
            fill(long.state_dir, options.pivots, options.disks)
        found, peak = measure(long, empty, options.rounds)
        size_mb = (long.state_dir / "journal.db").stat().st_size / 1e6
    print(f"{options.pivots} pivots, {options.disks} disks, {size_mb:.0f} MB{'':<16}median ms{'max ms':>10}")
    for kind, values in found.items():
        print(f"{kind:<50}{statistics.median(values):>10.0f}{max(values):>10.0f}")
    ratios = [a / b for a, b in zip(*(found[kind] for kind in STARTS), strict=True)]
    print(f"start, ratio round by round{'':<23}{statistics.median(ratios):>10.2f}{max(ratios):>10.2f}")
    print(f"peak memory of pivotd: {peak:.0f} MB")


if __name__ == "__main__":
    main()
