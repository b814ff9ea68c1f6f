"""How long a pause has to be: baseline.c against a QEMU without guest work, n fresh mirrors one after the other.

python -m bench.pause_baseline [--rounds 30] [--json]
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import tempfile
from pathlib import Path

from bench.qmp import Guest

SOURCE = Path(__file__).with_name("baseline.c")

Times = dict[str, float]
"""Step -> milliseconds, one pivot; ``total_ms`` is the pause."""


def compile_baseline(directory: Path) -> Path:
    """Compile baseline.c and return the program."""
    program = directory / "baseline"
    subprocess.run(["gcc", "-O2", "-Wall", "-Wextra", "-Werror", "-o", program, SOURCE], check=True)
    return program


def pivot(program: Path, guest: Guest, job: str) -> Times:
    """Mirror the disk, let the program switch it, and return its times."""
    guest.mirror(job)
    run = subprocess.run([program, guest.monitor, job], check=True, stdout=subprocess.PIPE)
    before = guest.node
    guest.clean_up(job)
    if guest.node == before:
        raise RuntimeError(f"{job}: the disk did not switch")
    times: Times = json.loads(run.stdout)
    return times


def measure(rounds: int) -> list[Times]:
    """Return the times of so many pivots, after one that is not counted."""
    with tempfile.TemporaryDirectory() as name, Guest.started() as guest:
        program = compile_baseline(Path(name))
        return [pivot(program, guest, f"m{number}") for number in range(rounds + 1)][1:]


def percentile(values: list[float], percent: float) -> float:
    """Return the nearest-rank percentile; the 99th of 30 values is the greatest."""
    return sorted(values)[max(0, math.ceil(len(values) * percent / 100) - 1)]


def summary(samples: list[Times]) -> dict[str, Times]:
    """Return median, p99 and least of each step."""
    columns = {step: [sample[step] for sample in samples] for step in samples[0]}
    return {
        step: {"median": statistics.median(values), "p99": percentile(values, 99), "min": min(values)}
        for step, values in columns.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure QEMU's own share of a pause.")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    result = summary(measure(options.rounds))
    if options.json:
        print(json.dumps({"rounds": options.rounds, "ms": result}))
        return
    print(f"{'step':<16}{'median ms':>10}{'p99 ms':>10}{'min ms':>10}   n={options.rounds}")
    for step, figures in result.items():
        print(
            f"{step.removesuffix('_ms'):<16}" + "".join(f"{figures[name]:>10.3f}" for name in ("median", "p99", "min"))
        )


if __name__ == "__main__":
    main()
