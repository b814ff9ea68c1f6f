"""What a fleet costs a guest: pauses with [fleet] and without, in turn, beside one transaction of the same etcd.

python -m bench.fleet_pause [--rounds 40] [--starts 9] [--json]

Two idle guests with a disk each, one for each pivotd; etcd has three nodes on loopback. The transaction is what tells
the fleet an outcome: it compares a revision, writes owner and disk and removes the intent, over an open connection.
Also: from the start of pivotd until it is ready, with and without [fleet].
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from bench.pause import Client, percentile, pivot
from bench.qmp import Bed
from pivotd.config import Fleet
from pivotd.core.fleet import FleetView
from pivotd.fleet.store import EtcdFleet
from tests.chaos.process import journal
from tests.fleet.etcd import Cluster
from tests.fleet.etcds import missing
from tests.fleet.views import announced, claimed, published
from tests.support.daemon import Daemon

BOUND = 1.3
"""How many transactions the fleet may cost in the median of the pauses."""
TIMEOUT_S = 60.0


def fleet_of(cluster: Cluster, host: str) -> str:
    """Return a pivotd's configuration."""
    return f'[fleet]\nendpoints = {json.dumps(list(cluster.urls))}\nhost = "{host}"\nprefix = "/{host}/"\n'


class Transactions:
    """One client of etcd that tells outcomes of a domain of its own."""

    def __init__(self, cluster: Cluster) -> None:
        self._fleet = EtcdFleet(Fleet(cluster.urls, host="bench", prefix="/bench/"))
        self._loop = asyncio.new_event_loop()
        self._view = self._write(FleetView("bench"), claimed(FleetView("bench")))

    def tell(self, pivot: str) -> float:
        """Announce a pivot, and tell its outcome; return the milliseconds of the latter."""
        self._view = self._write(self._view, announced(self._view, pivot))
        began_s = time.perf_counter()
        self._view = self._write(self._view, published(self._view))
        return 1000 * (time.perf_counter() - began_s)

    def _write(self, before: FleetView, after: FleetView) -> FleetView:
        return self._loop.run_until_complete(self._fleet.write(before, after, TIMEOUT_S))

    def close(self) -> None:
        """Close the connection."""

        async def close() -> None:
            self._fleet.close()

        self._loop.run_until_complete(close())
        self._loop.close()


def pauses(cluster: Cluster, rounds: int) -> dict[str, list[float]]:
    """Return milliseconds, round by round, after one round that is not counted."""
    found: dict[str, list[float]] = {"off": [], "on": [], "fleet's part": [], "transaction": []}
    with ExitStack() as stack:
        client = {}
        beds = {how: stack.enter_context(Bed.started()) for how in ("off", "on")}
        for how, bed in beds.items():
            configuration = fleet_of(cluster, "h1") if how == "on" else ""
            daemon = Daemon(bed.qemu.directory, {"bench": bed.qemu.qmp}, configuration=configuration)
            state_dir = daemon.state_dir  # in the end that of the host in the fleet
            client[how] = Client(stack.enter_context(daemon).socket)
        transactions = Transactions(cluster)
        stack.callback(transactions.close)
        for number in range(rounds + 1):
            for how in ("off", "on") if number % 2 else ("on", "off"):
                found[how].append(pivot(client[how], beds[how], f"p{number}"))
            found["fleet's part"].append(journal(state_dir)[0].pauses[-1].fleet_ms or 0.0)
            found["transaction"].append(transactions.tell(f"{number:05}"))
    return {name: values[1:] for name, values in found.items()}


def starts(cluster: Cluster, count: int) -> dict[str, list[float]]:
    """Return milliseconds until pivotd answers, without a domain."""
    found: dict[str, list[float]] = {"start, off": [], "start, on": []}
    with tempfile.TemporaryDirectory() as name:
        daemons = {}
        for how, configuration in (("off", ""), ("on", fleet_of(cluster, "h2"))):
            directory = Path(name) / how
            directory.mkdir()
            daemons[how] = Daemon(directory, {}, configuration=configuration)
        for _ in range(count + 1):
            for how, daemon in daemons.items():
                began_s = time.monotonic()
                daemon.start()
                found[f"start, {how}"].append(1000 * (time.monotonic() - began_s))
                daemon.kill()
    return {name: values[1:] for name, values in found.items()}


def report(found: dict[str, list[float]]) -> dict[str, float]:
    """Print a table; return the medians, and how many transactions the fleet costs."""
    medians = {name: statistics.median(values) for name, values in found.items()}
    print(f"{'':<16}{'median ms':>10}{'p99 ms':>10}{'min ms':>10}")
    for name, values in found.items():
        print(f"  {name:<14}{medians[name]:>10.2f}{percentile(values, 99):>10.2f}{min(values):>10.2f}")
    each = [(on - off) / one for on, off, one in zip(found["on"], found["off"], found["transaction"], strict=True)]
    medians["ratio"] = statistics.median(each)
    of_medians = (medians["on"] - medians["off"]) / medians["transaction"]
    of_least = (min(found["on"]) - min(found["off"])) / min(found["transaction"])
    print(
        f"  the fleet costs {medians['ratio']:.2f} transactions (median of the rounds), "
        f"{of_medians:.2f} (of the medians), {of_least:.2f} (of the least); at most {BOUND}"
    )
    print(f"  a start with [fleet] takes {medians['start, on'] / medians['start, off']:.2f} of one without", flush=True)
    return medians


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Measure what a fleet costs in a pause, beside a transaction of etcd.")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--starts", type=int, default=9)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    if why := missing():
        raise SystemExit(f"bench: {why}")
    with tempfile.TemporaryDirectory() as name, Cluster(Path(name)) as cluster:
        print(f"pauses in a fleet: {options.rounds} rounds, load {os.getloadavg()[0]:.1f}")
        medians = report(pauses(cluster, options.rounds) | starts(cluster, options.starts))
        if options.json:
            print(json.dumps(medians))


if __name__ == "__main__":
    main()
