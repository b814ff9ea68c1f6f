"""How long pivotd pauses a guest, beside the least a program can do: both in turn on one QEMU, ratio by ratio.

python -m bench.pause [--rounds 30] [--dirty-mib 750] [--json]

The floor is baseline.c: the same commands, no journal, no checks. With ``--dirty-mib`` the images are cached by the
host, and right before each pause so much is written to the disk without a flush: ``stop`` and the mirror's completion
then write it all inside the pause, unless somebody flushes before.
"""

from __future__ import annotations

import argparse
import http.client
import json
import math
import socket
import statistics
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from bench.qmp import DISK, Guest
from tests.support.daemon import Daemon

SOURCE = Path(__file__).with_name("baseline.c")
CLOSE_TIMEOUT_S = 120
DISK_MIB = 64

Times = dict[str, float]
"""Step -> milliseconds, one pivot; ``total_ms`` is the pause."""


def compile_baseline(directory: Path) -> Path:
    """Compile baseline.c and return the program."""
    program = directory / "baseline"
    subprocess.run(["gcc", "-O2", "-Wall", "-Wextra", "-Werror", "-o", program, SOURCE], check=True)
    return program


def bare_pivot(program: Path, guest: Guest, job: str, dirty_mib: int) -> Times:
    """Mirror the disk, let the program switch it, and return its times."""
    guest.mirror(job)
    guest.dirty(dirty_mib)
    run = subprocess.run([program, guest.monitor, job], check=True, stdout=subprocess.PIPE)
    before = guest.node
    guest.clean_up(job)
    if guest.node == before:
        raise RuntimeError(f"{job}: the disk did not switch")
    times: Times = json.loads(run.stdout)
    return times


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


def pivot(client: Client, guest: Guest, name: str, dirty_mib: int = 0) -> float:
    """Let pivotd copy the disk and switch it; return the pause in milliseconds."""
    image = guest.directory / f"{name}.qcow2"
    body = {"disks": [{"disk": DISK, "image": str(image), "format": "qcow2"}], "pivot": not dirty_mib}
    started = client("POST", "/v1/domains/bench/copy", body)
    if "id" not in started:
        raise RuntimeError(f"the copy was refused: {started}")
    wait = f"/v1/pivots/{started['id']}/wait?timeout_s={CLOSE_TIMEOUT_S}"
    ended = client("GET", wait)
    if dirty_mib:
        guest.dirty(dirty_mib)
        client("POST", f"/v1/pivots/{started['id']}/complete")
        ended = client("GET", wait)
    if ended["outcome"] != "switched":
        raise RuntimeError(f"{name}: {ended['outcome']}: {ended['error']}")
    guest.moved_to(image)
    return float(ended["pause_ms"])


def measure(rounds: int, dirty_mib: int) -> dict[str, list[float]]:
    """Return the pauses of so many rounds, after one that is not counted: floor, pivotd, and floor without cache."""
    pauses: dict[str, list[float]] = {"floor": [], "pivotd": []}
    size_mib = max(DISK_MIB, dirty_mib)
    with (
        tempfile.TemporaryDirectory() as name,
        Guest.started(size_mib=size_mib, cached=dirty_mib > 0) as guest,
        Daemon(guest.directory, {"bench": guest.pivotd}) as daemon,
    ):
        program = compile_baseline(Path(name))
        client = Client(daemon.socket)
        for number in range(rounds + 1):
            pauses["floor"].append(bare_pivot(program, guest, f"m{number}", dirty_mib)["total_ms"])
            pauses["pivotd"].append(pivot(client, guest, f"p{number}", dirty_mib))
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
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--dirty-mib", type=int, default=0, help="unwritten page cache behind the images")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    result = table(measure(options.rounds, options.dirty_mib))
    if options.json:
        print(json.dumps({"rounds": options.rounds, "dirty_mib": options.dirty_mib, "ms": result}))
        return
    print(f"{'pause':<16}{'median ms':>10}{'p99 ms':>10}{'min ms':>10}   n={options.rounds}")
    for name, figures in result.items():
        print(f"{name:<16}" + "".join(f"{figures[key]:>10.3f}" for key in ("median", "p99", "min")))


if __name__ == "__main__":
    main()
