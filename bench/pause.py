"""How long pivotd pauses a guest, beside the least a program can do: both in turn on one QEMU, ratio by ratio.

python -m bench.pause [--scene idle] [--rounds 30] [--dirty-mib 750] [--json]

The floor is baseline.c: the same commands, no journal, no checks. The scenes: an idle guest with one disk, one with
four, and a Linux guest that writes as fast as it can and flushes (both copy write-blocking then). With ``--dirty-mib``
the image of an idle guest is cached by the host, and right before each pause so much is written to the disk without a
flush: ``stop`` and the mirror's completion then write it all inside the pause, unless somebody flushes before.
"""

from __future__ import annotations

import argparse
import http.client
import json
import math
import os
import socket
import statistics
import subprocess
import tempfile
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from bench.qmp import Bed
from tests.support.daemon import Daemon
from tests.support.guest import Guest
from tests.support.guest_assets import build

SOURCE = Path(__file__).with_name("baseline.c")
CLOSE_TIMEOUT_S = 120
DISK_MIB = 64
BOUNDS = {"idle": "1.7 x the floor", "busy": "6 ms", "four disks": "18 ms"}
"""What the median of pivotd's pauses may be in each scene."""

Times = dict[str, float]
"""What was measured -> milliseconds, or a ratio."""


def compile_baseline(directory: Path) -> Path:
    """Compile baseline.c and return the program."""
    program = directory / "baseline"
    subprocess.run(["gcc", "-O2", "-Wall", "-Wextra", "-Werror", "-o", program, SOURCE], check=True)
    return program


def bare_pivot(program: Path, bed: Bed, name: str, dirty_mib: int) -> float:
    """Mirror the disks and let the program switch them; return the pause in milliseconds."""
    before, jobs = bed.roots, bed.mirror(name)
    bed.dirty(dirty_mib)
    run = subprocess.run([program, bed.monitor, *jobs], check=True, stdout=subprocess.PIPE)
    bed.clean_up(jobs, before)
    return float(json.loads(run.stdout)["total_ms"])


class Client:
    """A few requests to a daemon, one connection each."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __call__(self, method: str, target: str, body: Any = None) -> Any:
        connection = http.client.HTTPConnection("localhost", timeout=CLOSE_TIMEOUT_S + 5)
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.connect(str(self._path))
        headers = {"Content-Type": "application/json"}
        connection.request(method, target, None if body is None else json.dumps(body), headers)
        answer = json.loads(connection.getresponse().read())
        connection.close()
        return answer


def pivot(client: Client, bed: Bed, name: str, dirty_mib: int = 0) -> float:
    """Let pivotd copy the disks and switch them; return the pause in milliseconds."""
    before = bed.roots
    for disk, root in before.items():
        # The floor has moved it since, without pivotd; before the first pivot there is nothing to accept.
        accepted = {"image": root.filename, "format": "qcow2", "reason": "moved by the floor"}
        client("POST", f"/v1/domains/bench/disks/{disk}/accept", accepted)
    disks = [
        {"disk": disk, "image": str(bed.qemu.directory / f"{name}-{disk}.qcow2"), "format": "qcow2"} for disk in before
    ]
    body = {"disks": disks, "pivot": not dirty_mib, "copy_mode": bed.copy_mode}
    started = client("POST", "/v1/domains/bench/copy", body)
    if "id" not in started:
        raise RuntimeError(f"the copy was refused: {started}")
    wait = f"/v1/pivots/{started['id']}/wait?timeout_s={CLOSE_TIMEOUT_S}"
    ended = client("GET", wait)
    if dirty_mib:
        bed.dirty(dirty_mib)
        client("POST", f"/v1/pivots/{started['id']}/complete")
        ended = client("GET", wait)
    if ended["outcome"] != "switched":
        raise RuntimeError(f"{name}: {ended['outcome']}: {ended['error']}")
    bed.moved(before)
    return float(ended["pause_ms"])


def bed_of(scene: str, dirty_mib: int) -> AbstractContextManager[Bed]:
    """Return the QEMU of a scene, not yet started."""
    match scene:
        case "busy":
            return Bed.started(guest=Guest(build(), write="both"))
        case "four disks":
            return Bed.started(disks=4)
    return Bed.started(size_mib=max(DISK_MIB, dirty_mib), cached=dirty_mib > 0)


def measure(scene: str, rounds: int, dirty_mib: int = 0) -> dict[str, list[float]]:
    """Return the pauses of so many rounds, after one that is not counted: those of the floor, and pivotd's."""
    pauses: dict[str, list[float]] = {"floor": [], "pivotd": []}
    with (
        tempfile.TemporaryDirectory() as name,
        bed_of(scene, dirty_mib) as bed,
        Daemon(bed.qemu.directory, {"bench": bed.qemu.qmp}) as daemon,
    ):
        program = compile_baseline(Path(name))
        client = Client(daemon.socket)
        for number in range(rounds + 1):
            pauses["floor"].append(bare_pivot(program, bed, f"m{number}", dirty_mib))
            pauses["pivotd"].append(pivot(client, bed, f"p{number}", dirty_mib))
    return {kind: values[1:] for kind, values in pauses.items()}


def percentile(values: list[float], percent: float) -> float:
    """Return the nearest-rank percentile; the 99th of 30 values is the greatest."""
    return sorted(values)[max(0, math.ceil(len(values) * percent / 100) - 1)]


def table(pauses: dict[str, list[float]]) -> dict[str, Times]:
    """Return median, p99 and least of each column, and of the ratio round by round."""
    ratios = [ours / floor for ours, floor in zip(pauses["pivotd"], pauses["floor"], strict=True)]
    columns = {**pauses, "pivotd/floor": ratios}
    return {
        name: {"median": statistics.median(values), "p99": percentile(values, 99), "min": min(values)}
        for name, values in columns.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure pivotd's pause beside QEMU's own share of it.")
    parser.add_argument("--scene", action="append", choices=list(BOUNDS), help="default: all")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--dirty-mib", type=int, default=0, help="unwritten page cache behind the image; scene idle")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    scenes = options.scene or (["idle"] if options.dirty_mib else list(BOUNDS))
    for scene in scenes:
        result = table(measure(scene, options.rounds, options.dirty_mib))
        if options.json:
            print(json.dumps({"scene": scene, "rounds": options.rounds, "dirty_mib": options.dirty_mib, "ms": result}))
            continue
        bound = f"; pivotd: at most {BOUNDS[scene]}" if not options.dirty_mib else ""
        print(f"{scene}: {options.rounds} rounds, load {os.getloadavg()[0]:.1f}{bound}")
        print(f"{'':<16}" + "".join(f"{word:>10}" for word in ("median ms", "p99 ms", "min ms")))
        for name, figures in result.items():
            print(f"  {name:<14}" + "".join(f"{figures[key]:>10.3f}" for key in ("median", "p99", "min")), flush=True)


if __name__ == "__main__":
    main()
