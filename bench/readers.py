"""What readers cost a guest and an operator: pauses and cancels without readers and with many, in turn, in one run.

python -m bench.readers [--rounds 30] [--readers 60] [--pivots 1000] [--json]

Each reader asks again as soon as it has its answer, but for the streams. They share one process: what they take from
the two processors themselves is in the figures.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import statistics
import time
from contextlib import suppress
from multiprocessing.synchronize import Event
from pathlib import Path

from bench.journal_rows import fill
from bench.pause import Client, percentile, pivot
from bench.qmp import Bed
from tests.support.daemon import Daemon

TARGETS = (
    "/v1/pivots",
    "/v1/pivots?limit=1000",
    "/v1/verdicts",
    "/v1/verdicts?domain=bench",
    "/v1/events?limit=1000",
    "/v1/events",  # as a stream
    "/v1/pivots/01H00000000000000000000007",
    "/v1/domains",
    "/v1/health",
    "/metrics",
    "/v1/domains/bench/disks",
)
STREAM = TARGETS.index("/v1/events")
SETTLE_S = 1.0


async def _read(socket: Path, target: str, *, stream: bool) -> None:
    """Ask for ever, over one connection."""
    reader, writer = await asyncio.open_unix_connection(socket)
    accept = "text/event-stream" if stream else "application/json"
    request = f"GET {target} HTTP/1.1\r\nHost: x\r\nAccept: {accept}\r\n\r\n".encode()
    try:
        while True:
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200"), head
            while stream and await reader.read(1 << 16):
                pass
            length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r")[0])
            await reader.readexactly(length)
    finally:
        writer.close()


def _readers(socket: Path, number: int, go: Event, stop: Event) -> None:
    """Read while ``go`` is set, until ``stop`` is."""

    async def run() -> None:
        tasks: list[asyncio.Task[None]] = []
        while not stop.is_set():
            await asyncio.sleep(0.02)
            if go.is_set() and not tasks:
                kinds = [index % len(TARGETS) for index in range(number)]
                tasks = [asyncio.create_task(_read(socket, TARGETS[k], stream=k == STREAM)) for k in kinds]
            elif not go.is_set() and tasks:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                tasks = []
            for task in tasks:
                if task.done():
                    task.result()

    with suppress(KeyboardInterrupt):
        asyncio.run(run())


def cancel_ms(client: Client, bed: Bed, name: str) -> float:
    """Return how long it takes until a cancel of a pivot that waits at ready is answered."""
    image = bed.qemu.directory / f"{name}.qcow2"
    body = {"disks": [{"disk": "disk0", "image": str(image), "format": "qcow2"}], "pivot": False}
    started = client("POST", "/v1/domains/bench/copy", body)
    client("GET", f"/v1/pivots/{started['id']}/wait?timeout_s=60")
    began_s = time.monotonic()
    answer = client("POST", f"/v1/pivots/{started['id']}/cancel")
    took_ms = 1000 * (time.monotonic() - began_s)
    assert answer["phase"] in {"cancelling", "decided", "closed"}, answer
    client("GET", f"/v1/pivots/{started['id']}/wait?timeout_s=60")
    image.unlink()
    return took_ms


def measure(rounds: int, readers: int, pivots: int) -> dict[str, list[float]]:
    """Return pauses and cancels in milliseconds, quiet and with readers."""
    found: dict[str, list[float]] = {f"{what} {how}": [] for what in ("pause", "cancel") for how in ("quiet", "read")}
    with Bed.started() as bed:
        daemon = Daemon(bed.qemu.directory, {"bench": bed.qemu.qmp})
        fill(daemon.state_dir, pivots, disks=20)
        go, stop = multiprocessing.Event(), multiprocessing.Event()
        with daemon:
            client = Client(daemon.socket)
            load = multiprocessing.Process(target=_readers, args=(daemon.socket, readers, go, stop), daemon=True)
            load.start()
            try:
                for number in range(rounds + 1):
                    for how in ("quiet", "read"):
                        go.set() if how == "read" else go.clear()
                        time.sleep(SETTLE_S)
                        found[f"pause {how}"].append(pivot(client, bed, f"p{number}{how}"))
                        found[f"cancel {how}"].append(cancel_ms(client, bed, f"c{number}{how}"))
                        assert load.is_alive(), "a reader was refused"
            finally:
                stop.set()
                load.join()
    return {kind: values[1:] for kind, values in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure what readers cost a guest in its pause, and a cancel.")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--readers", type=int, default=60)
    parser.add_argument("--pivots", type=int, default=1000, help="in the journal")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found = measure(options.rounds, options.readers, options.pivots)
    table = {k: (statistics.median(v), percentile(v, 99), max(v)) for k, v in found.items()}
    if options.json:
        print(json.dumps(table))
        return
    print(f"{options.readers} readers{'':<6}{'median ms':>10}{'p99 ms':>10}   n={options.rounds}")
    for name, (median, p99, _) in table.items():
        print(f"{name:<16}{median:>10.2f}{p99:>10.2f}")
    for what in ("pause", "cancel"):
        quiet, read = table[f"{what} quiet"], table[f"{what} read"]
        print(f"{what} read/quiet{'':<{6 - len(what) + 1}}{read[0] / quiet[0]:>8.2f}x{read[1] / quiet[1]:>9.2f}x")


if __name__ == "__main__":
    main()
